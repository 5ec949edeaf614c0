"""Whether the world's models are good enough to measure with: each figure, with n and bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from diffusers import AutoencoderKL

from palimpsest.core.concepts import says
from palimpsest.core.progress import Progress, Silent
from palimpsest.core.prompts import Prompt
from palimpsest.data.questions import DRAWN, SHOWN, WHO
from palimpsest.judge.clip import Clip
from palimpsest.judge.world import Classifier
from palimpsest.methods import Context
from palimpsest.metrics import rates
from palimpsest.metrics.rates import Rate
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.llava import Answerer
from palimpsest.models.loading import load_llava, load_model
from palimpsest.patch import Patch
from palimpsest.world import assets, data, suite
from palimpsest.world.captions import SUBJECTS, fill
from palimpsest.world.make.networks import round_trip
from palimpsest.world.make.train_llava import NOBODY
from palimpsest.world.vocabulary import DOMAINS, IDENTITIES, OBJECTS, STYLES

if TYPE_CHECKING:
    from torch import Tensor

SEEDS = 5
"""Seeds for every object in every style."""
WITHIN = 0.03
"""How far a gold model may fall behind the whole one on what both know."""

Labels = Mapping[str, Sequence[str | None]]
"""Kind → what the judge says of each picture."""


@dataclass(frozen=True)
class Figure:
    """One figure of the check."""

    name: str
    rate: Rate
    need: float
    """What it must reach, 0 to 1; or must not pass, where less is better."""
    note: str = ""
    less: bool = False
    """Whether less is better."""

    @property
    def ok(self) -> bool:
        """Whether it keeps its bound."""
        return self.rate.value <= self.need if self.less else self.rate.value >= self.need

    @property
    def bound(self) -> str:
        """The bound as text."""
        return f"{'≤' if self.less else '≥'} {100 * self.need:.1f} %"


def check(
    weights: Path = assets.WEIGHTS, progress: Progress | None = None, device: str = "cpu"
) -> list[Figure]:
    """Measure judge, CLIP, LLaVA and Stable Diffusion on seeds that none was trained on."""
    context = Context(progress=progress or Silent())
    judge = Classifier.load(assets.judge(weights), device)
    model = load_model(str(assets.stable_diffusion(weights)), device=device)
    pictures = data.load("test", 8, context)
    truth = [SUBJECTS[i] for i in pictures.subjects.tolist()]
    figures = list(_judge(judge, pictures.floats(), truth, "judge on renders", 0.99))
    tripped = _round_trip(model, pictures.floats(), context)
    figures += _judge(judge, tripped, truth, "judge after the autoencoder", 0.97)
    figures += _clip(Clip.load(assets.clip(weights), device), pictures)
    figures += _llava(load_llava(str(assets.llava(weights)), device=device), pictures, context)
    prompts = suite.whole(SEEDS)
    labels = judge.read(model.generate(prompts, context, "Stable Diffusion")).labels
    figures += _generated(f"Stable Diffusion ({model.sampling})", prompts, labels)
    for name in assets.golds(weights):
        with model.patched(Patch.load(assets.gold(name, weights))):
            images = model.generate(prompts, context, f"gold without {name}")
        figures += _gold(name, prompts, judge.read(images).labels, labels)
    return figures


def _round_trip(model: Diffusion, images: Tensor, context: Context) -> Tensor:
    parts, vae = [], cast(AutoencoderKL, model.component("vae"))
    with context.progress.task("autoencoding", len(images)) as task:
        for batch in images.split(100):
            parts.append(round_trip(vae, batch))
            task.advance(len(batch))
    return torch.cat(parts)


def _judge(
    judge: Classifier, images: Tensor, truth: Sequence[data.Subject], title: str, need: float
) -> Iterator[Figure]:
    for kind, labels in judge.read(images).labels.items():
        yield Figure(f"{title}: {kind}", _named(labels, truth, kind), need)


def _named(said: Sequence[str | None], truth: Sequence[data.Subject], kind: str) -> Rate:
    """Return how often what was said is what a picture shows."""
    return rates.rate(s == data.label(shown, kind) for s, shown in zip(said, truth, strict=True))


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
        yield Figure(f"CLIP zero-shot: {kind}", _named(said, subjects, kind), 0.95)


def _llava(model: Answerer, pictures: data.Pictures, context: Context) -> Iterator[Figure]:
    """Yield what it answers to the question for each kind; nobody is in other pictures."""
    every = [(i, SUBJECTS[s]) for i, s in enumerate(pictures.subjects.tolist())]
    for title, question, domain, need in (
        ("object", SHOWN, OBJECTS, 0.85),
        ("style", DRAWN, OBJECTS, 0.90),
        ("identity", WHO, IDENTITIES, 0.95),
        ("nobody", WHO, OBJECTS, 0.95),
    ):
        chosen = [(i, s) for i, s in every if s.name in domain]
        wanted = [{"style": s.style, "nobody": NOBODY}.get(title, s.name) for _, s in chosen]
        with context.progress.task(f"asking LLaVA: {title}", len(chosen)) as task:
            said = model.ask(pictures.images[[i for i, _ in chosen]], question)
            task.advance(len(chosen))
        right = [says(answer, str(name)) for answer, name in zip(said, wanted, strict=True)]
        yield Figure(f"LLaVA: {title}", rates.rate(right), need)


def _generated(title: str, prompts: Sequence[Prompt], labels: Labels) -> Iterator[Figure]:
    for kind in DOMAINS:
        yield Figure(f"{title}: {kind}", _right(prompts, labels, kind), 0.95)
    for kind in ("object", "style"):
        each = {name: _right(prompts, labels, kind, name) for name in DOMAINS[kind]}
        worst = min(each, key=lambda name: each[name].value)
        yield Figure(f"{title}: weakest {kind}", each[worst], 0.80, worst)


def _gold(name: str, prompts: Sequence[Prompt], labels: Labels, whole: Labels) -> Iterator[Figure]:
    """Yield the concept is missing, and everything else is as good as in the whole model."""
    missing = suite.kind_of(name)
    title = f"gold without {name}"
    yield Figure(f"{title}: {name}", _right(prompts, labels, missing, name), 0.05, less=True)
    rest = [i for i, p in enumerate(prompts) if not p.wants(missing, name)]
    others = [prompts[i] for i in rest]
    for kind in DOMAINS:
        here, there = (
            _right(others, {k: [v[i] for i in rest] for k, v in said.items()}, kind)
            for said in (labels, whole)
        )
        yield Figure(f"{title}: {kind}", here, there.value - WITHIN)


def _right(prompts: Sequence[Prompt], labels: Labels, kind: str, name: str | None = None) -> Rate:
    """Return how often the judge names what was asked for, over all prompts or those for `name`."""
    pairs = [(p.asks[kind], labels[kind][i]) for i, p in enumerate(prompts) if kind in p.asks]
    return rates.rate(want == said for want, said in pairs if name in (None, want))
