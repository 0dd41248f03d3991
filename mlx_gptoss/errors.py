"""Every error that mlx-gptoss raises on purpose.

GptOssError                     base; `str(error)` is one line fit for a user
├── ConfigError                 config.json is missing, malformed or not gpt-oss
├── CheckpointError             weights are missing, truncated, mistyped or corrupt
│   └── ConversionError         a source cannot be turned into a model folder
├── ModelNotFoundError          a model name names nothing on this machine
├── DownloadError               the hub cannot be reached or refused
├── InsufficientMemoryError     the model or request cannot fit in memory
├── InsufficientDiskError       not enough room on the target disk
├── InvalidRequestError         a request that can never succeed as asked
│   ├── ContextOverflowError    prompt longer than the context
│   └── SchemaError             a JSON Schema that cannot be enforced
├── QueueFullError              the engine's queue is at its bound; retry later
├── EngineClosedError           the engine was closed or died
├── CancelledError              the caller cancelled the request
├── KernelError                 a kernel failed to compile or disagrees with its twin
└── InternalError               a bug of ours; says what to report
"""

from __future__ import annotations


class GptOssError(Exception):
    """Base of all deliberate errors.

    `what` says what went wrong; `expected`, `got`, `where` and `hint` (the next step) are optional and are
    joined into one line by `str()`.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.got = got
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.what]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.got is not None:
            parts.append(f"got {self.got}")
        line = "; ".join(parts)
        if self.where is not None:
            line += f" ({self.where})"
        if self.hint is not None:
            line += f". {self.hint}"
        return " ".join(line.split())


class ConfigError(GptOssError):
    """config.json is missing, malformed, or describes something that is not gpt-oss."""


class CheckpointError(GptOssError):
    """Weights are missing, truncated, of the wrong type or shape, or corrupt."""


class ConversionError(CheckpointError):
    """A source cannot be converted, or a conversion cannot be finished."""


class ModelNotFoundError(GptOssError):
    """A model name names nothing on this machine."""


class DownloadError(GptOssError):
    """The hub cannot be reached, or refused the request."""


class InsufficientMemoryError(GptOssError):
    """A model or request cannot fit in this machine's memory."""


class InsufficientDiskError(GptOssError):
    """There is not enough room on the target disk."""


class InvalidRequestError(GptOssError):
    """A request that can never succeed as asked. `param` names the offending field when there is one."""

    def __init__(
        self,
        what: str,
        *,
        param: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, expected=expected, got=got, where=where, hint=hint)
        self.param = param


class ContextOverflowError(InvalidRequestError):
    """The prompt, or prompt plus requested tokens, is longer than the context."""


class SchemaError(InvalidRequestError):
    """A JSON Schema that cannot be enforced (unsupported, too large or hostile)."""


class QueueFullError(GptOssError):
    """The engine's queue is at its bound. `retry_after` is a hint in seconds."""

    def __init__(self, what: str, *, retry_after: float = 1.0, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.retry_after = retry_after


class EngineClosedError(GptOssError):
    """The engine was closed, or died, before the request finished."""


class CancelledError(GptOssError):
    """The caller cancelled the request."""


class KernelError(GptOssError):
    """A kernel failed to compile, or disagrees with its twin."""


class InternalError(GptOssError):
    """A bug of ours; the message says what to report."""
