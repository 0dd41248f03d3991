"""One transformer block in stock MLX operations: attention with its cache, then experts.

The residual stream, norms, router and rotations are float32, as fine as OpenAI's reference or finer; matrix products
run in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx

from mlx_gptoss.attention import attend, attend_causal, attend_window
from mlx_gptoss.cache import FullLayerCache, LayerCache
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.linear import prepare, project
from mlx_gptoss.moe import mix, route
from mlx_gptoss.rope import rotate
from mlx_gptoss.weights import Experts, LayerWeights, Linear, record_arrays


class TransformerLayer:
    """A block ready to run: weights cast once to the dtypes they are used in.

    `dtype` is that of dense products and of the cache, `packed_dtype` that of activations entering packed
    weights and experts.
    """

    def __init__(self, config: ModelConfig, weights: LayerWeights, dtype: mx.Dtype, packed_dtype: mx.Dtype) -> None:
        self.config = config
        self.dtype = dtype
        self.packed_dtype = packed_dtype
        self.attn_norm = weights.attn_norm.astype(mx.float32)
        self.mlp_norm = weights.mlp_norm.astype(mx.float32)
        self.sinks = weights.sinks.astype(dtype)
        self.qkv_proj = self._linear(weights.qkv)
        self.out_proj = self._linear(weights.out)
        self.router = prepare(weights.router, mx.float32)
        self.gate_up = self._experts(weights.gate_up)
        self.down = self._experts(weights.down)

    def _linear(self, linear: Linear) -> Linear:
        return prepare(linear, self.packed_dtype if linear.quantized else self.dtype)

    def _experts(self, experts: Experts) -> Experts:
        # MLX multiplies gathered dense matrices on CPUs in float32 only; those stay as stored and are cast when used.
        weight = experts.weight
        if weight is not None and self.packed_dtype == self.dtype:
            weight = weight.astype(self.dtype)
        return Experts(experts.bias.astype(self.packed_dtype), experts.blocks, experts.scales, weight)

    def arrays(self) -> Iterator[mx.array]:
        """Every array of the layer."""
        yield from (self.attn_norm, self.mlp_norm, self.sinks)
        for record in (self.qkv_proj, self.out_proj, self.router, self.gate_up, self.down):
            yield from record_arrays(record)

    def qkv(self, x: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Rotated queries [B, heads, L, D], rotated keys and values [B, kv_heads, L, D] of x [B, L, H]."""
        config = self.config
        normed = mx.fast.rms_norm(x, self.attn_norm, config.rms_norm_eps)
        y = project(normed.astype(self.packed_dtype if self.qkv_proj.quantized else self.dtype), self.qkv_proj)
        heads = y.reshape(*y.shape[:2], -1, config.head_dim).swapaxes(1, 2)
        rotated = config.num_heads + config.num_kv_heads
        qk = rotate(heads[:, :rotated], cos, sin, self.dtype)
        return qk[:, : config.num_heads], qk[:, config.num_heads :], heads[:, rotated:].astype(self.dtype)

    def store(self, k: mx.array, v: mx.array, cache: LayerCache, offset: int) -> None:
        """Writes keys and values of the positions from `offset` on."""
        if isinstance(cache, FullLayerCache):
            cache.append(k, v)
        else:
            cache.append(k, v, offset)

    def attend(self, q: mx.array, k: mx.array, v: mx.array, cache: LayerCache, offset: int) -> mx.array:
        """Stores k and v [B, kv_heads, L, D] at `offset` and attends: [B, heads, Lq, D].

        q holds the queries of the last Lq of the L positions: all of them, or the last one alone.
        """
        if isinstance(cache, FullLayerCache):
            cache.append(k, v)
            return attend_causal(q, *cache.view(), self.sinks)
        length = k.shape[2]
        if length == 1:
            cache.append(k, v, offset)
            return attend(q, *cache.current(offset + 1), self.sinks)
        before_k, before_v = cache.previous(offset)
        cache.append(k, v, offset)
        window = cache.window
        if q.shape[2] == 1:
            k, v = k[:, :, -window:], v[:, :, -window:]
        if before_k.shape[2]:
            k, v = mx.concatenate([before_k, k], axis=2), mx.concatenate([before_v, v], axis=2)
        if q.shape[2] == 1:
            return attend(q, k[:, :, -window:], v[:, :, -window:], self.sinks)
        return attend_window(q, k, v, self.sinks, window)

    def finish(self, x: mx.array, attention: mx.array) -> mx.array:
        """Output projection, experts and both residuals: x [B, L, H] float32 and attention [B, heads, L, D]."""
        config = self.config
        batch, length, hidden = x.shape
        flat = attention.swapaxes(1, 2).reshape(batch, length, -1)
        x = x + project(flat.astype(self.packed_dtype) if self.out_proj.quantized else flat, self.out_proj)
        normed = mx.fast.rms_norm(x, self.mlp_norm, config.rms_norm_eps).reshape(-1, hidden)
        experts, weights = route(normed, self.router, config.experts_per_token)
        mixed = mix(
            normed.astype(self.packed_dtype),
            experts,
            weights,
            self.gate_up,
            self.down,
            limit=config.swiglu_limit,
            alpha=config.swiglu_alpha,
        )
        return x + mixed.reshape(x.shape)
