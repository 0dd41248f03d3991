"""Local JSON Schema references: `#`, `#/$defs/Name`, `#/properties/a/items/0`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote


def resolve_pointer(root: Any, reference: object) -> Any | None:
    """The schema that a local `$ref` names inside `root`; None when it is not local or names nothing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    node = root
    for raw in unquote(reference[1:]).split("/")[1:]:
        key = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and key in node:
            node = node[key]
        elif isinstance(node, Sequence) and not isinstance(node, str) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            return None
    return node
