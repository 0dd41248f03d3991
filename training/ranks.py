"""Several GPUs at one model: each adds up gradients of its own batches, the sums are added, all take the same step.

Started once per GPU with the environment that `torchrun` sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
MASTER_PORT); without it there is one rank, and nothing here does anything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int = 0
    world: int = 1
    local: int = 0  # this rank's GPU

    @classmethod
    def from_environment(cls) -> Ranks:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(int(os.environ.get("RANK", "0")), world, int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self) -> torch.device:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def join(self) -> None:
        """Waits for the others. Call it after workers were forked: its threads would not survive that."""
        if self.world > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")

    def add_up(self, sums: Tensor) -> None:
        """`sums` of all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(sums)

    def same(self, tensors: list[Tensor]) -> None:
        """The first rank's values for everyone: rounding may differ between GPUs, and differences would add up."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agreed(self, progress: float, stop: bool) -> tuple[float, bool]:
        """The first rank's clock and whether it was asked to stop, for everyone."""
        if self.world == 1:
            return progress, stop
        word = torch.tensor((progress, float(stop)), dtype=torch.float64)
        dist.broadcast(word, 0)
        return float(word[0]), bool(word[1])

    def leave(self) -> None:
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()
