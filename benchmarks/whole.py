"""Drawing, judging and the closed form, beside plain versions of each, in one run.

    OMP_NUM_THREADS=2 python benchmarks/whole.py        # writes benchmarks/whole.md; idle cores

- **Drawing**: Diffusers' own pipeline over the same networks, with DDIM and the same batch.
- **Judging** 10,000 pictures, by the world's judge and its CLIP: the plain loop reads, judges and
  compares one picture after the other, and embeds its prompt each time.
- **UCE** for 1, 10 and 100 concepts: the plain loop is the authors' program's, which embeds each
  pair of prompts anew for every matrix and inverts a matrix for each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import drawers, plain_pipeline
from sizes import build
from torch import Tensor

from palimpsest.cli import machine
from palimpsest.core.atomic import write_text
from palimpsest.core.concepts import Concept
from palimpsest.core.provenance import commit
from palimpsest.data.images import read_picture
from palimpsest.erase import UCE
from palimpsest.judge.clip import Clip
from palimpsest.judge.world import Classifier
from palimpsest.methods import Context, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.runs import images
from palimpsest.runs.folder import Run
from palimpsest.runs.scoring import Panel, tally
from palimpsest.world import assets, suite
from palimpsest.world.render import render

CAT = Concept("cat", "object")
KEEP = ("owl", "church")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=10_000, help="pictures that are judged")
    parser.add_argument("--plain", type=int, default=1_000, help="of them by the plain loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "whole.md")
    chosen = parser.parse_args()
    machine.silence()
    load = os.getloadavg()[0]
    text = [
        "# Drawing, judging and the closed form",
        "",
        f"Made by `python benchmarks/whole.py`, commit {commit().get('commit', 'unknown')}: "
        f"{os.cpu_count()} CPU cores, no GPU, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, float32; load average {load:.1f} before the start. Medians of "
        f"{chosen.repeats}; judging once. What is measured stands in the head of the program.",
        "",
        *drawing(chosen.repeats),
        *judging(chosen.pictures, chosen.plain),
        *closed_forms(chosen.repeats),
    ]
    print("\n".join(text))
    write_text(chosen.out, "\n".join(text))


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The median after a warm-up."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [f"## {title}", "", *head, *(f"| {' | '.join(row)} |" for row in rows), ""]


def drawing(repeats: int) -> list[str]:
    """Seconds a picture at several batches, by us and by Diffusers."""
    rows = []
    for size, batches in (("world", (1, 4, 32)), ("medium", (1, 4, 16))):
        model = build(size, "cpu")
        model = model.with_sampling(replace(model.sampling, steps=10))
        pipeline = plain_pipeline(model, size)
        for n in batches:
            plain, fast = (seconds(work, repeats) / n for work in drawers(model, pipeline, n))
            cells = [size, str(n), f"{plain:.3f}", f"{fast:.3f}", f"**{plain / fast:.2f}×**"]
            rows.append(cells)
            print(*cells, sep=" | ", flush=True)
    columns = ["model", "at once", "s a picture, Diffusers", "s a picture, ours", "faster"]
    return table("Drawing, 10 steps of DDIM", columns, rows)


def judging(n: int, plain: int) -> list[str]:
    """Pictures judged a second."""
    judge, clip = Classifier.load(assets.judge()), Clip.load(assets.clip())
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(Path(temporary) / "run")
        run.folder.mkdir()
        run.update(kind="erase", concepts=(CAT,))
        prompts = [suite.pair("cat" if i % 2 else "owl", "photo", i) for i in range(n)]
        files = [run.path(images.picture_name(prompt)) for prompt in prompts]
        files[0].parent.mkdir()
        for i, file in enumerate(files):  # a hundred renders, again and again
            if i < 100:
                name = "cat" if i % 2 else "owl"
                picture = torch.from_numpy(render(name, "photo", i)).permute(2, 0, 1) / 255
                images.save_png(picture, file)
            else:
                shutil.copyfile(files[i % 100], file)
        run.write_rows("images.jsonl", map(images.row, prompts))
        start = time.perf_counter()
        for file, prompt in zip(files[:plain], prompts, strict=False):
            picture = plain_picture(file)
            judge.read(picture)
            clip.cosine(picture, [prompt.text])
        slow = plain / (time.perf_counter() - start)
        panel = Panel(judge, clip)
        start = time.perf_counter()
        panel.score(run)
        tally(run, Task((CAT,)), prompts, panel.measures).look("run")
        fast = n / (time.perf_counter() - start)
    row = [f"{n:,}", f"{slow:.0f} (of {plain:,})", f"{fast:.0f}", f"**{fast / slow:.1f}×**"]
    return table(
        "Judging: classes, cosines, Fréchet distance and its intervals",
        ["pictures", "a second, plain", "a second, ours, written to the run", "faster"],
        [row],
    )


def plain_picture(file: Path) -> Tensor:
    """(1, 3, height, width) of a file, in [0, 1]."""
    array = np.array(read_picture(file), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def closed_forms(repeats: int) -> list[str]:
    """UCE for several concepts."""
    rows, model = [], build("medium", "cpu")
    for n in (1, 10, 100):
        concepts = [Concept(f"thing {i}", anchor="owl", keep=KEEP) for i in range(n)]

        ours, plain = (partial(solve, model, concepts) for solve in (our_uce, plain_uce))
        apart = largest(ours(), plain())
        slow, fast = seconds(plain, 1 if n > 10 else repeats), seconds(ours, repeats)
        row = [str(n), f"{slow:.2f}", f"{fast:.2f}", f"**{slow / fast:.1f}×**", f"{apart:.0e}"]
        rows.append(row)
        print(*row, sep=" | ", flush=True)
    columns = ["concepts", "s, plain", "s, ours", "faster", "apart"]
    return table("UCE, the medium model", columns, rows)


def our_uce(model: Diffusion, concepts: Sequence[Concept]) -> dict[str, Tensor]:
    """The edited matrices by our UCE."""
    patch = UCE()(model, concepts, context=Context()).patch
    assert patch is not None
    with model.patched(patch):
        return {name: model.weight(name).clone() for name in patch.names}


@torch.no_grad()
def plain_uce(model: Diffusion, concepts: Sequence[Concept]) -> dict[str, Tensor]:
    """UCE's eq. 7 matrix by matrix: every pair of prompts is embedded anew for each of them."""
    method = UCE()
    found, kept = {}, [text for concept in concepts for text in concept.keep]
    for names in model.sites.text_inputs.values():
        for name in names:
            W_0 = model.weight(name).double()
            left = method.lamb * W_0
            right = method.lamb * torch.eye(W_0.shape[1], dtype=torch.float64)
            for concept in concepts:
                c = last(model, concept.name)
                target = W_0 @ last(model, concept.anchor or "")
                left += method.erase_scale * torch.outer(target, c)
                right += method.erase_scale * torch.outer(c, c)
            for text in kept:
                k = last(model, text)
                left += (method.preserve_scale or 0) * torch.outer(W_0 @ k, k)
                right += (method.preserve_scale or 0) * torch.outer(k, k)
            found[name] = (left @ torch.inverse(right)).float()
    return found


def last(model: Diffusion, text: str) -> Tensor:
    """(width,) the embedding of a prompt's last word."""
    tokenizer: Any = model.tokenizer
    how: Any = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = tokenizer(text, max_length=tokenizer.model_max_length, **how).input_ids
    encoder: Any = model.component("text_encoder")
    hidden = encoder(ids).last_hidden_state[0]
    return hidden[len(tokenizer(text).input_ids) - 2].double()


def largest(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """The largest relative difference of a matrix."""
    return max(float((ours[n] - plain[n]).norm() / plain[n].norm()) for n in plain)


if __name__ == "__main__":
    main()
