"""ModelConfig: the shape of one gpt-oss model, read from config.json and validated.

Three spellings are read: Hugging Face's as released (`rope_scaling` beside `rope_theta`), Hugging Face's as
transformers 5 writes it (`rope_parameters`), and OpenAI's own (`original/config.json`). `to_dict` writes the
released Hugging Face spelling.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from mlx_gptoss.errors import ConfigError

LayerType = Literal["sliding_attention", "full_attention"]

USED_VOCABULARY = 200_014
"""Number of leading ids of o200k_harmony that mean something to the model; rows from here on are padding."""

MXFP4_BLOCK = 32
"""Weights that share one E8M0 scale in MXFP4."""

DEFAULT_EOS_IDS = (200_002,)
_ALPHA = 1.702
_LIMIT = 7.0
_OPENAI_RMS_NORM_EPS = 1e-5
_ALIASES: dict[str, tuple[str, ...]] = {
    "num_experts": ("num_local_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok", "experts_per_token"),
}
_YARN_KEYS = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "truncate",
    "attention_factor",
}


@dataclass(frozen=True, slots=True)
class YarnConfig:
    """YaRN context extension (Peng et al., 2023) as gpt-oss uses it.

    `factor` stretches `original_max_position_embeddings` positions; `beta_fast` and `beta_slow` are the rotations
    over that length that bound the blend; `truncate` rounds the blend's ends to whole pairs (gpt-oss: false);
    `attention_factor` scales cos and sin, `None` meaning 0.1 ln(factor) + 1.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float | None = None

    @property
    def concentration(self) -> float:
        """Multiplier of cos and sin, for queries and keys alike."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1.0 else 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a gpt-oss model. Build it with `from_dict` or `from_file`, which validate."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    experts_per_token: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int
    layer_types: tuple[LayerType, ...]
    vocab_size: int
    rope_theta: float
    yarn: YarnConfig | None
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = _LIMIT
    swiglu_alpha: float = _ALPHA
    eos_ids: tuple[int, ...] = DEFAULT_EOS_IDS

    @property
    def q_size(self) -> int:
        """Query features: num_heads * head_dim."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Key (or value) features: num_kv_heads * head_dim."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection: queries, then keys, then values."""
        return self.q_size + 2 * self.kv_size

    @property
    def used_vocab_size(self) -> int:
        """Ids below this are real tokens; logits from here on are padding and masked to -inf."""
        return min(self.vocab_size, USED_VOCABULARY)

    def is_sliding(self, layer: int) -> bool:
        """Whether a layer attends to the last `sliding_window` keys only."""
        return self.layer_types[layer] == "sliding_attention"

    def check_mxfp4(self, where: str) -> None:
        """Raises ConfigError when the expert matrices cannot be cut into MXFP4 blocks of 32."""
        for key, value in (("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)):
            if value % MXFP4_BLOCK:
                raise ConfigError(
                    f"`{key}` cannot be stored as MXFP4",
                    expected=f"a multiple of {MXFP4_BLOCK}",
                    got=str(value),
                    where=where,
                )

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Reads `config.json`, or the one in the folder `path`. Raises ConfigError."""
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError("config.json is missing", where=str(path)) from None
        except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise ConfigError("config.json cannot be read", got=str(error), where=str(path)) from error
        if not isinstance(data, dict):
            raise ConfigError(
                "config.json is not an object", expected="{...}", got=type(data).__name__, where=str(path)
            )
        return cls.from_dict(data, str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> ModelConfig:
        """Reads any of the three spellings. `where` names the source in errors. Raises ConfigError."""
        read = _Reader(data, where)
        original = "num_local_experts" not in data and "initial_context_length" in data and "model_type" not in data
        if not original:
            _check_family(data, where)
        num_layers = read.integer("num_hidden_layers")
        yarn, rope_theta = _read_openai_rope(read) if original else _read_rope(data, where)
        if original:
            window_length = read.integer("initial_context_length")
            stretched = window_length * (yarn.factor if yarn is not None else 1.0)
            whole = round(stretched) if math.isfinite(stretched) else stretched
            max_positions = positive_integer(whole, "initial_context_length` times its `rope_scaling_factor", where)
        else:
            max_positions = read.integer("max_position_embeddings")
        config = cls(
            num_layers=num_layers,
            hidden_size=read.integer("hidden_size"),
            intermediate_size=read.integer("intermediate_size"),
            num_experts=read.integer("num_experts"),
            experts_per_token=read.integer("experts_per_token"),
            num_heads=read.integer("num_attention_heads"),
            num_kv_heads=read.integer("num_key_value_heads"),
            head_dim=read.integer("head_dim"),
            sliding_window=read.integer("sliding_window"),
            layer_types=_read_layer_types(data.get("layer_types"), num_layers, where),
            vocab_size=read.integer("vocab_size"),
            rope_theta=rope_theta,
            yarn=yarn,
            max_position_embeddings=max_positions,
            rms_norm_eps=read.number("rms_norm_eps", default=_OPENAI_RMS_NORM_EPS if original else None),
            swiglu_limit=read.number("swiglu_limit", default=_LIMIT),
            swiglu_alpha=read.number("swiglu_alpha", default=_ALPHA),
            eos_ids=_read_eos(data.get("eos_token_id"), where),
        )
        _check_relations(config, where)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The config in the released Hugging Face spelling; `from_dict` reads it back unchanged."""
        scaling: dict[str, Any] = {"rope_type": "default"}
        if self.yarn is not None:
            scaling = {
                "rope_type": "yarn",
                "factor": self.yarn.factor,
                "original_max_position_embeddings": self.yarn.original_max_position_embeddings,
                "beta_fast": self.yarn.beta_fast,
                "beta_slow": self.yarn.beta_slow,
                "truncate": self.yarn.truncate,
            }
            if self.yarn.attention_factor is not None:
                scaling["attention_factor"] = self.yarn.attention_factor
        return {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "attention_bias": True,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_local_experts": self.num_experts,
            "num_experts_per_tok": self.experts_per_token,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "sliding_window": self.sliding_window,
            "layer_types": list(self.layer_types),
            "vocab_size": self.vocab_size,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "swiglu_limit": self.swiglu_limit,
            "swiglu_alpha": self.swiglu_alpha,
            "eos_token_id": self.eos_ids[0] if len(self.eos_ids) == 1 else list(self.eos_ids),
        }


class _Reader:
    """Positive numbers out of a config, by our names or their aliases."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def _find(self, key: str) -> tuple[str, Any]:
        spellings = _ALIASES.get(key, (key,))
        for spelling in spellings:
            if self.data.get(spelling) is not None:
                return spelling, self.data[spelling]
        return spellings[0], None

    def integer(self, key: str) -> int:
        name, value = self._find(key)
        return positive_integer(value, name, self.where)

    def number(self, key: str, default: float | None = None) -> float:
        name, value = self._find(key)
        return default if value is None and default is not None else positive_number(value, name, self.where)


def positive_integer(value: Any, key: str, where: str) -> int:
    """`value` as an int >= 1. Raises ConfigError that names `key`."""
    if value is None:
        raise ConfigError(f"`{key}` is missing", where=where)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value < 1:
        raise ConfigError(f"`{key}` is impossible", expected="a positive integer", got=repr(value), where=where)
    if value > 2**31 - 1 or value != int(value):
        raise ConfigError(f"`{key}` is impossible", expected="an integer below 2^31", got=repr(value), where=where)
    return int(value)


def positive_number(value: Any, key: str, where: str) -> float:
    """`value` as a finite float > 0. Raises ConfigError that names `key`."""
    if value is None:
        raise ConfigError(f"`{key}` is missing", where=where)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"`{key}` is impossible", expected="a positive number", got=repr(value), where=where)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"`{key}` is impossible", expected="a positive number", got=repr(value), where=where)
    return number


