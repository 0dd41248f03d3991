"""One training step on buffers that stay where they are: on a GPU each batch shape is a CUDA graph, replayed.

Several batches add up to one update. Launching thousands of small kernels from Python takes longer than running them;
a graph launches them all at once. Where capturing fails, the same functions run one kernel at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.adam import Adam
from training.checkpoint import SHORT
from training.data import Batch, capacity, rows_of
from training.model import Parts, ToyGptOss
from training.muon import Muon
from training.ranks import Ranks

MATRICES = ("qkv", "out", "gate_up", "down")
ROWS = ("embed", "head")
PIECES = ("gain", "kind", "own", "unknown")
ALONE = Ranks()
SAME_EVERY = 100  # updates between two copies of the first rank's master weights to all


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a pass over batches of one length reads, and the loss and number of targets it has added up."""

    tokens: Tensor
    where: Tensor
    labels: Tensor
    total: Tensor  # [2]: sum of cross-entropies, targets

    def copy_from(self, batch: Batch) -> None:
        pairs = ((self.tokens, batch.tokens.astype("int32")), (self.where, batch.where), (self.labels, batch.labels))
        for target, array in pairs:
            source = torch.from_numpy(array)
            target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)


def weight_of(length: int) -> float:
    """Long batches have few targets, and those are harder to learn."""
    return float(max(1.0, length / 512) ** 0.5)


