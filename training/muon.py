"""Muon: momentum whose matrices are made orthogonal before each step. Works on stacks of matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def orthogonal(update: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrix of each [..., M, N], by five quintic Newton-Schulz steps in bf16."""
    x = update.to(torch.bfloat16 if update.is_cuda else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(update.dtype)


class Muon:
    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95) -> None:
        self.parameters, self.momentum = parameters, momentum
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, gradients: list[Tensor], rate: Tensor, decay: float) -> None:
        """One step. `rate` is a tensor of one number, so that a captured step can be replayed at another rate."""
        for parameter, buffer, gradient in zip(self.parameters, self.buffers, gradients, strict=True):
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(buffer, self.momentum))
            size = max(1.0, parameter.shape[-2] / parameter.shape[-1]) ** 0.5
            parameter.mul_(1 - rate * decay).sub_(update * (rate * size))
