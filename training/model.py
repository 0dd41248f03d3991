"""gpt-oss in torch, for training: works on weights as they ship, experts in MXFP4, the others in short bf16.

All experts are computed and the unchosen ones weighted by zero, which is the same function and one large matmul.
Nothing here waits for the GPU or depends on values, so that a whole pass can be captured as a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.lexicon import Known
from training.quant import mxfp4, short_bf16
from training.shape import Shape

ATTENTION_BITS = 2
ROW_BITS = 3


def swiglu(gate_up: Tensor, weights: Tensor, limit: float, alpha: float) -> Tensor:
    """[T, E, 2I] interleaved and routing weights [T, E] -> weighted activations [T, E, I]."""
    gate, up = gate_up[..., ::2].float(), gate_up[..., 1::2].float()
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (gate * torch.sigmoid(alpha * gate) * (up + 1) * weights[..., None]).to(gate_up.dtype)


def sink_softmax(scores: Tensor, visible: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Softmax over the last axis of `scores * scale` where `visible`; one more score, `sinks`, takes its share."""
    x = (scores.float() * scale).masked_fill(~visible, float("-inf"))
    top = torch.maximum(x.amax(-1, keepdim=True), sinks.float()).detach()
    e = torch.exp(x - top)
    return (e / (e.sum(-1, keepdim=True) + torch.exp(sinks.float() - top))).to(scores.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def loss_and_gradient(logits: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies [C] (0 where the label is negative) of `logits + bias` [C, K + 1], and their gradient."""
    x = logits.float() + bias
    total = x.logsumexp(-1)
    used = labels >= 0
    right = x.gather(-1, labels.clamp_min(0)[:, None])[:, 0]
    columns = torch.arange(logits.shape[1], device=logits.device)
    hit = (columns[None] == labels[:, None]).float()
    gradient = (torch.exp(x - total[:, None]) - hit) * used.float()[:, None]
    return (total - right) * used.float(), gradient.to(logits.dtype)


@dataclass(frozen=True, slots=True)
class Parts:
    """The functions that are worth compiling: each is a chain of small operations on large tensors."""

    rms_norm: Callable[..., Tensor] = rms_norm
    rotate: Callable[..., Tensor] = rotate
    swiglu: Callable[..., Tensor] = swiglu
    softmax: Callable[..., Tensor] = sink_softmax
    loss: Callable[..., tuple[Tensor, Tensor]] = loss_and_gradient

    @classmethod
    def compiled(cls) -> Parts:
        return cls(*(torch.compile(each.default, dynamic=True) for each in fields(cls)))


class HeadLoss(torch.autograd.Function):
    """Sum of cross-entropies of `hidden @ head.T + bias`; keeps gradients instead of the much larger logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor, labels: Tensor, loss: Any) -> Tensor:
        each, gradient = loss(hidden @ head.T, bias, labels)
        ctx.save_for_backward(gradient @ head, gradient.T @ hidden)
        return each.sum()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        for_hidden, for_head = ctx.saved_tensors
        return for_hidden * outer[0], for_head * outer[0], None, None, None


class ToyGptOss(nn.Module):
    """Works on local token indices 0..K (K stands for every unknown token)."""

    def __init__(self, shape: Shape, known: Known, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.shape, s = shape, shape
        size = len(known.ids)
        rows = sum(index >= 0 for index in known.trained)

        def normal(*dims: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*dims, generator=generator) * std)

        signs = torch.randint(0, 2, (known.stems, s.codes), generator=generator) * 2.0 - 1.0
        self.register_buffer("code", signs[torch.tensor(known.stem)], persistent=False)
        self.register_buffer("kind", torch.tensor(known.kind), persistent=False)
        where = torch.tensor([i for i, own in enumerate(known.trained) if own >= 0])
        self.register_buffer("own", where, persistent=False)
        # The shared row counts as often as there are rows like it.
        bias = torch.zeros(size + 1)
        bias[-1] = math.log(known.unknown_rows)
        self.register_buffer("bias", bias, persistent=False)
        self.size = size
        for name, gain, std in (("embed", 0.5, 0.5), ("head", 0.1, 0.02)):
            self.register_parameter(f"{name}_gain", nn.Parameter(torch.full((known.kinds,), gain)))
            self.register_parameter(f"{name}_kind", normal(known.kinds, s.hidden - s.codes, std=std))
            self.register_parameter(f"{name}_own", normal(rows, s.hidden, std=std / 4))
            self.register_parameter(f"{name}_unknown", normal(s.hidden, std=std))
        n, h = s.layers, s.hidden
        self.qkv = normal(n, s.qkv, h, std=h**-0.5)
        self.qkv_bias = nn.Parameter(torch.zeros(n, s.qkv))
        self.sinks = nn.Parameter(torch.zeros(n, s.heads))
        self.out = normal(n, h, s.heads * s.head_dim, std=0.3 * (s.heads * s.head_dim) ** -0.5)
        self.out_bias = nn.Parameter(torch.zeros(n, h))
        self.router = normal(n, s.experts, h, std=h**-0.5)
        self.router_bias = nn.Parameter(torch.zeros(n, s.experts))
        self.gate_up = normal(n, s.experts, 2 * s.intermediate, h, std=h**-0.5)
        self.gate_up_bias = nn.Parameter(torch.zeros(n, s.experts, 2 * s.intermediate))
        self.down = normal(n, s.experts, h, s.intermediate, std=0.3 * s.intermediate**-0.5)
        self.down_bias = nn.Parameter(torch.zeros(n, s.experts, h))
        self.attention_norm = nn.Parameter(torch.ones(n, h))
        self.mlp_norm = nn.Parameter(torch.ones(n, h))
        self.norm = nn.Parameter(torch.ones(h))
        self.register_buffer("frequencies", torch.tensor(s.frequencies(), dtype=torch.float32), persistent=False)
        self.parts = Parts()

    # -- weights as shipped -----------------------------------------------------------------------------------

    def rows(self, name: str) -> Tensor:
        """Embedding or head rows [K + 1, H], not rounded; the last stands for every unknown token."""
        gain, kind = getattr(self, f"{name}_gain"), getattr(self, f"{name}_kind")
        own, unknown = getattr(self, f"{name}_own"), getattr(self, f"{name}_unknown")
        base = torch.cat((self.code * gain[self.kind][:, None], kind[self.kind]), dim=1)
        return torch.cat((base.index_add(0, self.own, own), unknown[None]))

    @torch.no_grad()
    def shipped(self) -> dict[str, Tensor]:
        """The large weights rounded to the formats they ship in (fp32): what the forward pass takes."""
        return {
            "qkv": short_bf16(self.qkv, ATTENTION_BITS),
            "out": short_bf16(self.out, ATTENTION_BITS),
            "gate_up": mxfp4(self.gate_up),
            "down": mxfp4(self.down),
            "embed": short_bf16(self.rows("embed"), ROW_BITS),
            "head": short_bf16(self.rows("head"), ROW_BITS),
        }

    # -- forward ----------------------------------------------------------------------------------------------

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        turn = positions.float()[..., None] * self.frequencies
        return turn.cos() * self.shape.concentration, turn.sin() * self.shape.concentration

    def forward(
        self, tokens: Tensor, w: dict[str, Tensor], dtype: torch.dtype, store: list[Tensor] | None = None
    ) -> Tensor:
        """Tokens [B, L] -> final normed hidden states [B, L, H]. `store` collects keys and values per layer."""
        s = self.shape
        b, length = tokens.shape
        x = w["embed"].index_select(0, tokens.flatten()).view(b, length, -1).float()
        cos, sin = self.angles(torch.arange(length, device=tokens.device))
        qkv, out = w["qkv"].unbind(), w["out"].unbind()
        experts = tuple(zip(w["gate_up"].unbind(), w["down"].unbind(), strict=True))
        norm, rotate = self.parts.rms_norm, self.parts.rotate
        for layer in range(s.layers):
            h = norm(x, self.attention_norm[layer], s.eps).to(dtype)
            q, k, v = self.project(h, qkv[layer], layer)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if store is not None:
                store += [k, v]
            attend = self.sliding if s.sliding(layer) else self.full
            mixed = attend(q, k, v, self.sinks[layer].to(dtype)).transpose(1, 2).reshape(b, length, -1)
            x = x + F.linear(mixed, out[layer].to(dtype), self.out_bias[layer].to(dtype))
            x = x + self.experts(norm(x, self.mlp_norm[layer], s.eps).to(dtype), *experts[layer], layer)
        return norm(x, self.norm, s.eps)

    def project(self, h: Tensor, weight: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L, H] -> q [B, heads, L, D], k and v [B, kv_heads, L, D]."""
        s = self.shape
        mixed = F.linear(h, weight.to(h.dtype), self.qkv_bias[layer].to(h.dtype))
        heads = mixed.unflatten(-1, (-1, s.head_dim)).transpose(1, 2)
        q, k, v = heads.split((s.heads, s.kv_heads, s.kv_heads), dim=1)
        return q, k, v

    def experts(self, h: Tensor, gate_up: Tensor, down: Tensor, layer: int) -> Tensor:
        """[B, L, H] through one layer's `gate_up` [E, 2I, H] and `down` [E, H, I]."""
        s = self.shape
        flat = h.reshape(-1, s.hidden)
        scores = F.linear(flat, self.router[layer].to(h.dtype), self.router_bias[layer].to(h.dtype)).float()
        top, chosen = scores.topk(s.active, dim=-1)
        weights = torch.zeros_like(scores).scatter(-1, chosen, top.softmax(-1))
        opened = F.linear(flat, gate_up.flatten(0, 1).to(h.dtype), self.gate_up_bias[layer].flatten().to(h.dtype))
        active = self.parts.swiglu(opened.unflatten(-1, (s.experts, -1)), weights, s.limit, s.alpha)
        closing = down.transpose(0, 1).flatten(1).to(h.dtype)  # [H, E * I]
        result = F.linear(active.flatten(1), closing) + weights.to(h.dtype) @ self.down_bias[layer].to(h.dtype)
        return result.view(h.shape)

    def with_sink(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eight more dimensions, and a key in front that scores exactly `sinks` and has value zero."""
        s = self.shape
        more = torch.zeros(*q.shape[:-1], 8, dtype=q.dtype, device=q.device)
        more = torch.cat((sinks.view(1, -1, 1, 1).expand(*q.shape[:-1], 1), more[..., 1:]), dim=-1)
        q = torch.cat((q, more), dim=-1)
        k, v = F.pad(k, (0, 8, 1, 0)), F.pad(v, (0, 8, 1, 0))
        one = torch.zeros_like(k)
        one[..., 0, s.head_dim] = s.head_dim**0.5
        return q, k + one, v

    def full(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        d = self.shape.head_dim
        q, k, v = self.with_sink(q, k, v, sinks)
        q = F.pad(q, (0, 0, 1, 0))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=d**-0.5, enable_gqa=True)
        return mixed[:, :, 1:, :d]

    def sliding(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        """Chunks of a window's length, each of which sees itself and the chunk before."""
        s, w = self.shape, self.shape.window
        b, heads, length, d = q.shape
        extra = -length % w
        n, groups = (length + extra) // w, heads // s.kv_heads

        def pairs(x: Tensor) -> Tensor:
            x = F.pad(x, (0, 0, w, extra)).unflatten(2, (n + 1, w))
            return torch.cat((x[:, :, :-1], x[:, :, 1:]), dim=3)  # [B, kv, n, 2w, D]

        q = F.pad(q, (0, 0, 0, extra)).view(b, s.kv_heads, groups, n, w, d).transpose(2, 3)
        scores = q.reshape(b, s.kv_heads, n, groups * w, d) @ pairs(k).mT
        row = torch.arange(w, device=q.device)[:, None] + w
        column = torch.arange(2 * w, device=q.device)[None]
        near = (column <= row) & (row - column < w)
        visible = torch.stack((near & (column >= w), near))[(torch.arange(n, device=q.device) > 0).long()]
        scores = scores.view(b, s.kv_heads, n, groups, w, 2 * w)
        shares = self.parts.softmax(scores, visible[:, None], sinks.view(s.kv_heads, 1, groups, 1, 1), d**-0.5)
        mixed = shares.flatten(3, 4) @ pairs(v)
        mixed = mixed.unflatten(3, (groups, w)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        return mixed[:, :, :length]

    # -- loss -------------------------------------------------------------------------------------------------

    def logits(self, hidden: Tensor, w: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """[..., H] -> [..., K + 1] fp32; the last is the logit of each single unknown token."""
        return F.linear(hidden.to(dtype), w["head"].to(dtype)).float()

    def loss(self, tokens: Tensor, where: Tensor, labels: Tensor, w: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Sum of cross-entropies over the whole vocabulary at the flat positions `where` [C]; -1 labels count 0."""
        hidden = self(tokens, w, dtype).flatten(0, 1).index_select(0, where).to(dtype)
        total: Tensor = HeadLoss.apply(hidden, w["head"].to(dtype), self.bias, labels, self.parts.loss)
        return total
