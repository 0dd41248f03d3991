"""Runs jobs into an open target: preallocated, streamed, recorded, resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlx_gptoss.convert.jobs import CHUNK_BYTES, Job
from mlx_gptoss.convert.journal import Finished, Journal, open_journal, read_journal
from mlx_gptoss.convert.layout import Layout
from mlx_gptoss.convert.pipeline import Pipeline
from mlx_gptoss.convert.shard_file import ShardFile
from mlx_gptoss.convert.target import Target, as_own_error, check_space
from mlx_gptoss.errors import CheckpointError, InsufficientDiskError

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Writing:
    """One run of `jobs` into `target` as `layout` says. `key` identifies source and plan.

    `check_source` is called when all is written, and raises when the source changed meanwhile. `progress` gets bytes
    done and bytes in all, from a worker thread.
    """

    target: Target
    jobs: Sequence[Job]
    layout: Layout
    key: str
    check_source: Callable[[], None]
    progress: Progress | None
    sync_bytes: int
    finished: dict[str, Finished] = field(default_factory=dict)
    _written: int = 0

    def run(self, finish: Callable[[dict[str, Finished]], None]) -> None:
        """Writes everything, then calls `finish` with the hashes by job (named by its first output).

        A bad source leaves nothing. Anything else that stops it leaves a folder that the next run resumes, or
        nothing when no tensor was finished. Raises CheckpointError, InsufficientDiskError, ConversionError.
        """
        try:
            if read_journal(self.target.fd, self.key) is None:
                self.target.clear()
            check_space(self.target.path, self.layout, self.target.allocated())
            self._write_shards()
            self.check_source()
            finish(self.finished)
        except CheckpointError:
            self.target.discard()
            raise
        except InsufficientDiskError:
            if read_journal(self.target.fd, self.key) is None:
                self.target.discard()
            raise
        except OSError as error:
            if not self.finished:
                self.target.discard()
            raise as_own_error(error, self.target.path) from None

    def _write_shards(self) -> None:
        journal = open_journal(self.target.fd, self.key)
        files: dict[str, ShardFile] = {}
        try:
            fresh: set[str] = set()
            for shard in self.layout.shards:
                if self.target.size_of(shard.name) != shard.size:
                    fresh.add(shard.name)
                files[shard.name] = self.target.open_shard(shard)
            self.finished = self._still_there(journal, fresh)
            self._stream(files, journal)
        finally:
            for file in files.values():
                file.close()
            journal.close()

    def _still_there(self, journal: Journal, fresh: set[str]) -> dict[str, Finished]:
        """What earlier runs finished, less what lay in a file that had to be made anew."""
        kept: dict[str, Finished] = {}
        for places in self.layout.places:
            entry = journal.finished.get(places[0].output.name)
            if entry is not None and places[0].file not in fresh and len(entry.hashes) == len(places):
                kept[places[0].output.name] = entry
        return kept

    def _advance(self, count: int) -> None:
        self._written += count
        if self.progress is not None:
            self.progress(self._written, self.layout.payload)

    def _stream(self, files: dict[str, ShardFile], journal: Journal) -> None:
        pending = [i for i, places in enumerate(self.layout.places) if places[0].output.name not in self.finished]
        left = sum(p.output.nbytes for i in pending for p in self.layout.places[i])
        self._advance(self.layout.payload - left)
        pipeline = Pipeline(files, journal, CHUNK_BYTES, self._advance, self.sync_bytes)
        pipeline.start()
        aborted = True
        try:
            for index in pending:
                job, places = self.jobs[index], self.layout.places[index]
                positions = [0] * len(places)
                for output, data in job.produce(pipeline.allocate):
                    pipeline.put(places[output], positions[output], data)
                    positions[output] += len(data)
                pipeline.end_job(places[0].output.name, places, job.note())
            aborted = False
        finally:
            try:
                pipeline.close(abort=aborted)
            finally:
                self.finished.update(pipeline.finished)
