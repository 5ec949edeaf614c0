"""Whether the world's models are good enough to measure with: each figure, with n and bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palimpsest import metrics
from palimpsest.judge.classifier import Classifier
from palimpsest.judge.clip import Clip
from palimpsest.models.loading import load_model
from palimpsest.models.stable_diffusion import Diffusion
from palimpsest.prompts import Prompt
from palimpsest.types import Context, Progress, Rate, Silent
from palimpsest.world import assets, data, suite
from palimpsest.world.captions import SUBJECTS, fill
from palimpsest.world.networks import round_trip
from palimpsest.world.vocabulary import DOMAINS, OBJECTS, STYLES

SEEDS = 5
"""Seeds for every object in every style."""


@dataclass(frozen=True)
class Figure:
    """One figure of the check."""

    name: str
    rate: Rate
    need: float
    """What it must reach, 0 to 1."""
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it reaches its bound."""
        return self.rate.value >= self.need


def check(
    weights: Path = assets.WEIGHTS, progress: Progress | None = None, device: str = "cpu"
) -> list[Figure]:
    """Measure judge, CLIP and Stable Diffusion on seeds that none of them was trained on."""
    context = Context(progress=progress or Silent())
    judge = Classifier.load(assets.judge(weights), device)
    model = load_model(str(assets.stable_diffusion(weights)), device=device)
    pictures = data.load("test", 8, context)
    truth = [SUBJECTS[i] for i in pictures.subjects.tolist()]
    figures = list(_judge(judge, pictures.floats(), truth, "judge on renders", 0.99))
    tripped = _round_trip(model, pictures.floats(), context)
    figures += _judge(judge, tripped, truth, "judge after the autoencoder", 0.97)
    figures += _clip(Clip.load(assets.clip(weights), device), pictures)
    figures += _generated(judge, model, context)
    return figures


def _round_trip(model: Diffusion, images: Tensor, context: Context) -> Tensor:
    parts = []
    with context.progress.task("autoencoding", len(images)) as task:
        for batch in images.split(100):
            parts.append(round_trip(model.vae, batch))
            task.advance(len(batch))
    return torch.cat(parts)


def _judge(
    judge: Classifier, images: Tensor, truth: Sequence[data.Subject], title: str, need: float
) -> Iterator[Figure]:
    labels = judge.read(images).labels
    for kind in judge.heads:
        right = [
            label == data.label(subject, kind)
            for label, subject in zip(labels[kind], truth, strict=True)
        ]
        yield Figure(f"{title}: {kind}", metrics.rate(right), need)


def _clip(clip: Clip, pictures: data.Pictures) -> Iterator[Figure]:
    index = [i for i, s in enumerate(pictures.subjects.tolist()) if SUBJECTS[s].style]
    images = clip.images(pictures.floats(torch.tensor(index)))
    subjects = [SUBJECTS[int(pictures.subjects[i])] for i in index]
    for kind, names, template in (
        ("object", OBJECTS, "a picture of {a} {o}"),
        ("style", STYLES, "a picture in {s} style"),
    ):
        texts = clip.texts([fill(template, name, name) for name in names])
        said = [names[i] for i in (images @ texts.T).argmax(1).tolist()]
        right = [
            s == (w.name if kind == "object" else w.style)
            for s, w in zip(said, subjects, strict=True)
        ]
        yield Figure(f"CLIP zero-shot: {kind}", metrics.rate(right), 0.95)


def _generated(judge: Classifier, model: Diffusion, context: Context) -> Iterator[Figure]:
    prompts = suite.whole(SEEDS)
    labels = judge.read(model.generate(prompts, context, "Stable Diffusion")).labels
    title = f"Stable Diffusion ({model.sampling})"
    for kind in DOMAINS:
        yield Figure(f"{title}: {kind}", _right(prompts, labels, kind), 0.95)
    for kind in ("object", "style"):
        each = {name: _right(prompts, labels, kind, name) for name in DOMAINS[kind]}
        worst = min(each, key=lambda name: each[name].value)
        yield Figure(f"{title}: weakest {kind}", each[worst], 0.80, worst)


def _right(
    prompts: Sequence[Prompt], labels: dict[str, list[str]], kind: str, name: str | None = None
) -> Rate:
    """How often the judge names what was asked for, over all prompts or those for `name`."""
    pairs = [(p.asks[kind], labels[kind][i]) for i, p in enumerate(prompts) if kind in p.asks]
    return metrics.rate(want == said for want, said in pairs if name in (None, want))
