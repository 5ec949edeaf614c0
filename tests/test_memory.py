"""Little memory gives the same, and what a method takes is counted as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import ERASERS, PARACHUTE, small

from palimpsest.cli import main
from palimpsest.cli.machine import Machine
from palimpsest.core.draw import Draw
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.streams import generator
from palimpsest.core.trouble import sentence
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_model
from palimpsest.models.shapes import shapes_of, true_shape
from palimpsest.runs.asked import model_entry
from palimpsest.toolbox.memory_count import Live, count

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def own() -> Diffusion:
    """A model of our own, whose memory may be set."""
    return load_model("world")


@pytest.fixture(scope="module")
def table() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield import_module("memory_table")
    finally:
        sys.path.remove(str(BENCHMARKS))


# --- it gives the same ---


def gradients(model: Diffusion, memory: Any, n: int) -> tuple[list[torch.Tensor], int]:
    """Return the gradient of a loss over n latents, and how many entries were kept for it."""
    model.use_memory(memory)
    g, kept, weights = generator(0), [], {p.data_ptr() for p in model._parameters.values()}
    deltas = {
        name: (0.01 * torch.randn(p.shape, generator=g)).requires_grad_()
        for name, p in model.parameters("xattn").items()
    }
    student, cond = model.student(deltas), model.embed(["a cat", "a parachute", "an owl"][:n])
    x, t = model.noise(n, g), model.times(n, g)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(0 if tensor.data_ptr() in weights else tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # no mean over the batch: a loss that is not a sum of the rows' own
        loss = student.eps(x, t, cond).square().mean((1, 2, 3)).log().sum().square()
    model.use_memory("normal")
    return list(torch.autograd.grad(loss, list(deltas.values()))), sum(kept)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("hook", [False, True])
def test_little_memory_gives_the_same_gradients_from_far_less(own: Diffusion, n: int, hook: bool):
    patch = None
    if hook:  # adapters that each prompt opens by itself, at a later time once more
        patch = small(ERASERS, "spm")(own, [PARACHUTE], context=Context()).patch
    with own.patched(patch):
        usual, much = gradients(own, "normal", n)
        thrifty, little = gradients(own, "low", n)
    for a, b in zip(usual, thrifty, strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm()
    assert little < (0.5 if n == 1 else 0.2) * much
    assert not any("forward" in vars(block) for block in own.unet.modules())


def test_pictures_are_the_same_one_at_a_time(own: Diffusion):
    x = own.noise(3, generator(1))
    usual = own.decode(x)
    back = own.encode(usual)
    own.use_memory("low")
    assert torch.allclose(own.decode(x), usual, atol=1e-5)
    assert torch.allclose(own.encode(usual), back, atol=1e-5)
    own.use_memory("normal")


def test_tiles_make_another_run(own: Diffusion):
    usual, large = model_entry(own), own.with_sampling(own.sampling.drawn(Draw(size=128)))
    large.use_memory("low")
    assert large.tiled
    assert "decoded in tiles" in model_entry(large).sampling
    own.use_memory("low")
    assert not own.tiled
    assert model_entry(own) == usual, "at its own size nothing depends on the memory"
    large.use_memory("normal")
    own.use_memory("normal")


# --- what is asked for ---


def test_low_memory_loads_bfloat16_and_trains_in_float32():
    model = Machine(memory="low").load("world")
    assert (model.dtype, model.memory) == (torch.bfloat16, "low")
    assert {d.dtype for d in model.shifts("xattn").values()} == {torch.float32}
    assert Machine(memory="low", dtype="float32").load("world").dtype == torch.float32
    assert Machine(memory="low").load("world", "float32").dtype == torch.float32, "as a run's"


def test_low_memory_is_refused_of_a_clip(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    words = ["erase", "ssd", "--model", "clip:world", "--concept", "cat", "--memory", "low"]
    assert main([*words, "--runs", str(tmp_path / "r")]) == 2
    assert "--memory: of no use" in capsys.readouterr().err


def test_who_runs_out_of_memory_is_told_of_it():
    told = sentence(MemoryError())
    assert told
    assert "--memory low" in told
    assert "--dtype float32" in told, "without, another run would begin"
    assert "batch" in told


def test_a_dry_run_counts_both_ways(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    words = ["erase", "esd", "--concept", "cat", "--runs", str(tmp_path / "r"), "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr().out
    usual, low = map(float, re.findall(r"([\d.]+) GiB for the method", said))
    assert low < usual
    assert said.count("fits a card of 8 GB") == 2
    told = re.findall(r"with --memory low +(.*)", said)
    assert main([*words, "--memory", "low"]) == 0
    assert re.findall(r"memory  +(.*)", capsys.readouterr().out) == told, "as it will be"


# --- it is counted as it is ---


def test_bytes_count_as_long_as_they_live():
    with Live() as live:
        a = torch.empty(1000, device="meta")
        b = a + 1
        c = b.view(10, 100)  # no bytes of its own
        assert live.now == 8000
        del a, b
        assert live.now == 4000, "the view holds it"
        d = c * 2 + 1
    assert d.shape == (10, 100)
    assert (live.now, live.most) == (8000, 12_000), "what is made on the way counts on the way"


@pytest.mark.parametrize(
    ("shape", "unet"),
    [("sd14", 859_520_964), ("sd21", 865_910_724), ("sdxl", 2_567_463_684)],
)
def test_true_shapes_have_the_published_number_of_parameters(shape: Any, unet: int):
    model = true_shape(shape)
    assert sum(p.numel() for p in model.component("unet").parameters()) == unet


def test_what_is_trained_counts_sixteen_bytes_an_entry():
    model = true_shape("sd14")
    small_, whole = (
        count(model, ERASERS.load("esd")(train=train)) for train in ("xattn-kv", "full")
    )
    more = sum(model.sizes("full").values()) - sum(model.sizes("xattn-kv").values())
    assert whole.moved - small_.moved == pytest.approx(12 * more / 2**30)
    each = (whole.training - small_.training) * 2**30 / more
    assert 14 < each < 20, "W + Δ, and gradients while they come and what is kept for them goes"


def test_a_models_own_shapes_are_counted(own: Diffusion):
    twin = shapes_of(own)
    assert twin
    names = {n: (p.shape, p.dtype) for n, p in own.parameters("full").items()}
    assert {n: (p.shape, p.dtype) for n, p in twin.parameters("full").items()} == names
    assert twin.device.type == "meta"


def test_no_shape_of_another_name():
    with pytest.raises(PalimpsestError, match="no shape 'sd15'; there are sd14, sd21, sdxl"):
        true_shape("sd15")  # type: ignore[arg-type]


# --- the committed table ---


def cells(table: Any, name: str) -> list[str]:
    return table.rows_of(table.PAGE.read_text(encoding="utf-8"))[name]


@pytest.mark.parametrize(("name", "memory"), [("esd", "low"), ("uce", "normal"), ("mace", "low")])
def test_the_table_is_what_is_counted(table: Any, name: str, memory: Any):
    model = true_shape("sd14")
    model.use_memory(memory)
    assert cells(table, name)[memory == "low"] == table.cell(count(model, table.method_of(name)))


def test_every_method_is_in_the_table_and_fits(table: Any):
    page = table.PAGE.read_text(encoding="utf-8")
    assert [*table.rows_of(page)] == table.NAMES
    low = {name: float(cells(table, name)[1].split()[0]) for name in table.NAMES}
    assert max(low.values()) <= 22
    light = ("mace", "srs_me", "esd", "cie", "unlearn_diff_atk", "p4d", "memora")
    assert max(low[name] for name in (*light, "advunlearn", "ablation")) < 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uce", "esd", "fmn-xattn"])
def test_the_count_is_near_what_true_size_takes(name: str):
    """In a process of its own: what another model left there would count."""
    words = ["--device", "cpu", "--latent", "16", "--memory", "normal", "--methods", name]
    program = [sys.executable, str(BENCHMARKS / "gpu_memory.py"), *words]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    (row,) = (line for line in said.splitlines() if line.startswith(f"| {name} |"))
    counted, measured = map(float, row.split("|")[3:5])
    assert measured == pytest.approx(counted, rel=0.15)
