"""`mlx-gptoss serve`: a local server for Ollama, OpenAI and Anthropic clients."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from mlx_gptoss.registry import DEFAULT_VARIABLE
from mlx_gptoss.server.settings import DEFAULT_PORT, MIB, ServerSettings


def parse_duration(text: str) -> float:
    """Seconds from `300`, `5m`, `1h30m`, `-1`; raises click.BadParameter."""
    from mlx_gptoss.server.duration import duration_seconds

    try:
        return duration_seconds(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option(
    "-m", "--model", envvar=DEFAULT_VARIABLE, default=None, help="Default model: a folder, demo, 20b, 120b or a hub id."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind; beyond loopback needs a key.")
@click.option("-p", "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True)
@click.option(
    "--api-key", envvar="MLX_GPTOSS_API_KEY", default=None, help="Clients must send it (Bearer or x-api-key)."
)
@click.option("--allow-host", multiple=True, help="Accept this Host header too. Repeatable.")
@click.option("--allow-origin", multiple=True, help="Accept browser pages of this origin too. Repeatable.")
@click.option("--any-model", is_flag=True, help="Answer unknown model names with the default model.")
@click.option("--keep-alive", default="5m", show_default=True, help="Unload a model after this idle time; -1 never.")
@click.option(
    "--max-loaded", type=click.IntRange(min=1), default=1, show_default=True, help="Models in memory at once."
)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=16),
    default=None,
    help="Most tokens of a conversation, where a model has as many.",
)
@click.option("--backend", type=click.Choice(["auto", "stock", "metal", "cuda"]), default="auto", show_default=True)
@click.option("--parallel", type=click.IntRange(min=1), default=8, show_default=True, help="Requests decoded together.")
@click.option("--queue", type=click.IntRange(min=0), default=64, show_default=True, help="Requests that may wait.")
@click.option(
    "--cache-mb", type=click.IntRange(min=0), default=2048, show_default=True, help="Memory for stored conversations."
)
@click.option(
    "--spill", type=click.Path(file_okay=False, path_type=Path), default=None,
    help="Folder for idle conversations that no longer fit in memory.",
)  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=None,
              help="Longest generation, in seconds.")  # fmt: skip
@click.option(
    "--grace", type=click.FloatRange(min=0), default=10.0, show_default=True,
    help="Seconds that running answers may take when the server is stopped.",
)  # fmt: skip
@click.option("--log-prompts", is_flag=True, help="Write message texts to the log.")
@click.option("--preload", is_flag=True, help="Load the default model before serving.")
def serve(
    model: str | None,
    host: str,
    port: int,
    api_key: str | None,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    any_model: bool,
    keep_alive: str,
    max_loaded: int,
    context: int | None,
    backend: str,
    parallel: int,
    queue: int,
    cache_mb: int,
    spill: Path | None,
    timeout_s: float | None,
    grace: float,
    log_prompts: bool,
    preload: bool,
) -> None:
    """Serve models over HTTP in the languages of Ollama, OpenAI and Anthropic."""
    from mlx_gptoss.names import looks_like_path, resolve_model
    from mlx_gptoss.server import run
    from mlx_gptoss.server.app import build_app

    settings = ServerSettings(
        host=host,
        port=port,
        default_model=model,
        any_model=any_model,
        api_key=api_key,
        allowed_hosts=tuple(name.lower() for name in allow_host),
        allowed_origins=allow_origin,
        keep_alive_s=parse_duration(keep_alive),
        max_loaded=max_loaded,
        preload=preload,
        context=context,
        backend=backend,
        max_batch=parallel,
        max_queue=queue,
        prefix_cache_bytes=cache_mb * MIB,
        spill_dir=spill,
        request_timeout_s=timeout_s,
        shutdown_s=grace,
        log_prompts=log_prompts,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    listener = run.bind(host, port)
    with listener:
        if model is not None and (preload or looks_like_path(model)):
            resolve_model(model)
        address = f"[{host}]" if ":" in host else host
        click.echo(
            f"mlx-gptoss is serving on http://{address}:{listener.getsockname()[1]} "
            "(Ollama, OpenAI and Anthropic APIs)",
            err=True,
        )
        run.serve(build_app(settings), settings, listener)
