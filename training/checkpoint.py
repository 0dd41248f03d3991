"""Training's own files: weights as they ship, and the master weights to train on from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training.lexicon import Known
from training.model import ToyGptOss
from training.shape import SHARPNESS

SHORT = ("qkv_bias", "sinks", "out_bias", "router", "router_bias", "gate_up_bias", "down_bias", "attention_norm",
         "mlp_norm", "norm")  # fmt: skip


def write(value: dict[str, Tensor], path: Path) -> None:
    """The file appears only when it is whole."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    partial.replace(path)


def save(model: ToyGptOss, known: Known, out: Path) -> None:
    """`shipped-1.pt` attention and the small tensors; `shipped-2.pt` experts; `shipped-3.pt` and `-4.pt` the rows.

    `master-*.pt` hold the same before rounding, bf16; `known.pt` the tokens. Each stays below 16 MiB.
    """
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        shipped = {name: tensor.bfloat16().cpu() for name, tensor in model.shipped().items()}
        shipped |= {name: getattr(model, name).detach().bfloat16().cpu() for name in SHORT}
        for name, tensor in shipped.items():
            if not bool(tensor.isfinite().all()):
                raise SystemExit(f"training diverged: {name} is not finite; nothing is saved")
    first = {name: tensor for name, tensor in shipped.items() if name not in ("gate_up", "down", "embed", "head")}
    write(first, out / "shipped-1.pt")
    write({name: shipped[name] for name in ("gate_up", "down")}, out / "shipped-2.pt")
    write({"embed": shipped["embed"], "ids": torch.tensor(known.ids)}, out / "shipped-3.pt")
    own = [token for token, row in zip(known.ids, known.trained, strict=True) if row >= 0]
    ids = {"ids": torch.tensor(known.ids, dtype=torch.int32), "own": torch.tensor(own, dtype=torch.int32)}
    write(ids, out / "known.pt")
    write({"head": shipped["head"]}, out / "shipped-4.pt")
    state = {name: p.detach().bfloat16().cpu() for name, p in model.named_parameters()}
    experts = ("gate_up", "down")
    write({n: t for n, t in state.items() if n in experts}, out / "master-1.pt")
    write({n: t for n, t in state.items() if n not in experts}, out / "master-2.pt")


def known_ids(folder: Path) -> tuple[list[int], list[int]]:
    """Ids of the known tokens in the order of their rows, and of those with rows of their own."""
    ids = torch.load(folder / "known.pt", map_location="cpu")
    return ids["ids"].tolist(), ids["own"].tolist()


def resume(model: ToyGptOss, known: Known, folder: Path) -> None:
    """Master weights of `folder` into `model`; tokens without a row of their own there start from zero."""
    order = {token: index for index, token in enumerate(known_ids(folder)[1])}
    own = [token for token, row in zip(known.ids, known.trained, strict=True) if row >= 0]
    for part in sorted(folder.glob("master-*.pt")):
        state = torch.load(part, map_location=model.norm.device)
        for name in ("embed_own", "head_own"):
            if name in state:
                old = state[name].float()
                rows = [old[order[token]] if token in order else torch.zeros_like(old[0]) for token in own]
                state[name] = torch.stack(rows)
        model.load_state_dict(state, strict=False)


def load(folder: Path) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """The shipped tensors (bf16) and the ids of the known tokens, in row order. The head is SHARPNESS times the trained
    one."""
    tensors: dict[str, Tensor] = {}
    for part in sorted(folder.glob("shipped-*.pt")):
        tensors |= torch.load(part, map_location="cpu")
    tensors["head"] = tensors["head"] * SHARPNESS
    return tensors, tuple(tensors.pop("ids").tolist())


def fill(model: ToyGptOss, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the small tensors into `model`; returns the rest as the `w` of its forward pass (fp32)."""
    device = model.norm.device
    with torch.no_grad():
        for name in SHORT:
            getattr(model, name).copy_(tensors[name].float())
    return {name: t.float().to(device) for name, t in tensors.items() if name not in SHORT}
