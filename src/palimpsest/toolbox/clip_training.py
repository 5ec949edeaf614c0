"""What the methods that train CLIP share: batches of pairs, and the training of all weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from palimpsest.data.pairs import Pairs
from palimpsest.methods import Context
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.patch import Patch
from palimpsest.toolbox.optimise import Recipe, optimise

Loss = Callable[[ContrastiveEncoder, torch.Generator], Tensor]
"""(the model under training, generator of this step) → scalar loss."""


def features(view: ContrastiveEncoder, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Features of pictures and of their captions, with gradient."""
    return view.image_features(pairs.images), view.text_features(view.tokens(pairs.texts))


def drawn(pairs: Pairs, n: int, g: torch.Generator) -> Pairs:
    """`n` pairs picked at random, each once; all if there are no more."""
    return pairs[torch.randperm(len(pairs), generator=g)[:n].tolist()]


def steps_of(pairs: Pairs, batch: int, epochs: int) -> int:
    """Steps in which so many pairs are met so many times."""
    return max(1, epochs * len(pairs) // batch)


def trained(
    model: ContrastiveEncoder,
    loss: Loss,
    recipe: Recipe,
    about: Mapping[str, Any],
    context: Context,
    masks: Mapping[str, Tensor] | None = None,
) -> Patch:
    """The patch that minimising a loss over all of CLIP's weights makes.

    Args:
        model: stays as it is.
        loss: of a view of it.
        recipe: how to optimise.
        about: of the patch.
        context: seed, progress and checkpoint folder.
        masks: which entries may move; None moves all.
    """
    leaves = {name: model.leaf(name) for name in model.parameters()}
    start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    view = model.overlaid(lambda: leaves)
    for name, mask in (masks or {}).items():
        leaves[name].register_hook(mask.mul)
    optimise(lambda g, _: loss(view, g), leaves, recipe, context=context, label="forgetting")
    deltas = {name: leaf.detach() - start[name] for name, leaf in leaves.items()}
    if masks:  # weight decay asks for no gradient
        deltas = {name: masks[name] * delta for name, delta in deltas.items()}
    return model.make_patch(deltas, about)
