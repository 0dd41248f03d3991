"""What a server instance is told when it starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from mlx_gptoss.errors import InvalidRequestError

DEFAULT_PORT = 11434
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Limits and policies. Times in seconds, sizes in bytes.

    `keep_alive_s` is how long an idle model stays loaded (negative: for ever). `max_loaded` bounds how many models
    are in memory at once. `any_model` answers unknown model names with the default model instead of a 404.
    `preload` loads the default model before the first request, `warm_up` builds the tables of structured output.
    `max_batch` requests are decoded together and `max_queue` more may wait; `prefix_cache_bytes` and `spill_dir` bound
    and extend the stored conversations. `shutdown_s` is how long running answers may go on after a signal.
    `allowed_hosts` and `allowed_origins` extend what the loopback checks let through. `log_prompts` writes message
    texts to the log. `idle_send_s` is how long a client may leave its answer unread before it is dropped.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    default_model: str | None = None
    any_model: bool = False
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    keep_alive_s: float = 300.0
    max_loaded: int = 1
    preload: bool = False
    warm_up: bool = True
    context: int | None = None
    backend: str = "auto"
    max_batch: int = 8
    max_queue: int = 64
    prefix_cache_bytes: int = 2048 * MIB
    spill_dir: Path | None = None
    max_body_bytes: int = 32 * MIB
    max_messages: int = 4096
    max_tools: int = 512
    max_schema_bytes: int = 256 * 1024
    max_schema_depth: int = 64
    body_timeout_s: float = 60.0
    idle_send_s: float = 120.0
    request_timeout_s: float | None = None
    shutdown_s: float = 10.0
    stored_responses: int = 512
    stored_turns: int = 4096
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidRequestError("port is out of range", param="port", expected="0 to 65535", got=str(self.port))
        if not self.api_key and not is_loopback(self.host):
            raise InvalidRequestError(
                f"serving on {self.host} reaches beyond this machine and needs an API key",
                param="api_key",
                hint="Give one with --api-key or MLX_GPTOSS_API_KEY, or bind to 127.0.0.1.",
            )


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    bare = host.strip("[]").lower().rstrip(".")
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False
