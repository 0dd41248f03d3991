"""Finished and running responses of OpenAI's Responses API, by id, up to a bound."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from mlx_gptoss.errors import ModelNotFoundError
from mlx_gptoss.messages import Message


@dataclass(slots=True)
class StoredResponse:
    """A response with what it was asked and the conversation that goes on from it.

    `history` are the messages before the answer, instructions left out: they are not inherited.
    """

    response: dict[str, Any]
    input_items: list[dict[str, Any]]
    history: tuple[Message, ...]
    task: asyncio.Task[None] | None = field(default=None)


class ResponseNotFoundError(ModelNotFoundError):
    """No response of that id is stored (a 404 like that of a model)."""


class ResponseStore:
    """The newest responses; the oldest finished ones are forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, stored: StoredResponse) -> None:
        self._responses[stored.response["id"]] = stored
        for identifier in [key for key, value in self._responses.items() if value.task is None or value.task.done()]:
            if len(self._responses) <= self._capacity:
                break
            del self._responses[identifier]

    def get(self, identifier: str) -> StoredResponse:
        """The stored response. Raises ResponseNotFoundError."""
        stored = self._responses.get(identifier)
        if stored is None:
            raise ResponseNotFoundError(f"no response {identifier[:80]!r} is stored")
        return stored

    def delete(self, identifier: str) -> None:
        """Forget a response, cancelling it if it still runs. Raises ResponseNotFoundError."""
        stored = self.get(identifier)
        if stored.task is not None:
            stored.task.cancel()
        del self._responses[identifier]

    def items(self) -> dict[str, dict[str, Any]]:
        """Every stored item by its id, for `item_reference`."""
        found: dict[str, dict[str, Any]] = {}
        for stored in self._responses.values():
            for item in (*stored.input_items, *stored.response["output"]):
                found[item["id"]] = item
        return found

    def close(self) -> None:
        """Cancel what still runs in the background."""
        for stored in self._responses.values():
            if stored.task is not None:
                stored.task.cancel()
