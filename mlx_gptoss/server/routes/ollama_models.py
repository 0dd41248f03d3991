"""Ollama's model management: tags, ps, show, pull, copy, delete, create, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.names import DEMO, resolve_model
from mlx_gptoss.registry import Alias, canonical_name
from mlx_gptoss.server.catalog import CatalogEntry, catalog, describe, ollama_name
from mlx_gptoss.server.failure import body_of
from mlx_gptoss.server.generation import guarded
from mlx_gptoss.server.http import NDJSON, body_schema, ndjson, read_body, service_of, stream_failure, streaming
from mlx_gptoss.server.models import ModelManager
from mlx_gptoss.server.openapi import answers
from mlx_gptoss.server.pulling import Pulling
from mlx_gptoss.server.service import unless_disconnected
from mlx_gptoss.server.wire.ollama import options_of, without_nulls

# Clients switch features on by this version: it names the level of Ollama's API that is spoken here.
OLLAMA_API_VERSION = "0.13.0"
DONE: dict[int | str, dict[str, str]] = {200: {"description": "Done; there is no body."}}
FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
router = APIRouter(tags=["ollama"])


class NamedBody(BaseModel):
    """A body that names a model, by the new field or the old one."""

    model_config = ConfigDict(extra="ignore")
    _nulls = model_validator(mode="before")(without_nulls)

    model: str = Field(default="", max_length=512)
    name: str = Field(default="", max_length=512)
    stream: bool | None = None
    insecure: bool | None = None
    verbose: bool | None = None

    @property
    def named(self) -> str:
        if not (self.model or self.name):
            raise InvalidRequestError("model is required", param="model")
        return self.model or self.name


class CopyBody(BaseModel):
    source: str = Field(max_length=512)
    destination: str = Field(max_length=512)


class CreateBody(NamedBody):
    """`from` an installed model, with a system prompt and parameters of its own."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    base: str | None = Field(default=None, alias="from", max_length=512)
    system: str | None = None
    parameters: dict[str, Any] | None = None
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    messages: list[Any] | None = None
    quantize: str | None = None
    template: str | None = None


@router.head("/", include_in_schema=False)
@router.get("/", response_class=PlainTextResponse)
async def running() -> Response:
    """What Ollama's clients look for when they probe the port."""
    return PlainTextResponse("Ollama is running")


@router.head("/api/version", include_in_schema=False)
@router.get("/api/version", responses=answers("version"))
async def version() -> Response:
    """The level of Ollama's API."""
    return JSONResponse({"version": OLLAMA_API_VERSION})


def _tag(entry: CatalogEntry) -> dict[str, Any]:
    name = ollama_name(entry.name)
    return {
        "name": name,
        "model": name,
        "modified_at": entry.modified,
        "size": entry.size_bytes,
        "digest": entry.digest,
        "details": entry.details,
    }


@router.head("/api/tags", include_in_schema=False)
@router.get("/api/tags", responses=answers("models"))
async def tags(request: Request) -> Response:
    """The models on this machine."""
    manager = service_of(request).models
    entries = await asyncio.to_thread(catalog, manager.registry, manager.settings.default_model)
    return JSONResponse({"models": [_tag(entry) for entry in entries]})


def _entry(request: Request, name: str) -> tuple[CatalogEntry, Alias | None]:
    """Describe a model or alias. The demo model is installed by being asked for."""
    manager = service_of(request).models
    target, alias = manager.target(name)
    folder = resolve_model(target, registry=manager.registry)
    return describe(canonical_name(name) if alias is not None else target, target, folder), alias


@router.get("/api/ps", responses=answers("models"))
async def ps(request: Request) -> Response:
    """The models in memory."""
    manager = service_of(request).models
    listed = []
    for model in manager.loaded():
        entry, _ = await asyncio.to_thread(_entry, request, model.name)
        forever = model.expires_at >= FOREVER.timestamp()
        expires = FOREVER if forever else datetime.fromtimestamp(model.expires_at, UTC)
        listed.append(
            {
                **_tag(entry),
                "expires_at": expires.isoformat(),
                "size_vram": entry.size_bytes,
                "context_length": model.llm.context,
            }
        )
    return JSONResponse({"models": listed})


@router.post(
    "/api/show", responses=answers("details", "model_info", "capabilities"), openapi_extra=body_schema(NamedBody)
)
async def show(request: Request) -> Response:
    """Everything about one model."""
    body = await read_body(request, NamedBody)
    entry, alias = await asyncio.to_thread(_entry, request, body.named)
    config = entry.config
    parameters = {"temperature": 1, **(dict(alias.parameters) if alias is not None else {})}
    lines = [f"FROM {ollama_name(entry.target)}"]
    lines += [f"PARAMETER {key} {value}" for key, value in parameters.items()]
    if alias is not None and alias.system:
        lines.append(f'SYSTEM """{alias.system}"""')
    info = {
        "general.architecture": "gptoss",
        "general.parameter_count": entry.parameters,
        "gptoss.attention.head_count": config.num_heads,
        "gptoss.attention.head_count_kv": config.num_kv_heads,
        "gptoss.attention.sliding_window": config.sliding_window,
        "gptoss.block_count": config.num_layers,
        "gptoss.context_length": config.max_position_embeddings,
        "gptoss.embedding_length": config.hidden_size,
        "gptoss.expert_count": config.num_experts,
        "gptoss.expert_used_count": config.experts_per_token,
        "gptoss.rope.freq_base": config.rope_theta,
        "gptoss.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
    }
    return JSONResponse(
        {
            "license": "",
            "modelfile": "\n".join(lines),
            "parameters": "\n".join(f"{key:<30} {value}" for key, value in parameters.items()),
            "template": "{{ .Prompt }}",
            "system": alias.system if alias is not None and alias.system else "",
            "details": entry.details,
            "model_info": info,
            "capabilities": ["completion", "tools", "thinking"],
            "modified_at": entry.modified,
        }
    )


