"""Hold the count of a method's memory against what it really takes, on one device.

    python benchmarks/gpu_memory.py --device cuda                       # SD 1.4 in bf16, 3 minutes
    python benchmarks/gpu_memory.py --device cuda --shape sdxl --methods esd uce
    python benchmarks/gpu_memory.py --device cpu --latent 16 --methods esd uce fmn-xattn

The model has the true shape and random weights. Each method runs with its own batch and few steps,
on few pictures that are sampled in two steps: neither changes how much is held at once. Measured is
the most that PyTorch had allocated on the GPU at one time; on the CPU, the process's resident
memory above what the libraries take, beside what is counted for the CPU and the device.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from palimpsest.core.concepts import Concept
from palimpsest.core.memory import Peak, set_baseline
from palimpsest.core.prompts import Prompt
from palimpsest.erase import ERASERS
from palimpsest.methods import Context, Eraser, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.shapes import true_shape
from palimpsest.recover import RECOVERIES
from palimpsest.toolbox.memory_count import Count, count

FEW = {"drawn.pictures": 2, "drawn.steps": 2}
SETS = {"forget.steps": 2, "retain.steps": 2}
SHORT: dict[str, dict[str, Any]] = {
    "esd": {"steps": 2, "latents.steps": 2},
    "esd-u": {"steps": 2, "latents.steps": 2, "train": "noxattn"},
    "uce": {},
    "fmn": {"steps": 2, **FEW},
    "fmn-xattn": {"steps": 2, "train": "xattn", **FEW},
    "cie": {"steps": 2, "latents.steps": 2},
    "srs_me": {"steps": 2, "latents.steps": 2},
    "spm": {"steps": 2, "latents.steps": 2},
    "mace": {"steps": 2, **FEW},
    "ablation": {"steps": 2, **FEW},
    "advunlearn": {"steps": 2, "latents.steps": 2, "warmup": 1, "attack_steps": 1},
    "salun": {"steps": 2, "forget.pictures": 8, "retain.pictures": 8, **SETS},
    "scissorhands": {"steps": 2, "passes": 1, "retain.pictures": 8, **SETS},
    "erasediff": {"steps": 2, **SETS},
    "concept_inversion": {"steps": 2, "measure.at": (), "measure.pictures": 1, **FEW},
    "memora": {
        "steps": 2,
        "interpolation.steps": 3,
        "interpolation.start_step": 1,
        "interpolation.between": 3,
        "measure.at": (),
        "measure.pictures": 1,
    },
}
"""Name → settings that leave what is held at once as published; a word behind a dash is of the
name alone."""
CONCEPT = Concept("cat", "object", "dog", keep=("a photo of a dog", "a photo of a tree"))


class Row(NamedTuple):
    """One method's memory in GiB, counted and measured, and its seconds."""

    method: str
    memory: str
    counted: Count
    device: str
    training: float
    pictures: float
    seconds: float

    def __str__(self) -> str:
        c, on_cpu = self.counted, self.device == "cpu"
        training, pictures = (one + on_cpu * c.host for one in (c.training, c.pictures))
        return (
            f"| {self.method} | {self.memory} | {training:.2f} | {self.training:.2f} | "
            f"{self.training / training - 1:+.0%} | {pictures:.2f} | {self.pictures:.2f} | "
            f"{self.seconds:.0f} |"
        )


HEADER = """\
| method | memory | counted, the method | measured | | counted, pictures | measured | seconds |
|---|---|--:|--:|--:|--:|--:|--:|"""


def method_of(name: str) -> Any:
    """Return a method at its published values, made short."""
    own = name.partition("-")[0]
    kind = (ERASERS if own in ERASERS else RECOVERIES).load(own)
    return kind().changed(SHORT[name])


@contextmanager
def peak(device: torch.device) -> Iterator[Callable[[], float]]:
    """Yield what tells the most GiB at once within the block, the model's included."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield lambda: torch.cuda.max_memory_allocated() / 2**30
        return
    with Peak() as found:
        yield lambda: found.megabytes / 1024


def measure(model: Diffusion, shapes: Diffusion, name: str, memory: Any) -> Row:
    """Run a method, then draw one batch of pictures of the edited model.

    Args:
        model: on the device.
        shapes: the same on the meta device.
        name: of `SHORT`.
        memory: `normal` or `low`.
    """
    for one in (model, shapes):
        one.use_memory(memory)
    method, start = method_of(name), time.perf_counter()
    with peak(model.device) as training:
        if isinstance(method, Eraser):
            found = method(model, Task((CONCEPT,)), context=Context())
        else:
            found = method(model, CONCEPT, None, context=Context())
        taken = training()
    with peak(model.device) as pictures, model.patched(found.patch):
        model.generate([Prompt("a cat", seed=i) for i in range(model.sampling.batch)])
        drawn = pictures()
    taken_s = time.perf_counter() - start
    return Row(name, memory, count(shapes, method), model.device.type, taken, drawn, taken_s)


def build(shape: Any, device: str, dtype: str, latent: int | None) -> tuple[Diffusion, Diffusion]:
    """Return the model on the device, and its shapes."""
    shapes = true_shape(shape, dtype=dtype, latent=latent)
    set_baseline()  # everything is imported
    model = true_shape(shape, device=device, dtype=dtype, latent=latent)
    for one in (model, shapes):
        one.sampling = replace(one.sampling, steps=2)
    return model, shapes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="sd14", choices=("sd14", "sd21", "sdxl"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--latent", type=int, help="side of a latent; its own if left out")
    parser.add_argument("--methods", nargs="*", default=[*SHORT], choices=[*SHORT])
    parser.add_argument("--memory", nargs="*", default=["normal", "low"])
    args = parser.parse_args()
    model, shapes = build(args.shape, args.device, args.dtype, args.latent)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(f"{args.shape}, {args.dtype}, latents of {model.latents.shape}, {name}, GiB\n\n{HEADER}")
    for method in args.methods:
        for memory in args.memory:
            try:
                print(measure(model, shapes, method, memory), flush=True)
            except torch.OutOfMemoryError as error:
                print(f"| {method} | {memory} | out of memory: {str(error).splitlines()[0]} |")


if __name__ == "__main__":
    main()
