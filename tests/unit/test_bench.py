"""The benchmark: that it measures what it says, on models small enough to do it in seconds."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner, Result

from mlx_gptoss.bench.ceiling import measure_ceiling
from mlx_gptoss.bench.cost import StoredBytes, prompt_bytes, prompt_flops, step_bytes
from mlx_gptoss.bench.launches import VIEWS, count_launches
from mlx_gptoss.bench.measure import measure
from mlx_gptoss.bench.peer import peer_installed
from mlx_gptoss.bench.random_weights import RandomWeights
from mlx_gptoss.bench.report import Report, line, machine_record, ratios
from mlx_gptoss.bench.spec import BenchSpec, Ceiling, Measurement
from mlx_gptoss.bench.subject import OurSubject, config_of, fill_cache, load_ours, load_subject, random_ids, with_layers
from mlx_gptoss.bench.worker import run_apart, run_here
from mlx_gptoss.cli.bench_cmd import bench
from mlx_gptoss.errors import GptOssError, InvalidRequestError
from mlx_gptoss.fused import FusedModel
from mlx_gptoss.kernels.backend import MetalBackend
from mlx_gptoss.kernels.layout import dense_weight, picked_weight
from mlx_gptoss.model import GptOssModel
from mlx_gptoss.plan.footprint import Precisions, footprint, token_bytes
from tests.tiny import write_model_folder

QUICK = BenchSpec(random="tiny", prefill=(24,), decode=(16,), steps=3, repeats=1)
CEILING = Ceiling(copy_bytes_s=1e9, matmul_flops=1e9)
peer = pytest.mark.skipif(not peer_installed(), reason="mlx-lm is not installed")


def spec_with(precision: str = "bf16", **changes: object) -> BenchSpec:
    data = QUICK.to_dict() | {"precisions": {"attention": precision, "embedding": precision, "head": precision}}
    return BenchSpec.from_dict(data | changes)


@pytest.mark.parametrize("precision", ["bf16", "mxfp8", "q8", "q6", "q4"])
def test_random_weights_are_as_large_as_planned_and_sane(precision: str) -> None:
    spec = spec_with(precision)
    config = config_of(spec)
    weights = RandomWeights(config, spec.precisions, 1).model()
    assert weights.nbytes == pytest.approx(footprint(config, spec.precisions).total, rel=1e-3)
    for linear, rms in ((weights.layers[0].qkv, config.hidden_size**-0.5), (weights.embed, 1.0)):
        values = np.array(dense_weight(linear))
        assert np.isfinite(values).all()
        assert abs(values.mean()) < 0.1 * rms
        assert rms / 2 < values.std() < rms * 2
    experts = np.array(picked_weight(weights.layers[1].down, mx.arange(config.num_experts)))
    assert 0.5 < experts.std() / config.intermediate_size**-0.5 < 2
    logits = GptOssModel(config, weights)(random_ids(config, (1, 40), 0))[..., : config.used_vocab_size]
    assert bool(mx.all(mx.isfinite(logits)))
    assert float(mx.std(logits)) > 0.1


def test_random_weights_depend_on_the_seed_alone() -> None:
    config = config_of(QUICK)

    def drawn(seed: int) -> mx.array:
        return RandomWeights(config, Precisions(), seed).layer(0).qkv.weight

    assert mx.array_equal(drawn(3), drawn(3))
    assert not mx.array_equal(drawn(3), drawn(4))
    layers = RandomWeights(config, Precisions(), 3)
    assert not mx.array_equal(layers.layer(0).qkv.weight, layers.layer(1).qkv.weight)


def test_random_weights_refuse_what_no_folder_has() -> None:
    with pytest.raises(InvalidRequestError, match="q5"):
        RandomWeights(config_of(QUICK), Precisions(head="q5"))


def test_bytes_of_a_step_agree_with_the_planner() -> None:
    config = config_of(QUICK)
    stored = StoredBytes.of_model(RandomWeights(config, Precisions(), 0).model())
    for context, batch in ((0, 1), (500, 1), (500, 4)):
        assert step_bytes(config, stored, context, batch) == pytest.approx(
            token_bytes(config, Precisions(), context, batch), rel=2e-2
        )


def test_flops_of_a_prompt_are_those_that_are_done() -> None:
    """Every pair of a query and a key, and of the last layer what its keys, values and last position take."""
    config = with_layers(config_of(QUICK), 3)
    length, hidden, q, kv = 300, config.hidden_size, config.q_size, config.kv_size
    experts = hidden * config.num_experts + config.experts_per_token * 3 * hidden * config.intermediate_size
    whole = hidden * (q + 2 * kv) + q * hidden + experts
    sliding = sum(min(position + 1, config.sliding_window) for position in range(length))
    full = sum(position + 1 for position in range(length))
    last = length * hidden * 2 * kv + 2 * hidden * q + experts + 2 * q * config.sliding_window
    wanted = 2 * length * whole + 2 * q * (sliding + full) + last + hidden * config.used_vocab_size
    assert prompt_flops(config, length) == 2 * wanted


def test_the_last_layer_of_a_prompt_costs_its_keys_and_values() -> None:
    """A full layer that comes last adds nothing that grows with the square of the length, nor all of its experts."""
    one, two = (with_layers(config_of(QUICK), count) for count in (1, 2))
    assert prompt_flops(two, 128 << 10) < 2.1 * prompt_flops(two, 64 << 10)
    assert prompt_flops(one, 2000) < 2 * 2 * 2000 * one.hidden_size * 2 * one.kv_size
    sizes = [StoredBytes(0, 800 * config.num_layers, 0) for config in (one, two)]
    assert prompt_bytes(one, sizes[0], 10**6) == 800 * one.experts_per_token / one.num_experts
    assert prompt_bytes(two, sizes[1], 10**6) == 800 + prompt_bytes(one, sizes[0], 10**6)


@peer
def test_mlx_lm_leaves_the_same_of_the_last_layer_out(tmp_path: Path) -> None:
    """The states it evaluates between pieces of a prompt do not depend on the last layer's three expert products."""
    subject = load_subject("mlx-lm", QUICK)
    caches = subject.model.make_cache()  # type: ignore[attr-defined]  # the peer has one
    subject.model(random_ids(subject.config, (1, 24), 0), cache=caches)  # type: ignore[attr-defined]  # as above
    graph = tmp_path / "graph.dot"
    mx.export_to_dot(str(graph), *(state for cache in caches for state in (cache.keys, cache.values)))
    assert graph.read_text().count('"GatherQMM"') == 3 * (subject.config.num_layers - 1)


