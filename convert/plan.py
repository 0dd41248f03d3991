"""From a source and the user's choices to the list of jobs, in file order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from mlx_gptoss.convert.files import Bytes
from mlx_gptoss.convert.jobs import Allocate, Copy, Job, Output, row_chunks
from mlx_gptoss.convert.mxfp4 import QuantiseExperts
from mlx_gptoss.convert.precision import Precision, matrix_format
from mlx_gptoss.convert.quantise import Quantise
from mlx_gptoss.convert.source import Source
from mlx_gptoss.convert.tensors import FLOAT_DTYPES, Cast, Checked, Rows, has_nan
from mlx_gptoss.errors import CheckpointError, ConversionError
from mlx_gptoss.folder import FORMAT_VERSION, LinearFormat, expected_shapes, layer

QUANTISATION: Final[Mapping[str, object]] = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
    ],
}  # fmt: skip
"""config.json's `quantization_config` for MXFP4 experts, as released."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Jobs in file order, the format of every matrix, and remarks."""

    jobs: tuple[Job, ...]
    formats: dict[str, LinearFormat]
    notes: tuple[str, ...]
    config_json: bytes

    def key(self, fingerprint: str) -> str:
        """Identifies source and outcome; a journal for another key is not resumed."""
        digest = hashlib.sha256(f"{FORMAT_VERSION} {fingerprint}".encode())
        for job in self.jobs:
            for output in job.outputs:
                digest.update(f"{output.name} {output.dtype} {output.shape} {type(job).__name__}\n".encode())
        return digest.hexdigest()


