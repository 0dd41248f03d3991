"""On random weights of the released shapes the kernels are no further from float32 than MLX's own operations are (a
median, on a GPU within 5%).

python -m pytest -m slow tests/kernels/test_full_shape.py     # two layers on the shader bench: a minute a model
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_gptoss.bench.random_weights import RandomWeights
from mlx_gptoss.bench.spec import BenchSpec
from mlx_gptoss.bench.subject import config_of
from mlx_gptoss.fused import FusedModel
from mlx_gptoss.kernels.backends import backend_named
from mlx_gptoss.model import GptOssModel
from tests.bench.backend import BenchBackend

STEPS = [7, 300, 12]
PROMPTS = {"bench": 1, "metal": 8, "cuda": 8}
"""A token that goes to another expert puts a step far off, in either path: the median of many steps does not see it."""


def decoded(model: GptOssModel | FusedModel, first: GptOssModel, prompt: list[int]) -> np.ndarray:
    """Logits [3, used vocabulary] of STEPS, decoded after a prompt that `first` took in."""
    cache = first.make_cache()
    first.prefill([prompt], cache)
    steps = [np.array(model.decode(mx.array([token]), [cache]))[0] for token in STEPS]
    return np.stack(steps)[:, : model.config.used_vocab_size]


@pytest.mark.parametrize("name", ["20b", "120b"])
@pytest.mark.parametrize(
    ("device", "layers"),
    [
        pytest.param("bench", 2, marks=pytest.mark.slow),
        pytest.param("metal", 4, marks=pytest.mark.metal),  # fits any Mac; many random layers are chaos
        pytest.param("cuda", 4, marks=pytest.mark.cuda),
    ],
)
def test_decoding_is_as_close_to_float32_as_the_stock_path(device: str, layers: int, name: str) -> None:
    spec = BenchSpec(random=name, layers=layers)
    config = config_of(spec)
    weights = RandomWeights(config, spec.precisions).model()
    prompts = np.random.default_rng(0).integers(0, 199_000, (PROMPTS[device], 20)).tolist()
    exact, stock = (GptOssModel(config, weights, dtype) for dtype in (mx.float32, mx.bfloat16))
    backend = BenchBackend(guard="fast") if device == "bench" else backend_named(device)
    ours = FusedModel(config, weights, backend, mx.bfloat16, stock=stock)

    truth = np.concatenate([decoded(exact, exact, prompt) for prompt in prompts])

    def error(model: GptOssModel | FusedModel) -> float:
        found = np.concatenate([decoded(model, stock, prompt) for prompt in prompts])
        return float(np.median(np.sqrt(np.mean((found - truth) ** 2, axis=1) / np.mean(truth**2, axis=1))))

    ours_error, stock_error = error(ours), error(stock)
    print(f"{device} {name}: relative error of the logits {ours_error:.2e}, stock {stock_error:.2e}")
    assert ours_error <= (1.0 if device == "bench" else 1.05) * stock_error
