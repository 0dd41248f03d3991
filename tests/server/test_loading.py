"""The bounds a model is loaded with, and what a request that cannot fit is told."""

from __future__ import annotations

import pytest

from mlx_gptoss.errors import InsufficientMemoryError
from mlx_gptoss.plan.chips import GIB
from mlx_gptoss.plan.footprint import Precisions, footprint, kv_bytes, released_config
from mlx_gptoss.plan.machine import described_machine
from mlx_gptoss.plan.planner import CONVERSATION_TOKENS, WORKSPACE_BYTES
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.loading import engine_options, registry_loader
from mlx_gptoss.server.settings import ServerSettings
from tests.server.support import MODEL, client_of, scripted_app
from tests.server.test_wire_fuzz import BODIES

CONFIG = released_config("openai/gpt-oss-20b")
WEIGHTS = footprint(CONFIG, Precisions()).total


@pytest.mark.parametrize("memory", [24, 32, 64, 512])
def test_everything_together_stays_within_the_working_set(memory: float) -> None:
    machine = described_machine("M4 Max", memory)
    settings = ServerSettings(max_batch=64, prefix_cache_bytes=8 * GIB)
    options = engine_options(settings, machine, CONFIG, WEIGHTS)
    assert options.context is not None
    free = machine.working_set - WEIGHTS - WORKSPACE_BYTES
    assert kv_bytes(CONFIG, options.context) + options.prefix_cache_bytes <= free
    ordinary = kv_bytes(CONFIG, min(CONVERSATION_TOKENS, options.context))
    assert options.max_batch == 1 or options.max_batch * ordinary + options.prefix_cache_bytes <= free
    assert 1 <= options.max_batch <= 64


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded() -> None:
    with pytest.raises(InsufficientMemoryError):
        engine_options(ServerSettings(), described_machine("M4", 16), released_config("120b"), 70 * GIB)
    with pytest.raises(InsufficientMemoryError):
        engine_options(ServerSettings(context=131_072), described_machine("M4", 16), CONFIG, WEIGHTS)


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
