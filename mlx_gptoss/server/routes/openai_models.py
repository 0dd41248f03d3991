"""OpenAI's `/v1/models`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from mlx_gptoss.names import resolve_model
from mlx_gptoss.registry import canonical_name
from mlx_gptoss.server.catalog import CatalogEntry, catalog, describe, ollama_name
from mlx_gptoss.server.http import service_of
from mlx_gptoss.server.openapi import answers

router = APIRouter(tags=["openai"])


def _model(entry: CatalogEntry, name: str | None = None) -> dict[str, Any]:
    owner = entry.target.split("/")[0] if "/" in entry.target else "mlx-gptoss"
    identifier = name or ollama_name(entry.name).removesuffix(":latest")
    return {"id": identifier, "object": "model", "created": entry.created, "owned_by": owner}


@router.get("/v1/models", responses=answers("object", "data"))
async def models(request: Request) -> Response:
    """The models on this machine."""
    manager = service_of(request).models
    entries = await asyncio.to_thread(catalog, manager.registry, manager.settings.default_model)
    return JSONResponse({"object": "list", "data": [_model(entry) for entry in entries]})


@router.get("/v1/models/{name:path}", responses=answers("id", "object"))
async def model(request: Request, name: str) -> Response:
    """One model by any of its names."""
    manager = service_of(request).models
    target, alias = manager.target(name)
    folder = await asyncio.to_thread(resolve_model, target, registry=manager.registry)
    entry = await asyncio.to_thread(describe, canonical_name(name) if alias else target, target, folder)
    return JSONResponse(_model(entry, name))