class Stepper:
    def __init__(self, model: ToyGptOss, tokens: int, decay: float, graphs: bool, ranks: Ranks = ALONE) -> None:
        """`tokens` in a batch; `graphs`: capture CUDA graphs (else everything runs one kernel at a time)."""
        self.model, self.tokens, self.decay, self.graphs, self.ranks = model, tokens, decay, graphs, ranks
        self.device = model.norm.device
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.weights = {
            name: tensor.to(self.dtype if name in MATRICES else torch.float32).requires_grad_()
            for name, tensor in model.shipped().items()
        }
        small = [getattr(model, name) for name in SHORT]
        self.leaves: list[Tensor] = [*self.weights.values(), *small]
        # One run of memory, so that ranks add it up in one go: a sum per leaf, and the number of targets.
        sizes = [leaf.numel() for leaf in self.leaves]
        self.all_sums = torch.zeros(sum(sizes) + 1, device=self.device)
        pieces = self.all_sums.split([*sizes, 1])
        self.sums = [piece.view(leaf.shape) for piece, leaf in zip(pieces, self.leaves, strict=False)]
        self.count = self.all_sums[-1]
        # Rates of Muon and Adam, Adam's two corrections: while warming up, nothing moves.
        self.knobs = torch.tensor((0.0, 0.0, 1.0, 1.0), device=self.device)
        self.muon = Muon([getattr(model, name) for name in MATRICES])
        self.adam = Adam([*small, *(getattr(model, f"{name}_{piece}") for name in ROWS for piece in PIECES)])
        self.kinds = torch.nn.functional.one_hot(model.kind, model.embed_gain.shape[0]).float().T.contiguous()
        self.inputs: dict[int, Inputs] = {}
        self.captured: dict[int, torch.cuda.CUDAGraph] = {}
        self.update_graph: torch.cuda.CUDAGraph | None = None
        self.steps = 0

    # -- one batch --------------------------------------------------------------------------------------------

    def inputs_of(self, length: int) -> Inputs:
        if length not in self.inputs:
            rows, targets = rows_of(self.tokens, length), capacity(self.tokens, length)

            def empty(*shape: int, fill: int = 0) -> Tensor:
                return torch.full(shape, fill, dtype=torch.int32, device=self.device)

            total = torch.zeros(2, device=self.device)
            self.inputs[length] = Inputs(empty(rows, length), empty(targets), empty(targets, fill=-1), total)
        return self.inputs[length]

    def run_pass(self, length: int) -> None:
        """Forward and backward over what lies in the inputs; gradients are added to `sums`."""
        inputs = self.inputs[length]
        tokens, where, labels = inputs.tokens.long(), inputs.where.long(), inputs.labels.long()
        loss = self.model.loss(tokens, where, labels, self.weights, self.dtype)
        gradients = torch.autograd.grad(loss * weight_of(length), self.leaves)
        with torch.no_grad():
            for total, gradient in zip(self.sums, gradients, strict=True):
                total.add_(gradient)
            count = (labels >= 0).sum()
            self.count.add_(count * weight_of(length))
            inputs.total.add_(torch.stack((loss.detach(), count.to(loss.dtype))))

    def add(self, batch: Batch) -> None:
        """Adds the gradients of one batch."""
        length = batch.tokens.shape[1]
        self.inputs_of(length).copy_from(batch)
        graph = self.captured.get(length)
        if graph is not None:
            graph.replay()
        else:
            self.run_pass(length)

    # -- the update -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def run_update(self) -> None:
        share = 1.0 / self.count.clamp_min(1.0)
        scaled = {name: total * share for name, total in zip((*self.weights, *SHORT), self.sums, strict=True)}
        self.muon.step([scaled[name] for name in MATRICES], self.knobs[0], self.decay)
        pieces = [piece for name in ROWS for piece in self.pieces(scaled[name])]
        gradients = [*(scaled[name] for name in SHORT), *pieces]
        self.adam.step(gradients, self.knobs[1], (self.knobs[2], self.knobs[3]))
        for name, tensor in self.model.shipped().items():
            self.weights[name].copy_(tensor)
        self.all_sums.zero_()

    def pieces(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Gradients of a table's gains, kinds, own rows and shared row from that of its rows [K + 1, H]."""
        codes, known = self.model.shape.codes, rows[:-1]
        gain = self.kinds @ (known[:, :codes] * self.model.code).sum(1)
        return gain, self.kinds @ known[:, codes:], known.index_select(0, self.model.own), rows[-1]

    def update(self, muon: float, adam: float) -> None:
        """One step of both optimisers with the gradients that all ranks have added so far, at these rates."""
        self.steps += 1
        self.ranks.add_up(self.all_sums)
        self.knobs.copy_(torch.tensor((muon, adam, *self.adam.corrections(self.steps))), non_blocking=True)
        if self.update_graph is not None:
            self.update_graph.replay()
        else:
            self.run_update()
        if self.steps % SAME_EVERY == 0:
            self.ranks.same([parameter.data for parameter in self.model.parameters()])

    # -- capturing --------------------------------------------------------------------------------------------

    def prepare(self, lengths: tuple[int, ...], compiled: bool) -> None:
        """Compile, warm up and capture; whatever fails is done without, and said. Leaves the weights as they were."""
        if compiled:
            self.model.parts = Parts.compiled()
        try:
            self.warm_up(lengths[0])
        except Exception as error:  # any failure of the compiler: train without it
            if not compiled:
                raise
            print(f"compiling failed, going on without: {error!r:.600}", flush=True)
            self.model.parts = Parts()
            self.warm_up(lengths[0])
        if not self.graphs:
            return
        try:
            self.capture(lengths)
        except Exception as error:  # any failure to capture: train one kernel at a time
            print(f"capturing failed, going on without: {error!r:.600}", flush=True)
            self.captured, self.update_graph = {}, None
            torch.cuda.synchronize()
        self.forget()

    def warm_up(self, length: int) -> None:
        self.inputs_of(length)
        for _ in range(2):
            self.run_pass(length)
        self.run_update()
        self.forget()

    def capture(self, lengths: tuple[int, ...]) -> None:
        side, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        for length in (*lengths, 0):  # 0 stands for the update
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    if length:
                        self.inputs_of(length)
                        self.run_pass(length)
                    else:
                        self.run_update()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                if length:
                    self.run_pass(length)
                else:
                    self.run_update()
            if length:
                self.captured[length] = graph
            else:
                self.update_graph = graph

    @torch.no_grad()
    def forget(self) -> None:
        """Empties all sums, averages and totals. The rates were zero while warming up: the weights have not moved."""
        buffers = (self.all_sums, *self.muon.buffers, *self.adam.first, *self.adam.second)
        for buffer in (*buffers, *(inputs.total for inputs in self.inputs.values())):
            buffer.zero_()
        self.steps = 0
