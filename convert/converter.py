"""`convert`: a checkpoint becomes a model folder, streaming, resumable and all or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from mlx_gptoss import __version__
from mlx_gptoss.convert.detect import open_source
from mlx_gptoss.convert.journal import JOURNAL_NAME, Finished
from mlx_gptoss.convert.layout import Layout, lay_out
from mlx_gptoss.convert.plan import Plan, make_plan
from mlx_gptoss.convert.precision import Precision
from mlx_gptoss.convert.source import Source
from mlx_gptoss.convert.target import Target, check_space, open_target
from mlx_gptoss.convert.writing import Progress, Writing
from mlx_gptoss.errors import ConversionError
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
SYNC_BYTES = 256 << 20


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
    sync_bytes: int = SYNC_BYTES,
) -> Manifest:
    """Converts the checkpoint at `source` into the model folder `target` and returns its manifest.

    Reads Hugging Face safetensors (released or fine-tuned), OpenAI's original layout, GGUF and mlx-lm folders, told
    apart by content. `attention`, `embedding` and `head` are `source|bf16|f32|mxfp8|q8|q6|q4`; `experts` is `mxfp4`
    or, for dense sources, `bf16`. `adapters` are LoRA folders to merge. `progress` gets bytes done and bytes in all,
    from a worker thread.

    Interrupted at any point, the same call goes on where it stopped. A folder that is already the outcome is left as
    it is; one that holds another conversion is an error unless `overwrite`.

    Raises CheckpointError (bad source), ConversionError (bad target or choice), InsufficientDiskError, ConfigError.
    """
    precision = Precision.from_mapping(
        {"attention": attention, "embedding": embedding, "head": head, "experts": experts}
    )
    path = Path(target)
    with open_source(Path(source), [Path(a) for a in adapters]) as opened:
        plan = make_plan(opened, precision)
        layout = lay_out(plan.jobs, shard_bytes)
        if not path.exists():
            check_space(path, layout)
        with open_target(path, MANIFEST_NAME) as folder:
            folder.check_ours()
            done = None if overwrite else _already_done(folder, opened, precision)
            if done is not None:
                return done
            if overwrite and is_model_folder(path):
                folder.clear()
            key = plan.key(opened.fingerprint)
            writing = Writing(folder, plan.jobs, layout, key, opened.check_unchanged, progress, sync_bytes)

            def finish(finished: dict[str, Finished]) -> None:
                manifest = _manifest(opened, plan, precision, layout, finished, revision)
                folder.replace(CONFIG_NAME, plan.config_json)
                folder.replace(MANIFEST_NAME, manifest.to_json().encode())
                folder.unlink(JOURNAL_NAME)

            writing.run(finish)
            return read_manifest(path)


def _already_done(folder: Target, source: Source, precision: Precision) -> Manifest | None:
    if not is_model_folder(folder.path):
        return None
    manifest = read_manifest(folder.path)
    if manifest.source.fingerprint != source.fingerprint or dict(manifest.precision) != precision.to_dict():
        raise ConversionError(
            "the target holds another model",
            got=f"a conversion of {manifest.source.name}",
            where=str(folder.path),
            hint="Choose another target, or say --overwrite",
        )
    folder.unlink(JOURNAL_NAME)
    return manifest


def _manifest(
    source: Source,
    plan: Plan,
    precision: Precision,
    layout: Layout,
    finished: dict[str, Finished],
    revision: str | None,
) -> Manifest:
    tensors: list[TensorRecord] = []
    notes = list(plan.notes)
    for places in layout.places:
        entry = finished[places[0].output.name]
        if entry.note is not None:
            notes.append(entry.note)
        for place, digest in zip(places, entry.hashes, strict=True):
            o = place.output
            tensors.append(TensorRecord(o.name, o.dtype, o.shape, place.file, place.offset, o.nbytes, digest))
    return Manifest(
        version=FORMAT_VERSION,
        source=SourceRecord(source.kind, source.path.resolve().name, revision, source.fingerprint),
        precision=precision.to_dict(),
        formats=plan.formats,
        files={s.name: s.size for s in layout.shards},
        tensors=tuple(tensors),
        config_sha256=hashlib.sha256(plan.config_json).hexdigest(),
        notes=tuple(notes),
        created_by=f"mlx-gptoss {__version__}",
    )
