"""Special tokens of the o200k_harmony vocabulary: ids, and the text that names them.

Source: the public o200k_harmony encoding. Text tokens are 0 to 199,997; everything from 199,998 up is special.
"""

from __future__ import annotations

from typing import Final

TEXT_TOKENS: Final = 199_998
"""Ids below this are text; ids from here to `VOCABULARY_SIZE` are special."""

VOCABULARY_SIZE: Final = 201_088
"""Rows of gpt-oss's embedding: text, special and reserved tokens."""

START_OF_TEXT: Final = 199_998
END_OF_TEXT: Final = 199_999
RETURN: Final = 200_002
CONSTRAIN: Final = 200_003
CHANNEL: Final = 200_005
START: Final = 200_006
END: Final = 200_007
MESSAGE: Final = 200_008
CALL: Final = 200_012

STOP_IDS: Final = (RETURN, CALL)
"""The two tokens that end a turn. `END` ends a message, not the turn."""

_NAMES: Final = {
    START_OF_TEXT: "startoftext",
    END_OF_TEXT: "endoftext",
    RETURN: "return",
    CONSTRAIN: "constrain",
    CHANNEL: "channel",
    START: "start",
    END: "end",
    MESSAGE: "message",
    CALL: "call",
}


def special_text(token_id: int) -> str:
    """The text form of a special token, for logs and token tables; it never takes part in encoding."""
    return f"<|{_NAMES.get(token_id, f'reserved_{token_id}')}|>"
