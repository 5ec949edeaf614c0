"""One layer along one gradient: which layers come into question, and how far one is moved."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING, Any

from palimpsest.data.pairs import Pairs
from palimpsest.methods import Context
from palimpsest.models.clip import ContrastiveEncoder, tower
from palimpsest.patch import Patch
from palimpsest.toolbox.clip_losses import contrastive, distance, kept, loss_gradient

if TYPE_CHECKING:
    from torch import Tensor

LAYER = re.compile(r".*\.layers\.(?P<depth>\d+)\.(self_attn|mlp)\.\w+\.weight")
TOGETHER = re.compile(r"(?<=self_attn)\.[qkv]_proj\.weight|(?<=mlp)\.fc[12]\.weight|\.weight")
"""What a matrix's name ends with, after the title of what moves together in Stable Diffusion:
queries, keys and values of a layer, both matrices of its MLP, or a matrix by itself."""


@dataclass(frozen=True)
class Layer:
    """A weight matrix in SLUG's table."""

    name: str
    tower: str
    importance: float
    """‖∇L_f‖/‖θ‖: how much the forget loss depends on it."""
    alignment: float
    """|cos(∇L_f, ∇L_r)|: how much forgetting there disturbs what is retained."""
    step: float
    """‖θ‖/‖∇L_f‖: the λ that moves the matrix by its own norm."""
    front: bool = False
    """Whether no other layer of its tower is both more important and less aligned."""


@dataclass(frozen=True)
class Trial:
    """One λ tried on one layer, or on a block of layers that move together."""

    layer: str
    scale: float
    """λ."""
    forget: float
    """Share of what was to be forgotten that is still known."""
    keep: float
    """Share of everything else that still is."""


@dataclass(frozen=True)
class Slopes:
    """The gradients of the forget loss and of the retain loss, by name."""

    forget: Mapping[str, Tensor]
    retain: Mapping[str, Tensor]


@dataclass(frozen=True)
class Block:
    """What moves together along the gradients, by one λ: a single matrix, or several."""

    title: str
    """A matrix's own name, or what the names of several begin with."""
    slopes: Mapping[str, Tensor]
    """∇L_f by name."""
    step: float
    """‖θ‖/‖∇L_f‖ over all of them."""

    @classmethod
    def of(cls, layer: Layer, found: Slopes) -> Block:
        """Return a layer as a block of its own."""
        return cls(layer.name, {layer.name: found.forget[layer.name]}, layer.step)

    @classmethod
    def joint(cls, title: str, weights: Mapping[str, Tensor], found: Slopes) -> Block:
        """Return several matrices as one block."""
        own = {name: found.forget[name] for name in weights}
        theta, g = (
            sqrt(sum(float(t.double().square().sum()) for t in some.values()))
            for some in (weights, own)
        )
        return cls(title, own, theta / g)

    def moved(self, scale: float) -> dict[str, Tensor]:
        """Return the shift of each matrix at λ = `scale`."""
        return {name: scale * g for name, g in self.slopes.items()}  # θ + λ∇L_f


def slopes(
    encoder: ContrastiveEncoder,
    forget: Pairs,
    retain: Pairs,
    names: Sequence[str],
    *,
    batch: int,
    context: Context,
) -> Slopes:
    """Return ∇L_f and ∇L_r, one pass each; kept in the context's cache and found there again.

    Args:
        encoder: the unedited CLIP.
        forget: L_f is the mean of 1 − cos over these.
        retain: L_r is CLIP's contrastive loss over these, with their own captions.
        names: the weights to take gradients by.
        batch: the logical batch of L_r, which the loss depends on.
        context: its cache and its progress.
    """
    found = []
    about = {"model": encoder.identity, "dtype": encoder.dtype, "weights": " ".join(names)}
    with context.progress.task("gradients", 2) as task:
        for title, pairs, loss, size in (
            ("forget", forget, distance, len(forget)),
            ("retain", retain, contrastive(encoder.scale), batch),
        ):
            key = {**about, "loss": title, "pairs": pairs.digest, "batch": size}
            make = partial(loss_gradient, encoder, pairs, loss, names, batch=size)
            found.append(kept(context.cache or context.folder, key, make))
            task.advance()
    return Slopes(*found)