def _check_family(data: Mapping[str, Any], where: str) -> None:
    family = data.get("model_type")
    if family != "gpt_oss":
        hint = "mlx-gptoss runs gpt-oss models and their fine-tunes only"
        raise ConfigError("this is not a gpt-oss model", expected="model_type gpt_oss", got=repr(family), where=where,
                          hint=hint)  # fmt: skip
    for key, only in (("attention_bias", True), ("hidden_act", "silu"), ("tie_word_embeddings", False)):
        value = data.get(key, only)
        if value != only:
            raise ConfigError(f"`{key}` is not what gpt-oss has", expected=repr(only), got=repr(value), where=where)


def _read_openai_rope(read: _Reader) -> tuple[YarnConfig | None, float]:
    theta = read.number("rope_theta")
    factor = read.number("rope_scaling_factor")
    if factor < 1:
        raise ConfigError("`rope_scaling_factor` is impossible", expected=">= 1", got=repr(factor), where=read.where)
    if factor == 1:
        return None, theta
    yarn = YarnConfig(
        factor=factor,
        original_max_position_embeddings=read.integer("initial_context_length"),
        beta_fast=read.number("rope_ntk_beta"),
        beta_slow=read.number("rope_ntk_alpha"),
        truncate=False,
    )
    _check_yarn(yarn, read.where)
    return yarn, theta


