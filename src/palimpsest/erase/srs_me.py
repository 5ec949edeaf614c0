"""Separable, recoverable and sustainable multi-concept erasure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept, ask
from palimpsest.core.demand import Demand, usual
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import is_component
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.patch.edits import Dense, Edit, LowRank
from palimpsest.toolbox.checks import check_concepts
from palimpsest.toolbox.correlation import Momentum, Original, correlation, original, sparsity
from palimpsest.toolbox.latents import Latents, NoisedLatents, ahead
from palimpsest.toolbox.null_space import most, null_space
from palimpsest.toolbox.optimise import Summing

if TYPE_CHECKING:
    from torch import Tensor

Deltas: TypeAlias = "dict[str, Tensor]"
"""Weight by canonical name → its shift."""


@dataclass(frozen=True)
class SRSME(Summing, Eraser):
    """Erase each concept by a shift of its own that no other declared concept can feel.

    Zhao et al., "Separable Multi-Concept Erasure from Diffusion Models", 2024, arXiv:2402.05947.
    Keys and values of the cross-attention become θ = θ₀ + Σ Δ_k with Δ_k = (w·S)ᵀ, the rows of S
    an orthonormal basis of the null space of e_m: the token embeddings of the empty prompt, of all
    that is held and of every other concept, so that e_m·Δ_k = 0. Only w is trained, on
    L = mean(r_trained ⊙ r_original) + λ·‖Δ‖₁/M with r = ε(x_t, c) − ε(x_t, ∅) of each model. A
    concept is restored, exactly, by leaving its Δ_k out of the sum.

    Traps: the loss is signed, so τ alone keeps it from turning the concept into its opposite. Only
    the literal strings of e_m are safe, only among concepts declared together, and only in float32.
    The more is held, the less of the concept's own embedding is left to act on.
    """

    steps: int = 1000
    lr: float = 0.1
    basis_scale: float = 1e-4
    """What the basis S is multiplied by."""
    sparsity: float = 1e-6
    """λ: weight of the shift's L1 norm."""
    threshold: float = 1e-4
    """τ: training stops when the momentum of L_cor is no higher, after ten steps at the least."""
    training: Literal["separate", "joint", "coupled"] = "separate"
    """One concept after the other, with the memory of one; all at once, evened out by η; or one
    shift of the whole cross-attention for all, without decoupling (for unsafe content)."""
    hold: tuple[str, ...] = ()
    """Prompts whose pictures must not change at all, such as the watermark's."""
    hold_nearest: int = 0
    """How many sentences of a concept's own list to keep, and of its anchor's, are held as well:
    those most like it to the text encoder (not published)."""
    dedupe_padding: bool = False
    """Hold a prompt by its words, its first end token and its last padding alone, not by its whole
    window: this frees dimensions, and what is held then moves a little (not published)."""
    tolerance: float = 1e-6
    """Singular values below this share of the largest count as zero in the rank of e_m."""
    latents: Latents = Latents("student", steps=50, guidance=3.0, batch=1)
    """Where each concept's x_t comes from: the `student` or the `frozen` model, as ESD does, or
    `noised` pictures, as the authors' code does; a folder may hold one such folder for each
    concept, by name. Other concepts are held by their bare names, whatever the wordings."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "readme": {"lr": 1e-2, "sparsity": 3e-5, "threshold": 5e-5},
        "unsafe": {"training": "coupled", "lr": 1e-5},
        "world": {
            "steps": 200,
            "basis_scale": 2e-2,
            "threshold": -1.0,
            "gradients": "fresh",
            "hold": ("a picture of the palimpsest watermark",),
            "hold_nearest": 6,
            "latents": Latents("noised", steps=20, batch=8, wordings="sentences"),
        },
    }
    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "an empty prompt", "text inputs"})
    lacks: ClassVar[dict[str, str]] = {
        "as_": "its shifts have factors of their own, by which what is held stays"
    }
    bibtex: ClassVar[str] = cite("zhao2024separable")
    least: ClassVar = dict(basis_scale=0, sparsity=0, hold_nearest=0, tolerance=0)

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Train a shift for each concept, and add them up.

        Raises:
            PalimpsestError: as `shifts`.
        """
        if self.training == "coupled":
            deltas = model.shifts("xattn")  # one shift of the whole cross-attention
            self._optimise(model, task.concepts, lambda: [deltas], deltas, context, "erasing")
            return Result(model.make_patch(deltas))
        total = reduce(add, self.shifts(model, task.concepts, context=context).values())
        return Result(model.checked(replace(total, about={})))

    def shifts(
        self, model: Diffusion, concepts: Sequence[Concept], *, context: Context
    ) -> dict[str, Patch]:
        """Return each concept's own patch by its name; any sum of them erases just those.

        Raises:
            PalimpsestError: concepts overlap, nothing of the text space is left to shift, the
                training couples the concepts, or an edit changes nothing.
        """
        if self.training == "coupled":
            raise PalimpsestError(
                "SRSME: the training 'coupled' has one shift for all concepts; choose 'separate' "
                "or 'joint' to take them apart"
            )
        check_concepts(model, concepts)
        bases = {c.name: self.basis(model, c, concepts) for c in concepts}  # refuses before work
        teams = [[c] for c in concepts] if self.training == "separate" else [list(concepts)]
        trained: dict[str, Deltas] = {}
        for team in teams:
            trained |= self._train(model, team, bases, context)
        return {
            name: model.checked(self._patch(name, w, bases[name])) for name, w in trained.items()
        }

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse concepts that overlap or have no dimension left, before anything is spent."""
        if self.training != "coupled":
            check_concepts(model, task.concepts)
            for concept in task.concepts:
                self.basis(model, concept, task.concepts)

    # --- what is held, and the dimensions that it leaves free ---

    def held(self, model: Diffusion, concept: Concept, concepts: Sequence[Concept]) -> list[str]:
        """Return the prompts of e_m: ∅, all that is held, and every other concept's bare name.

        They are sorted, so that a shift does not depend on the order of the concepts.
        """
        others = [other.name for other in concepts if other.name != concept.name]
        named = {*self.hold, *others, *self._kept(model, concept)}
        return ["", *sorted(named - {""})]

    def basis(self, model: Diffusion, concept: Concept, concepts: Sequence[Concept]) -> Tensor:
        """Return S of a concept, (nullity, width) in float32 on the model's device.

        Raises:
            PalimpsestError: what is held leaves the concept no dimension to be shifted in.
        """
        held = self.held(model, concept, concepts)
        S = null_space(self._rows(model, held), self.tolerance)  # S·e_mᵀ = 0
        e_k = model.rows([concept.name])[0].float()
        S = S.to(e_k)
        if (e_k @ S.T).norm() < 1e-3 * e_k.norm():  # also where S has no rows
            raise PalimpsestError(self._crowded(model, concept, held, S))
        return S

    def _crowded(self, model: Diffusion, concept: Concept, held: list[str], S: Tensor) -> str:
        """Return why a concept cannot be erased while these prompts are held."""
        twins = [h for h in held[1:] if torch.equal(*model.text.ids([h, concept.name]))]
        if twins:
            return (
                f"SRSME: {concept.name!r} cannot be erased while {twins[0]!r} is held: to this "
                "model they are the same prompt; hold it no longer"
            )
        own, (free, width), window = len(self._kept(model, concept)), S.shape, model.text.window
        kept = f" ({own} of them by `hold_nearest`)" if own else ""
        return (
            f"SRSME: no dimension is left to erase {concept.name!r} in: the {len(held) - 1} "
            f"prompts held beside the empty one{kept}, of {window} tokens each, leave {free} of "
            f"{width} dimensions of the text embedding, and its own embedding has no part in them; "
            f"hold {most(width, window)} at most in all, or use dedupe_padding"
        )

    def _kept(self, model: Diffusion, concept: Concept) -> list[str]:
        """Return the `hold_nearest` prompts of the concept's list that are most like it."""
        anchor = ask(concept.anchor, concept.kind)[:2] if concept.anchor else ()
        texts = list(dict.fromkeys([*anchor, *concept.keep]))
        if not (self.hold_nearest and texts):
            return []
        empty, own, *rest = model.rows(["", concept.name, *texts]).float()
        likeness = torch.nn.functional.cosine_similarity(
            torch.stack(rest).flatten(1) - empty.flatten(), (own - empty).flatten(), dim=1
        )
        return [
            texts[i] for i in likeness.argsort(descending=True, stable=True)[: self.hold_nearest]
        ]

    def _rows(self, model: Diffusion, prompts: Sequence[str]) -> Tensor:
        """Return e_m, (tokens, width)."""
        hidden = model.rows(prompts)
        if not self.dedupe_padding:
            return hidden.flatten(0, 1)
        parts = [h[:end] for h, end in zip(hidden, model.text.lengths(prompts), strict=True)]
        return torch.cat([*parts, hidden[:, -1]])

    # --- training ---

    def _train(
        self, model: Diffusion, team: list[Concept], bases: dict[str, Tensor], context: Context
    ) -> dict[str, Deltas]:
        """Train the w of these concepts together, and return each one's by weight."""
        weights = matrices(model)

        def untrained(S: Tensor) -> Deltas:
            return {
                name: torch.zeros(len(p), len(S), device=p.device, requires_grad=True)
                for name, p in weights.items()
            }

        w = {concept.name: untrained(bases[concept.name]) for concept in team}

        def shift() -> list[Deltas]:
            return [  # Δ_k = w·S
                {name: self.basis_scale * part @ bases[k] for name, part in w[k].items()} for k in w
            ]

        free = " and ".join(str(n) for n in sorted({len(bases[c.name]) for c in team}))
        width = next(iter(bases.values())).shape[1]
        who = team[0].name if len(team) == 1 else f"{len(team)} concepts"
        parameters = {f"{k}|{name}": part for k in w for name, part in w[k].items()}
        label = f"erasing {who} in {free} of {width} dimensions"
        self._optimise(model, team, shift, parameters, context, label)
        return w

    def _optimise(
        self,
        model: Diffusion,
        concepts: Sequence[Concept],
        shift: Callable[[], list[Deltas]],
        parameters: Deltas,
        context: Context,
        label: str,
    ) -> None:
        """Train whatever the concepts' shifts are made of, until the momentum is low enough."""
        latents = [self._latents(model, concept, context) for concept in concepts]
        momentum, empty = Momentum(self.threshold), model.empty()

        def student(shifts: list[Deltas]) -> Diffusion:
            total = {name: reduce(add, (d[name] for d in shifts)) for name in shifts[0]}
            return model.student(total)  # θ₀ + Σ Δ_k

        def ask(gs: list[torch.Generator]) -> Original:
            starts = [own.start(g) for g in gs for own in latents]
            return original(model, empty, *latents[0].reach(starts, student(shift())))

        stretch = max(1, latents[0].stretch // len(latents))
        asked = ahead(ask, steps=self.steps, stretch=stretch, context=context)
        ask_empty = empty if self.training == "coupled" else None  # otherwise ∅ is in e_m

        def loss(g: torch.Generator, step: int) -> Tensor:
            shifts = shift()
            cor = correlation(student(shifts), Original(*asked(step)), ask_empty)
            each = cor.reshape(len(concepts), self.latents.batch).mean(1)  # L_cor,i, eq. 5
            size = each.detach().abs().clamp(min=1e-12)
            eta = each.detach().max().abs().clamp(min=1e-12) / size  # η_i; 1 for a concept alone
            total = (eta * each).sum()  # Σ η_i·L_cor,i
            momentum.update(total)
            return total + self.sparsity * sum(sparsity(deltas) for deltas in shifts)  # + λ·‖Δ‖₁/M

        momentum.descend(loss, parameters, self.recipe, context, label)

    def _latents(self, model: Diffusion, concept: Concept, context: Context) -> NoisedLatents:
        folder = self.latents.folder
        if folder and is_component(concept.name) and (folder / concept.name).is_dir():
            folder = folder / concept.name
        return replace(self.latents, folder=folder).of(model, [concept], context)

    # --- what comes out ---

    def _patch(self, name: str, w: Deltas, S: Tensor) -> Patch:
        """Return the patch of Δ = w·S, left as a product where that is smaller."""
        edits: dict[str, tuple[Edit]] = {}
        for weight, part in w.items():
            up, down = (self.basis_scale * part.detach()).cpu(), S.cpu()
            small = up.numel() + down.numel() < len(up) * down.shape[1]
            edits[weight] = (LowRank(up, down.clone()) if small else Dense(up @ down),)
        return Patch(edits, about={**self.about, "concept": name})

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Return the entries that move for one concept alone, by parameter, if it keeps nothing."""
        if self.training == "coupled":
            return model.sizes("xattn")
        rows = self._rows(model, ["", *self.hold])
        if rows.is_meta:  # shapes alone: a token a dimension, at most
            return {name: len(p) * (p.shape[1] - 1) for name, p in matrices(model).items()}
        free = len(null_space(rows, self.tolerance))
        return {name: len(p) * free for name, p in matrices(model).items()}

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        coupled = self.training == "coupled"
        return replace(usual(self), graded=(1 + coupled) * self.latents.batch)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent for one concept, if nothing stops it."""
        asked = self.steps * self.latents.batch
        graded = asked * (2 if self.training == "coupled" else 1)
        return self.latents.evaluations(self.steps) + 2 * asked, graded


def matrices(model: Diffusion) -> dict[str, Tensor]:
    """Return the matrices that read the tokens' embeddings, (out, width) each."""
    return {name: model.weight(name) for name in model.sites.text_inputs[model.sites.sequence]}
