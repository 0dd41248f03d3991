"""One engine measured in a process of its own: `python -m mlx_gptoss.bench.worker ENGINE SPEC`, JSON lines out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

from mlx_gptoss.bench.spec import BenchSpec, EngineName, Measurement
from mlx_gptoss.errors import GptOssError, InternalError


def run_here(engine: EngineName, spec: BenchSpec) -> Iterator[Measurement]:
    """Loads the engine into this process and measures it."""
    from mlx_gptoss.bench.measure import measure
    from mlx_gptoss.bench.subject import load_subject

    if engine == "engine":
        from mlx_gptoss.bench.through_engine import measure_engine

        yield from measure_engine(spec)
        return
    yield from measure(load_subject(engine, spec), spec)


def run_apart(engine: EngineName, spec: BenchSpec) -> Iterator[Measurement]:
    """As `run_here`, in a process of its own, which gives all memory back. Raises GptOssError with its last words."""
    command = [sys.executable, "-m", "mlx_gptoss.bench.worker", engine, json.dumps(spec.to_dict())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout or ():
                message = json.loads(line)
                if "error" in message:
                    raise GptOssError(str(message["error"]))
                yield Measurement(**message)
        finally:
            process.kill() if process.poll() is None and sys.exc_info()[0] is not None else process.wait()
    if process.returncode:
        raise InternalError(f"the {engine} measurement died", got=f"exit code {process.returncode}")


def main(arguments: list[str]) -> int:
    """Entry point of the process."""
    engine, text = arguments
    spec = BenchSpec.from_dict(json.loads(text))

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), flush=True)

    try:
        for measurement in run_here(cast("EngineName", engine), spec):
            say(asdict(measurement))
    except Exception as error:
        # Of an engine that is not ours, anything may come.
        if os.environ.get("MLX_GPTOSS_DEBUG"):
            traceback.print_exc()
        known = isinstance(error, GptOssError)
        say({"error": str(error) if known else f"{engine} cannot be measured; got {type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