@router.post("/api/pull", responses=answers("status", stream=NDJSON), openapi_extra=body_schema(NamedBody))
async def pull_model(request: Request) -> Response:
    """Download and convert a model, with a line for each step of progress."""
    body = await read_body(request, NamedBody)
    name = canonical_name(body.named)
    lines = _pulling(request, name)
    if body.stream is False:

        async def work() -> Response:
            async with aclosing(lines):
                async for _ in lines:
                    pass
            return JSONResponse({"status": "success"})

        return await unless_disconnected(request, work)
    chunks = (ndjson(line) async for line in lines)
    return streaming(guarded(chunks, lambda error: ndjson(body_of(stream_failure(error), "ollama"))), NDJSON)


async def _pulling(request: Request, name: str) -> AsyncGenerator[dict[str, Any], None]:
    service = service_of(request)
    yield {"status": "pulling manifest"}
    last: dict[str, Any] = {}
    with service.kept(Pulling(name, service.models.registry)) as pulling:
        async for progress in pulling.progress():
            word = f"pulling {progress.file}" if progress.phase == "download" else "converting"
            line = {
                "status": word,
                "digest": f"sha256:{progress.phase}",
                "total": progress.total,
                "completed": progress.completed,
            }
            # Thousands of small steps a second would drown a client: a line each percent is plenty.
            step = max(1, progress.total // 100)
            if line["status"] != last.get("status") or line["completed"] - last.get("completed", 0) >= step:
                last = line
                yield line
    yield {"status": "verifying sha256 digest"}
    yield {"status": "writing manifest"}
    yield {"status": "success"}


def _name(manager: ModelManager, alias: Alias) -> None:
    """Keep a new name for a model. The demo is installed by being named."""
    target, _ = manager.target(alias.source)
    if target == DEMO:
        resolve_model(DEMO, registry=manager.registry)
    manager.registry.set_alias(alias)


@router.post("/api/copy", response_class=Response, responses=DONE, openapi_extra=body_schema(CopyBody))
async def copy(request: Request) -> Response:
    """A second name for a model."""
    body = await read_body(request, CopyBody)
    manager = service_of(request).models
    await asyncio.to_thread(_name, manager, Alias(canonical_name(body.destination), body.source))
    return Response(status_code=200)


@router.delete("/api/delete", response_class=Response, responses=DONE, openapi_extra=body_schema(NamedBody))
async def delete(request: Request) -> Response:
    """Delete a model, or only the alias of that name."""
    body = await read_body(request, NamedBody)
    manager = service_of(request).models
    if manager.registry.alias(body.named) is None:
        await manager.remove(body.named)
    else:
        await asyncio.to_thread(manager.registry.remove, body.named)
    return Response(status_code=200)


@router.post("/api/create", responses=answers("status", stream=NDJSON), openapi_extra=body_schema(CreateBody))
async def create(request: Request) -> Response:
    """A model of its own name `from` another, with a system prompt and parameters."""
    body = await read_body(request, CreateBody)
    if body.files or body.adapters or body.messages or body.quantize or body.template:
        raise InvalidRequestError(
            "only from, system and parameters are supported here", hint="Convert files with `mlx-gptoss convert`."
        )
    if not body.base:
        raise InvalidRequestError("from is required", param="from")
    options_of(body.parameters, None)  # What is wrong with them is said now, not at every request.
    alias = Alias(canonical_name(body.named), body.base, body.system, body.parameters or {})
    await asyncio.to_thread(_name, service_of(request).models, alias)
    if body.stream is False:
        return JSONResponse({"status": "success"})

    async def lines() -> AsyncIterator[str]:
        yield ndjson({"status": "writing manifest"})
        yield ndjson({"status": "success"})

    return streaming(lines(), NDJSON)


class EmbedBody(NamedBody):
    """What an embedding request says; it is always refused."""

    input: str | list[str] | None = None
    prompt: str | None = None


@router.post("/api/embed", openapi_extra=body_schema(EmbedBody))
@router.post("/api/embeddings", openapi_extra=body_schema(EmbedBody))
async def embed(request: Request) -> Response:
    """gpt-oss has no embeddings; say so."""
    body = await read_body(request, EmbedBody)
    service_of(request).models.target(body.named)
    raise InvalidRequestError("this model does not support embeddings", param="model")
