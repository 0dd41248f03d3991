"""Servers over random weights made in memory, ours and mlx-lm's: no folder of 13 GB is written or read.

    python -m benchmarks.serving_random ours   --shape 20b --backend cuda --port 8080
    python -m benchmarks.serving_random mlx-lm --shape 20b --port 8081

Random weights say random tokens. Both models are therefore kept to words: tokens of a space and some letters, whose
text becomes the same tokens again in the next turn, and which never end an answer: every answer is as long as was
asked for. Both prompts end where the text of the final channel begins.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks.peer_folder import template, tokenizer
from benchmarks.serving_process import PARALLEL
from mlx_gptoss.bench.peer import load_peer
from mlx_gptoss.bench.spec import SHAPES, BenchSpec
from mlx_gptoss.bench.subject import config_of, load_ours
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.engine import Engine, EngineOptions, GenerationRequest, TokenModel
from mlx_gptoss.harmony.parser import HarmonyParser
from mlx_gptoss.harmony.special import CHANNEL, MESSAGE, TEXT_TOKENS
from mlx_gptoss.harmony.vocabulary import Vocabulary, load_vocabulary
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.llm import GptOss, Progress
from mlx_gptoss.request import ChatRequest
from mlx_gptoss.stream import Completion, Stream
from mlx_gptoss.turn_reader import TurnReader

MODEL = "./random"
_WORD = re.compile(rb" [a-z]{3,}")
_IMPOSSIBLE = -1e9


def word_bias(vocabulary: Vocabulary, rows: int) -> mx.array:
    """bfloat16 [rows]: 0 for words, very low for every other token."""
    words = [index for index in range(TEXT_TOKENS) if _WORD.fullmatch(vocabulary.token_bytes(index))]
    bias = mx.full((rows,), _IMPOSSIBLE, dtype=mx.bfloat16)
    bias[mx.array(words)] = 0.0
    mx.eval(bias)
    return bias


class WordModel:
    """A TokenModel that only says words."""

    def __init__(self, model: TokenModel, bias: mx.array) -> None:
        self._model = model
        self._bias = bias

    @property
    def config(self) -> ModelConfig:
        return self._model.config

    @property
    def draw_backend(self) -> Backend:
        return self._model.draw_backend

    def mend(self, error: Exception) -> bool:
        return self._model.mend(error)

    def make_cache(self, batch: int = 1) -> Any:
        return self._model.make_cache(batch)

    def prefill(self, token_ids: mx.array, cache: Any, need_logits: bool = True) -> mx.array | None:
        logits = self._model.prefill(token_ids, cache, need_logits)
        return None if logits is None else logits + self._bias

    def decode(self, token_ids: mx.array, caches: Sequence[Any]) -> mx.array:
        return self._model.decode(token_ids, caches) + self._bias


class AnsweringModel(GptOss):
    """Prompts end inside the final channel, and answers at their greatest length only."""

    def start(
        self,
        request: ChatRequest,
        *,
        cache_key: str | None = None,
        on_progress: Progress | None = None,
        on_done: Callable[[Completion], None] | None = None,
    ) -> Stream:
        """As GptOss.start, for requests without tools and schemas."""
        prompt = self.encode(request)
        header = (CHANNEL, *self.vocabulary.encode_cached("final"), MESSAGE)
        generation = self.engine.submit(
            GenerationRequest(
                prompt_ids=(*prompt.token_ids, *header),
                sampling=request.sampling,
                max_tokens=request.max_tokens,
                stop_ids=(),
                boundaries=prompt.boundaries,
                repetition_stop=False,
                cache_key=cache_key,
                on_progress=on_progress,
            )
        )
        parser = HarmonyParser(self.vocabulary, set())
        for token in header:
            parser.feed(token)
        return Stream(generation, TurnReader(parser, self.vocabulary, request.stop), on_done)


def serve_ours(spec: BenchSpec, port: int) -> None:
    """Serves with our server until a signal comes."""
    from mlx_gptoss.server import run
    from mlx_gptoss.server.app import build_app
    from mlx_gptoss.server.settings import ServerSettings

    settings = ServerSettings(port=port, default_model=MODEL, preload=True, max_batch=PARALLEL, keep_alive_s=-1)
    vocabulary = load_vocabulary()

    def make() -> TokenModel:
        model = load_ours(spec).model
        return WordModel(model, word_bias(vocabulary, model.config.vocab_size))

    def load(name: str, /) -> GptOss:
        return AnsweringModel(Engine(make, EngineOptions(max_batch=PARALLEL)), name=name, vocabulary=vocabulary)

    listener = run.bind(settings.host, port)
    with listener:
        run.serve(build_app(settings, loader=load), settings, listener)


def peer_template() -> str:
    """`peer_folder`'s template with a final channel opened. mlx-lm's detokenizer drops the space that every answer
    here begins with, and so what it stored would never be found again: past answers get it back."""
    asked = template("medium")
    open_turn = "{{- '<|start|>assistant' }}"
    if not asked.endswith(open_turn) or "+ message['content'] + '<|end|>'" not in asked:
        raise SystemExit("peer_folder's template has changed: adapt this one")
    asked = asked.removesuffix(open_turn) + "{{- '<|start|>assistant<|channel|>final<|message|>' }}"
    return asked.replace("final<|message|>' + message['content']", "final<|message|> ' + message['content']")


def serve_peer(spec: BenchSpec, port: int) -> None:
    """Serves with mlx-lm's server, all of it but the loading of weights from a folder, until a signal comes."""
    import sys

    import mlx_lm.server
    from mlx_lm.tokenizer_utils import load as wrap_tokenizer

    config = config_of(spec)

    def load(*_: Any, **__: Any) -> tuple[Any, Any, dict[str, Any]]:
        model = load_peer(spec).model
        bias = word_bias(load_vocabulary(), config.vocab_size)
        forward = type(model).__call__

        class Words(type(model)):  # type: ignore[misc]  # a class known at run time only
            def __call__(self, *arguments: Any, **options: Any) -> mx.array:
                logits: mx.array = forward(self, *arguments, **options)
                return logits + bias

        model.__class__ = Words
        with tempfile.TemporaryDirectory() as folder:
            fast = tokenizer()
            fast.chat_template = peer_template()
            fast.save_pretrained(folder)
            return model, wrap_tokenizer(Path(folder)), config.to_dict()

    mlx_lm.server.load = load
    options = ["--decode-concurrency", str(PARALLEL), "--prompt-concurrency", str(PARALLEL), "--log-level", "ERROR"]
    sys.argv = ["mlx_lm.server", "--model", MODEL.removeprefix("./"), "--port", str(port), *options]
    mlx_lm.server.main()


def main() -> None:
    """Entry point of the server's process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", choices=["ours", "mlx-lm"])
    parser.add_argument("--shape", choices=[shape for shape in SHAPES if shape != "tiny"], default="20b")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--backend", default="auto", choices=["auto", "stock", "metal", "cuda"])
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    spec = BenchSpec(random=given.shape, layers=given.layers, backend=given.backend)
    (serve_ours if given.server == "ours" else serve_peer)(spec, given.port)


if __name__ == "__main__":
    main()
