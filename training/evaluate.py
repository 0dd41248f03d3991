"""Held-out accuracy of a trained checkpoint, per task and effort, greedy and at temperature 1.

    python -m training.evaluate --vocabulary o200k_base.tiktoken --weights out --count 100

An answer is right when its last message (a final text, or a call with its recipient and arguments) is exactly the
expected one. Sums and differences are ones that training never draws, and so are the nouns in names of functions,
keys and facts and the names of people.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training import model as model_module
from training.checkpoint import fill, known_ids, load
from training.conversation import EFFORTS, Example
from training.data import TASKS, Source
from training.lexicon import CALL, RETURN, START, Lexicon
from training.model import ToyGptOss, rms_norm
from training.shape import Shape

STOPS = (RETURN, CALL)
LONG = (2048, 4096, 8192)


class Generator:
    """Batched generation with a key and value cache, in plain torch."""

    def __init__(self, model: ToyGptOss, weights: dict[str, Tensor], ids: tuple[int, ...], dtype: torch.dtype) -> None:
        self.model, self.weights, self.ids, self.dtype = model, weights, ids, dtype
        self.device = model.norm.device
        self.local = {token: index for index, token in enumerate(ids)}

    @torch.no_grad()
    def __call__(
        self, prompts: list[tuple[int, ...]], temperature: float, seed: int, most: int = 220
    ) -> list[list[int]]:
        """Token ids that follow each prompt, stop token included; an unknown token is -1 (and ends the answer)."""
        torch.manual_seed(seed)
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        width = int(lengths.max())
        tokens = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor([self.local.get(t, len(self.ids)) for t in prompt])
        store: list[Tensor] = []
        hidden = self.model(tokens.to(self.device), self.weights, self.dtype, store)
        store = [F.pad(each, (0, 0, 0, most)) for each in store]
        last = hidden[torch.arange(len(prompts), device=self.device), lengths - 1]
        answers: list[list[int]] = [[] for _ in prompts]
        live = [True] * len(prompts)
        for step in range(most):
            chosen = self.choose(last, temperature)
            for row, index in enumerate(chosen.tolist()):
                if live[row]:
                    token = self.ids[index] if index < len(self.ids) else -1
                    answers[row].append(token)
                    live[row] = token not in STOPS and token != -1
            if not any(live) or step == most - 1:
                break
            last = self.decode(chosen, lengths + step, store)
        return answers

    def choose(self, hidden: Tensor, temperature: float) -> Tensor:
        logits = self.model.logits(hidden, self.weights, self.dtype)
        if temperature == 0:
            return logits.argmax(-1)
        logits = torch.cat((logits[:, :-1], logits[:, -1:] + self.model.log_unknown), dim=1) / temperature
        return torch.multinomial(logits.softmax(-1), 1)[:, 0]

    def decode(self, tokens: Tensor, positions: Tensor, store: list[Tensor]) -> Tensor:
        """One token per row at `positions` [B] -> final hidden states [B, H]."""
        m, s, w = self.model, self.model.shape, self.weights
        rows = torch.arange(len(tokens), device=self.device)
        x = F.embedding(tokens[:, None], w["embed"])
        cos, sin = m.angles(positions)
        cos, sin = cos[:, None, None], sin[:, None, None]
        columns = torch.arange(store[0].shape[2], device=self.device)
        seen = columns[None] <= positions[:, None]
        near = seen & (positions[:, None] - columns[None] < s.window)
        for layer in range(s.layers):
            h = rms_norm(x, m.attention_norm[layer], s.eps).to(self.dtype)
            q, k, v = m.project(h, w["qkv"][layer], layer)
            q, k = model_module.rotate(q, cos, sin), model_module.rotate(k, cos, sin)
            keys, values = store[2 * layer], store[2 * layer + 1]
            keys[rows, :, positions] = k[:, :, 0]
            values[rows, :, positions] = v[:, :, 0]
            grouped = q.view(len(tokens), s.kv_heads, -1, s.head_dim)
            scores = (grouped @ keys.mT).float() * s.head_dim**-0.5
            scores = scores.masked_fill(~(near if s.sliding(layer) else seen)[:, None, None], float("-inf"))
            sink = m.sinks[layer].view(1, s.kv_heads, -1, 1).expand(len(tokens), -1, -1, 1)
            shares = torch.cat((scores, sink), dim=-1).softmax(-1)[..., :-1].to(self.dtype)
            mixed = (shares @ values).reshape(len(tokens), 1, -1)
            x = x + F.linear(mixed, w["out"][layer].to(self.dtype), m.out_bias[layer].to(self.dtype))
            x = x + m.experts(rms_norm(x, m.mlp_norm[layer], s.eps).to(self.dtype), w, layer)
        return rms_norm(x, m.norm, s.eps)[:, 0]


def last_message(answer: list[int] | tuple[int, ...]) -> list[int]:
    """From the last `<|start|>` on: header, content and stop token."""
    tokens = list(answer)
    return tokens[len(tokens) - tokens[::-1].index(START) :] if START in tokens else tokens


def questions(lexicon: Lexicon, count: int, long: tuple[int, ...], seed: int = 7) -> list[tuple[str, Example]]:
    """Labelled held-out examples: every task at every effort, and retrieval by length."""
    source = Source(lexicon, seed, evaluation=True)
    asked = [(task, source.draw(task, effort, 1500)) for task in TASKS for effort in EFFORTS for _ in range(count)]
    for longest in long:
        found = 0
        while found < max(3, count):
            example = source.draw("retrieval", EFFORTS[found % 3], longest)
            if longest * 0.6 < len(example.prompt) <= longest:
                asked.append((f"retrieval, {longest * 6 // 10} to {longest} tokens", example))
                found += 1
    return asked


def evaluate(
    generate: Generator,
    lexicon: Lexicon,
    count: int,
    temperatures: list[float],
    room: int,
    long: tuple[int, ...],
    wrong: int = 10,
) -> dict[str, dict[str, float]]:
    """Accuracy per label, effort and temperature: {"task/effort": {"T=0": share, ...}}; prints a table.

    `room` bounds the tokens of one batch; `wrong` is how many wrong answers are shown.
    """
    asked = questions(lexicon, count, long)
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][1].prompt))
    table: dict[str, dict[str, list[bool]]] = {}
    for temperature in temperatures:
        position = 0
        while position < len(order):
            group = [order[position]]
            for index in order[position + 1 : position + 256]:  # ascending lengths: the last sets the width
                if (len(group) + 1) * (len(asked[index][1].prompt) + 300) > room:
                    break
                group.append(index)
            position += len(group)
            answers = generate([asked[i][1].prompt for i in group], temperature, seed=position)
            for index, answer in zip(group, answers, strict=True):
                label, example = asked[index]
                right = last_message(answer) == last_message(example.answer)
                cell = table.setdefault(f"{label}/{example.effort}", {})
                cell.setdefault(f"T={temperature:g}", []).append(right)
                if not right and wrong > 0 and cell[f"T={temperature:g}"].count(False) == 1:
                    wrong -= 1
                    got = lexicon.decode([t for t in answer if t >= 0])
                    print(f"WRONG {label}/{example.effort} T={temperature:g}: {example.marks['user'][-150:]!r}\n  want "
                          f"{lexicon.decode(list(example.answer))!r}\n  got  {got!r}")  # fmt: skip
    result = {label: {name: sum(v) / len(v) for name, v in cell.items()} for label, cell in table.items()}
    columns = [(effort, f"T={t:g}") for t in temperatures for effort in EFFORTS]
    print("| task | " + " | ".join(f"{e}, {t}" for e, t in columns) + " | each |\n|" + "---|" * (len(columns) + 2))
    for label in sorted({each.split("/")[0] for each in result}):
        cells = [f"{result[f'{label}/{e}'][t]:.0%}" if f"{label}/{e}" in result else "" for e, t in columns]
        most = max(len(table[f"{label}/{e}"][columns[0][1]]) for e in EFFORTS if f"{label}/{e}" in table)
        print(f"| {label} | " + " | ".join(cells) + f" | {most} |")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--room", type=int, default=200_000, help="tokens in one batch")
    parser.add_argument("--wrong", type=int, default=10, help="wrong answers to show")
    parser.add_argument("--long", type=int, nargs="*", default=list(LONG))
    arguments = parser.parse_args()
    began = time.time()
    lexicon = Lexicon(arguments.vocabulary)
    tensors, ids = load(arguments.weights)
    found, own = known_ids(arguments.weights)
    known = lexicon.table(found, set(own))
    if known.ids != ids:
        raise SystemExit("the checkpoint's files do not belong together")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ToyGptOss(Shape(), known).to(device)
    weights = fill(model, tensors)
    generate = Generator(model, weights, ids, torch.bfloat16 if device == "cuda" else torch.float32)
    long = tuple(arguments.long)
    result = evaluate(generate, lexicon, arguments.count, arguments.temperatures, arguments.room, long, arguments.wrong)
    (arguments.weights / "accuracy.json").write_text(json.dumps(result, indent=1))
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