@dataclass(slots=True)
class _Planner:
    source: Source
    precision: Precision
    formats: dict[str, LinearFormat] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        return str(self.source.path)

    def run(self) -> Plan:
        config = self.source.config
        for matrix in _matrices(config.num_layers):
            self._choose(matrix)
        for index in range(config.num_layers):
            for part in ("gate_up", "down"):
                base = layer(index, part)
                has_blocks = f"{base}.blocks" in self.source.tensors
                mxfp4 = has_blocks or self.precision.experts == "mxfp4"
                self.formats[base] = LinearFormat("mxfp4", 32) if mxfp4 else LinearFormat("bf16")
        if any(f.format == "mxfp4" for f in self.formats.values()):
            config.check_mxfp4(self.where)
        done: set[str] = set()
        for name, shape in expected_shapes(config, self.formats).items():
            if name not in done:
                job = self._job(name, shape)
                done.update(o.name for o in job.outputs)
                self.jobs.append(job)
        return Plan(tuple(self.jobs), self.formats, tuple(self._notes()), self._config_json())

    def _choose(self, matrix: str) -> None:
        choice = self.precision.of(matrix)
        packed = self.source.packed.get(matrix)
        if packed is not None and choice in ("source", packed.format.format):
            self.formats[matrix] = packed.format
            return
        columns = self._get(f"{matrix}.weight").shape[-1]
        self.formats[matrix] = matrix_format(choice, columns, matrix)

    def _get(self, name: str) -> Rows:
        tensor = self.source.tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                "a tensor is missing from the source", expected=name, got=f"{len(self.source.tensors)} tensors of "
                f"{self.source.config.num_layers} layers", where=self.where,
            )  # fmt: skip
        return tensor

    def _job(self, name: str, shape: tuple[int, ...]) -> Job:
        base, _, part = name.rpartition(".")
        fmt = self.formats.get(base)
        if fmt is not None and fmt.quantised and part == "weight":
            return self._matrix(base, fmt)
        if fmt is not None and part in ("blocks", "scales") and fmt.format == "mxfp4":
            return self._expert_part(base, part, shape)
        tensor = self._checked(name, shape, FLOAT_DTYPES)
        if tensor.dtype == "BF16" and (fmt is None or part == "bias" or fmt.format != "f32"):
            return Copy.of(name, tensor)
        if fmt is not None and part == "weight":
            wanted = "F32" if fmt.format == "f32" else "BF16"
            if wanted == "BF16":
                self.rounded.append(name)
            return Copy.of(name, tensor if tensor.dtype == wanted else Cast(tensor, wanted))
        target = "BF16" if fits_bf16(tensor) else "F32"
        return Copy.of(name, tensor if tensor.dtype == target else Cast(tensor, target))

    def _matrix(self, base: str, fmt: LinearFormat) -> Job:
        packed = self.source.packed.get(base)
        if packed is not None and packed.format == fmt and self.precision.of(base) in ("source", fmt.format):
            return CopyAll.of(base, {k: self._packed_part(base, k, v) for k, v in packed.parts.items()})
        expected = expected_shapes(self.source.config, {})[f"{base}.weight"]
        tensor = self._checked(f"{base}.weight", expected, FLOAT_DTYPES)
        return Quantise.of(base, tensor if tensor.dtype == "BF16" else Cast(tensor, "BF16"), fmt)

    def _packed_part(self, base: str, part: str, tensor: Rows) -> Rows:
        shape = expected_shapes(self.source.config, self.formats)[f"{base}.{part}"]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{base}.{part} has the wrong shape", expected=str(shape), got=str(tensor.shape), where=self.where
            )
        return tensor if part == "weight" else Checked(tensor, f"{base}.{part}", self.where)

    def _expert_part(self, base: str, part: str, shape: tuple[int, ...]) -> Job:
        if f"{base}.blocks" in self.source.tensors:
            tensor = self._shaped(f"{base}.{part}", shape, ("U8",))
            return Copy.of(f"{base}.{part}", Checked(tensor, base, self.where) if part == "scales" else tensor)
        experts, rows, groups = shape[:3]
        dense = self._checked(f"{base}.weight", (experts, rows, groups * 32), FLOAT_DTYPES)
        return QuantiseExperts.of(base, dense)

    def _shaped(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> Rows:
        tensor = self._get(name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{name} has the wrong shape", expected=str(shape), got=str(tensor.shape), where=self.where,
                hint="config.json and the weights do not belong together",
            )  # fmt: skip
        if tensor.dtype not in dtypes:
            raise CheckpointError(
                f"{name} has the wrong dtype", expected="|".join(dtypes), got=tensor.dtype, where=self.where
            )
        return tensor

    def _checked(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> Rows:
        return Checked(self._shaped(name, shape, dtypes), name, self.where)

    def _config_json(self) -> bytes:
        """The source's config.json, as it is when its `quantization_config` tells the truth about the experts."""
        data: dict[str, object] = json.loads(self.source.config_json)
        mxfp4 = any(f.format == "mxfp4" for f in self.formats.values())
        stated = data.get("quantization_config")
        says_mxfp4 = isinstance(stated, dict) and stated.get("quant_method") == "mxfp4"
        if mxfp4 == says_mxfp4 and "quantization" not in data and (mxfp4 or stated is None):
            return self.source.config_json
        data = {k: v for k, v in data.items() if k not in ("quantization", "quantization_config")}
        if mxfp4:
            data["quantization_config"] = dict(QUANTISATION)
        return (json.dumps(data, indent=2) + "\n").encode()

    def _notes(self) -> Iterator[str]:
        yield from self.source.notes
        if self.rounded:
            yield f"{len(self.rounded)} matrices rounded to bf16 from {self._get(self.rounded[0]).dtype}"
        mxfp4_source = any(name.endswith(".blocks") for name in self.source.tensors)
        if self.precision.experts == "bf16" and mxfp4_source:
            yield "experts are MXFP4 in the source and stay so, bit for bit"
        if self.source.ignored:
            names = ", ".join(self.source.ignored[:4])
            yield f"{len(self.source.ignored)} tensors of the source are not part of gpt-oss and were left out: {names}"


@dataclass(frozen=True, slots=True)
class CopyAll:
    """Several tensors of one matrix, each byte for byte."""

    copies: tuple[Copy, ...]

    @classmethod
    def of(cls, base: str, parts: dict[str, Rows]) -> CopyAll:
        order = [p for p in ("weight", "scales", "biases") if p in parts]
        return cls(tuple(Copy.of(f"{base}.{p}", parts[p]) for p in order))

    @property
    def outputs(self) -> tuple[Output, ...]:
        return tuple(c.outputs[0] for c in self.copies)

    def produce(self, allocate: Allocate) -> Iterator[tuple[int, Bytes]]:
        for index, copy in enumerate(self.copies):
            for _, data in copy.produce(allocate):
                yield index, data

    def note(self) -> str | None:
        return None


def make_plan(source: Source, precision: Precision) -> Plan:
    """Checks that `source` has every tensor with the right shape, and plans its conversion. Raises CheckpointError."""
    return _Planner(source, precision).run()


def _matrices(num_layers: int) -> Iterator[str]:
    yield "embed"
    for index in range(num_layers):
        yield layer(index, "qkv")
        yield layer(index, "out")
    yield "head"


def fits_bf16(tensor: Rows) -> bool:
    """Whether every value of a float tensor is exact in BF16 (its float32 form has 16 zero bits at the end)."""
    wide = Cast(tensor, "F32") if tensor.dtype != "F32" else tensor
    for start, count in row_chunks(wide):
        raw = np.empty((count, wide.row_bytes), np.uint8)
        wide.fill(start, raw)
        if has_nan(raw, "F32"):
            raise ConversionError("a tensor holds NaN or infinity", expected="finite numbers")
        if (raw.view(np.uint32) & 0xFFFF).any():
            return False
    return True
