"""Apple's chips as data: memory bandwidth, GPU cores and arithmetic, from their published specifications."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_gptoss.errors import InvalidRequestError

GB = 1_000_000_000
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip in one GPU configuration.

    `bandwidth` bytes/s of unified memory; `tflops` fp32 multiply-adds on the GPU's ALUs, counted as two operations;
    `matrix_tflops` half precision on matrix units where the GPU has them (M5), else that of the ALUs;
    `memory_gib` the sizes it was sold with.
    """

    name: str
    bandwidth: float
    gpu_cores: int
    tflops: float
    matrix_tflops: float
    memory_gib: tuple[int, ...]

    @property
    def family(self) -> str:
        """m1 to m5."""
        return self.name.split("-")[0]


# fp32 TFLOP/s a core: 128 ALUs, two operations a clock, at each family's GPU clock.
_PER_CORE = {"m1": 0.327, "m2": 0.358, "m3": 0.41, "m4": 0.46, "m5": 0.51}
# M5 GPU cores carry matrix units; Apple names more than four times M4's peak for matrix work.
_MATRIX_FACTOR = {"m5": 4.0}


def _chip(name: str, gbs: float, cores: int, *memory: int) -> Chip:
    family = name.split("-")[0]
    tflops = _PER_CORE[family] * cores
    return Chip(name, gbs * GB, cores, tflops, tflops * _MATRIX_FACTOR.get(family, 1.0), memory)


CHIPS: tuple[Chip, ...] = (
    _chip("m1", 68.25, 8, 8, 16),
    _chip("m1-pro", 200, 16, 16, 32),
    _chip("m1-max", 400, 32, 32, 64),
    _chip("m1-ultra", 800, 64, 64, 128),
    _chip("m2", 100, 10, 8, 16, 24),
    _chip("m2-pro", 200, 19, 16, 32),
    _chip("m2-max", 400, 38, 32, 64, 96),
    _chip("m2-ultra", 800, 76, 64, 128, 192),
    _chip("m3", 100, 10, 8, 16, 24),
    _chip("m3-pro", 150, 18, 18, 36),
    _chip("m3-max-30", 300, 30, 36, 96),
    _chip("m3-max", 400, 40, 48, 64, 128),
    _chip("m3-ultra", 819, 80, 96, 256, 512),
    _chip("m4", 120, 10, 16, 24, 32),
    _chip("m4-pro", 273, 20, 24, 48, 64),
    _chip("m4-max-32", 410, 32, 36),
    _chip("m4-max", 546, 40, 48, 64, 128),
    _chip("m5", 153.6, 10, 16, 24, 32),
    _chip("m5-pro", 307, 20, 24, 48, 64),
    _chip("m5-max-32", 460, 32, 36),
    _chip("m5-max", 614, 40, 48, 64, 128),
)


def find_chip(name: str, memory_gib: float | None = None) -> Chip:
    """A chip by name: `m4-max`, `M4 Max`, `Apple M4 Max`. Raises InvalidRequestError that lists the known ones.

    Max chips come with fewer or more GPU cores under one name; where `memory_gib` was sold only with the smaller
    one, that is the one.
    """
    wanted = "-".join(name.lower().removeprefix("apple").split()).strip("-")
    named = [chip for chip in CHIPS if chip.name == wanted]
    if not named:
        raise InvalidRequestError(
            f"unknown chip {name!r}", param="chip", expected=", ".join(chip.name for chip in CHIPS)
        )
    variants = [chip for chip in CHIPS if chip.name.startswith(f"{wanted}-") and chip.name[len(wanted) + 1 :].isdigit()]
    if memory_gib is not None and memory_gib not in named[0].memory_gib:
        return next((chip for chip in variants if memory_gib in chip.memory_gib), named[0])
    return named[0]


def default_working_set(memory_bytes: int) -> int:
    """What macOS lets a GPU use unless told otherwise: two thirds of up to 36 GiB, three quarters of more."""
    share = 2 / 3 if memory_bytes <= 36 * GIB else 3 / 4
    return int(memory_bytes * share)
