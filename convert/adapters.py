"""LoRA adapters in PEFT's layout, merged into attention, router, embedding or head weights on the way.

W' = W + scale * B A with scale = alpha / r (alpha / sqrt(r) with rank stabilisation), computed in float32 and rounded
once to the weight's dtype. What cannot be merged exactly is refused by name: adapters on experts, DoRA, modules to
save, per-layer patterns that do not match, and adapters other than LoRA.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlx_gptoss.convert.files import Bytes, SourceFile, read_small
from mlx_gptoss.convert.safetensors import Entry, parse_json_object, read_header
from mlx_gptoss.convert.tensors import FLOAT_DTYPES, Floats, Rows, Stored, has_nan, read_all, to_bf16, to_floats
from mlx_gptoss.errors import CheckpointError, ConversionError

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(?:\.default)?(?:\.weight)?"
)
_MODULE = re.compile(r"model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.router)|lm_head|model\.embed_tokens")
_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Merged:
    """A weight [N, K] plus scale * B [N, r] A [r, K]."""

    base: Rows
    a: Floats
    b: Floats
    scale: float

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def rows(self) -> int:
        return self.base.rows

    @property
    def row_bytes(self) -> int:
        return self.base.row_bytes

    def fill(self, start: int, out: Bytes) -> None:
        raw = np.empty_like(out)
        self.base.fill(start, raw)
        factor = self.b[start : start + len(out)] * np.float32(self.scale)
        values = (to_floats(raw, self.dtype) + factor @ self.a).astype(np.float32, copy=False)
        if self.dtype == "BF16":
            out.view(np.uint16)[:] = to_bf16(values)
        elif self.dtype == "F16":
            out.view(np.float16)[:] = values
        else:
            out.view(np.float32)[:] = values


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter folder: its factors by module and its scale by module."""

    path: Path
    files: tuple[SourceFile, ...]
    stamp: bytes
    factors: dict[str, tuple[Entry, Entry]]
    scales: dict[str, float]
    used: set[str] = field(default_factory=set)

    def merge(self, module: str, rows: Rows) -> Rows:
        """`rows` of `module` with this adapter's change, or unchanged when it has none. Raises CheckpointError."""
        pair = self.factors.get(module)
        if pair is None:
            return rows
        self.used.add(module)
        a, b = (self._values(entry) for entry in pair)
        if rows.dtype not in FLOAT_DTYPES:
            raise ConversionError(
                f"an adapter cannot be merged into {module}", expected="a bf16 weight", got=rows.dtype,
                where=str(self.path), hint="Convert from the plain checkpoint",
            )  # fmt: skip
        if len(rows.shape) != 2 or (b.shape[0], a.shape[1]) != rows.shape or a.shape[0] != b.shape[1]:
            raise CheckpointError(
                f"the adapter does not fit {module}", expected=f"B A of shape {rows.shape}",
                got=f"B {b.shape}, A {a.shape}", where=str(self.path),
            )  # fmt: skip
        return Merged(rows, a, b, self.scales[module])

    def _values(self, entry: Entry) -> Floats:
        raw = read_all(Stored.of(entry))
        if has_nan(raw, entry.dtype):
            raise CheckpointError("an adapter holds NaN or infinity", got=entry.name[:120], where=str(self.path))
        return np.ascontiguousarray(to_floats(raw, entry.dtype))

    def check_used(self) -> None:
        """Raises CheckpointError when a module of the adapter is not in the checkpoint."""
        left = sorted(set(self.factors) - self.used)
        if left:
            raise CheckpointError(
                "the adapter changes modules that this checkpoint does not have", got=", ".join(left[:3]),
                where=str(self.path),
            )  # fmt: skip

    def note(self) -> str:
        return f"adapter {self.path.name} merged into {len(self.factors)} matrices"


