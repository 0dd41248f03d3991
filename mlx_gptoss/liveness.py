"""Whether another process still runs: what it left behind may be cleared away only when it does not."""

from __future__ import annotations

import os


def alive(process: int) -> bool:
    """Whether a process with this id exists, whoever owns it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
