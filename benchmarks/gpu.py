"""Methods and drawing at true size on a GPU, in bf16, beside what the arithmetic alone would take.

    python benchmarks/gpu.py --out benchmarks/gpu.md

Weights are random: what a step takes does not depend on them. Floating-point operations are counted
by PyTorch in a second run of the same steps; the floor is their time at the rate of a large matrix
product of the same machine, measured here.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sizes import build, clip_of, pictures
from torch.utils.flop_counter import FlopCounterMode

from palimpsest.cli import machine
from palimpsest.core.atomic import write_text
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.provenance import commit
from palimpsest.erase import ESD, FMN, SLUG, UCE
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.recover import MemoRa
from palimpsest.toolbox.interpolation import Interpolation
from palimpsest.toolbox.pictures import Captioned, Drawn, Sampler
from palimpsest.toolbox.relearning_curve import Measured

CONCEPT = Concept("parachute", keep=("a photo of a dog", "a photo of a church"))
SHORT = {"start_step": 1, "pairs": ((1, 2),), "between": 2}
STEPS = {
    "ESD-x (paper)": ESD(steps=6),
    "ESD-x (newer code)": ESD(**ESD.presets["newer"]).changed({"steps": 17}),
    "FMN": FMN(steps=12, drawn=Drawn(folder=Path("pictures"))),
    "MemoRa": MemoRa(
        steps=12, interpolation=Interpolation(steps=3, **SHORT), measure=Measured((0,))
    ),
}
"""Timed a step: what they do before the first does not count."""


class Timer:
    """Takes a moment whenever a step is logged."""

    def __init__(self, device: str, count: FlopCounterMode | None) -> None:
        self.device, self.count = device, count
        self.times: list[float] = []
        self.flops: list[int] = []

    def __call__(self, _: dict[str, Any]) -> None:
        """Note the moment, and the operations so far."""
        wait(self.device)
        self.times.append(time.perf_counter())
        self.flops.append(self.count.get_total_flops() if self.count else 0)


def wait(device: str) -> None:
    """Wait until the device has done what it was asked."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def rate(device: str, n: int = 8192) -> float:
    """Floating-point operations a second of a large matrix product in bf16."""
    n = n if device.startswith("cuda") else 1024
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in "ab")
    for _ in range(3):
        a @ b
    wait(device)
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    wait(device)
    return 20 * 2 * n**3 / (time.perf_counter() - start)


def step_row(name: str, method: Any, model: Diffusion, device: str, peak: float) -> list[str]:
    """What a step takes."""

    def go(count: FlopCounterMode | None) -> Timer:
        timer = Timer(device, count)
        context = Context(seed=7, log=timer)
        with count or nullcontext():
            if isinstance(method, MemoRa):
                method(model, CONCEPT, None, context=context)
            else:
                method(model, [CONCEPT], context=context)
        return timer

    fresh(device)
    timer = go(None)
    memory = used(device)
    counted = go(FlopCounterMode(display=False))
    first = len(timer.times) // 3  # the first are slower: libraries choose their kernels
    steps = len(timer.times) - 1 - first
    seconds = (timer.times[-1] - timer.times[first]) / steps
    flops = (counted.flops[-1] - counted.flops[first]) / steps
    return [name, f"{1 / seconds:.2f} steps/s", *shared(seconds, flops, peak), memory]


def whole_row(name: str, work: Callable[[], Any], device: str, peak: float, each: int) -> list[str]:
    """What some whole work takes, a part of it."""
    work()
    fresh(device)
    start = time.perf_counter()
    work()
    wait(device)
    seconds = (time.perf_counter() - start) / each
    memory = used(device)
    with FlopCounterMode(display=False) as count:
        work()
    flops = count.get_total_flops() / each
    return [name, f"{seconds:.2f} s", *shared(seconds, flops, peak), memory]


def shared(seconds: float, flops: float, peak: float) -> list[str]:
    """TFLOP, the floor in seconds, and how much of the time it is."""
    floor = flops / peak
    return [f"{flops / 1e12:.2f}", f"{floor:.3f} s", f"{100 * floor / seconds:.0f} %"]


def fresh(device: str) -> None:
    """Begin to count memory."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def used(device: str) -> str:
    """The most memory since."""
    if not device.startswith("cuda"):
        return "–"
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"


def drawing(model: Diffusion, size: str, device: str, peak: float) -> list[list[str]]:
    """Pictures by us and by Diffusers' own pipeline, of the same parts."""
    rows, pipeline = [], plain_pipeline(model, size)
    for n in (1, 8):
        theirs, ours = drawers(model, pipeline, n)
        for who, work in (("Diffusers", theirs), ("ours", ours)):
            rows.append(whole_row(f"a picture, {n} at once: {who}", work, device, peak, n))
            print(*rows[-1], sep=" | ", flush=True)
    return rows


