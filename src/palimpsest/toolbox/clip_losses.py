"""CLIP's losses, and their exact gradients over more pictures than memory could hold at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.data.pairs import Labelled, Pairs
from palimpsest.models.clip import ContrastiveEncoder, tower
from palimpsest.patch.tensor_files import checked_tensor, read_tensors, write_tensors
from palimpsest.toolbox.gradients import gradient

if TYPE_CHECKING:
    from torch import Tensor

Loss: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""(image features, text features), (n, d) each and of length one → scalar."""


def distance(image: Tensor, text: Tensor) -> Tensor:
    """mean(1 − cos) of each picture with its own caption: SLUG's forget loss."""
    return (1 - (image * text).sum(-1)).mean()


def contrastive(scale: Tensor) -> Loss:
    """CLIP's loss: each picture picks its caption among the batch's, and each caption its picture.

    Radford et al. 2021, fig. 3. It depends on the batch, so the batch belongs to every record.
    """

    def loss(image: Tensor, text: Tensor) -> Tensor:
        logits = scale.to(image) * image @ text.T
        own = torch.arange(len(logits), device=logits.device)
        entropy = torch.nn.functional.cross_entropy
        return (entropy(logits, own) + entropy(logits.T, own)) / 2

    return loss


def loss_gradient(
    encoder: ContrastiveEncoder,
    pairs: Pairs,
    loss: Loss,
    names: Sequence[str],
    *,
    batch: int,
    micro: int = 32,
) -> dict[str, Tensor]:
    """Return ∇ of the mean loss over batches by named weights, in the memory of a micro-batch.

    The features of a batch are computed first and kept; the loss's gradient by them is carried
    through the towers one micro-batch at a time (Gao et al. 2021, arXiv:2101.06983). A last,
    smaller batch is left out unless it is the only one: it would be another loss.
    """
    leaves = {name: encoder.leaf(name) for name in names}
    view = encoder.overlaid(lambda: leaves)
    by_tower = {
        kind: {n: leaf for n, leaf in leaves.items() if tower(n) == kind}
        for kind in ("vision", "text")
    }
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    batches = batches_of(len(pairs), batch)
    for index in batches:
        inputs = {"vision": pairs.images[index], "text": view.tokens(pairs[index].texts)}
        encode = {"vision": view.image_features, "text": view.text_features}
        with torch.no_grad():
            parts = {k: [encode[k](p) for p in x.split(micro)] for k, x in inputs.items()}
        features = {k: torch.cat(p).requires_grad_() for k, p in parts.items()}
        slopes = gradient(loss(features["vision"], features["text"]) / len(batches), features)
        for kind, own in by_tower.items():
            pieces = zip(inputs[kind].split(micro), slopes[kind].split(micro), strict=True)
            for x, slope in pieces if own else ():
                for name, part in gradient((encode[kind](x) * slope).sum(), own).items():
                    total[name] += part
    return total


def batches_of(n: int, batch: int) -> list[list[int]]:
    """Return each whole batch's positions, in order; one smaller batch if none is whole."""
    every = [list(range(i, min(i + batch, n))) for i in range(0, n, batch)]
    return [b for b in every if len(b) == batch] or every[:1]


def kept(
    folder: Path | None, key: Mapping[str, object], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors made once and found again: by the same key, in the same folder.

    A file that cannot be read, or is of another key, is made again.

    Args:
        folder: where they are kept, as safetensors; None keeps nothing.
        key: all that they depend on; also written into the file's header.
        make: makes them.
    """
    if folder is None:
        return make()
    text = {name: str(value) for name, value in sorted(key.items())}
    title = hashlib.sha256(repr(text).encode()).hexdigest()[:16]
    path = folder / f"gradient-{key.get('loss', 'of')}-{title}.safetensors"
    with suppress(PalimpsestError):
        found, of = read_tensors(path)
        if of == text:
            return {name: checked_tensor(f"{path}: {name}", t) for name, t in found.items()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in make().items()}
    write_tensors(path, tensors, text)
    return tensors


# --- zero-shot ---


def ranks(images: Tensor, texts: Tensor, labels: Sequence[int]) -> list[int]:
    """Return how many classes each picture is nearer to than its own; 0 is right.

    Args:
        images: (n, d) features.
        texts: (classes, d) features of what stands for each class.
        labels: the class of each picture.
    """
    cosine = images @ texts.T
    own = cosine[torch.arange(len(cosine)), torch.tensor(list(labels), dtype=torch.long)]
    return (cosine > own[:, None]).sum(1).tolist()


def zero_shot(
    encoder: ContrastiveEncoder, shown: Labelled, images: Tensor | None = None
) -> list[int]:
    """Return the rank of every picture's own class among all classes.

    Args:
        encoder: the CLIP, as edited.
        shown: the pictures.
        images: their features, if they are known.
    """
    names = [*shown.prompts]
    features = encoder.images(shown.images) if images is None else images
    labels = [names.index(label) for label in shown.labels]
    return ranks(features, encoder.texts([shown.prompts[n] for n in names]), labels)
