"""The ASGI application: routes of all wire formats, health and metrics, and a lifespan that owns the models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from mlx_gptoss import __version__
from mlx_gptoss.errors import GptOssError
from mlx_gptoss.harmony.grammar import warm_up
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.failure import Failure, api_of, body_of
from mlx_gptoss.server.http import Unforeseen, failure_response, service_of
from mlx_gptoss.server.loading import registry_loader
from mlx_gptoss.server.logs import LOGGER, RequestLog
from mlx_gptoss.server.metrics import Metrics
from mlx_gptoss.server.models import Loader, ModelManager
from mlx_gptoss.server.openapi import answers, document_failures
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


def build_app(settings: ServerSettings, *, loader: Loader | None = None, registry: Registry | None = None) -> FastAPI:
    """A server application. `loader` and `registry` are replaced in tests."""
    registry = registry if registry is not None else Registry()
    metrics = Metrics()
    models = ModelManager(settings, loader if loader is not None else registry_loader(settings, registry), registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # The first request with a schema shall not wait for the grammar's tables.
        warming = asyncio.create_task(asyncio.to_thread(warm_up, load_vocabulary())) if settings.warm_up else None
        if settings.preload:
            try:
                async with models.use(None):
                    LOGGER.info(json.dumps({"loaded": settings.default_model}))
            except GptOssError as error:
                # Raised here it would reach the user as a traceback; whoever runs the application reads it.
                app.state.startup_error = error
        yield
        await app.state.service.drain(0.0)
        await app.state.responses.close()
        await models.close()
        if warming is not None:
            await warming

    app = FastAPI(
        title="mlx-gptoss",
        version=__version__,
        summary="gpt-oss on Apple Silicon, in Ollama's, OpenAI's and Anthropic's languages.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.responses = ResponseStore(settings.stored_responses)
    app.state.startup_error = None
    app.state.service = GenerationService(settings, models, metrics)
    app.add_exception_handler(GptOssError, failure_response)
    app.add_exception_handler(ValidationError, failure_response)
    app.add_exception_handler(RequestValidationError, failure_response)
    app.add_exception_handler(ClientDisconnect, failure_response)
    app.add_exception_handler(HTTPException, _http_failure)
    app.add_middleware(Unforeseen)
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(RequestLog, metrics=metrics)
    _add_operations(app)
    for module in (ollama, ollama_models, chat_completions, completions, openai_models, responses, anthropic):
        app.include_router(module.router)
    document_failures(app)
    return app


async def _http_failure(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the API's own shape."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else "internal error"
    headers = dict(error.headers) if isinstance(error, HTTPException) and error.headers else None
    failure = Failure(status, f"{detail}: {request.method} {request.url.path}")
    return JSONResponse(body_of(failure, api_of(request.url.path)), status_code=status, headers=headers)


def _add_operations(app: FastAPI) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["operations"], responses=answers("status", "version", "loaded"))
    async def health(request: Request) -> JSONResponse:
        """Whether the server is up, and which models are in memory."""
        loaded = [model.name for model in service_of(request).models.loaded()]
        return JSONResponse({"status": "ok", "version": __version__, "loaded": loaded})

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Prometheus metrics."""
        service = service_of(request)
        engines = [model.llm.engine_stats() for model in service.models.loaded()]
        service.metrics.loaded.set(len(engines))
        service.metrics.queued.set(sum(stats.queued for stats in engines))
        service.metrics.batch.set(sum(stats.active for stats in engines))
        service.metrics.cache_bytes.set(sum(stats.prefix_cache_bytes for stats in engines))
        return Response(service.metrics.exposition(), media_type=service.metrics.content_type)
