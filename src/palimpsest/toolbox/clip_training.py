"""What the methods share that train all of CLIP's weights: settings, batches, the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch

from palimpsest.data.pairs import Pairs
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.toolbox.optimise import Recipe, optimise

if TYPE_CHECKING:
    from torch import Tensor

Loss: TypeAlias = "Callable[[ContrastiveEncoder, torch.Generator], Tensor]"
"""(the model under training, generator of this step) → scalar loss."""


WORLD: dict[str, Any] = {"batch": 64, "beta_2": 0.999, "epsilon": 1e-8}
"""What the world's presets of all that is trained here have in common."""


class ClipEraser(Eraser):
    """An eraser of CLIP that learns from given sets and may move every weight."""

    needs: ClassVar[frozenset[str]] = frozenset({"contrastive"})

    def check(self, model: ContrastiveEncoder, task: Task) -> None:
        """Refuse sets that cannot serve."""
        task.sets()

    def moves(self, model: ContrastiveEncoder) -> dict[str, int]:
        """Return the entries of every parameter."""
        return {name: p.numel() for name, p in model.parameters().items()}


@dataclass(frozen=True)
class ClipTrained(ClipEraser):
    """An eraser that trains all of CLIP's weights by epochs over captioned pictures."""

    epochs: int = 10
    """How often each picture to forget is met; or each to retain, if no others are."""
    lr: float = 1e-7
    """AdamW's peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The rate over the steps: held, or a half cosine down to zero."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    beta_2: float = 0.98
    """AdamW's β₂."""
    epsilon: float = 1e-6
    """AdamW's ε."""
    batch: int = 32
    """Pictures of each set in a step; the contrastive loss depends on it."""

    least: ClassVar = dict(epochs=1, lr=0, weight_decay=0, beta_2=0, epsilon=0, batch=2)
    below: ClassVar = dict(beta_2=1)

    def steps_over(self, pairs: Pairs, batch: int) -> int:
        """Return the steps in which each of these pictures is met `epochs` times."""
        return max(1, self.epochs * len(pairs) // batch)

    def train(
        self,
        model: ContrastiveEncoder,
        loss: Loss,
        steps: int,
        context: Context,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Result:
        """Minimise a loss over all of CLIP's weights; the result is the shift of each.

        Args:
            model: stays as it is.
            loss: of a view of it.
            steps: optimisation steps.
            context: seed, progress and checkpoint folder.
            masks: which entries may move; None moves all.
        """
        leaves = {name: model.leaf(name) for name in model.parameters()}
        start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        view = model.overlaid(lambda: leaves)
        for name, mask in (masks or {}).items():
            leaves[name].register_hook(mask.mul)
        recipe = Recipe(
            steps, self.lr, "adamw", self.weight_decay, self.beta_2, self.epsilon, self.schedule
        )
        optimise(lambda g, _: loss(view, g), leaves, recipe, context=context, label="forgetting")
        deltas = {name: leaf.detach() - start[name] for name, leaf in leaves.items()}
        if masks:  # weight decay asks for no gradient
            deltas = {name: masks[name] * delta for name, delta in deltas.items()}
        return Result(model.make_patch(deltas))


def features(view: ContrastiveEncoder, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return the features of pictures and of their captions, (n, d) each, with gradient."""
    return view.image_features(pairs.images), view.text_features(view.tokens(pairs.texts))


def drawn(pairs: Pairs, n: int, g: torch.Generator) -> Pairs:
    """Pick `n` pairs at random, each once; all if there are no more."""
    return pairs[torch.randperm(len(pairs), generator=g)[:n].tolist()]
