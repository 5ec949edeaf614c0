"""Adam of 8 bits is another run, never published, and resumes from what it keeps.

Where bitsandbytes is installed its own Adam runs here; else one that keeps the same things, in the
same form, and takes its steps in plain PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from methods import ERASERS, PARACHUTE, small

from palimpsest.core.errors import PalimpsestError
from palimpsest.methods import Context, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.shapes import true_shape
from palimpsest.patch import Patch
from palimpsest.runs.asked import Asked, On
from palimpsest.runs.scoring import Panel
from palimpsest.toolbox import optimizers
from palimpsest.toolbox.memory_count import count

KEPT = "quantised"
"""The dictionary within a parameter's state, as bitsandbytes nests what it keeps."""


class ByteAdam(torch.optim.Optimizer):
    """Adam whose averages are bytes: places in a table, times the largest of the tensor."""

    def __init__(self, own: Any, lr: float, betas: Any, eps: float, weight_decay: float) -> None:
        super().__init__(own, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def init_state(self, group: Any, p: torch.Tensor, gindex: int, pindex: int) -> None:
        tables = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256) ** 2
        state: dict[str, Any] = {"step": 0}
        for i, table in enumerate(tables, 1):
            state[f"state{i}"] = torch.zeros_like(p, dtype=torch.uint8)
            state |= {f"qmap{i}": table, f"absmax{i}": torch.zeros(1)}
        self.state[p] = state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        (group,) = self.param_groups
        for place, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            if not self.state[p]:
                self.init_state(group, p, 0, place)
            state = self.state[p]
            state["step"] += 1
            means = []
            for i, (beta, seen) in enumerate(
                zip(group["betas"], (p.grad, p.grad**2), strict=True), 1
            ):
                table, most = state[f"qmap{i}"], state[f"absmax{i}"]
                mean = torch.lerp(seen, table[state[f"state{i}"].long()] * most, beta)
                state[f"absmax{i}"] = mean.abs().amax().reshape(1)
                near = torch.searchsorted(table, mean / state[f"absmax{i}"]).clamp(max=255)
                state[f"state{i}"] = near.to(torch.uint8)
                means.append(mean / (1 - beta ** state["step"]))
            p.sub_(group["lr"] * means[0] / (means[1].sqrt() + group["eps"]))

    def state_dict(self) -> dict[str, Any]:
        found = super().state_dict()
        for place, held in found["state"].items():
            rest = {name: value for name, value in held.items() if name != "step"}
            found["state"][place] = {"step": held["step"], KEPT: rest}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        (group,) = self.param_groups
        for place, held in state_dict["state"].items():
            own = {"step": held["step"], **held[KEPT]}
            self.state[group["params"][place]] = own


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 8 bits be computed on the CPU."""
    monkeypatch.setattr(optimizers, "DEVICES", ("cuda", "cpu"))
    if find_spec("bitsandbytes") is None:
        own = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=ByteAdam))
        monkeypatch.setitem(sys.modules, "bitsandbytes", own)


METHOD = small(ERASERS, "esd").changed({"train": "xattn-kv", "steps": 4})


def erased(model: Diffusion, **how: Any) -> Patch:
    patch = METHOD(model, PARACHUTE, context=Context(optimizer="adam8bit", **how)).patch
    assert patch
    return patch


def checkpoint(model: Diffusion, folder: Path) -> Path:
    """Leave the checkpoint of a run that was killed in its second step."""

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erased(model, folder=folder, log=kill)
    (path,) = folder.glob("*.checkpoint")
    return path


@pytest.mark.usefixtures("eight")
def test_a_killed_run_of_8_bits_resumes_to_the_bit_and_is_near_the_own_one(
    model: Diffusion, tmp_path: Path
):
    whole, steps = erased(model), []
    checkpoint(model, tmp_path)
    resumed = erased(model, folder=tmp_path, log=lambda row: steps.append(row["step"]))
    assert steps == [3, 4]
    assert resumed.digest() == whole.digest()
    own = METHOD(model, PARACHUTE, context=Context()).patch
    assert own
    assert 0 < (whole - own).norm() < 0.8 * own.norm(), "bitsandbytes: 0.02"


def _set(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def falsified(held: dict[str, Any]) -> None:
        inside = next((v for v in held.values() if isinstance(v, dict) and name in v), held)
        inside[name] = change(inside[name])

    return falsified


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("falsify", "told"),
    [
        (_set("step", lambda step: 9), "was at another step"),
        (_set("state1", lambda t: t.float()), "state1 are no bytes"),
        (_set("state2", lambda t: t[:1]), "state2 is of another form"),
        (_set("qmap1", lambda t: 2 * t), "qmap1 is another table"),
        (_set("absmax2", lambda t: t * float("nan")), "absmax2 holds NaN"),
        (lambda held: held.clear(), "is another one"),
    ],
    ids=["step", "floats", "form", "table", "nan", "nothing"],
)
def test_a_state_that_is_not_its_own_begins_anew(
    falsify: Callable[[dict[str, Any]], None], told: str, model: Diffusion, tmp_path: Path
):
    path, said, steps = checkpoint(model, tmp_path), [], []
    state = torch.load(path, weights_only=True)
    falsify(state["optimizer"]["state"][0])
    torch.save(state, path)
    erased(model, folder=tmp_path, tell=said.append, log=lambda row: steps.append(row["step"]))
    assert steps == [1, 2, 3, 4]
    assert told in said[0]


@pytest.mark.usefixtures("eight")
def test_the_own_optimiser_takes_no_state_of_bytes(model: Diffusion, tmp_path: Path):
    checkpoint(model, tmp_path)
    said: list[str] = []
    METHOD(model, PARACHUTE, context=Context(folder=tmp_path, tell=said.append))
    assert "its optimiser" in said[0]


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(PalimpsestError, match=r"pip install 'palimpsest-ml\[eightbit\]'"):
        optimizers.eight_bit(torch.device("cuda"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["esd"], "the optimizer adam8bit computes on CUDA, and the model is on cpu"),
        (["esd", "--preset", "published"], "no method was published with it"),
        (["uce"], "uce takes no steps of Adam"),
        (["slug", "--model", "clip:world"], "--optimizer: of no use for --model clip:world"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_8_bits_are_refused_where_they_cannot_be(words: list[str], told: str, refused):
    refused(words, told, "--optimizer", "adam8bit")


def test_8_bits_are_another_run_and_the_record_says_so(model: Diffusion):
    asked = [
        Asked(model, Panel(), Task.of(PARACHUTE), METHOD, On(), (), 0, kind).record
        for kind in ("own", "adam8bit")
    ]
    assert [record.optimizer for record in asked] == ["", "adam8bit"]
    assert asked[0] != asked[1]


def test_moments_of_8_bits_are_counted():
    model, method = true_shape("sd14"), ERASERS.load("esd")(train="full")
    own, eight = (count(model, method, kind) for kind in ("own", "adam8bit"))
    entries = sum(method.moves(model).values())
    assert (own.moved - eight.moved) * 2**30 == pytest.approx(6 * entries, rel=0.01)
