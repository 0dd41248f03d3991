"""Prometheus metrics of one server instance."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mlx_gptoss.events import Done

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters, gauges and histograms in a registry of their own, so that instances do not share state."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = self.registry
        self.requests = Counter("mlx_gptoss_requests", "HTTP requests", ["method", "route", "status"], registry=made)
        self.generations = Counter(
            "mlx_gptoss_generations", "Generations by finish reason", ["finish_reason"], registry=made
        )
        self.prompt_tokens = Counter("mlx_gptoss_prompt_tokens", "Prompt tokens", registry=made)
        self.cached_tokens = Counter(
            "mlx_gptoss_cached_tokens", "Prompt tokens taken from the prefix cache", registry=made
        )
        self.completion_tokens = Counter("mlx_gptoss_completion_tokens", "Generated tokens", registry=made)
        self.running = Gauge("mlx_gptoss_running", "Generations that were admitted and have not ended", registry=made)
        self.loaded = Gauge("mlx_gptoss_models_loaded", "Models in memory", registry=made)
        self.queued = Gauge("mlx_gptoss_queue_length", "Requests that wait for a place in the batch", registry=made)
        self.batch = Gauge("mlx_gptoss_batch_size", "Sequences decoded together now", registry=made)
        self.cache_bytes = Gauge("mlx_gptoss_prefix_cache_bytes", "Bytes held by the prefix cache", registry=made)
        self.first_token = Histogram(
            "mlx_gptoss_first_token_seconds", "Time to first token", buckets=_SECONDS, registry=self.registry
        )
        self.queue_time = Histogram(
            "mlx_gptoss_queue_seconds", "Time spent waiting for a place", buckets=_SECONDS, registry=self.registry
        )
        self.total_time = Histogram(
            "mlx_gptoss_generation_seconds", "Whole generations", buckets=_SECONDS, registry=self.registry
        )

    def observe(self, done: Done) -> None:
        """Count one finished generation."""
        self.generations.labels(done.finish_reason).inc()
        self.prompt_tokens.inc(done.usage.prompt_tokens)
        self.cached_tokens.inc(done.usage.cached_tokens)
        self.completion_tokens.inc(done.usage.completion_tokens)
        self.queue_time.observe(done.timings.queue_s)
        self.total_time.observe(done.timings.total_s)
        if done.usage.completion_tokens:
            self.first_token.observe(done.timings.first_token_s)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