def _read_rope(data: Mapping[str, Any], where: str) -> tuple[YarnConfig | None, float]:
    key = "rope_parameters" if data.get("rope_parameters") is not None else "rope_scaling"
    scaling = data.get(key)
    if scaling is None:
        raise ConfigError("`rope_scaling` is missing", expected="YaRN's parameters or rope_type default", where=where)
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"`{key}` is impossible", expected="an object", got=repr(scaling), where=where)
    theta = scaling.get("rope_theta")
    rope_theta = positive_number(data.get("rope_theta") if theta is None else theta, "rope_theta", where)
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "default":
        return None, rope_theta
    if kind != "yarn":
        raise ConfigError(f"`{key}.rope_type` is unknown", expected="yarn or default", got=repr(kind), where=where)
    unknown = sorted(str(name) for name in scaling if name not in _YARN_KEYS and scaling[name] is not None)
    if unknown:
        raise ConfigError(f"`{key}.{unknown[0]}` is not supported", expected="YaRN as released", where=where)
    truncate = scaling.get("truncate")
    if not isinstance(truncate, bool):
        raise ConfigError(
            f"`{key}.truncate` is {'missing' if truncate is None else 'impossible'}",
            expected="true or false (released gpt-oss: false)",
            got=None if truncate is None else repr(truncate),
            where=where,
        )
    attention = scaling.get("attention_factor")
    yarn = YarnConfig(
        factor=positive_number(scaling.get("factor"), f"{key}.factor", where),
        original_max_position_embeddings=positive_integer(
            scaling.get("original_max_position_embeddings"), f"{key}.original_max_position_embeddings", where
        ),
        beta_fast=positive_number(scaling.get("beta_fast"), f"{key}.beta_fast", where),
        beta_slow=positive_number(scaling.get("beta_slow"), f"{key}.beta_slow", where),
        truncate=truncate,
        attention_factor=None if attention is None else positive_number(attention, f"{key}.attention_factor", where),
    )
    _check_yarn(yarn, where)
    return yarn, rope_theta


def _check_yarn(yarn: YarnConfig, where: str) -> None:
    if yarn.factor < 1:
        raise ConfigError("YaRN's `factor` is impossible", expected=">= 1", got=repr(yarn.factor), where=where)
    if yarn.beta_fast <= yarn.beta_slow:
        raise ConfigError(
            "YaRN's `beta_fast` is impossible",
            expected=f"above beta_slow ({yarn.beta_slow:g})",
            got=repr(yarn.beta_fast),
            where=where,
        )


def _read_layer_types(value: Any, num_layers: int, where: str) -> tuple[LayerType, ...]:
    if value is None:
        return tuple("full_attention" if layer % 2 else "sliding_attention" for layer in range(num_layers))
    if not isinstance(value, list | tuple):
        raise ConfigError("`layer_types` is impossible", expected="a list", got=repr(value), where=where)
    if len(value) != num_layers:
        raise ConfigError(
            "`layer_types` does not match `num_hidden_layers`",
            expected=f"{num_layers} entries",
            got=str(len(value)),
            where=where,
        )
    for entry in value:
        if entry not in get_args(LayerType):
            raise ConfigError(
                "`layer_types` has an unknown entry",
                expected=" or ".join(get_args(LayerType)),
                got=repr(entry),
                where=where,
            )
    return cast("tuple[LayerType, ...]", tuple(value))


def _read_eos(value: Any, where: str) -> tuple[int, ...]:
    if value is None:
        return DEFAULT_EOS_IDS
    ids = value if isinstance(value, list | tuple) else [value]
    for entry in ids:
        if isinstance(entry, bool) or not isinstance(entry, int) or entry < 0:
            raise ConfigError("`eos_token_id` is impossible", expected="token ids", got=repr(value), where=where)
    return tuple(ids) or DEFAULT_EOS_IDS


def _check_relations(config: ModelConfig, where: str) -> None:
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(
            "`num_attention_heads` does not divide among the key/value heads",
            expected=f"a multiple of num_key_value_heads ({config.num_kv_heads})",
            got=str(config.num_heads),
            where=where,
        )
    if config.head_dim % 2:
        raise ConfigError("`head_dim` is impossible", expected="an even number", got=str(config.head_dim), where=where)
    if config.experts_per_token > config.num_experts:
        raise ConfigError(
            "`num_experts_per_tok` is impossible",
            expected=f"at most num_local_experts ({config.num_experts})",
            got=str(config.experts_per_token),
            where=where,
        )
