"""The stock model against implementations that nobody here wrote: logits stored by tests/golden/make_logits.py."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from mlx_gptoss.model import GptOssModel
from tests.golden.cases import Case, cases
from tests.golden.compare import distance
from tests.tiny import random_weights

CASES = {case.name: case for case in cases()}
ORACLES = ("transformers", "openai")
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


@cache
def _golden(name: str, oracle: str) -> npt.NDArray[np.float32]:
    path = Path(__file__).parents[1] / "golden" / "logits.npz"
    with np.load(path, allow_pickle=False) as stored:
        return np.asarray(stored[f"{name}.{oracle}"], dtype=np.float32)


def _run(case: Case, dtype: mx.Dtype, *, dense_experts: bool = False) -> npt.NDArray[np.float32]:
    weights = random_weights(case.config, case.seed, dtype=dtype, dense_experts=dense_experts)
    model = GptOssModel(case.config, weights, dtype)
    return np.array(model(mx.array(case.token_ids)[None])[0])[list(case.positions)]


@cache
def _logits(name: str, dtype: str) -> npt.NDArray[np.float32]:
    return _run(CASES[name], DTYPES[dtype])


@pytest.mark.parametrize("name", CASES)
def test_the_oracles_agree_with_each_other(name: str) -> None:
    assert distance(_golden(name, "transformers"), _golden(name, "openai")).relative < 1e-5


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("name", CASES)
def test_float32_logits(name: str, oracle: str) -> None:
    error = distance(_golden(name, oracle), _logits(name, "float32"))
    assert error.relative < 1e-4
    assert error.flips == 0


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_logits(name: str, oracle: str) -> None:
    error = distance(_golden(name, oracle), _logits(name, "bfloat16"))
    assert error.kl < 1e-3
    assert error.flips == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["odd_experts", "single_expert", "all_experts"])
def test_dense_experts_agree_as_well(name: str, dtype: str) -> None:
    error = distance(_golden(name, "transformers"), _run(CASES[name], DTYPES[dtype], dense_experts=True))
    assert error.relative < (1e-4 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("name", ["odd_experts", "released_ratios"])
def test_the_check_notices_a_rounded_yarn_range(name: str) -> None:
    """YaRN's blend rounded to whole pairs, the classic mistake, must fail the float32 limit clearly."""
    case = CASES[name]
    if case.config.yarn is None:
        pytest.fail("the case needs YaRN")
    wrong = dataclasses.replace(case.config, yarn=dataclasses.replace(case.config.yarn, truncate=True))
    error = distance(_golden(name, "openai"), _run(dataclasses.replace(case, config=wrong), mx.float32))
    assert error.relative > 5e-4


@pytest.mark.parametrize(
    "change", [{"sliding_window": 9}, {"swiglu_limit": 1.0}, {"experts_per_token": 2}, {"rms_norm_eps": 1e-2}]
)
def test_the_check_notices_a_wrong_config(change: dict[str, float]) -> None:
    case = CASES["odd_experts"]
    wrong = dataclasses.replace(case.config, **change)  # type: ignore[arg-type]  # field names by case
    error = distance(_golden(case.name, "openai"), _run(dataclasses.replace(case, config=wrong), mx.float32))
    assert error.relative > 1e-3


def test_the_check_notices_missing_sinks() -> None:
    case = CASES["odd_experts"]
    weights = random_weights(case.config, case.seed, dtype=mx.float32)
    layers = tuple(dataclasses.replace(layer, sinks=layer.sinks - 100) for layer in weights.layers)
    model = GptOssModel(case.config, dataclasses.replace(weights, layers=layers), mx.float32)
    logits = np.array(model(mx.array(case.token_ids)[None])[0])[list(case.positions)]
    assert distance(_golden(case.name, "openai"), logits).relative > 1e-2