def table(weights: Mapping[str, Tensor], slopes: Slopes) -> list[Layer]:
    """Return each matrix with its importance and alignment, and each tower's front marked."""
    rows = []
    for name, weight in weights.items():
        theta, g, r = (
            t.double().cpu().flatten() for t in (weight, slopes.forget[name], slopes.retain[name])
        )
        size, length = float(theta.norm()), float(g.norm())
        if not length or not size:
            continue  # nothing that it could be moved along
        cosine = float(g @ r) / max(length * float(r.norm()), 1e-300)
        rows.append(Layer(name, tower(name), length / size, abs(cosine), size / length))
    each = [front(row for row in rows if row.tower == kind) for kind in ("text", "vision")]
    return [replace(row, front=any(row in own for own in each)) for row in rows]


def front(layers: Iterable[Layer]) -> list[Layer]:
    """Return the Pareto front of high importance and low alignment."""
    every = list(layers)
    return [a for a in every if not any(_beats(b, a) for b in every)]


def _beats(a: Layer, b: Layer) -> bool:
    no_worse = a.importance >= b.importance and a.alignment <= b.alignment
    return no_worse and (a.importance > b.importance or a.alignment < b.alignment)


def deepest(layers: Sequence[Layer]) -> list[str]:
    """Return the blocks that hold a layer of the front: the deepest first, then by importance."""
    found: dict[str, tuple[int, float]] = {}
    for layer in layers:
        match = LAYER.fullmatch(layer.name)
        if layer.front and match:
            title, rank = block_path(layer.name), (int(match["depth"]), layer.importance)
            found[title] = max(rank, found.get(title, rank))
    return sorted(found, key=lambda title: found[title], reverse=True)


def joint_blocks(
    layers: Sequence[Layer], weights: Mapping[str, Tensor], found: Slopes, unit: str
) -> list[Block]:
    """Return the blocks that hold a layer of the front, the deepest first.

    Args:
        layers: the table.
        weights: every matrix that may move, by name.
        found: their gradients.
        unit: whose ‖θ‖/‖∇L_f‖ λ is a multiple of: that of the `block`, or that of its most
            important `matrix` on the front.
    """
    own: dict[str, dict[str, Tensor]] = {title: {} for title in deepest(layers)}
    for name, weight in weights.items():
        own.get(block_path(name), {})[name] = weight
    joint = [Block.joint(title, some, found) for title, some in own.items()]
    if unit == "block":
        return joint
    rows = sorted((layer for layer in layers if layer.front), key=lambda layer: -layer.step)
    steps = {block_path(layer.name): layer.step for layer in rows}  # the most important one's
    return [replace(block, step=steps[block.title]) for block in joint]


def block_path(name: str) -> str:
    """Return the title of the block that a matrix moves with; `out_proj` moves by itself."""
    return TOGETHER.sub("", name)


def search(
    layer: str, start: float, tries: int, measure: Callable[[float], tuple[float, float]]
) -> list[Trial]:
    """Binary search of the least λ at which nothing of the concept is left.

    As long as something is left λ is doubled, and once some λ was enough, it is halved toward the
    largest that was not.

    Args:
        layer: what is moved, for the record.
        start: the first λ.
        tries: how many.
        measure: λ → (share still known of the concept, share kept of the rest).
    """
    trials: list[Trial] = []
    low, high, scale = 0.0, None, start
    for _ in range(tries):
        trials.append(Trial(layer, scale, *measure(scale)))
        if trials[-1].forget == 0:
            high = scale
        else:
            low = scale
        scale = 2 * scale if high is None else (low + high) / 2
    return trials


def search_blocks(
    blocks: Sequence[Block],
    start: float,
    tries: int,
    after: Callable[[Patch], tuple[float, float]],
    context: Context,
) -> list[Trial]:
    """Search λ on every block.

    Args:
        blocks: those that come into question.
        start: the first λ, as a multiple of ‖θ‖/‖∇L_f‖.
        tries: values of λ tried on each.
        after: edit → (share still known of the concept, share kept of the rest).
        context: its progress.
    """
    trials: list[Trial] = []
    with context.progress.task("layers of the front", len(blocks)) as task:
        for block in blocks:

            def measure(scale: float, block: Block = block) -> tuple[float, float]:
                return after(Patch.dense(block.moved(scale)))

            trials += search(block.title, start * block.step, tries, measure)
            task.advance(1, block.title)
    return trials


def best(trials: Iterable[Trial]) -> Trial:
    """Return the trial of lowest forget accuracy, then most kept, then shortest step."""
    return min(trials, key=lambda t: (t.forget, -t.keep, t.scale))


def told(layers: Iterable[Layer], trials: Iterable[Trial]) -> dict[str, Any]:
    """Table and trials as a record holds them."""
    return {"layers": [asdict(x) for x in layers], "trials": [asdict(x) for x in trials]}