def drawers(model: Diffusion, pipeline: Any, n: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What makes the same n pictures at once: Diffusers' pipeline, and we."""
    prompts, own = CONCEPT.prompts(n), model.with_sampling(replace(model.sampling, batch=n))
    how = {"num_inference_steps": own.sampling.steps, "guidance_scale": own.sampling.guidance}
    texts = [prompt.text for prompt in prompts]

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        z = pipeline(texts, output_type="latent", **how).images
        # SDXL's autoencoder is in float32 where it asks for that; the pipeline knows float16 alone
        z = (z / pipeline.vae.config["scaling_factor"]).to(pipeline.vae.dtype)
        return (pipeline.vae.decode(z).sample.float() / 2 + 0.5).clamp(0, 1).cpu()

    return theirs, partial(own.generate, prompts)


def plain_pipeline(model: Diffusion, size: str) -> Any:
    """Diffusers' pipeline over the same networks, with DDIM."""
    import diffusers

    parts = {
        name: model.component(name)
        for name in ("unet", "vae", "text_encoder", "text_encoder_2")
        if size == "sdxl" or name != "text_encoder_2"
    }
    xl: Any = {"tokenizer_2": model.tokenizer, "add_watermarker": False}
    small: Any = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    kind: Any = getattr(diffusers, type(model).made_of)
    made = kind(
        **parts,
        tokenizer=model.tokenizer,
        scheduler=model.scheduler,
        **(xl if size == "sdxl" else small),
    )
    made.set_progress_bar_config(disable=True)
    return made


def section(size: str, device: str, peak: float, short: bool) -> list[str]:
    """The table of one size."""
    model = build(size, device, "bfloat16")
    if short:
        model = model.with_sampling(replace(model.sampling, steps=4))
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pictures(Path(temporary) / "pictures", 4, model.side)
        for name, method in STEPS.items():
            own = method.changed({"drawn.folder": folder}) if name == "FMN" else method
            try:
                rows.append(step_row(name, own, model, device, peak))
            except (PalimpsestError, RuntimeError, TypeError, ValueError) as error:
                rows.append([name, f"refused: {error}", "", "", "", ""])
            print(*rows[-1], sep=" | ", flush=True)
        encoder = clip_of(model, Path(temporary) / "clip") if size != "world" else "world"
        slug = SLUG(
            clip=str(encoder),
            scale=0.4,
            batch=16,
            forgotten=Captioned(16),
            retained=Captioned(32),
            sampling=Sampler(4, 9.0),
        )
        for name, method in (("UCE", UCE()), ("SLUG's one step", slug)):

            def work(method: Any = method) -> None:
                method(model, [CONCEPT], context=Context(seed=7))

            try:
                rows.append(whole_row(name, work, device, peak, 1))
            except (PalimpsestError, RuntimeError, TypeError, ValueError) as error:
                rows.append([name, f"refused: {error}", "", "", "", ""])
            print(*rows[-1], sep=" | ", flush=True)
    rows += drawing(model, size, device, peak)
    count = sum(p.numel() for p in model.parameters("full").values())
    return [
        f"## {size}: {count:,} parameters, latents of {model.latents.shape[1]}²",
        "",
        "| what | speed | TFLOP | floor | floor / time | GiB at most |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", default=["sd", "sdxl"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--short", action="store_true", help="pictures of four steps")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "gpu.md")
    chosen = parser.parse_args()
    machine.silence()
    torch.backends.cudnn.benchmark = True
    peak, gpu = rate(chosen.device), chosen.device.startswith("cuda")
    named = torch.cuda.get_device_name(chosen.device) if gpu else "CPU"
    text = [
        "# At true size on a GPU",
        "",
        f"Made by `python benchmarks/{Path(sys.argv[0]).name}`, commit "
        f"{commit().get('commit', 'unknown')}: {named}, torch {torch.__version__}, bf16, random "
        f"weights. A product of two 8192² matrices ran at {peak / 1e12:.0f} TFLOP/s, which the "
        "floors are computed with.",
        "",
    ]
    start = time.perf_counter()
    for size in chosen.size:
        text += section(size, chosen.device, peak, chosen.short)
        write_text(chosen.out, "\n".join(text))  # what there is, should the lease end
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
    print("\n".join(text), f"\n{math.ceil(time.perf_counter() - start)} s")


if __name__ == "__main__":
    main()