@pytest.mark.parametrize("shape", ["20b", "120b"])
def test_released_shapes_with_fewer_layers(shape: str) -> None:
    config = config_of(BenchSpec(random=shape, layers=3))
    assert config.layer_types == ("sliding_attention", "full_attention", "sliding_attention")
    assert config.hidden_size == 2880
    assert with_layers(config, 24).num_layers == 24


def test_a_filled_cache_decodes_like_a_prefilled_one() -> None:
    """Same offsets, same shapes, and room reserved: no step later has to move it."""
    subject = load_ours(QUICK)
    filled, prefilled = subject.model.make_cache(), subject.model.make_cache()
    fill_cache(filled, 200, 50, seed=0)
    mx.eval(subject.model.prefill(random_ids(subject.config, (1, 200), 0), prefilled))
    assert filled.offset == prefilled.offset == 200
    before = [layer.main_k.shape for layer in filled.layers if hasattr(layer, "main_k")]
    for _ in range(50):
        logits = subject.model.decode(mx.array([5]), [filled])
        mx.eval(logits)
        assert bool(mx.all(mx.isfinite(logits[:, : subject.config.used_vocab_size])))
    assert [layer.main_k.shape for layer in filled.layers if hasattr(layer, "main_k")] == before


def test_launches_are_operations_that_are_no_views() -> None:
    other = mx.ones((2, 3))
    mx.eval(other)

    def step(x: mx.array) -> mx.array:
        return (x.reshape(2, 4).T + 1) @ other

    assert dict(count_launches(step, mx.zeros((8,)))) == {"Add": 1, "Matmul": 1}


def fused_step(layers: int, context: int) -> Callable[[mx.array], mx.array]:
    """A decode step on the Metal kernels, for tracing: the same graph that a Mac would run."""
    config = dataclasses.replace(with_layers(config_of(QUICK), layers), num_heads=16)
    weights = RandomWeights(config, Precisions()).model()
    model = FusedModel(config, weights, MetalBackend("m4-max"))
    return OurSubject(model, weights, "metal").decoder(context, 1, 8)


