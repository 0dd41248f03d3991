"""Held-out accuracy of a trained checkpoint, per task and effort, greedy and at temperature 1.

    python -m training.evaluate --vocabulary o200k_base.tiktoken --weights out --count 100 --seconds 240

Writes `accuracy.md` and `accuracy.json` beside the weights, after each temperature.

An answer is right when its last message (a final text, or a call with its recipient and arguments) is exactly the
expected one. Sums and differences are ones that training never draws, and so are the nouns in names of functions,
keys and facts and the names of people.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training import structured, toolbox
from training.checkpoint import fill, known_ids, load
from training.conversation import EFFORTS, Example
from training.data import TASKS, Source
from training.lexicon import CALL, RETURN, START, Lexicon, Pools
from training.model import ToyGptOss, rms_norm, rotate
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
        return torch.multinomial(((logits + self.model.bias) / temperature).softmax(-1), 1)[:, 0]

    def decode(self, tokens: Tensor, positions: Tensor, store: list[Tensor]) -> Tensor:
        """One token per row at `positions` [B] -> final hidden states [B, H]."""
        m, s, w = self.model, self.model.shape, self.weights
        rows = torch.arange(len(tokens), device=self.device)
        x = w["embed"][tokens[:, None]].float()
        cos, sin = m.angles(positions)
        cos, sin = cos[:, None, None], sin[:, None, None]
        columns = torch.arange(store[0].shape[2], device=self.device)
        seen = columns[None] <= positions[:, None]
        near = seen & (positions[:, None] - columns[None] < s.window)
        for layer in range(s.layers):
            h = rms_norm(x, m.attention_norm[layer], s.eps).to(self.dtype)
            q, k, v = m.project(h, w["qkv"][layer], layer)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
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
            x = x + m.experts(
                rms_norm(x, m.mlp_norm[layer], s.eps).to(self.dtype), w["gate_up"][layer], w["down"][layer], layer
            )
        return rms_norm(x, m.norm, s.eps)[:, 0]


def last_message(answer: list[int] | tuple[int, ...]) -> list[int]:
    """From the last `<|start|>` on: header, content and stop token."""
    tokens = list(answer)
    return tokens[len(tokens) - tokens[::-1].index(START) :] if START in tokens else tokens


def questions(
    lexicon: Lexicon,
    count: int,
    long: tuple[int, ...],
    new_words: bool,
    tasks: tuple[str, ...] = TASKS,
    seed: int = 7,
) -> list[tuple[str, Example]]:
    """Labelled held-out examples: each of `tasks` at every effort, and retrieval by length. Sums are always ones that
    training never shows; with `new_words` so are all nouns and names, else they are those of training, newly combined.
    """
    source = Source(lexicon, seed, evaluation=True)
    if not new_words:
        source.lexicon = source.narrow = with_known_words(source.narrow)
    asked = [(task, source.draw(task, effort, 1500)) for task in tasks for effort in EFFORTS for _ in range(count)]
    for longest in long:
        found = 0
        while found < max(3, count):
            example = source.draw("retrieval", EFFORTS[found % 3], longest)
            if longest * 0.6 < len(example.prompt) <= longest:
                asked.append((f"retrieval, {longest * 6 // 10} to {longest} tokens", example))
                found += 1
    return asked


def questions_by_kind(lexicon: Lexicon, count: int, seed: int = 11) -> list[tuple[str, Example]]:
    """Labelled held-out examples of each kind of tool call and of JSON, with words of training."""
    source = Source(lexicon, seed, evaluation=True)
    source.lexicon = source.narrow = with_known_words(source.narrow)
    kinds = [("tool call", kind) for kind in toolbox.KINDS] + [("json", kind) for kind in structured.KINDS]
    return [
        (f"{task}, {kind}", source.draw(task, effort, 1500, kind))
        for task, kind in kinds
        for effort in EFFORTS
        for _ in range(count)
    ]


def with_known_words(lexicon: Lexicon) -> Lexicon:
    """`lexicon`, whose words for evaluation are those of training."""
    nouns, proper = lexicon.nouns, lexicon.proper
    return lexicon.drawing(Pools(nouns, nouns, proper, proper, lexicon.plain))


@dataclass(frozen=True, slots=True)
class Limits:
    """`room`: tokens in one batch; `wrong`: how many wrong answers to show; `until`: when to stop (`time.time()`)."""

    room: int = 200_000
    wrong: int = 10
    until: float = math.inf


Cells = dict[tuple[str, str, float], list[bool]]
"""Right or wrong, by label, effort and temperature."""


def evaluate(
    generate: Generator,
    lexicon: Lexicon,
    asked: list[tuple[str, Example]],
    temperature: float,
    limits: Limits,
) -> Cells:
    """Answers to `asked`, short prompts first, as far as the time allows."""
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][1].prompt))
    cells: Cells = {}
    position, wrong = 0, limits.wrong
    while position < len(order) and time.time() < limits.until:
        group = [order[position]]
        for index in order[position + 1 : position + 256]:  # ascending lengths: the last sets the width
            if (len(group) + 1) * (len(asked[index][1].prompt) + 300) > limits.room:
                break
            group.append(index)
        position += len(group)
        answers = generate([asked[i][1].prompt for i in group], temperature, seed=position)
        for index, answer in zip(group, answers, strict=True):
            label, example = asked[index]
            right = last_message(answer) == last_message(example.answer)
            cells.setdefault((label, example.effort, temperature), []).append(right)
            if not right and wrong > 0:
                wrong -= 1
                got = lexicon.decode([t for t in answer if t >= 0])
                print(f"WRONG {label}/{example.effort} T={temperature:g}: {example.marks['user'][-150:]!r}\n  want "
                      f"{lexicon.decode(list(example.answer))!r}\n  got  {got!r}", flush=True)  # fmt: skip
    if position < len(order):
        print(f"T={temperature:g}: time is up after {position} of {len(order)} prompts", flush=True)
    return cells


def table(cells: Cells) -> str:
    """Accuracy per label, effort and temperature as Markdown."""
    columns = [(e, t) for t in sorted({t for _, _, t in cells}) for e in EFFORTS]
    head = "| task | " + " | ".join(f"{effort}, T={t:g}" for effort, t in columns) + " | each |"
    lines = [head, "|" + "---|" * (len(columns) + 2)]
    for label in sorted({label for label, _, _ in cells}):
        found = [cells.get((label, effort, t), []) for effort, t in columns]
        shares = " | ".join(f"{sum(cell) / len(cell):.0%}" if cell else "" for cell in found)
        lines.append(f"| {label} | {shares} | {max(len(cell) for cell in found)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--room", type=int, default=200_000, help="tokens in one batch")
    parser.add_argument("--wrong", type=int, default=30, help="wrong answers to show per temperature")
    parser.add_argument("--long", type=int, nargs="*", default=list(LONG))
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long, with what there is")
    parser.add_argument("--new-words", action="store_true", help="ask with nouns and names that training never shows")
    parser.add_argument("--kinds", action="store_true", help="ask each kind of tool call and of JSON instead")
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
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    weights = {name: tensor.to(dtype) for name, tensor in fill(model, tensors).items()}
    generate = Generator(model, weights, ids, dtype)
    asked = questions(lexicon, arguments.count, tuple(arguments.long), arguments.new_words, tuple(arguments.tasks))
    if arguments.kinds:
        asked = questions_by_kind(lexicon, arguments.count)
    print(f"{len(asked)} prompts; set up in {time.time() - began:.0f} s", flush=True)
    name = "accuracy-kinds" if arguments.kinds else "accuracy-new-words" if arguments.new_words else "accuracy"
    cells: Cells = {}
    for temperature in arguments.temperatures:
        limits = Limits(arguments.room, arguments.wrong, began + arguments.seconds)
        cells |= evaluate(generate, lexicon, asked, temperature, limits)
        shares = {f"{label}/{effort}/T={t:g}": sum(v) / len(v) for (label, effort, t), v in cells.items()}
        (arguments.weights / f"{name}.json").write_text(json.dumps(shares, indent=1) + "\n")
        (arguments.weights / f"{name}.md").write_text(table(cells))
    print(table(cells) + f"{time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
