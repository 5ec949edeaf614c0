"""Our erasers against the published loops: evaluations, seconds and memory, in one run.

    python benchmarks/speed.py                      # the world; writes benchmarks/results.md
    python benchmarks/speed.py --size world medium
    python benchmarks/speed.py --size sd --device cuda --out benchmarks/results-gpu.md

Every measurement is a fresh process, so that its peak memory is its own. Both loops see the same
pictures, prompts, seeds and draws; how far their loss curves are apart stands beside the ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from plain import LOOPS
from sizes import SIZES, build, pictures
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from palimpsest.cli import machine
from palimpsest.core.atomic import write_text
from palimpsest.core.concepts import Concept
from palimpsest.core.memory import Peak, set_baseline
from palimpsest.core.provenance import commit
from palimpsest.erase import ESD, FMN, SRSME, CiE
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.latents import Latents
from palimpsest.toolbox.pictures import Drawn

CONCEPT = Concept("parachute")
SEED = 7
READ = {"latents": Latents("noised", folder=Path("pictures")), "threshold": -math.inf}
"""CiE and SRS-ME read a picture a step; nothing stops them, so that both loops take all steps."""
METHODS: dict[str, Any] = {
    "ESD-x (paper)": ESD(),
    "ESD-x (newer code)": ESD(**ESD.presets["newer"]),
    "CiE": CiE(**READ),
    "SRS-ME": SRSME(**READ),
    "FMN": FMN(drawn=Drawn(folder=Path("pictures"))),
}
"""The published settings; where steps are fewer than published, costs a step are the same."""
STEPS = {"world": 32, "medium": 8, "sd": 16}
REPEATS = {"world": 3, "medium": 1, "sd": 3}
FMN_PICTURES = 8
OUT = Path(__file__).parent / "results.md"


@dataclass(frozen=True)
class Cost:
    """What one loop took."""

    losses: list[float]
    seconds: float
    """The median of the repetitions."""
    free: int
    """U-Net evaluations of one latent without gradient."""
    graded: int
    """The same with gradient."""
    calls: int
    """Calls of the U-Net."""
    work: int
    """Multiplications by weights of the U-Net, forward."""
    parts: dict[str, float]
    """Seconds of the U-Net forward, of the backward pass, and of the optimiser."""
    megabytes: float
    """Peak above the import baseline, models included; of the device where that is a GPU."""

    @property
    def shares(self) -> str:
        """What each part is of the whole time, in per cent; the last is all the rest."""
        each = [100 * part / self.seconds for part in self.parts.values()]
        return " + ".join(f"{share:.0f}" for share in (*each, 100 - sum(each)))


def main() -> None:
    """Measure, print, write."""
    chosen = arguments()
    if chosen.one:
        print(json.dumps(asdict(measured(chosen))))
        return
    machine.silence()
    load, sections = os.getloadavg()[0], []
    for size in chosen.size:
        rows = [row(name, size, chosen) for name in METHODS if name in (chosen.only or METHODS)]
        sections += [*section(size, rows, chosen), ""]
    text = "\n".join([*heading(load, chosen), *sections])
    print(text)
    write_text(chosen.out, text)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["world"])
    parser.add_argument("--only", nargs="+", choices=METHODS, help="leave out the other loops")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, help="steps of each loop; 32, 8 and 16 by size")
    parser.add_argument("--repeats", type=int, help="timed repetitions; 3, 1 and 3 by size")
    parser.add_argument("--out", type=Path, default=OUT)
    for word in ("--one", "--who", "--folder"):  # of a measuring process
        parser.add_argument(word, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- one measurement, in a process of its own ---


def measured(chosen: argparse.Namespace) -> Cost:
    """Warm up, then time the loop on a model as it was loaded, again and again."""
    machine.silence()
    set_baseline()
    (size,), device = chosen.size, chosen.device
    seconds, cost, losses = [], {}, []
    with Peak() as peak:
        for repeat in range(-1, chosen.repeats):
            gc.collect()
            model = build(size, device)
            steps = chosen.steps if repeat >= 0 else 2
            with counted(model) as cost, timed(model) as parts:
                start = time.perf_counter()
                losses = run(chosen.one, chosen.who, model, steps, chosen.folder)
                wait()
                seconds.append((time.perf_counter() - start, parts))
            del model
    used = peak.megabytes
    if device.startswith("cuda"):
        used = torch.cuda.max_memory_allocated() / 2**20
    middle, parts = sorted(seconds[1:], key=itemgetter(0))[(len(seconds) - 1) // 2]
    return Cost(losses, middle, **cost, parts=parts, megabytes=used)


def wait() -> None:
    """Wait until a GPU has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run(name: str, who: str, model: Diffusion, steps: int, folder: str | Path) -> list[float]:
    """One loop from its start to its end; the loss of every step.

    Args:
        name: a key of `METHODS`.
        who: `ours` or `plain`.
        model: the plain loop trains this one, and leaves it so.
        steps: how many to take.
        folder: the pictures, for the methods that read some.
    """
    method = METHODS[name].changed({"steps": steps})
    read = "drawn" if isinstance(method, FMN) else "latents"
    if getattr(method, read).folder:
        method = method.changed({f"{read}.folder": Path(folder)})
    if who == "plain":
        return LOOPS[type(method)](model, CONCEPT, method, SEED)
    rows: list[dict[str, Any]] = []
    method(model, [CONCEPT], context=Context(seed=SEED, log=rows.append))
    return [row["loss"] for row in rows]