@pytest.mark.parametrize("layers", [24, 36], ids=["20b", "120b"])
@pytest.mark.parametrize("context", [100, 5000], ids=["short", "split"])
def test_launches_of_a_decoded_token(layers: int, context: int) -> None:
    """At most 7 kernels a layer, and a fixed handful beside them."""
    counts = count_launches(fused_step(layers, context), mx.array([3]))
    kernels = counts.pop("CustomKernel")
    assert 6 * layers + 1 <= kernels <= 7 * layers + 1
    assert counts.total() <= 6


def test_no_step_copies_a_cache() -> None:
    """Beside the kernels, nothing in a step's graph makes an array nearly as large as a layer's cache."""
    context = 5000
    sizes: list[tuple[str, int]] = []

    def note(event: dict[str, Any]) -> None:
        if event["type"] == "primitive" and event["name"] not in VIEWS:
            sizes.extend((event["name"], math.prod(shape)) for _, shape, _ in event["outputs"])

    mx.export_function(note, fused_step(2, context), mx.array([3]))
    assert sizes
    assert max(size for _, size in sizes) < context * 2 * 64 / 4


def test_launches_grow_by_the_layer() -> None:
    counts = [
        list(measure(load_ours(spec_with(layers=n, prefill=())), spec_with(layers=n, prefill=()))) for n in (2, 4)
    ]
    (two,), (four,) = counts
    assert 0 < two.launches < four.launches < 2 * two.launches


@pytest.mark.parametrize("engine", ["mlx-gptoss", pytest.param("mlx-lm", marks=peer)])
@pytest.mark.parametrize("precision", ["bf16", "q8"])
def test_measurements_of_each_engine(engine: str, precision: str) -> None:
    spec = spec_with(precision, batch=[1, 2])
    found = list(run_here(engine, spec))  # type: ignore[arg-type]  # a parameter
    assert [(m.phase, m.length, m.batch) for m in found] == [("prefill", 24, 1), ("decode", 16, 1), ("decode", 16, 2)]
    for m in found:
        assert m.engine == engine
        assert 0 < m.fastest <= m.seconds <= m.slowest
        assert m.tokens_per_second == pytest.approx((24 if m.phase == "prefill" else m.batch) / m.seconds)
        assert m.bytes > 0
        assert m.peak_bytes > 0
        assert (m.flops > 0) == (m.phase == "prefill")
    decode = found[1]
    assert decode.host_seconds + decode.wait_seconds == pytest.approx(decode.seconds, rel=0.1)


def test_the_model_behind_the_engine() -> None:
    found = list(run_here("engine", spec_with(decode=[40], steps=6)))
    assert [(m.engine, m.phase, m.length, m.batch) for m in found] == [
        ("engine", "prefill", 40, 1),
        ("engine", "decode", 40, 1),
    ]
    assert all(m.seconds > 0 and m.bytes > 0 for m in found)


@peer
def test_both_engines_see_the_same_weights() -> None:
    """mlx-lm's model over our random weights gives our logits, as far as bfloat16 and its YaRN allow."""
    for precision in ("bf16", "q8"):
        spec = spec_with(precision)
        ours, theirs = load_ours(spec), load_subject("mlx-lm", spec)
        ids = random_ids(ours.config, (1, 12), 7)
        a = np.array(ours.model.prefill(ids, ours.model.make_cache()))[0]
        b = np.array(theirs.model(ids)[0, -1].astype(mx.float32))  # type: ignore[attr-defined]  # the peer has one
        assert np.corrcoef(a, b)[0, 1] > 0.99


@peer
def test_a_folder_is_measured_in_both_engines(tmp_path: Path) -> None:
    config = with_layers(config_of(QUICK), 2)
    write_model_folder(tmp_path / "model", config)
    spec = spec_with(random=None, folder=str(tmp_path / "model"))
    ours, theirs = (next(iter(run_here(name, spec))) for name in ("mlx-gptoss", "mlx-lm"))
    assert ours.bytes == theirs.bytes


def test_a_process_of_its_own_reports_the_same() -> None:
    spec = spec_with(prefill=())
    (apart,) = run_apart("mlx-gptoss", spec)
    assert (apart.phase, apart.length, apart.launches > 0) == ("decode", 16, True)


def test_errors_come_back_from_the_process(tmp_path: Path) -> None:
    spec = spec_with(random=None, folder=str(tmp_path))
    with pytest.raises(GptOssError, match=r"config\.json|model folder"):
        list(run_apart("mlx-gptoss", spec))


