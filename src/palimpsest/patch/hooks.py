"""Sampling hooks: what a patch may change at sampling that no shift of weights can say.

A hook is a value like the patch that carries it: named, saved in the same file, and free of any
model. It says up to three things, and `Diffusion` does them while the patch is on:

- `empty`: the words that classifier-free guidance starts from, in place of the empty prompt;
- `adapters`: low-rank shifts of layers that each prompt opens as far as `scales` says;
- `blend`: predictions with the adapters opened differently, added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Self, TypeAlias, get_args

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.patch.edits import refuse_unpaired
from palimpsest.patch.tensor_files import checked_tensor, sides

if TYPE_CHECKING:
    from torch import Tensor

Factors: TypeAlias = "tuple[Tensor, Tensor]"
"""(out, K) up and (K, in) down; `in` is all further axes of the weight flattened."""
Match = Literal["max", "text", "tokens"]
Main = Literal["lora", "erased"]
MATCHES, MAINS = get_args(Match), get_args(Main)
MOST = 1e6
"""Nobody goes farther from one model to another: beyond, predictions are no numbers."""


def _counted(numbers: Iterable[Any]) -> bool:
    """Return whether all are whole numbers from 0 up that a tensor can hold."""
    return all(type(n) is int and 0 <= n < 2**31 for n in numbers)


class Hook:
    """What every hook answers; one of its own answers only what it changes."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse arguments and tensors that do not go together.

        Raises:
            PalimpsestError: saying which.
        """

    def refuse(self, why: str) -> NoReturn:
        """Refuse it in a sentence of its own.

        Raises:
            PalimpsestError: always.
        """
        raise PalimpsestError(f"the sampling hook {self.kind!r} {why}")

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

    def check(self) -> None:
        """Refuse words that are no text."""
        try:
            text = self.words.encode()
        except (AttributeError, UnicodeError):
            text = b"\0"
        if b"\0" in text:
            self.refuse("starts guidance from words, and has none that are text")

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

    def check(self) -> None:
        """Refuse factors that have no product, are not all of one K, or hold no finite numbers."""
        if self.up.keys() != self.down.keys():
            self.refuse("has a layer's up without its down, or its down without its up")
        for name, (up, down) in self.adapters.items():
            for side, tensor in (("up", up), ("down", down)):
                checked_tensor(f"{name}: the {side} of the sampling hook {self.kind!r}", tensor)
            refuse_unpaired(name, up, down)
        if len(found := {len(down) for down in self.down.values()}) > 1:
            self.refuse(f"has layers of {min(found)} and of {max(found)} adapters; of one K belong")

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
    match: Match = "max"
    """What counts: the larger of both, the cosine alone, or the shared words alone."""
    power: int = 1
    """An adapter is opened by γ to this power: 2 in the authors' code, where γ scales both factors
    of the adapter."""

    kind: ClassVar[str] = "transport"

    def check(self) -> None:
        """Refuse owners, words and references that do not go together, and an unknown measure."""
        super().check()
        checked_tensor("the references of the sampling hook 'transport'", self.references)
        owned, several = len(self.owner), self.references.ndim == 3 and len(self.references)
        if not several or several != owned or owned != len(self.words):
            self.refuse("has not one owner, one row of words and one matrix for each reference")
        if not _counted(self.owner) or not all(_counted(row) for row in self.words):
            self.refuse("has an owner or a word that is no whole number from 0 up")
        adapters = {len(down) for down in self.down.values()} or {max(self.owner) + 1}
        if {*self.owner} != {*range(max(adapters))}:
            self.refuse(f"has {max(adapters)} adapters, and references of others or not of all")
        if self.match not in MATCHES or type(self.power) is not int or not 1 <= self.power <= 9:
            self.refuse(f"matches by {self.match!r} to the power {self.power!r}, which is no way")

    def scales(self, hidden: Tensor, ids: Tensor | None) -> Tensor:
        """Return (n, K) scales of n prompts; vectors that came from no words share none.

        Raises:
            PalimpsestError: prompts embedded in another shape than the references.
        """
        if hidden.shape[1:] != self.references.shape[1:]:
            mine, theirs = sides(self.references.shape[1:]), sides(hidden.shape[1:])
            self.refuse(f"knows prompts as {mine}, and this model embeds them as {theirs}")
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
    main: Main = "lora"
    """Which is the main one: that with the adapters, or that without."""

    kind: ClassVar[str] = "two-models"

    def check(self) -> None:
        """Refuse a weight that is no finite number, and a main model that is neither."""
        super().check()
        if type(self.w) not in (int, float) or not abs(self.w) < MOST:
            self.refuse(f"goes {self.w!r} far; a number within ±{MOST:g} belongs")
        if self.main not in MAINS:
            self.refuse(f"has {self.main!r} for its main model; there are {', '.join(MAINS)}")
        if not self.down:
            self.refuse("has no adapters, by which two models could differ")

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

    For views of a model that has the other one; no patch carries it.
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
        PalimpsestError: a kind that this version does not know, or one that is not whole.
    """
    kind, arguments = manifest.get("kind"), manifest.get("arguments")
    if not isinstance(kind, str) or kind not in HOOKS:
        raise PalimpsestError(f"no sampling hook {kind!r}; this version knows {', '.join(HOOKS)}")
    try:
        hook = HOOKS[kind].build(arguments, tensors)  # type: ignore[arg-type]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise PalimpsestError(f"a sampling hook {kind!r} that is not whole ({error})") from error
    if hook.tensors().keys() != tensors.keys():
        raise PalimpsestError(f"a sampling hook {kind!r} with tensors that it does not have")
    return hook
