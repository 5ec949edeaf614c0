"""Textual inversion: new words as vectors in place of token embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from palimpsest.core.errors import PalimpsestError, Settings
from palimpsest.core.lazily import no_grad
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.latents import denoising_error
from palimpsest.toolbox.optimise import Recipe, Trace, optimise
from palimpsest.toolbox.soft_tokens import embed_vectors, embeddings, token_ids

if TYPE_CHECKING:
    from torch import Tensor

OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a photo of one {}",
    "a photo of the {}",
    "a close-up photo of a {}",
    "a cropped photo of the {}",
    "a bright photo of the {}",
    "a dark photo of a {}",
    "a good photo of the {}",
    "a rendition of a {}",
)
STYLE_TEMPLATES = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "a rendering in the style of {}",
    "a close-up painting in the style of {}",
    "a cropped painting in the style of {}",
    "a bright painting in the style of {}",
    "a dark painting in the style of {}",
    "a large painting in the style of {}",
)
"""What an inverted concept is asked for by, in the manner of Gal et al. 2023."""

PORTRAITS = ("a photo portrait of {}", "a DSLR portrait of {}")
ASKED_BY: dict[str, tuple[str, ...]] = {"style": STYLE_TEMPLATES, "identity": PORTRAITS}
"""The templates of Concept Inversion by kind of concept; those of all else are an object's."""


@dataclass(frozen=True)
class Inversion(Settings):
    """How the vectors are trained.

    Gal et al., "An Image is Worth One Word", ICLR 2023, arXiv:2208.01618, eq. 2: the vectors v that
    minimise ‖ε − ε(x_t, t, c(v))‖² over noised pictures, all weights frozen.
    """

    steps: int = 500
    """Optimisation steps."""
    lr: float = 1e-3
    """AdamW's learning rate."""
    batch: int = 1
    """Pictures a step."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    warmup: int = 100
    """Steps over which the learning rate rises."""
    norm: float | None = 0.4
    """Length that each vector is drawn toward, by the share min(1, 100·lr) of the difference after
    every step; CLIP's own embeddings are about that long. None leaves the length alone."""
    least: ClassVar = dict(steps=1, lr=0, batch=1, weight_decay=0, warmup=0)

    def __call__(
        self,
        model: Diffusion,
        x_0: Tensor,
        templates: Sequence[str],
        start: Tensor,
        *,
        context: Context,
        label: str,
        watch: Callable[[Trace, Tensor], None] | None = None,
    ) -> tuple[Tensor, Trace]:
        """Train vectors until the model draws the pictures when prompted with them.

        Args:
            model: the model that must draw them; no weight of it moves.
            x_0: (n, channels, h, w) clean latents; with those of mirrored pictures for a flip.
            templates: the prompts, each with one `{}` where the vectors stand.
            start: (k, width) what the vectors start from.
            context: seed, progress and checkpoint folder.
            label: names the progress line and the checkpoint.
            watch: gets the trace and the vectors after every step, and once before the first.

        Returns:
            (k, width) vectors in float32, and the trace of the training.
        """
        vectors = start.detach().float().clone().requires_grad_()
        token_ids(model, templates, len(start))  # refuse before anything is spent

        def loss(g: torch.Generator, step: int) -> Tensor:
            if step:  # belongs to the step before, and here a resumed run does it once, too
                self._toward_norm(vectors, step - 1)
            pick = torch.randint(len(x_0), (self.batch,), generator=g)
            said = torch.randint(len(templates), (self.batch,), generator=g)
            cond = embed_vectors(model, [templates[int(i)] for i in said], vectors)
            return denoising_error(model, x_0[pick], cond, g)  # eq. 2

        recipe = Recipe(self.steps, self.lr, "adamw", self.weight_decay, warmup=self.warmup)

        def look(trace: Trace) -> None:
            if watch is not None:
                watch(trace, self._as_after(vectors, trace.step))

        trace = optimise(
            loss, {"vectors": vectors}, recipe, context=context, label=label, watch=look
        )
        return self._as_after(vectors, trace.step), trace

    def _as_after(self, vectors: Tensor, step: int) -> Tensor:
        """Return the vectors as they are once `step` steps are done."""
        done = vectors.detach().clone()
        if step:
            self._toward_norm(done, step - 1)
        return done

    @no_grad
    def _toward_norm(self, vectors: Tensor, step: int) -> None:
        """Scale the vectors toward the length `norm`, as after this step."""
        if self.norm is None:
            return
        lr = self.lr * min(1.0, (step + 1) / max(1, self.warmup))
        length = vectors.norm(dim=-1, keepdim=True)
        vectors.mul_(1 + min(1.0, 100 * lr) * (self.norm / length - 1))


def first_vectors(
    model: Diffusion,
    words: Sequence[str],
    n: int,
    g: torch.Generator,
    spread: float | None = None,
) -> Tensor:
    """Return what `n` vectors start from: words, and the rest drawn as embeddings are spread.

    Args:
        model: whose embeddings are taken.
        words: what each vector starts from; words of several tokens are averaged.
        n: how many vectors.
        g: draws those that have no words.
        spread: their standard deviation; None is that of the model's embeddings.

    Returns:
        (n, width) in float32.

    Raises:
        PalimpsestError: more words than vectors, or words without a token.
    """
    if len(words) > n:
        raise PalimpsestError(f"{len(words)} starting words for {n} placeholder vectors")
    table = model.token_vectors().float()
    rows = [embeddings(model, text).mean(0) for text in words]
    drawn = torch.randn(n - len(rows), table.shape[1], generator=g).to(table.device)
    drawn *= table.std() if spread is None else spread
    return torch.stack([*rows, *drawn])