@peer
def test_what_the_other_engine_cannot_do_is_one_clear_error(capfd: pytest.CaptureFixture[str]) -> None:
    # mlx-lm wants a full layer, and the first is a sliding one.
    with pytest.raises(GptOssError, match="mlx-lm cannot be measured"):
        list(run_apart("mlx-lm", spec_with(layers=1)))
    assert "Traceback" not in capfd.readouterr().err


def test_columns_never_touch() -> None:
    slow = Measurement("mlx-gptoss", "stock", "prefill", 131_072, 1, 20.57, 20.57, 20.57, 829_984, 1e6, 10**9)
    assert line(slow, CEILING).split()[:6] == ["mlx-gptoss", "prefill", "131072", "1", "6372", "<0.001"]
    assert line(slow, CEILING).endswith("GB")


def test_the_record_knows_the_memory_of_this_machine() -> None:
    assert machine_record()["memory_bytes"] >= 1 << 30


def test_the_ceiling_is_measured() -> None:
    ceiling = measure_ceiling(copy_bytes=1 << 22, size=256, repeats=1)
    assert math.isfinite(ceiling.copy_bytes_s)
    assert ceiling.copy_bytes_s > 1e6
    assert ceiling.matmul_flops > 1e5


def measurement(engine: str, seconds: float, phase: str = "decode") -> Measurement:
    return Measurement(engine, "stock", phase, 100, 2, seconds, seconds, seconds, 10**6, 10.0**6, 10**9)  # type: ignore[arg-type]  # parameters


def test_shares_of_the_ceiling() -> None:
    assert measurement("mlx-gptoss", 0.002).share(CEILING) == pytest.approx(0.5)
    assert measurement("mlx-gptoss", 0.01, "prefill").share(CEILING) == pytest.approx(0.1)
    assert "50.0%" in line(measurement("mlx-gptoss", 0.002), CEILING)


def test_ratios_pair_equal_measurements() -> None:
    lines = ratios([measurement("mlx-gptoss", 0.01), measurement("mlx-lm", 0.03), measurement("mlx-lm", 1, "prefill")])
    assert lines == ["decode 100 x2: 3.00 times mlx-lm (200 against 66.67 tok/s)"]


def test_the_spec_travels_as_json() -> None:
    spec = spec_with("q8", decode=[1, 2], batch=[4])
    assert BenchSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "fields",
    [{}, {"folder": "a", "random": "20b"}, {"random": "7b"}, {"random": "20b", "decode": (0,)},
     {"random": "20b", "steps": 0}, {"random": "20b", "layers": 0}, {"random": "20b", "batch": (-1,)},
     {"random": "20b", "batch": ()}, {"random": "20b", "seed": -1}, {"random": "20b", "seed": 1 << 64}],
)  # fmt: skip
def test_impossible_specs_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        BenchSpec(**fields)  # type: ignore[arg-type]  # wrong on purpose


@pytest.fixture
def quick_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_gptoss.bench.run.measure_ceiling", lambda: CEILING)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(bench, list(arguments))


