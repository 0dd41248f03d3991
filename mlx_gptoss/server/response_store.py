"""Finished and running responses of OpenAI's Responses API, by id, up to a bound."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from mlx_gptoss.errors import GptOssError, InvalidRequestError
from mlx_gptoss.messages import Message


@dataclass(slots=True)
class StoredResponse:
    """A response with what it was asked and the conversation that goes on from it.

    `history` are the messages before the answer, instructions left out: they are not inherited. `size` is about how
    many bytes of text it keeps.
    """

    response: dict[str, Any]
    input_items: list[dict[str, Any]]
    history: tuple[Message, ...]
    task: asyncio.Task[None] | None = field(default=None)
    size: int = 0

    def item(self, identifier: str) -> dict[str, Any] | None:
        """An input or output item by its id."""
        items = (*self.input_items, *self.response["output"])
        return next((item for item in items if item.get("id") == identifier), None)


class ResponseNotFoundError(GptOssError):
    """No response of that id is stored."""


class PreviousResponseError(InvalidRequestError):
    """A request goes on from a response that is not stored: the API answers that with a 400, and a code of its own."""


class ResponseStore:
    """The newest responses, up to a number and a size in bytes; the oldest finished ones are forgotten first."""

    def __init__(self, capacity: int, max_bytes: int = 256 << 20) -> None:
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, stored: StoredResponse) -> None:
        """Keep a response, or what has become of it."""
        self._responses[stored.response["id"]] = stored
        stored.size = len(str(stored.input_items)) + len(str(stored.response))
        total = sum(kept.size for kept in self._responses.values())
        for identifier, kept in list(self._responses.items()):
            if len(self._responses) <= self._capacity and total <= self._max_bytes:
                break
            if kept.task is None or kept.task.done():
                total -= kept.size
                del self._responses[identifier]

    def get(self, identifier: str) -> StoredResponse:
        """The stored response. Raises ResponseNotFoundError."""
        stored = self._responses.get(identifier)
        if stored is None:
            raise ResponseNotFoundError(f"response with id {identifier[:80]!r} not found")
        return stored

    def delete(self, identifier: str) -> None:
        """Forget a response, cancelling it if it still runs. Raises ResponseNotFoundError."""
        stored = self.get(identifier)
        if stored.task is not None:
            stored.task.cancel()
        del self._responses[identifier]

    def item(self, identifier: str) -> dict[str, Any] | None:
        """A stored item by its id, for `item_reference`; newest responses first."""
        found = (stored.item(identifier) for stored in reversed(self._responses.values()))
        return next((item for item in found if item is not None), None)

    async def close(self) -> None:
        """Cancel what still runs in the background and wait until it has ended."""
        tasks = [stored.task for stored in self._responses.values() if stored.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
