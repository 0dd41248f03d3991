"""ModelConfig: the three spellings, and an error that names each missing or impossible value."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_gptoss.config import ModelConfig, YarnConfig
from mlx_gptoss.errors import ConfigError
from tests.tiny import tiny_config

# Facts of the released gpt-oss-20b, as its config.json spells them.
RELEASED: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
OPENAI: dict[str, Any] = {
    "num_hidden_layers": 24,
    "num_experts": 32,
    "experts_per_token": 4,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "swiglu_limit": 7.0,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}


def _without(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != key}


def _transformers_5() -> dict[str, Any]:
    data = _without(_without(RELEASED, "rope_scaling"), "rope_theta")
    data["rope_parameters"] = RELEASED["rope_scaling"] | {"rope_theta": 150000.0}
    return data


def test_released_config() -> None:
    config = ModelConfig.from_dict(RELEASED, "test")
    assert (config.num_layers, config.num_experts, config.experts_per_token) == (24, 32, 4)
    assert (config.q_size, config.kv_size, config.qkv_size) == (4096, 512, 5120)
    assert config.yarn == YarnConfig(32.0, 4096, 32.0, 1.0, truncate=False)
    assert config.yarn.concentration == pytest.approx(1.3465735902799727)
    assert config.eos_ids == (200002,)
    assert config.used_vocab_size == 200_014
    assert [config.is_sliding(layer) for layer in range(4)] == [True, False, True, False]
    config.check_mxfp4("test")


def test_three_spellings_of_one_model() -> None:
    released = ModelConfig.from_dict(RELEASED, "test")
    assert ModelConfig.from_dict(_transformers_5(), "test") == released
    assert ModelConfig.from_dict(OPENAI, "test") == released


def test_transformers_writes_what_we_read() -> None:
    transformers = pytest.importorskip("transformers")
    data = json.loads(transformers.GptOssConfig(**copy.deepcopy(RELEASED)).to_json_string())
    assert "rope_parameters" in data
    assert ModelConfig.from_dict(data, "test") == ModelConfig.from_dict(RELEASED, "test")


def test_from_file_and_folder(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RELEASED))
    assert ModelConfig.from_file(path) == ModelConfig.from_file(tmp_path) == ModelConfig.from_dict(RELEASED, "test")


@pytest.mark.parametrize("key", sorted(set(OPENAI) - {"swiglu_limit"}))
def test_missing_openai_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError):
        ModelConfig.from_dict(_without(OPENAI, key), "test")


REQUIRED = [
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "vocab_size",
]


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` is missing.*here"):
        ModelConfig.from_dict(_without(RELEASED, key), "here")


@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"])
def test_missing_yarn_key_is_named(key: str) -> None:
    data = RELEASED | {"rope_scaling": _without(RELEASED["rope_scaling"], key)}
    with pytest.raises(ConfigError, match=rf"rope_scaling\.{key}` is missing"):
        ModelConfig.from_dict(data, "test")


@pytest.mark.parametrize(
    "value", [0, -1, 2.5, "64", True, float("nan"), float("inf"), [64], 2**31, pytest.param(10**400, id="huge")]
)
@pytest.mark.parametrize("key", ["hidden_size", "num_local_experts", "num_hidden_layers", "sliding_window"])
def test_impossible_size_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` is impossible"):
        ModelConfig.from_dict(RELEASED | {key: value}, "test")


@pytest.mark.parametrize("value", [0, -1e-5, "small", float("nan"), float("inf"), pytest.param(10**400, id="huge")])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "swiglu_limit"])
def test_impossible_number_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` is impossible"):
        ModelConfig.from_dict(RELEASED | {key: value}, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "not a gpt-oss model.*llama"),
        ({"model_type": None}, "not a gpt-oss model"),
        ({"attention_bias": False}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"num_attention_heads": 63}, "num_attention_heads.*multiple.*8"),
        ({"head_dim": 63}, "head_dim.*even"),
        ({"num_experts_per_tok": 33}, "num_experts_per_tok.*32"),
        ({"layer_types": ["full_attention"]}, "layer_types.*24 entries"),
        ({"layer_types": ["linear_attention"] * 24}, "layer_types.*linear_attention"),
        ({"layer_types": "full"}, "layer_types.*list"),
        ({"layer_types": [["full_attention"]] * 24}, "layer_types"),
        ({"eos_token_id": "stop"}, "eos_token_id"),
        ({"eos_token_id": [1, -1]}, "eos_token_id"),
        ({"rope_scaling": [1]}, "rope_scaling.*object"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type.*llama3"),
        ({"rope_scaling": RELEASED["rope_scaling"] | {"mscale": 1.0}}, "mscale.*not supported"),
        ({"rope_scaling": RELEASED["rope_scaling"] | {"truncate": 0}}, "truncate.*impossible"),
        ({"rope_scaling": RELEASED["rope_scaling"] | {"factor": 0.5}}, "factor"),
        ({"rope_scaling": RELEASED["rope_scaling"] | {"beta_fast": 1.0}}, "beta_fast.*above beta_slow"),
    ],
)
def test_impossible_value_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(RELEASED | change, "test")


def test_defaults_that_are_gpt_oss() -> None:
    data = RELEASED
    for key in ("layer_types", "swiglu_limit", "eos_token_id"):
        data = _without(data, key)
    assert ModelConfig.from_dict(data, "test") == ModelConfig.from_dict(RELEASED, "test")
    several = ModelConfig.from_dict(RELEASED | {"eos_token_id": [200002, 199999]}, "test")
    assert several.eos_ids == (200002, 199999)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "not an object"), ("[" * 100_000, "cannot be read"), ("\udc80", "cannot be read")],
)
def test_unreadable_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_file(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        ModelConfig.from_file(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("hidden_size", 2881), ("intermediate_size", 100)])
def test_mxfp4_needs_blocks_of_32(key: str, value: int) -> None:
    config = ModelConfig.from_dict(RELEASED | {key: value}, "test")
    with pytest.raises(ConfigError, match=f"`{key}`.*multiple of 32.*{value}"):
        config.check_mxfp4("test")


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted({*RELEASED, *OPENAI})), _JUNK)
@example("initial_context_length", 2**27)
@example("rope_scaling_factor", 1e308)
def test_any_value_is_read_or_refused(key: str, value: object) -> None:
    for base in (RELEASED, _transformers_5(), OPENAI):
        try:
            config = ModelConfig.from_dict(base | {key: value}, "test")
        except ConfigError:
            continue
        assert ModelConfig.from_dict(config.to_dict(), "again") == config


@settings(max_examples=50, deadline=None)
@given(
    layers=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (4, 2), (8, 1), (6, 3)]),
    experts=st.integers(1, 9),
    yarn=st.none() | st.builds(YarnConfig, st.just(32.0), st.just(4096), st.just(32.0), st.just(1.0), st.booleans(),
                              st.none() | st.floats(0.5, 2.0)),
    eos=st.lists(st.integers(0, 10), min_size=1, max_size=3),
)  # fmt: skip
def test_round_trip(layers: int, heads: tuple[int, int], experts: int, yarn: YarnConfig | None, eos: list[int]) -> None:
    config = tiny_config(num_layers=layers, num_heads=heads[0], num_kv_heads=heads[1], num_experts=experts,
                         experts_per_token=1, yarn=yarn, eos_ids=tuple(eos))  # fmt: skip
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())), "again") == config
