"""The ASGI application: routes of all wire formats, health and metrics, and a lifespan that owns the models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mlx_gptoss import __version__
from mlx_gptoss.errors import GptOssError
from mlx_gptoss.llm import GptOss
from mlx_gptoss.names import resolve_model
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.failure import Failure, api_of, body_of
from mlx_gptoss.server.http import failure_response, service_of
from mlx_gptoss.server.logs import RequestLog
from mlx_gptoss.server.metrics import Metrics
from mlx_gptoss.server.models import Loader, ModelManager
from mlx_gptoss.server.response_store import ResponseStore
from mlx_gptoss.server.routes import (
    anthropic,
    chat_completions,
    completions,
    ollama,
    ollama_models,
    openai_models,
    responses,
)
from mlx_gptoss.server.security import Gate
from mlx_gptoss.server.service import GenerationService
from mlx_gptoss.server.settings import ServerSettings


def registry_loader(settings: ServerSettings, registry: Registry) -> Loader:
    """Loads models from the registry, converting on first use."""

    def load(name: str, /) -> GptOss:
        folder = resolve_model(name, registry=registry)
        return GptOss.load(folder, context=settings.context, backend=settings.backend)

    return load


def build_app(settings: ServerSettings, *, loader: Loader | None = None, registry: Registry | None = None) -> FastAPI:
    """A server application. `loader` and `registry` are replaced in tests."""
    registry = registry if registry is not None else Registry()
    metrics = Metrics()
    models = ModelManager(settings, loader if loader is not None else registry_loader(settings, registry), registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.responses.close()
        await models.close()

    app = FastAPI(
        title="mlx-gptoss",
        version=__version__,
        summary="gpt-oss on Apple Silicon, in Ollama's, OpenAI's and Anthropic's languages.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.responses = ResponseStore(settings.stored_responses)
    app.state.service = GenerationService(settings, models, metrics)
    app.add_exception_handler(GptOssError, failure_response)
    app.add_exception_handler(ValidationError, failure_response)
    app.add_exception_handler(HTTPException, _http_failure)
    app.add_exception_handler(Exception, failure_response)
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(RequestLog, metrics=metrics)
    _add_operations(app)
    for module in (ollama, ollama_models, chat_completions, completions, openai_models, responses, anthropic):
        app.include_router(module.router)
    return app


async def _http_failure(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the API's own shape."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else "internal error"
    headers = dict(error.headers) if isinstance(error, HTTPException) and error.headers else None
    failure = Failure(status, f"{detail}: {request.method} {request.url.path}")
    return JSONResponse(body_of(failure, api_of(request.url.path)), status_code=status, headers=headers)


def _add_operations(app: FastAPI) -> None:
    @app.get("/health", tags=["operations"])
    async def health(request: Request) -> JSONResponse:
        """Whether the server is up, and which models are in memory."""
        loaded = [model.name for model in service_of(request).models.loaded()]
        return JSONResponse({"status": "ok", "version": __version__, "loaded": loaded})

    @app.get("/metrics", tags=["operations"])
    async def metrics(request: Request) -> Response:
        """Prometheus metrics."""
        service = service_of(request)
        for model in service.models.loaded():
            stats = model.llm.engine_stats()
            service.metrics.queued.set(stats.queued)
            service.metrics.batch.set(stats.active)
            service.metrics.cache_bytes.set(stats.prefix_cache_bytes)
        return Response(service.metrics.exposition(), media_type=service.metrics.content_type)
