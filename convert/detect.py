"""Which kind of checkpoint a path holds, told by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_gptoss.convert.adapters import CONFIG as ADAPTER_CONFIG
from mlx_gptoss.convert.adapters import Adapter, open_adapter
from mlx_gptoss.convert.gguf import open_gguf
from mlx_gptoss.convert.gguf_file import is_gguf
from mlx_gptoss.convert.huggingface import open_huggingface
from mlx_gptoss.convert.journal import JOURNAL_NAME
from mlx_gptoss.convert.mlx_lm import open_mlx_lm
from mlx_gptoss.convert.model_folder import open_model_folder
from mlx_gptoss.convert.openai import open_openai
from mlx_gptoss.convert.safetensors import INDEX_NAME, Checkpoint, read_checkpoint
from mlx_gptoss.convert.source import Source
from mlx_gptoss.errors import CheckpointError, ConversionError
from mlx_gptoss.folder import is_model_folder

LOOKED_FOR = (
    "Hugging Face safetensors (model.layers.0.mlp.experts...), OpenAI's original ones (block.0.attn.qkv.weight), "
    "an mlx-lm folder (experts.gate_proj), or a GGUF file of architecture gpt-oss"
)


def open_source(path: Path, adapters: Sequence[Path] = ()) -> Source:
    """Opens whatever checkpoint `path` is, with adapters merged. Raises CheckpointError saying what was found."""
    if not path.exists():
        raise CheckpointError("there is no such source", where=str(path))
    opened: list[Adapter] = []
    try:
        opened += [open_adapter(p) for p in adapters]
        return _open(path, opened)
    except BaseException:
        for adapter in opened:
            for file in adapter.files:
                file.close()
        raise


def _open(path: Path, adapters: Sequence[Adapter]) -> Source:
    if path.is_file():
        if is_gguf(path):
            return _open_gguf(path, adapters)
        if path.suffix == ".safetensors":
            return _open_safetensors(path.parent, read_checkpoint(path.parent, (path.name,)), adapters)
        raise _unknown(path)
    if is_model_folder(path):
        if adapters:
            raise ConversionError("adapters are merged into Hugging Face checkpoints only", where=str(path))
        return open_model_folder(path)
    if (path / JOURNAL_NAME).exists() and not (path / INDEX_NAME).exists():
        # Its files have their names and lengths already, and not their content.
        raise CheckpointError(
            "the folder is not finished", expected="a conversion or export that ran to its end", where=str(path),
            hint="Run the command that writes it again: it goes on where it stopped",
        )  # fmt: skip
    if (path / ADAPTER_CONFIG).is_file():
        raise ConversionError(
            "the source is an adapter, not a model", where=str(path), hint="Give the base model, and this as --adapter"
        )
    ggufs = sorted(path.glob("*.gguf"))
    firsts = [p for p in ggufs if "-of-" not in p.name or "-00001-of-" in p.name]
    if len(firsts) > 1:
        raise CheckpointError(
            "the folder holds several GGUF models", got=", ".join(p.name for p in firsts[:4]), where=str(path),
            hint="Name one of the files",
        )  # fmt: skip
    if firsts and not any(path.glob("*.safetensors")):
        return _open_gguf(firsts[0], adapters)
    if any(path.glob("*.safetensors")) or (path / INDEX_NAME).exists():
        return _open_safetensors(path, read_checkpoint(path), adapters)
    raise _unknown(path)


def _open_gguf(path: Path, adapters: Sequence[Adapter]) -> Source:
    if adapters:
        raise ConversionError("adapters are merged into Hugging Face checkpoints only", where=str(path))
    return open_gguf(path)


def _open_safetensors(folder: Path, checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Source:
    try:
        names = checkpoint.entries
        if "model.layers.0.mlp.experts.gate_proj.weight" in names:
            return open_mlx_lm(folder, checkpoint, adapters)
        if any(n.startswith("model.layers.0.mlp.experts.") for n in names):
            return open_huggingface(folder, checkpoint, adapters)
        if "block.0.attn.qkv.weight" in names:
            return open_openai(folder, checkpoint, adapters)
        raise _unknown(folder, sorted(names))
    except BaseException:
        for file in checkpoint.files:
            file.close()
        raise


def _unknown(path: Path, tensors: Sequence[str] = ()) -> CheckpointError:
    if tensors:
        found = f"tensors such as {', '.join(t[:60] for t in tensors[:4])}"
    elif path.is_dir():
        names = sorted(p.name for p in path.iterdir())
        found = ", ".join(n[:60] for n in names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    else:
        found = "a file of another kind"
    return CheckpointError("no gpt-oss checkpoint here", expected=LOOKED_FOR, got=found or "nothing", where=str(path))
