"""Pictures of the built-in world by the thousand, drawn once and kept.

Three ranges of seeds never meet: what the generator and CLIP learn from, what the judge learns
from, and what anything is measured on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from palimpsest.core.atomic import whole
from palimpsest.core.kinds import NONE
from palimpsest.methods import Context
from palimpsest.world.captions import SUBJECTS, Subject
from palimpsest.world.render import render
from palimpsest.world.vocabulary import DOMAINS, IDENTITIES, OBJECTS, WATERMARK

if TYPE_CHECKING:
    from torch import Tensor

FIRST_SEED = {"train": 0, "judge": 1_000_000, "test": 2_000_000}
"""Where each use's seeds begin; a use may draw at most a million."""


@dataclass(frozen=True)
class Pictures:
    """Pictures with what they show."""

    images: Tensor
    """(n, 3, 64, 64), uint8."""
    subjects: Tensor
    """(n,) index into `SUBJECTS`."""

    def floats(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return pictures in [0, 1]."""
        return self.images[index].float() / 255


def count(subject: Subject, per_pair: int) -> int:
    """Return how many pictures of a subject to draw: those that share nothing get more."""
    if subject.name in OBJECTS:
        return per_pair
    return per_pair * (3 if subject.name in IDENTITIES else 2)


def weight(subject: Subject) -> float:
    """Return how often a subject is met in training, an object-style pair counting one."""
    if subject.name in OBJECTS:
        return 1.0
    return 2.0 if subject.name == WATERMARK else 3.0


def label(subject: Subject, kind: str) -> str:
    """Return what a perfect judge's head of `kind` says of the subject."""
    name = subject.style if kind == "style" else subject.name
    return name if name in DOMAINS[kind] else NONE


def without(concept: str | None) -> list[int]:
    """Indices of the subjects that do not show `concept`, as name or as style."""
    return [i for i, s in enumerate(SUBJECTS) if concept not in (s.name, s.style) or not concept]


def load(use: str, per_pair: int, context: Context, folder: Path | None = None) -> Pictures:
    """Draw the pictures of a use, or read them where they were drawn before.

    Args:
        use: `train`, `judge` or `test`; decides the seeds.
        per_pair: pictures of each object in each style.
        context: shows the progress.
        folder: where to keep the pictures; None keeps nothing.
    """
    first = FIRST_SEED[use]
    jobs = [
        (i, first + 1000 * i + k)
        for i, subject in enumerate(SUBJECTS)
        for k in range(count(subject, per_pair))
    ]
    subjects = torch.tensor([i for i, _ in jobs])
    path = folder and folder / f"pictures-{use}-{per_pair}.npy"
    if path and path.exists():
        return Pictures(torch.from_numpy(np.load(path, allow_pickle=False)), subjects)
    images = torch.from_numpy(_draw(jobs, context, f"drawing {use} pictures"))
    if path:
        with whole(path) as part, part.open("wb") as file:
            np.save(file, images.numpy())
    return Pictures(images, subjects)


def _draw(jobs: Sequence[tuple[int, int]], context: Context, title: str) -> np.ndarray:
    chunks = [jobs[i : i + 100] for i in range(0, len(jobs), 100)]
    images: list[np.ndarray] = []
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))
    with context.progress.task(title, len(jobs)) as task, pool:
        for done in (map if len(jobs) < 500 else pool.map)(_draw_chunk, chunks):
            images.append(done)
            task.advance(len(done))
    return np.concatenate(images)


def _draw_chunk(jobs: Sequence[tuple[int, int]]) -> np.ndarray:
    pictures = [render(SUBJECTS[i].name, SUBJECTS[i].style, seed) for i, seed in jobs]
    return np.stack(pictures).transpose(0, 3, 1, 2)
