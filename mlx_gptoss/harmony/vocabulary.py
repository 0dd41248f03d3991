"""Text to token ids and back, over the packaged o200k_harmony vocabulary."""

from __future__ import annotations

import base64
import functools
import os
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from openai_harmony import HarmonyEncoding, HarmonyError, load_harmony_encoding

from mlx_gptoss.errors import InternalError
from mlx_gptoss.harmony.runs import split_long_runs
from mlx_gptoss.harmony.special import TEXT_TOKENS, VOCABULARY_SIZE, special_text
from mlx_gptoss.harmony.vocabulary_file import FILE_NAME, vocabulary_folder

_FOLDER_VARIABLE: Final = "TIKTOKEN_ENCODINGS_BASE"
_SURROGATES: Final = re.compile("[\ud800-\udfff]+")
_LOAD_LOCK: Final = threading.Lock()


class Vocabulary:
    """The o200k_harmony vocabulary: 201,088 ids, of which 199,998 are text.

    Encoding never produces a special token: text such as "<|end|>" becomes the ordinary tokens of its characters, so
    whatever a user or a tool writes stays inside its message. Safe to share between threads.
    """

    size: Final = VOCABULARY_SIZE

    def __init__(self, encoding: HarmonyEncoding, token_bytes: Sequence[bytes], cached_tokens: int = 2_000_000) -> None:
        """`token_bytes[i]` are the raw bytes of text token i; `encoding` must be built on the same ranks.

        `cached_tokens` bounds what `encode_cached` remembers.
        """
        self.encoding: Final = encoding
        self._bytes = list(token_bytes)
        self._texts: list[str | None] = [None] * len(self._bytes)
        self._cache: OrderedDict[str, array[int]] = OrderedDict()
        self._cached_tokens = 0
        self._cache_limit = cached_tokens
        self._cache_lock = threading.Lock()

    @classmethod
    def load(cls, cache_folder: Path | None = None) -> Vocabulary:
        """Load the packaged vocabulary (about 0.5 s); it is unpacked in `cache_folder`, default the user's cache."""
        with vocabulary_folder(cache_folder) as folder:
            encoding = _load_encoding(folder)
            lines = (folder / FILE_NAME).read_bytes().splitlines()
        token_bytes = [base64.b64decode(line.split(b" ", 1)[0]) for line in lines]
        if len(token_bytes) != TEXT_TOKENS:
            raise InternalError(
                "the vocabulary has the wrong size", expected=str(TEXT_TOKENS), got=str(len(token_bytes))
            )
        return cls(encoding, token_bytes)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text. Linear in the text; runs of one kind of character longer than
        `runs.RUN_LIMIT` are encoded in pieces. Lone surrogates become U+FFFD."""
        if _SURROGATES.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: list[int] = []
        for piece in split_long_runs(text):
            ids += self.encoding.encode(piece, disallowed_special=())
        return ids

    def encode_cached(self, text: str) -> Sequence[int]:
        """`encode`, remembering recent texts: a history is encoded once, not every turn."""
        with self._cache_lock:
            ids = self._cache.get(text)
            if ids is not None:
                self._cache.move_to_end(text)
                return ids
        ids = array("i", self.encode(text))
        with self._cache_lock:
            if text not in self._cache and len(ids) <= self._cache_limit // 4:
                self._cache[text] = ids
                self._cached_tokens += len(ids) + 16
                while self._cached_tokens > self._cache_limit:
                    _, dropped = self._cache.popitem(last=False)
                    self._cached_tokens -= len(dropped) + 16
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """Raw bytes of a text token, the text form of a special token, b"" for an id outside the vocabulary."""
        if 0 <= token_id < TEXT_TOKENS:
            return self._bytes[token_id]
        if TEXT_TOKENS <= token_id < VOCABULARY_SIZE:
            return special_text(token_id).encode()
        return b""

    def token_text(self, token_id: int) -> str:
        """Text of a text token that is whole characters by itself; "" when its bytes are a part of one.

        `token_id` must be a text token (0 to 199,997).
        """
        text = self._texts[token_id]
        if text is None:
            try:
                text = self._bytes[token_id].decode()
            except UnicodeDecodeError:
                text = ""
            self._texts[token_id] = text
        return text

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of `token_ids` for display: special tokens in their text form, invalid UTF-8 as U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")


@functools.cache
def load_vocabulary() -> Vocabulary:
    """The process's shared vocabulary, loaded on first use."""
    return Vocabulary.load()


def _load_encoding(folder: Path) -> HarmonyEncoding:
    # openai-harmony finds its ranks through an environment variable and nothing else; it is put back at once.
    with _LOAD_LOCK:
        before = os.environ.get(_FOLDER_VARIABLE)
        os.environ[_FOLDER_VARIABLE] = str(folder)
        try:
            return load_harmony_encoding("HarmonyGptOss")
        except HarmonyError as error:
            raise InternalError("openai-harmony refused the packaged vocabulary", got=str(error)) from error
        finally:
            if before is None:
                del os.environ[_FOLDER_VARIABLE]
            else:
                os.environ[_FOLDER_VARIABLE] = before
