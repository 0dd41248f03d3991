"""The bounds a model is loaded with, and what a request that cannot fit is told."""

from __future__ import annotations

import pytest

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import InsufficientMemoryError
from mlx_gptoss.plan.footprint import kv_bytes
from mlx_gptoss.plan.guard import folder_bytes
from mlx_gptoss.plan.machine import Machine
from mlx_gptoss.plan.planner import CONVERSATION_TOKENS, WORKSPACE_BYTES
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.loading import registry_loader
from mlx_gptoss.server.settings import ServerSettings
from tests.server.support import MODEL, client_of, scripted_app
from tests.server.test_wire_fuzz import BODIES


def machine_with(registry: Registry, room: int) -> Machine:
    """One on which MODEL's weights leave `room` bytes."""
    working_set = folder_bytes(registry.model_folder(MODEL)) + WORKSPACE_BYTES + room
    return Machine("test", 1 << 40, working_set, None)


def test_a_small_machine_gets_less_than_the_settings_ask_for(registry: Registry) -> None:
    settings = ServerSettings(max_batch=10_000, prefix_cache_bytes=8 << 30)
    config = ModelConfig.from_file(registry.model_folder(MODEL))
    room = 8 * kv_bytes(config, config.max_position_embeddings)
    with registry_loader(settings, registry, machine_with(registry, room))(MODEL) as llm:
        options = llm.engine.options
        ordinary = kv_bytes(config, min(CONVERSATION_TOKENS, llm.context))
        assert 1 < options.max_batch < 10_000
        assert options.max_batch * ordinary + options.prefix_cache_bytes <= room


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(registry: Registry) -> None:
    with pytest.raises(InsufficientMemoryError, match="the model does not fit"):
        registry_loader(ServerSettings(), registry, machine_with(registry, -1))(MODEL)
    with pytest.raises(InsufficientMemoryError, match="a context of 600 tokens"):
        registry_loader(ServerSettings(context=600), registry, machine_with(registry, 1))(MODEL)


def test_the_loader_keeps_to_the_bounds(registry: Registry) -> None:
    settings = ServerSettings(max_batch=3, max_queue=5, context=4096, prefix_cache_bytes=1 << 20)
    with registry_loader(settings, registry)(MODEL) as llm:
        options = llm.engine.options
        assert (options.max_batch, options.max_queue, options.context) == (3, 5, 4096)
        assert options.prefix_cache_bytes <= 1 << 20
        assert llm.context == 4096


@pytest.mark.anyio
async def test_a_request_that_cannot_fit_is_a_clear_400(registry: Registry) -> None:
    long = "long story " * 2000
    changes: dict[str, dict[str, object]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": long}]},
        "/v1/completions": {"prompt": long},
        "/v1/responses": {"input": long, "truncation": "disabled"},
        "/v1/messages": {"messages": [{"role": "user", "content": long}]},
        "/api/chat": {"messages": [{"role": "user", "content": long}]},
        "/api/generate": {"prompt": long, "format": ""},
    }
    async with client_of(scripted_app(registry, context=600)) as client:
        for path, change in changes.items():
            for stream in (True, False):
                response = await client.post(path, json={**BODIES[path], **change, "stream": stream})
                assert response.status_code == 400, path
                assert "longer than the context" in response.text
