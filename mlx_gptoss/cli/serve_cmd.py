"""`mlx-gptoss serve`: a local server for Ollama, OpenAI and Anthropic clients."""

from __future__ import annotations

import logging
import socket
import sys

import click

from mlx_gptoss.errors import GptOssError
from mlx_gptoss.server.settings import DEFAULT_PORT, ServerSettings


def parse_duration(text: str) -> float:
    """Seconds from `300`, `5m`, `1h30m`, `-1`; raises click.BadParameter."""
    from mlx_gptoss.server.duration import duration_seconds

    try:
        return duration_seconds(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option("-m", "--model", default=None, help="Default model: a folder, demo, 20b, 120b or a hub id.")
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
@click.option("-c", "--context", type=click.IntRange(min=16), default=None, help="Longest conversation in tokens.")
@click.option("--backend", type=click.Choice(["auto", "stock", "metal", "cuda"]), default="auto", show_default=True)
@click.option("--timeout", "timeout_s", type=float, default=None, help="Longest generation, in seconds.")
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
    timeout_s: float | None,
    log_prompts: bool,
    preload: bool,
) -> None:
    """Serve models over HTTP in the languages of Ollama, OpenAI and Anthropic."""
    import uvicorn

    from mlx_gptoss.names import looks_like_path, resolve_model
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
        context=context,
        backend=backend,
        request_timeout_s=timeout_s,
        log_prompts=log_prompts,
    )
    if model is not None and (preload or looks_like_path(model)):
        resolve_model(model)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    listener = bind(host, port)
    address = listener.getsockname()
    click.echo(f"mlx-gptoss is serving on http://{host}:{address[1]} (Ollama, OpenAI and Anthropic APIs)", err=True)
    config = uvicorn.Config(
        build_app(settings),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=64 * 1024,
    )
    uvicorn.Server(config).run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises GptOssError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        raise GptOssError(
            f"cannot listen on {host}:{port}",
            got=error.strerror or str(error),
            hint="Is Ollama or another server running there? Choose another --port.",
        ) from error
    return listener