def open_adapter(path: Path) -> Adapter:
    """Reads an adapter folder. Raises CheckpointError or ConversionError naming what cannot be merged."""
    where = str(path)
    if not (path / CONFIG).is_file():
        raise CheckpointError("this is not an adapter folder", expected=f"{CONFIG} and {WEIGHTS}", where=where)
    raw = read_small(path / CONFIG)
    config = parse_json_object(raw, CONFIG, where)
    _check_config(config, where)
    file = SourceFile(path / WEIGHTS)
    try:
        entries, header = read_header(file)
        factors = _factors(entries, where)
        scales = {module: _scale(config, module, pair[0].shape[0], where) for module, pair in factors.items()}
    except BaseException:
        file.close()
        raise
    return Adapter(path, (file,), raw + header + file.stamp().encode(), factors, scales)


def _check_config(config: dict[str, Any], where: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ConversionError("only LoRA adapters can be merged", expected="LORA", got=repr(kind)[:40], where=where)
    for key, what in (
        ("use_dora", "DoRA adapters"), ("modules_to_save", "adapters that save whole modules"),
        ("target_parameters", "adapters on expert parameters"), ("fan_in_fan_out", "transposed adapters"),
        ("trainable_token_indices", "adapters that train tokens"), ("alora_invocation_tokens", "activated adapters"),
        ("layer_replication", "adapters that repeat layers"), ("use_qalora", "QALoRA adapters"),
        ("use_bdlora", "block-diagonal adapters"), ("arrow_config", "adapters with routing"),
    ):  # fmt: skip
        if config.get(key):
            raise ConversionError(
                f"{what} cannot be merged", got=f"{key}: {config[key]!r}"[:120], where=where,
                hint="Merge it with PEFT's merge_and_unload, then convert the result",
            )  # fmt: skip
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise ConversionError("adapters that train biases cannot be merged", got="bias", where=where)


def _factors(entries: dict[str, Entry], where: str) -> dict[str, tuple[Entry, Entry]]:
    halves: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        if name.endswith(".base_layer.weight"):
            continue  # PEFT may save the base model's own head beside the factors
        match = _NAME.fullmatch(name)
        if match is None:
            raise ConversionError("the adapter holds a tensor that is not LoRA's", got=name[:120], where=where)
        module, part = match["module"], match["part"]
        if _MODULE.fullmatch(module) is None or part.startswith("embedding"):
            raise ConversionError(
                "the adapter changes a module that cannot be merged into",
                expected="attention projections (q_proj, k_proj, v_proj, o_proj), the router or lm_head",
                got=module[:120],
                where=where,
                hint="Experts stay MXFP4 bit for bit; merge it with PEFT's merge_and_unload, then convert the result",
            )
        if len(entry.shape) != 2 or entry.dtype not in FLOAT_DTYPES or entry.nbytes > _LIMIT or 0 in entry.shape:
            raise CheckpointError("an adapter's factor is not a float matrix", got=name[:120], where=where)
        halves.setdefault(module, {})[part] = entry
    for module, parts in halves.items():
        if set(parts) != {"A", "B"}:
            raise CheckpointError("an adapter lacks one of its factors", got=module[:120], where=where)
    if not halves:
        raise CheckpointError("the adapter is empty", where=where)
    return {module: (parts["A"], parts["B"]) for module, parts in halves.items()}


def _scale(config: dict[str, Any], module: str, rank: int, where: str) -> float:
    r = _pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    numbers = [v for v in (r, alpha) if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) != 2 or numbers[0] <= 0:
        raise CheckpointError(
            "the adapter's r or lora_alpha is impossible", got=f"r {r!r}, alpha {alpha!r}", where=where
        )
    if numbers[0] != rank:
        raise CheckpointError(
            f"the adapter's rank of {module} disagrees with its config", expected=f"r {r}", got=str(rank), where=where
        )
    return float(numbers[1]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: object, module: str, default: object) -> object:
    """PEFT matches a pattern key as the end of a module's name, or as a whole-name regular expression."""
    if not isinstance(patterns, dict):
        return default
    for key, value in patterns.items():
        if module == key or module.endswith(f".{key}"):
            return value
        if len(key) <= 200 and key.startswith("^"):
            raise ConversionError("adapters with regular-expression patterns cannot be merged", got=key)
    return default
