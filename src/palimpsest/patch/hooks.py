"""Sampling hooks: what a patch may change at sampling that no shift of weights can say.

A hook is a value like the patch that carries it: named, saved in the same file, and free of any
model. It says up to three things, and `Diffusion` does them while the patch is on:

- `empty`: the words that classifier-free guidance starts from, in place of the empty prompt;
- `adapters`: low-rank shifts of layers that each prompt opens as far as `scales` says;
- `blend`: predictions with the adapters opened differently, added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from palimpsest.core.errors import PalimpsestError

Factors = tuple[Tensor, Tensor]
"""(out, K) up and (K, in) down; `in` is all further axes of the weight flattened."""


class Hook:
    """What every hook answers; one of its own answers only what it changes."""

    kind: ClassVar[str]

    @property
    def empty(self) -> str:
        """What guidance starts from, ε(empty) + w·(ε(c) − ε(empty))."""
        return ""

    @property
    def adapters(self) -> Mapping[str, Factors]:
        """Low-rank shifts by the weight that they lie beside."""
        return {}

    @property
    def blend(self) -> tuple[tuple[float, float], ...]:
        """(share, opening) of each prediction: ε̂ = Σ share·ε(scales × opening), shares sum to 1."""
        return ((1.0, 1.0),)

    def scales(self, hidden: Tensor, ids: Tensor | None) -> Tensor:
        """Return how far each prompt opens each of the K adapters.

        Args:
            hidden: (n, window, width) embedded prompts.
            ids: (n, window) their token ids, −1 where there is none; None if none has any.

        Returns:
            (n, K) factors on the adapters' shifts.
        """
        raise NotImplementedError

    def acts(self) -> bool:
        """Return whether it changes anything at all."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for a file."""
        return {}

    def arguments(self) -> dict[str, Any]:
        """Return all else that it is made of, JSON-able."""
        return {}

    @classmethod
    def build(cls, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the hook again from `arguments()` and `tensors()`."""
        return cls(**arguments)


@dataclass(frozen=True)
class NegativeWords(Hook):
    """A negative prompt: guidance starts from these words, not from the empty prompt."""

    words: str
    """The negative prompt."""

    kind: ClassVar[str] = "negative-words"

    @property
    def empty(self) -> str:
        """The negative prompt."""
        return self.words

    def acts(self) -> bool:
        """Return whether it says anything."""
        return bool(self.words)

    def arguments(self) -> dict[str, Any]:
        """Return the words."""
        return {"words": self.words}


@dataclass(frozen=True)
class Adapters(Hook):
    """A hook with low-rank adapters."""

    up: Mapping[str, Tensor]
    """(out, K) by the weight beside which they lie."""
    down: Mapping[str, Tensor]
    """(K, in) by the same names."""

    @property
    def adapters(self) -> dict[str, Factors]:
        """Low-rank shifts by the weight that they lie beside."""
        return {name: (self.up[name], self.down[name]) for name in self.up}

    def acts(self) -> bool:
        """Return whether any adapter shifts anything."""
        return any(bool(up.any()) and bool(self.down[name].any()) for name, up in self.up.items())

    def tensors(self) -> dict[str, Tensor]:
        """Return the factors by weight."""
        sides = {"up.": self.up, "down.": self.down}
        return {side + name: t for side, own in sides.items() for name, t in own.items()}

    @classmethod
    def build(cls, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the hook again."""
        up, down = (
            {n.removeprefix(side): t for n, t in tensors.items() if n.startswith(side)}
            for side in ("up.", "down.")
        )
        return cls(up, down, **arguments)


@dataclass(frozen=True)
class Transport(Adapters):
    """Facilitated transport (Lyu et al. 2024): a prompt opens an adapter as far as it resembles it.

    Adapter k answers to one or more reference prompts r. The scale of a prompt p is the largest,
    over those r, of the cosine of their flattened text embeddings and of the share of r's words
    that p has: |T(p) ∩ T(r)| / |T(r)|, T being the set of tokens without the special ones.
    """

    references: Tensor
    """(R, window, width) embedded reference prompts."""
    owner: tuple[int, ...]
    """For each reference prompt, the adapter that it belongs to."""
    words: tuple[tuple[int, ...], ...]
    """For each reference prompt, its tokens without the special ones, each once."""
    match: Literal["max", "text", "tokens"] = "max"
    """What counts: the larger of both, the cosine alone, or the shared words alone."""
    power: int = 1
    """An adapter is opened by γ to this power: 2 in the authors' code, where γ scales both factors
    of the adapter."""

    kind: ClassVar[str] = "transport"

    def scales(self, hidden: Tensor, ids: Tensor | None) -> Tensor:
        """Return (n, K) scales of n prompts; vectors that came from no words share none."""
        cosine = torch.cosine_similarity(
            hidden.float().flatten(1)[:, None],
            self.references.to(hidden.device).float().flatten(1)[None],
            dim=-1,
        )  # (n, R)
        shared = torch.zeros_like(cosine)
        for r, words in enumerate(self.words if ids is not None else ()):
            assert ids is not None
            there = [(ids == word).any(1) for word in words]
            if there:
                shared[:, r] = torch.stack(there, 1).float().mean(1).to(shared.device)
        both = {"text": cosine, "tokens": shared, "max": torch.maximum(cosine, shared)}[self.match]
        owner = torch.tensor(self.owner, device=both.device)
        opened = [both[:, owner == k].amax(1) for k in range(max(self.owner) + 1)]
        return torch.stack(opened, 1).clamp(min=0) ** self.power

    def tensors(self) -> dict[str, Tensor]:
        """Return the factors by weight, and the reference prompts' embeddings."""
        return super().tensors() | {"hidden": self.references}

    def arguments(self) -> dict[str, Any]:
        """Owners, words, the measure, and its power if it has one."""
        words = [list(row) for row in self.words]
        power = {"power": self.power} if self.power != 1 else {}  # older files go without
        return {"owner": list(self.owner), "words": words, "match": self.match, **power}

    @classmethod
    def build(cls, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the hook again."""
        owner, words = arguments["owner"], (tuple(row) for row in arguments["words"])
        own = {"references": tensors["hidden"], "owner": tuple(owner), "words": tuple(words)}
        return super().build({**arguments, **own}, tensors)


@dataclass(frozen=True)
class TwoModels(Adapters):
    """Guidance between two models that differ by low-rank adapters (Karras et al. 2024).

    ε̂ = ε_bad + w·(ε_main − ε_bad), one of the two with the adapters, the other without. Each is
    guided as any model is: both guidances are linear, so their order does not matter.
    """

    w: float
    """How far to go from the bad model to the main one; 1 is the main one, 0 the bad one."""
    main: Literal["lora", "erased"] = "lora"
    """Which is the main one: that with the adapters, or that without."""

    kind: ClassVar[str] = "two-models"

    @property
    def blend(self) -> tuple[tuple[float, float], ...]:
        """The model with and the one without adapters; one that has no share is not asked."""
        share = self.w if self.main == "lora" else 1 - self.w
        return tuple((s, opening) for s, opening in ((share, 1.0), (1 - share, 0.0)) if s)

    def scales(self, hidden: Tensor, ids: Tensor | None) -> Tensor:
        """Return (n, K) ones: every prompt opens all of it."""
        return hidden.new_ones(len(hidden), len(next(iter(self.down.values()))))

    def arguments(self) -> dict[str, Any]:
        """Weight and direction."""
        return {"w": self.w, "main": self.main}


@dataclass(frozen=True)
class ClosedHook(Hook):
    """Another hook that says nothing: its adapters lie where they lie, and none is opened.

    For views of a model that wears the other one; no patch carries it.
    """

    hook: Hook
    """The hook that is silenced."""

    kind: ClassVar[str] = "shut"

    @property
    def adapters(self) -> Mapping[str, Factors]:
        """Those that lie there."""
        return self.hook.adapters

    def scales(self, hidden: Tensor, ids: Tensor | None) -> Tensor:
        """Return (n, K) zeros."""
        return torch.zeros_like(self.hook.scales(hidden, ids))

    def acts(self) -> bool:
        """Never."""
        return False


HOOKS: dict[str, type[Hook]] = {k.kind: k for k in (NegativeWords, Transport, TwoModels)}
"""Every hook by the name that a file gives it."""


def rebuilt(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Hook:
    """Return the hook of a file.

    Raises:
        PalimpsestError: a kind that this version does not know.
    """
    kind = manifest["kind"]
    if kind not in HOOKS:
        raise PalimpsestError(f"no sampling hook {kind!r}; this version knows {', '.join(HOOKS)}")
    return HOOKS[kind].build(manifest["arguments"], tensors)
