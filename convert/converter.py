"""`convert`: a checkpoint becomes a model folder, streaming, resumable and all or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from os import close as close_fd
from pathlib import Path

from mlx_gptoss.convert.detect import open_source
from mlx_gptoss.convert.jobs import CHUNK_BYTES
from mlx_gptoss.convert.journal import JOURNAL_NAME, Finished, Journal, open_journal, read_journal
from mlx_gptoss.convert.layout import Layout, lay_out
from mlx_gptoss.convert.pipeline import Pipeline
from mlx_gptoss.convert.plan import Plan, make_plan
from mlx_gptoss.convert.precision import Precision
from mlx_gptoss.convert.source import Source
from mlx_gptoss.convert.target import Target, as_own_error, check_space, open_target
from mlx_gptoss.errors import CheckpointError, ConversionError
from mlx_gptoss.folder import (
    CONFIG_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    SourceRecord,
    TensorRecord,
    is_model_folder,
    read_manifest,
)

SHARD_BYTES = 4 << 30
Progress = Callable[[int, int], None]


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    attention: str = "source",
    embedding: str = "source",
    head: str = "source",
    experts: str = "mxfp4",
    adapters: Sequence[str | PathLike[str]] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
    revision: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    sync_bytes: int = 256 << 20,
) -> Manifest:
    """Converts the checkpoint at `source` into the model folder `target` and returns its manifest.

    Reads Hugging Face safetensors (released or fine-tuned), OpenAI's original layout, GGUF and mlx-lm folders, told
    apart by content. `attention`, `embedding` and `head` are `source|bf16|f32|mxfp8|q8|q6|q4`; `experts` is `mxfp4`
    or, for dense sources, `bf16`. `adapters` are LoRA folders to merge. `progress` gets bytes done and bytes in all,
    from worker threads.

    Interrupted at any point, the same call goes on where it stopped. A folder that is already the outcome is left as
    it is; one that holds another conversion is an error unless `overwrite`.

    Raises CheckpointError (bad source), ConversionError (bad target or choice), InsufficientDiskError, ConfigError.
    """
    precision = Precision.from_mapping(
        {"attention": attention, "embedding": embedding, "head": head, "experts": experts}
    )
    destination = Path(target)
    with open_source(Path(source), [Path(a) for a in adapters]) as opened:
        plan = make_plan(opened, precision)
        return _Conversion(opened, plan, precision, destination, revision, progress).run(
            lay_out(plan.jobs, shard_bytes), overwrite, sync_bytes
        )


@dataclass(slots=True)
class _Conversion:
    source: Source
    plan: Plan
    precision: Precision
    path: Path
    revision: str | None
    progress: Progress | None
    _written: int = 0
    _finished: dict[str, Finished] = field(default_factory=dict)

    def run(self, layout: Layout, overwrite: bool, sync_bytes: int) -> Manifest:
        key = self.plan.key(self.source.fingerprint)
        if not self.path.exists():
            check_space(self.path, layout)
        with open_target(self.path) as target:
            try:
                target.check_ours()
                done = self._already_done(target, overwrite)
                if done is not None:
                    return done
                return self._convert(target, layout, key, sync_bytes)
            except CheckpointError:
                if not is_model_folder(self.path) and target.created:
                    target.discard()
                raise
            except OSError as error:
                if read_journal(target.fd, key) is None or not self._finished:
                    target.discard()
                raise as_own_error(error, self.path) from None

    def _already_done(self, target: Target, overwrite: bool) -> Manifest | None:
        if not is_model_folder(self.path):
            return None
        if overwrite:
            target.clear()
            return None
        manifest = read_manifest(self.path)
        same = manifest.source.fingerprint == self.source.fingerprint and (
            dict(manifest.precision) == self.precision.to_dict()
        )
        if not same:
            raise ConversionError(
                "the target holds another model",
                got=f"a conversion of {manifest.source.name}",
                where=str(self.path),
                hint="Choose another target, or say --overwrite",
            )
        target.unlink(JOURNAL_NAME)
        return manifest

    def _convert(self, target: Target, layout: Layout, key: str, sync_bytes: int) -> Manifest:
        if read_journal(target.fd, key) is None:
            target.clear()
        check_space(self.path, layout, target.allocated())
        journal = open_journal(target.fd, key)
        fds: dict[str, int] = {}
        try:
            fresh: set[str] = set()
            for shard in layout.shards:
                if target.size_of(shard.name) != shard.size:
                    fresh.add(shard.name)
                fds[shard.name] = target.open_shard(shard)
            self._finished = _still_there(journal, layout, self.plan, fresh)
            self._stream(layout, fds, journal, sync_bytes)
            self.source.check_unchanged()
        except CheckpointError:
            # The source is at fault: what was made of it is worthless, and the next attempt must not build on it.
            target.unlink(JOURNAL_NAME)
            raise
        finally:
            for fd in fds.values():
                close_fd(fd)
            journal.close()
        manifest = self._manifest(layout)
        target.replace(CONFIG_NAME, self.source.config_json)
        target.replace(MANIFEST_NAME, manifest.to_json().encode())
        target.unlink(JOURNAL_NAME)
        return manifest

    def _stream(self, layout: Layout, fds: dict[str, int], journal: Journal, sync_bytes: int) -> None:
        total = layout.payload

        def advance(count: int) -> None:
            self._written += count
            if self.progress is not None:
                self.progress(self._written, total)

        pending = [i for i, places in enumerate(layout.places) if places[0].output.name not in self._finished]
        advance(total - sum(p.output.nbytes for i in pending for p in layout.places[i]))
        pipeline = Pipeline(fds, journal, CHUNK_BYTES, advance, sync_bytes)
        pipeline.start()
        try:
            for index in pending:
                job, places = self.plan.jobs[index], layout.places[index]
                positions = [0] * len(places)
                for output, data in job.produce(pipeline.allocate):
                    pipeline.put(places[output], positions[output], data)
                    positions[output] += len(data)
                pipeline.end_job(places[0].output.name, places, job.note())
        except BaseException:
            pipeline.close(abort=True)
            self._finished.update(pipeline.finished)
            raise
        pipeline.close()
        self._finished.update(pipeline.finished)

    def _manifest(self, layout: Layout) -> Manifest:
        tensors: list[TensorRecord] = []
        notes = list(self.plan.notes)
        for places in layout.places:
            finished = self._finished[places[0].output.name]
            if finished.note is not None:
                notes.append(finished.note)
            for place, digest in zip(places, finished.hashes, strict=True):
                o = place.output
                tensors.append(TensorRecord(o.name, o.dtype, o.shape, place.file, place.offset, o.nbytes, digest))
        return Manifest(
            version=FORMAT_VERSION,
            source=SourceRecord(
                self.source.kind, self.source.path.resolve().name, self.revision, self.source.fingerprint
            ),
            precision=self.precision.to_dict(),
            formats=self.plan.formats,
            files={s.name: s.size for s in layout.shards},
            tensors=tuple(tensors),
            config_sha256=hashlib.sha256(self.source.config_json).hexdigest(),
            notes=tuple(notes),
            created_by=f"mlx-gptoss {_package_version()}",
        )


def _still_there(journal: Journal, layout: Layout, plan: Plan, fresh: set[str]) -> dict[str, Finished]:
    """What earlier runs finished, less what lay in a file that had to be made anew."""
    return {
        places[0].output.name: journal.finished[places[0].output.name]
        for job, places in zip(plan.jobs, layout.places, strict=True)
        if places[0].output.name in journal.finished
        and places[0].file not in fresh
        and len(journal.finished[places[0].output.name].hashes) == len(job.outputs)
    }


def _package_version() -> str:
    try:
        return version("mlx-gptoss")
    except PackageNotFoundError:
        return "unknown"
