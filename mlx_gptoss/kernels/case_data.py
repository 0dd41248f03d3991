"""Random data at a model's shapes, for the cases that kernels are checked with."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.kernels.layout import model_params
from mlx_gptoss.kernels.shapes import Shapes
from mlx_gptoss.weights import Experts, Linear, LinearFormat


def normal(*shape: int, dtype: mx.Dtype = mx.float32, std: float = 1.0) -> mx.array:
    """Normal numbers, evaluated."""
    array = (mx.random.normal(shape) * std).astype(dtype)
    mx.eval(array)
    return array


def linear(rows: int, columns: int) -> Linear:
    """A matrix [rows, columns] in bfloat16, with bias."""
    return Linear(normal(rows, columns, dtype=mx.bfloat16, std=columns**-0.5), normal(rows, dtype=mx.bfloat16, std=0.3))


def packed_linears(rows: int, columns: int) -> tuple[Linear, ...]:
    """One of each kind of format whose products may be added up in halves."""
    plain = linear(rows, columns)
    made = [quantized(plain, "mxfp8", 8, 32, "mxfp8")]
    if columns % 64 == 0:
        made += [quantized(plain, "q8", 8, 64), quantized(plain, "q6", 6, 64), quantized(plain, "q4", 4, 64)]
    mx.eval([one.weight for one in made])
    return tuple(made)


def quantized(plain: Linear, fmt: LinearFormat, bits: int, group: int, mode: str = "affine") -> Linear:
    """`plain` with its matrix quantized."""
    weight, scales, *biases = mx.quantize(plain.weight, group_size=group, bits=bits, mode=mode)
    return Linear(weight, plain.bias, scales, biases[0] if biases else None, fmt, group)


def experts(count: int, rows: int, columns: int) -> Experts:
    """`count` MXFP4 matrices [rows, columns], with bias."""
    blocks = mx.random.randint(-(2**31), 2**31 - 1, (count, rows, columns // 8)).view(mx.uint32)
    scales = mx.random.randint(118, 122, (count, rows, columns // 32)).astype(mx.uint8)
    bias = normal(count, rows, dtype=mx.bfloat16, std=0.3)
    mx.eval(blocks, scales)
    return Experts(bias, blocks=blocks, scales=scales)


def expert_bytes(experts: Experts, used: int) -> int:
    """Bytes of `used` of the experts' matrices."""
    if experts.blocks is None or experts.scales is None:
        return 0
    return (experts.blocks.nbytes + experts.scales.nbytes) * used // experts.num_experts


def params_of(shapes: Shapes) -> mx.array:
    """See `model_params`."""
    return model_params(shapes.eps, shapes.limit, shapes.alpha)
