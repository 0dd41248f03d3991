"""mlx-lm beside us: its own model class, over the same weights, driven the way its own generation loop drives it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from mlx_gptoss.bench.cost import StoredBytes
from mlx_gptoss.bench.random_weights import RandomWeights
from mlx_gptoss.bench.spec import BenchSpec, EngineName
from mlx_gptoss.bench.subject import Step, config_of
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.weights import Experts, LayerWeights, Linear

PREFILL_CHUNK = 2048
"""mlx-lm's own prefill step size."""

Named = dict[str, mx.array]


def peer_installed() -> bool:
    """Whether mlx-lm can be imported."""
    return importlib.util.find_spec("mlx_lm") is not None


def check_peer() -> None:
    """Raises InvalidRequestError when mlx-lm is not installed."""
    if not peer_installed():
        raise InvalidRequestError(
            "mlx-lm is not installed here", param="vs", hint="Install it with `pip install 'mlx-gptoss[bench]'`."
        )


def load_peer(spec: BenchSpec) -> PeerSubject:
    """mlx-lm's gpt-oss over the spec's weights. Raises as `check_peer` does."""
    check_peer()
    from mlx_lm.models import gpt_oss

    config = config_of(spec)
    model = gpt_oss.Model(gpt_oss.ModelArgs.from_dict(config.to_dict()))
    formats: dict[str, dict[str, Any]] = {}
    sizes: list[StoredBytes] = []
    for named in _parts(spec, config, formats, sizes):
        # Each module is made packed before its arrays arrive, and its own initial values are never computed.
        _quantize(model, formats, named)
        model.load_weights(list(named.items()), strict=False)
        mx.eval(list(named.values()))
    model.eval()
    return PeerSubject(model, config, sizes[-1])


class PeerSubject:
    """mlx-lm's model."""

    engine: EngineName = "mlx-lm"
    backend = "stock"

    def __init__(self, model: Any, config: ModelConfig, stored: StoredBytes) -> None:
        self.model = model
        self.config = config
        self.stored = stored

    def prefill(self, token_ids: mx.array) -> None:
        caches = self.model.make_cache()
        rest = token_ids
        while rest.shape[1] > 1:
            count = min(PREFILL_CHUNK, rest.shape[1] - 1)
            self.model(rest[:, :count], cache=caches)
            mx.eval([cache.state for cache in caches])
            rest = rest[:, count:]
        mx.eval(self.model(rest, cache=caches)[:, -1])

    def decoder(self, context: int, batch: int, steps: int) -> Step:
        caches = self.model.make_cache()
        heads, dim = self.config.num_kv_heads, self.config.head_dim
        for index, cache in enumerate(caches):
            length = min(context, self.config.sliding_window) if self.config.is_sliding(index) else context
            shape = (batch, heads, length, dim)
            cache.update_and_fetch(
                mx.random.normal(shape, dtype=mx.bfloat16), mx.random.normal(shape, dtype=mx.bfloat16)
            )
            cache.offset = context
            mx.eval(cache.keys, cache.values)

        def step(token_ids: mx.array) -> mx.array:
            return mx.argmax(self.model(token_ids[:, None], cache=caches)[:, -1], axis=-1).astype(mx.int32)

        return step


def _parts(
    spec: BenchSpec, config: ModelConfig, formats: dict[str, dict[str, Any]], sizes: list[StoredBytes]
) -> Iterator[Named]:
    """The model under mlx-lm's names, a layer at a time, so that only one layer is ever held twice. `sizes` gets the
    bytes of each layer, and of the whole at last."""
    drawn, ends = None, None
    if spec.folder is None:
        drawn = RandomWeights(config, spec.precisions, spec.seed)
        layers: Iterator[LayerWeights] = (drawn.layer(index) for index in range(config.num_layers))
    else:
        from mlx_gptoss.loader import load_weights

        ends = load_weights(spec.folder)[1]
        layers = iter(ends.layers)
    for index, layer in enumerate(layers):
        sizes.append(StoredBytes.of_layer(layer))
        yield _layer(config, layer, f"model.layers.{index}", formats)
    if ends is not None:
        embed, norm, head = ends.embed, ends.norm, ends.head
    elif drawn is not None:
        embed, norm, head = drawn.embed(), drawn.norm(), drawn.head()
    sizes.append(StoredBytes.of_parts(sizes, head))
    named = _linear(embed, "model.embed_tokens", formats) | _linear(head, "lm_head", formats)
    yield named | {"model.norm.weight": norm}


def _layer(config: ModelConfig, layer: LayerWeights, prefix: str, formats: dict[str, dict[str, Any]]) -> Named:
    named = {
        f"{prefix}.input_layernorm.weight": layer.attn_norm,
        f"{prefix}.post_attention_layernorm.weight": layer.mlp_norm,
        f"{prefix}.self_attn.sinks": layer.sinks,
    }
    ends = (config.q_size, config.q_size + config.kv_size, config.qkv_size)
    for part, start, end in zip("qkv", (0, *ends), ends, strict=False):
        named |= _linear(_rows(layer.qkv, slice(start, end)), f"{prefix}.self_attn.{part}_proj", formats)
    named |= _linear(layer.out, f"{prefix}.self_attn.o_proj", formats)
    named |= _linear(layer.router, f"{prefix}.mlp.router", formats)
    experts = f"{prefix}.mlp.experts"
    named |= _experts(layer.gate_up, slice(0, None, 2), f"{experts}.gate_proj", formats)
    named |= _experts(layer.gate_up, slice(1, None, 2), f"{experts}.up_proj", formats)
    return named | _experts(layer.down, slice(None), f"{experts}.down_proj", formats)


def _rows(linear: Linear, rows: slice) -> Linear:
    def cut(array: mx.array | None) -> mx.array | None:
        return None if array is None else mx.contiguous(array[rows])

    return Linear(
        mx.contiguous(linear.weight[rows]), cut(linear.bias), cut(linear.scales), cut(linear.biases),
        linear.format, linear.group_size,
    )  # fmt: skip


def _linear(linear: Linear, name: str, formats: dict[str, dict[str, Any]]) -> Named:
    arrays = {"weight": linear.weight, "bias": linear.bias, "scales": linear.scales, "biases": linear.biases}
    if linear.quantized:
        mode = "affine" if linear.biases is not None else "mxfp8"
        formats[name] = {"group_size": linear.group_size, "bits": linear.bits, "mode": mode}
    return {f"{name}.{part}": array for part, array in arrays.items() if array is not None}


def _experts(experts: Experts, rows: slice, name: str, formats: dict[str, dict[str, Any]]) -> Named:
    named = {f"{name}.bias": mx.contiguous(experts.bias[:, rows])}
    if experts.blocks is not None and experts.scales is not None:
        formats[name] = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        named[f"{name}.weight"] = mx.contiguous(experts.blocks[:, rows])
        named[f"{name}.scales"] = mx.contiguous(experts.scales[:, rows])
    elif experts.weight is not None:
        named[f"{name}.weight"] = mx.contiguous(experts.weight[:, rows])
    return named


def _quantize(model: Any, formats: dict[str, dict[str, Any]], named: Named) -> None:
    # By name: mlx's type stubs do not say that nn exports it.
    quantize: Any = importlib.import_module("mlx.nn").quantize

    here = {name.rsplit(".", 1)[0] for name in named}

    def choice(path: str, module: Any) -> bool | dict[str, Any]:
        return formats.get(path, False) if path in here and hasattr(module, "to_quantized") else False

    quantize(model, class_predicate=choice)
