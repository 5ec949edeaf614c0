"""How pictures are made for evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from palimpsest.core.draw import UNSAID, Draw
from palimpsest.core.errors import OutOfMemoryError, Settings
from palimpsest.core.kinds import Noise, Sampler
from palimpsest.core.prompts import Prompt
from palimpsest.core.streams import generator
from palimpsest.core.trouble import out_of_memory
from palimpsest.methods import Context

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampling(Settings):
    """How pictures are made for evaluation; methods state their own sampling in their fields."""

    steps: int = 50
    """Steps of the sampler."""
    guidance: float = 7.5
    """Classifier-free guidance."""
    batch: int = 4
    """Pictures made at once; no picture depends on it."""

    size: int | None = None
    """Height and width of a picture in pixels; None is the size that the model was trained at."""
    sampler: Sampler = "ddim"
    """`ddim` is the schedule's deterministic sampler (DDIM, η = 0; Euler for flow models)."""
    noise: Noise = "palimpsest"
    """What a picture's noise is drawn from; real checkpoints are loaded with `torch`."""
    empty: Literal["text", "zeros"] | None = None
    """What guidance starts from, in drawing and in methods: the embedded empty prompt, or zeros;
    None is the family's own."""
    least: ClassVar = dict(steps=1, guidance=0, batch=1)

    def __str__(self) -> str:
        size = f", {self.size} px" if self.size else ""
        also = size + (f", {self.noise} noise" if self.noise != UNSAID["noise"] else "")
        also += f", ∅ as {self.empty}" if self.empty else ""
        return f"{self.sampler.upper()} {self.steps} steps, guidance {self.guidance:g}{also}"

    @property
    def recorded(self) -> Draw:
        """What a record says of it."""
        own = {name: v for name, unsaid in UNSAID.items() if (v := getattr(self, name)) != unsaid}
        return Draw(self.steps, self.guidance, size=self.size, empty=self.empty, **own)

    def drawn(self, draw: Draw) -> Sampling:
        """Return this sampling with what a person or a record says of it.

        Raises:
            PalimpsestError: no steps or pictures at all, or a guidance below 0.
        """
        said = {name: value for name, value in asdict(draw).items() if value is not None}
        return replace(self, **said)


def noise_of(prompt: Prompt, shape: tuple[int, int, int], how: Noise) -> Tensor:
    """Draw the noise that a picture starts from; `torch` draws the pictures of one seed in turn.

    So does Diffusers with one generator and `num_images_per_prompt`.

    Args:
        prompt: its seed and index say which noise.
        shape: channels, height and width of a latent.
        how: what it is drawn from.

    Returns:
        (1, channels, height, width) standard normal noise on the CPU.
    """
    if how == "palimpsest":
        return torch.randn((1, *shape), generator=generator(prompt.seed, prompt.index))
    g = torch.Generator().manual_seed(prompt.seed)
    for _ in range(prompt.index):
        torch.randn((1, *shape), generator=g)
    return torch.randn((1, *shape), generator=g)


def halved(size: int, error: Exception, context: Context) -> int:
    """Return half of a batch that the memory did not hold, and say so; any other error goes on.

    Raises:
        OutOfMemoryError: the batch was of one.
    """
    if not out_of_memory(error):
        raise error
    if size == 1:
        raise OutOfMemoryError(
            "the memory does not hold one picture: take --dtype bfloat16, --memory low, a smaller "
            "--draw.size, or another --device"
        ) from error
    context.tell(f"the memory does not hold {size} pictures at once; going on with {size // 2}")
    return size // 2
