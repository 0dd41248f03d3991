"""The graph of a prompt on our kernels: dense products are MLX's, attention, routing and experts ours.

Positions of all sequences lie one behind the other, [B * L, ...]. The last layer finishes the last positions only; up
to 8 of them go through the decode kernels, which read no more experts than are chosen.
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from mlx_gptoss.cache import FullLayerCache, LayerCache, SequenceCache
from mlx_gptoss.fused_decode import DecodeGraph
from mlx_gptoss.kernels import prefill_attention as pa
from mlx_gptoss.kernels import prefill_moe as pm
from mlx_gptoss.kernels import prefill_qkv as pq
from mlx_gptoss.kernels import prefill_routing as pr
from mlx_gptoss.kernels.layout import HEAD_DIM, MAX_BATCH
from mlx_gptoss.kernels.prefill_tuning import prefill_tuning_for
from mlx_gptoss.layer import TransformerLayer
from mlx_gptoss.linear import look_up, project
from mlx_gptoss.model import GptOssModel
from mlx_gptoss.stand_ins import prefill_attention_stand_in
from mlx_gptoss.weights import LayerWeights, Linear


class PrefillGraph:
    """Takes prompts into caches, at most `chunk` positions at a time.

    `stock` has the dense weights in the dtypes they are used in, `decoder` the kernels for few positions.
    """

    def __init__(self, stock: GptOssModel, decoder: DecodeGraph, chunk: int) -> None:
        self.config = decoder.config
        self.chunk = chunk
        self._stock = stock
        self._decoder = decoder
        self._board = decoder.board
        self._tuning = prefill_tuning_for(decoder.board.backend.family)
        self._attend = self._board.choose(pa.ATTENTION, pa.prefill_attention, prefill_attention_stand_in)

    def run(self, ids: mx.array, cache: SequenceCache, need_logits: bool) -> mx.array | None:
        """As `FusedModel.prefill`, of checked ids [B, L]."""
        length = ids.shape[1]
        last = (length - 1) // self.chunk * self.chunk
        for start in range(0, last, self.chunk):
            self._forward(ids[:, start : start + self.chunk], cache, need_last=False)
            mx.eval(cache.arrays())
        hidden = self._forward(ids[:, last:], cache, need_last=need_logits)
        if hidden is None:
            return None
        return (
            self._decoder.logits(hidden) if hidden.shape[0] <= MAX_BATCH else self._stock.logits(hidden[:, None])[:, 0]
        )

    def _forward(self, ids: mx.array, cache: SequenceCache, *, need_last: bool) -> mx.array | None:
        """The residual stream [B, H] of the last position after the last layer, float32, if it is needed."""
        weights = self._decoder.weights
        batch, length = ids.shape
        x = look_up(weights.embed, ids.reshape(-1), mx.float32)
        rope = self._rope(cache.offset, length, batch)
        final = self.config.num_layers - 1
        for index, (layer, parts) in enumerate(zip(self._stock.layers, weights.layers, strict=True)):
            q, k, v = self._qkv(x, layer, rope, batch)
            if index < final:
                x = self._finish(x, self._attention(q, k, v, layer, cache.layers[index], cache.offset), layer, parts)
                continue
            if need_last:
                a = self._attention(q[:, -1:], k, v, layer, cache.layers[index], cache.offset)
                x = self._finish(x.reshape(batch, length, -1)[:, -1], a, layer, parts)
            else:
                layer.store(k, v, cache.layers[index], cache.offset)
        cache.advance(length)
        return x if need_last else None

    def _rope(self, offset: int, length: int, batch: int) -> mx.array:
        """float32 [B * L, 64]: cosines and sines of the positions."""
        rope = mx.concatenate([*self._stock.rope.span(offset, length)], axis=-1)
        return rope if batch == 1 else mx.tile(rope, (batch, 1))

    def _qkv(
        self, x: mx.array, layer: TransformerLayer, rope: mx.array, batch: int
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Queries [B, L, heads, 64], keys and values [B, kv_heads, L, 64] in the model's dtype."""
        config, linear = self.config, layer.qkv_proj
        normed = mx.fast.rms_norm(x, layer.attn_norm, config.rms_norm_eps)
        y = project(normed.astype(self._input(layer, linear)), replace(linear, bias=None)).astype(layer.dtype)
        bias = mx.zeros((linear.rows,), dtype=layer.dtype) if linear.bias is None else linear.bias
        q, k, v = pq.prefill_rope(
            y,
            bias,
            rope,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            backend=self._board.backend_for(pq.ROPE),
            tuning=self._tuning,
        )
        shape = (config.num_kv_heads, batch, -1, HEAD_DIM)
        return (
            q.reshape(batch, -1, config.num_heads, HEAD_DIM),
            mx.swapaxes(k.reshape(shape), 0, 1),
            mx.swapaxes(v.reshape(shape), 0, 1),
        )

    def _attention(
        self, q: mx.array, k: mx.array, v: mx.array, layer: TransformerLayer, cache: LayerCache, offset: int
    ) -> mx.array:
        """Stores k and v at `offset` and attends for the queries of the last positions: [B * Lq, heads * 64]."""
        length = k.shape[2]
        if isinstance(cache, FullLayerCache):
            cache.append(k, v)
            keys, values, before, window = cache.main_k, cache.main_v, offset, None
        else:
            before_k, before_v = cache.previous(offset)
            cache.append(k, v, offset)
            before, window = before_k.shape[2], cache.window
            keys = mx.concatenate([before_k, k], axis=2) if before else k
            values = mx.concatenate([before_v, v], axis=2) if before else v
        at = before + length - q.shape[1]
        a = self._attend(q, keys, values, layer.sinks, offset=at, window=window, backend=self._board.backend)
        return a.reshape(-1, a.shape[-1])

    def _finish(self, x: mx.array, a: mx.array, layer: TransformerLayer, weights: LayerWeights) -> mx.array:
        """Output projection, experts and both residuals: x [R, H] float32 and attention a [R, heads * 64]."""
        if x.shape[0] <= MAX_BATCH:
            return self._decoder.finish(x, a.astype(mx.float32), weights)
        board, tuning = self._board, self._tuning
        x = x + project(a.astype(self._input(layer, layer.out_proj)), layer.out_proj)
        normed = mx.fast.rms_norm(x, layer.mlp_norm, self.config.rms_norm_eps)
        picks, shares = pr.prefill_topk(
            project(normed, layer.router),
            top_k=self.config.experts_per_token,
            backend=board.backend_for(pr.TOPK),
            tuning=tuning,
        )
        routing = pr.prefill_sort(
            picks, shares, experts=self.config.num_experts, backend=board.backend_for(pr.SORT), tuning=tuning
        )
        h = pm.prefill_moe_gate_up(
            normed.astype(layer.dtype),
            weights.gate_up,
            routing,
            self._decoder.params,
            backend=board.backend_for(pm.GATE_UP),
            tuning=tuning,
        )
        y = pm.prefill_moe_down(h, weights.down, routing, backend=board.backend_for(pm.DOWN), tuning=tuning)
        return pm.prefill_moe_sum(y, routing, x, backend=board.backend_for(pm.SUM), tuning=tuning)

    def _input(self, layer: TransformerLayer, linear: Linear) -> mx.Dtype:
        """What activations become to meet a matrix."""
        return layer.packed_dtype if linear.quantized else layer.dtype
