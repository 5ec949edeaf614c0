"""What a family of text-to-image models answers; everything else is shared.

A family is one file in `families/`: a subclass of `Diffusion` with a schedule, a text side, sites,
a latent space, and `network`, the one call of its denoiser. Methods ask these, never the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

Call = Callable[..., Any]
"""(component, *args, **kwargs) → what that component computes with the weights of a view."""


@dataclass(frozen=True)
class Conditioning:
    """Embedded prompts as named parts, the first axis of each being the prompt.

    Opaque to methods: they index, repeat and join it, and read rows by `rows`.
    """

    parts: Mapping[str, Tensor]
    """Part → (n, …) tensor, such as the text encoder's hidden states or a pooled vector."""
    ids: Tensor | None = None
    """(n, window) token ids of the prompts, −1 in rows that came from no words; None if none did.
    Read only by hooks that compare what was asked."""

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, index: Tensor | slice | list[int]) -> Conditioning:
        return self._each(lambda part: part[index])

    def __add__(self, other: Conditioning) -> Conditioning:
        parts = {name: torch.cat([part, other.parts[name]]) for name, part in self.parts.items()}
        if self.ids is None and other.ids is None:
            return Conditioning(parts)
        width = (self.ids if self.ids is not None else other.ids).shape[1]  # type: ignore[union-attr]
        return Conditioning(parts, torch.cat([self._ids(width), other._ids(width)]))

    def __getattr__(self, name: str) -> Any:
        if name == "hidden":
            raise AttributeError("Conditioning.hidden is now Conditioning.rows(part)")
        raise AttributeError(f"Conditioning has no attribute {name!r}")

    def expand(self, n: int) -> Conditioning:
        """Repeat one prompt n times; n prompts stay as they are."""
        return self._each(lambda part: part.expand(n, *part.shape[1:]))

    def zeros(self) -> Conditioning:
        """Return zeros in place of each part, which came from no words."""
        return Conditioning({name: torch.zeros_like(part) for name, part in self.parts.items()})

    def detach(self) -> Conditioning:
        """Return the same without gradient."""
        return self._each(torch.Tensor.detach)

    def rows(self, part: str) -> Tensor:
        """Return a part as (n, rows, width): a row a token, or one row of a pooled vector."""
        tensor = self.parts[part]
        return tensor if tensor.ndim == 3 else tensor[:, None]

    def replaced(self, part: str, tensor: Tensor) -> Conditioning:
        """Return the same with another tensor for a part, which came from no words."""
        return Conditioning({**self.parts, part: tensor})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        parts = {name: change(part) for name, part in self.parts.items()}
        return Conditioning(parts, None if self.ids is None else change(self.ids))

    def _ids(self, width: int) -> Tensor:
        if self.ids is not None:
            return self.ids
        like = next(iter(self.parts.values()))
        return torch.full((len(self), width), -1, device=like.device)


class TokenSlots(NamedTuple):
    """Vectors in place of token embeddings."""

    where: Tensor
    """(n, window) true where a vector stands in place of a token's embedding."""
    vectors: Tensor
    """(places that are true, width) vectors, row by row; `width` is that of `token_vectors`."""


class Schedule(Protocol):
    """Noise levels: x_t = α_t·x_0 + σ_t·ε, and what the network's output says of x_0 and ε.

    A time t is opaque to methods: they draw it, pass it on, and compare it with nothing.
    """

    @property
    def levels(self) -> int:
        """Times lie from 0 (clean) up to this (noise)."""
        ...

    def draw(self, n: int, g: torch.Generator) -> Tensor:
        """Draw (n,) times as the family is trained with, on the CPU."""
        ...

    def between(self, steps: int, i: int, n: int, g: torch.Generator) -> Tensor:
        """Draw (n,) times above step i + 1 of the grid and up to step i, on the CPU."""
        ...

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α_t and σ_t, (n, 1, 1, 1) each."""
        ...

    def split(self, out: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_0 and ε as the network's output means them."""
        ...

    def grid(self, steps: int) -> list[int] | list[float]:
        """Return the steps + 1 times that sampling passes, from noise to the clean end.

        Raises:
            PalimpsestError: fewer than one step, or more than there are levels.
        """
        ...


class Text(Protocol):
    """The text side: tokens of prompts, and what the encoders make of them."""

    window: int
    """Tokens of a prompt, begin and end included."""
    width: int
    """Width of the hidden states of the first text encoder."""
    begin: int
    """Id of the token that every prompt begins with."""
    end: int
    """Id of the token that ends a prompt."""
    pad: int
    """Id of the token that fills the window."""
    special: tuple[int, ...]
    """Ids that no written prompt holds."""
    guides: bool
    """Whether there is an empty prompt that guidance starts from."""
    tables: tuple[str, ...]
    """Parameters that hold an embedding a token, (vocabulary, width) each. Several encoders share
    one vocabulary: a token's vector is its rows in all tables, joined."""
    unread: tuple[str, ...]
    """What the names of parameters begin with that no part of a conditioning depends on."""

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Return (n, window) token ids, padded and cut, on the CPU."""
        ...

    def plain(self, text: str) -> list[int]:
        """Return the token ids of a text, without begin and end."""
        ...

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt has within the window, begin and end included."""
        ...

    def overlong(self, prompts: Sequence[str]) -> list[int]:
        """Return the positions of the prompts that do not fit the window and will be cut."""
        ...

    def span(self, prompt: str, words: str) -> list[int]:
        """Return every token position of `prompt` that belongs to an occurrence of `words`.

        Raises:
            PalimpsestError: the prompt does not contain the words, or not within the window.
        """
        ...

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Return the text that token ids stand for, without the special ones."""
        ...

    def pieces(self) -> dict[str, int]:
        """Return every piece of text that has a token, with its id."""
        ...

    def encode(self, call: Call, ids: Tensor, slots: TokenSlots | None) -> dict[str, Tensor]:
        """Return the parts of a conditioning of (n, window) token ids."""
        ...

    def empty(self, call: Call, device: torch.device) -> Conditioning | None:
        """Return what guidance starts from; None where guidance is distilled into the network."""
        ...


class LatentSpace(Protocol):
    """Pictures to latents and back."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        ...

    @property
    def side(self) -> int:
        """Height and width of a picture in pixels."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Encode (n, 3, side, side) pictures in [0, 1] as scaled latents in float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents to (n, 3, side, side) pictures in [0, 1], in float32."""
        ...


@dataclass(frozen=True)
class Sites:
    """Where things are in a family's networks, by canonical name."""

    denoiser: str
    """The component that denoises, such as `unet`."""
    groups: Mapping[str, Callable[[str], bool]]
    """Parameter group → whether a parameter belongs to it."""
    text_inputs: Mapping[str, tuple[str, ...]]
    """Part of a conditioning → the matrices that read it, (out, width) each; the part that holds a
    row a token comes first."""
    lora_targets: tuple[str, ...] = ()
    """Ends of the names of the layers that a LoRA adapts."""
    blocks: Sequence[nn.Module] = ()
    """The denoiser's blocks, which can be computed again to save memory."""
    attention: Mapping[str, Any] = field(default_factory=dict)
    """Name → attention layer of the picture's queries on the text's keys; empty where there is
    none."""

    @property
    def sequence(self) -> str:
        """The part of a conditioning that holds a row a token."""
        return next(iter(self.text_inputs))


def without_ids(cond: Conditioning) -> Conditioning:
    """Return the same prompts as if they came from no words."""
    return replace(cond, ids=None)
