"""Adam for everything that is no stack of matrices; its rates are tensors, so that a captured step can be replayed."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Adam:
    def __init__(self, parameters: list[nn.Parameter], betas: tuple[float, float] = (0.9, 0.98)) -> None:
        self.parameters, self.betas = parameters, betas
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def corrections(self, step: int) -> tuple[float, float]:
        """What the two averages have to be divided by at `step`, counted from 1."""
        return 1 - self.betas[0] ** step, 1 - self.betas[1] ** step

    @torch.no_grad()
    def step(self, gradients: list[Tensor], rate: Tensor, corrections: tuple[Tensor, Tensor]) -> None:
        """One step, with the gradients clipped to a norm of 1 in all."""
        norm = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).norm()
        share = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        for parameter, first, second, raw in zip(self.parameters, self.first, self.second, gradients, strict=True):
            gradient = raw * share
            first.lerp_(gradient, 1 - self.betas[0])
            second.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
            below = (second / corrections[1]).sqrt().add_(1e-8)
            parameter.sub_(first / below * (rate / corrections[0]))