@pytest.mark.usefixtures("quick_ceiling")
def test_the_command_prints_the_ceiling_first_and_json_last(tmp_path: Path) -> None:
    png, output = tmp_path / "speed.png", tmp_path / "results.json"
    result = invoke(
        "--random", "tiny", "--prefill", "24", "--decode", "16,32", "--steps", "3", "--repeats", "1",
        "--plot", str(png), "--output", str(output),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[1].startswith("ceiling: copy 1 GB/s")
    assert sum(line.startswith("mlx-gptoss ") for line in lines) == 3
    data = json.loads(lines[-1])
    assert json.loads(output.read_text()) == data
    assert data["ceiling"] == {"copy_bytes_s": 1e9, "matmul_flops": 1e9}
    assert [m["length"] for m in data["measurements"]] == [24, 16, 32]
    assert all(m["share_of_ceiling"] > 0 for m in data["measurements"])
    assert data["machine"]["mlx_gptoss"]
    assert png.read_bytes().startswith(b"\x89PNG")


@peer
@pytest.mark.usefixtures("quick_ceiling")
def test_the_command_against_mlx_lm() -> None:
    arguments = "--random tiny --prefill 0 --decode 16 --steps 3 --repeats 1 --vs mlx-lm --precision q8"
    result = invoke(*arguments.split())
    assert result.exit_code == 0, result.output
    data = json.loads(result.output.splitlines()[-1])
    assert [m["engine"] for m in data["measurements"]] == ["mlx-gptoss", "mlx-lm"]
    assert "times mlx-lm" in result.output


@pytest.mark.usefixtures("quick_ceiling")
def test_when_the_other_engine_fails_our_results_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(engine: str, spec: BenchSpec) -> Iterator[Measurement]:
        yield measurement(engine, 0.01)
        if engine != "mlx-gptoss":
            raise GptOssError("mlx-lm cannot be measured; got ValueError: no")

    monkeypatch.setattr("mlx_gptoss.bench.run.run_apart", apart)
    monkeypatch.setattr("mlx_gptoss.bench.peer.check_peer", lambda: None)
    png, output = tmp_path / "speed.png", tmp_path / "results.json"
    result = invoke("--random", "tiny", "--vs", "mlx-lm", "--output", str(output), "--plot", str(png))
    data = json.loads(result.stdout.splitlines()[-1])
    assert [m["engine"] for m in data["measurements"]] == ["mlx-gptoss", "mlx-lm"]
    assert data["failures"] == {"mlx-lm": "mlx-lm cannot be measured; got ValueError: no"}
    assert json.loads(output.read_text()) == data
    assert png.exists()
    assert isinstance(result.exception, GptOssError)
    assert "mlx-lm cannot be measured" in str(result.exception)


@pytest.mark.usefixtures("quick_ceiling")
def test_when_our_engine_fails_there_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(engine: str, spec: BenchSpec) -> Iterator[Measurement]:
        raise GptOssError(f"{engine} broke")

    monkeypatch.setattr("mlx_gptoss.bench.run.run_here", broken)
    result = invoke("--random", "tiny")
    assert "mlx-gptoss broke" in str(result.exception)
    assert "measurements" not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--prefill 999999999", "--prefill is longer than the model's context; expected at most 131072 tokens"),
        ("--decode 128,200k", "--decode is longer than the model's context; expected at most 131072 tokens"),
        ("--decode 16 --steps 131072", "--steps times --repeats below 131067"),
    ],
)
def test_lengths_beyond_the_model_are_refused_at_once(arguments: str, said: str) -> None:
    result = invoke("--random", "tiny", *arguments.split())
    assert isinstance(result.exception, InvalidRequestError)
    assert said in str(result.exception)
    assert result.output == ""


def test_a_decode_context_at_the_models_end_leaves_room_for_its_steps() -> None:
    spec = spec_with(prefill=[], decode=[128 << 10])
    assert [m.length for m in run_here("mlx-gptoss", spec)] == [(128 << 10) - 8]


@pytest.mark.parametrize(
    "arguments",
    ["--layers 2", "--random tiny --model x", "--random tiny --decode abc", "--random tiny --prefill 0 --decode 0",
     "--random 9b", "--random tiny --precision q5", "--random tiny --steps 1", "--model x --precision q8",
     "--model x --head q8", "--random tiny --batch 0", "--random tiny --seed -1"],
)  # fmt: skip
def test_impossible_commands_are_refused(arguments: str) -> None:
    result = invoke(*arguments.split())
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit | InvalidRequestError)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "missing", "said"),
    [
        (("--plot", "speed.png"), "matplotlib", "needs matplotlib"),
        (("--plot", "speed.xyz"), "", "not a picture"),
        (("--plot", "no/such/folder/speed.png"), "", "cannot write there"),
        (("--output", "no/such/folder/results.json"), "", "cannot write there"),
        (("--vs", "mlx-lm"), "mlx_lm", "mlx-lm is not installed"),
    ],
)
def test_what_could_not_be_finished_is_not_begun(
    arguments: tuple[str, ...], missing: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.chdir(tmp_path)
    result = invoke("--random", "tiny", *arguments)
    assert isinstance(result.exception, InvalidRequestError)
    assert said in str(result.exception)
    assert result.output == ""


def test_what_cannot_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_gptoss.errors import InsufficientMemoryError
    from mlx_gptoss.plan.machine import Machine

    monkeypatch.setattr("mlx_gptoss.plan.machine.this_machine", lambda: Machine("test", 8 << 30, 8 << 30, None))
    result = invoke("--random", "120b")
    assert isinstance(result.exception, InsufficientMemoryError)


def test_a_report_without_prefill_draws_too(tmp_path: Path) -> None:
    from mlx_gptoss.bench.plot import plot

    report = Report(QUICK, CEILING, (measurement("mlx-gptoss", 0.01), measurement("mlx-lm", 0.02)))
    plot(report, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000