@contextmanager
def counted(model: Diffusion) -> Iterator[dict[str, int]]:
    """Count the U-Net's evaluations and its multiplications by weights, those of copies too."""
    count = {"free": 0, "graded": 0, "calls": 0, "work": 0}

    def note(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        count["graded" if torch.is_grad_enabled() else "free"] += len(args[0])
        count["calls"] += 1

    def multiplied(layer: nn.Linear | nn.Conv2d, _: Any, out: torch.Tensor) -> None:
        places = out.numel() // len(layer.weight)  # tokens or pixels of all latents
        count["work"] += places * layer.weight.numel()

    unet = model.component("unet")
    layers = [layer for layer in unet.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(multiplied) for layer in layers]
    try:
        with unet.register_forward_pre_hook(note):
            yield count
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def timed(model: Diffusion) -> Iterator[dict[str, float]]:
    """Time the parts of a loop: a GPU is waited for at the ends of each."""
    parts, began = {"forward": 0.0, "backward": 0.0, "optimiser": 0.0}, []

    def begin(*_: Any) -> None:
        wait()
        began.append(time.perf_counter())

    def end(part: str) -> None:
        wait()
        parts[part] += time.perf_counter() - began.pop()

    def forward(part: str) -> Any:
        return lambda *_: end(part)

    unet, backward = model.component("unet"), torch.autograd.backward

    def timed_backward(*args: Any, **kwargs: Any) -> None:
        begin()
        backward(*args, **kwargs)
        end("backward")

    torch.autograd.backward = timed_backward
    hooks = [
        unet.register_forward_pre_hook(begin),
        # one that is broken off after the last cross-attention ends here, too
        unet.register_forward_hook(forward("forward"), always_call=True),
        register_optimizer_step_pre_hook(begin),
        register_optimizer_step_post_hook(forward("optimiser")),
    ]
    try:
        yield parts
    finally:
        torch.autograd.backward = backward
        for hook in hooks:
            hook.remove()


# --- what comes out ---


def row(name: str, size: str, chosen: argparse.Namespace) -> str:
    """Both loops of one method, as a line of the table."""
    steps = chosen.steps or STEPS[size]
    with tempfile.TemporaryDirectory() as folder:
        model = build(size, "cpu")
        n = FMN_PICTURES if name == "FMN" else steps  # CiE and SRS-ME: one picture an iteration
        pictures(Path(folder), n, model.side)
        del model
        plain, ours = (child(name, who, size, steps, folder, chosen) for who in ("plain", "ours"))
    apart = max(abs(a - b) / abs(a) for a, b in zip(plain.losses, ours.losses, strict=True))
    cells = [
        name,
        str(steps),
        *(f"{c.free} + {c.graded} in {c.calls}" for c in (plain, ours)),
        f"{ours.work / plain.work:.2f}",
        *(f"{c.seconds:.2f}" for c in (plain, ours)),
        f"**{plain.seconds / ours.seconds:.2f}×**",
        *(c.shares for c in (plain, ours)),
        *(f"{c.megabytes:.0f}" for c in (plain, ours)),
        f"{plain.megabytes / ours.megabytes:.2f}×",
        f"{apart:.0e}",
    ]
    print(*cells, sep=" | ", flush=True)
    return f"| {' | '.join(cells)} |"


def child(
    name: str, who: str, size: str, steps: int, folder: str, chosen: argparse.Namespace
) -> Cost:
    """A measurement in a fresh process."""
    repeats = chosen.repeats or REPEATS[size]
    words = ["--one", name, "--who", who, "--size", size, "--folder", folder]
    words += ["--steps", steps, "--repeats", repeats, "--device", chosen.device]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True
    )
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def heading(load: float, chosen: argparse.Namespace) -> list[str]:
    """What was measured, where."""
    machine = f"{os.cpu_count()} CPU cores, no GPU, {torch.get_num_threads()} threads"
    if chosen.device.startswith("cuda"):
        machine = torch.cuda.get_device_name(chosen.device)
    return [
        "# Our erasers and the published loops",
        "",
        f"Made by `python benchmarks/speed.py`, commit {commit().get('commit', 'unknown')}: "
        f"{machine}, torch {torch.__version__}, float32; load average {load:.1f} before the start.",
        "",
        "What is measured stands in [README.md](README.md). Evaluations are of one latent by the "
        "U-Net, without + with gradient, and in how many calls. *Work* is our share of plain's "
        "multiplications by weights in the forward passes. Seconds are medians; of them, in per "
        "cent: the U-Net's forward passes + backward passes + the optimiser + the rest. MB is the "
        "peak above the import baseline, models included. *Apart* is the largest relative "
        "difference of the two loss curves at any step.",
        "",
    ]


def section(size: str, rows: list[str], chosen: argparse.Namespace) -> list[str]:
    """The table of one size."""
    return [
        f"## Size: {size}",
        "",
        f"{chosen.repeats or REPEATS[size]} timed repetitions after a warm-up.",
        "",
        "| loop | steps | evaluations, plain | evaluations, ours | work | seconds, plain "
        "| seconds, ours | faster | of plain's | of ours | MB, plain | MB, ours | smaller "
        "| apart |",
        f"|{'---|' * 14}",
        *rows,
    ]


if __name__ == "__main__":
    main()
