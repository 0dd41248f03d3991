"""Where every byte of the target goes, known before the first one is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_gptoss.convert.jobs import Job, Output
from mlx_gptoss.folder import FORMAT_VERSION, PAD_PREFIX, PAGE_BYTES, align, shard_name


@dataclass(frozen=True, slots=True)
class Placement:
    """A target tensor's place: `offset` counts from the start of `file`."""

    output: Output
    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One target file: its length, its header (8-byte length included), and the tensors in it."""

    name: str
    size: int
    header: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """All shards, and `places[job][output]`."""

    shards: tuple[Shard, ...]
    places: tuple[tuple[Placement, ...], ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(s.size for s in self.shards)

    @property
    def payload(self) -> int:
        """Bytes of all real tensors."""
        return sum(p.output.nbytes for job in self.places for p in job)


def lay_out(jobs: Sequence[Job], shard_bytes: int, *, paged: bool = True) -> Layout:
    """Fills shards of about `shard_bytes` in job order; a job's outputs share a shard.

    Every tensor starts on a page, with padding tensors between; unless `paged` is false, which gives plain
    safetensors files as other tools write them.
    """
    page = PAGE_BYTES if paged else 1
    groups: list[list[int]] = [[]]
    filled = 0
    for index, job in enumerate(jobs):
        size = sum(align(o.nbytes, page) for o in job.outputs)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += size
    shards: list[Shard] = []
    places: list[tuple[Placement, ...]] = [()] * len(jobs)
    for number, group in enumerate(groups):
        name = shard_name(number, len(groups))
        header, starts = _header([o for index in group for o in jobs[index].outputs], page)
        end = len(header)
        cursor = iter(starts)
        for index in group:
            placed = tuple(Placement(o, name, len(header) + next(cursor)) for o in jobs[index].outputs)
            places[index] = placed
            end = max([end, *(p.offset + p.output.nbytes for p in placed)])
        shards.append(Shard(name, align(end, page), header))
    return Layout(tuple(shards), tuple(places))


def _header(outputs: Sequence[Output], page: int) -> tuple[bytes, list[int]]:
    ours = {"format": "mlx", "mlx_gptoss_format": str(FORMAT_VERSION)}
    entries: dict[str, object] = {"__metadata__": ours if page > 1 else {"format": "pt"}}
    starts: list[int] = []
    position = pads = 0
    for output in outputs:
        end = position + output.nbytes
        entries[output.name] = {
            "dtype": output.dtype, "shape": list(output.shape), "data_offsets": [position, end],
        }  # fmt: skip
        starts.append(position)
        position = align(end, page)
        if position > end:
            entries[f"{PAD_PREFIX}{pads}"] = {
                "dtype": "U8", "shape": [position - end], "data_offsets": [end, position],
            }  # fmt: skip
            pads += 1
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = align(8 + len(text), max(page, 8)) - 8
    return length.to_bytes(8, "little") + text.ljust(length), starts
