"""Separable, recoverable and sustainable multi-concept erasure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.core.concepts import Concept, ask
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.patch import Patch
from palimpsest.patch.edits import Dense, Edit, LowRank
from palimpsest.toolbox.checks import check_concepts
from palimpsest.toolbox.correlation import Momentum, Original, correlation, original, sparsity
from palimpsest.toolbox.latents import Ahead, Latents, LatentSource, check_folder
from palimpsest.toolbox.null_space import most, null_space
from palimpsest.toolbox.optimise import Recipe, optimise

Deltas = dict[str, Tensor]
"""Weight by canonical name → its shift."""


@dataclass(frozen=True)
class SRSME:
    """Erase each concept by a shift of its own that no other declared concept can feel.

    Zhao et al., "Separable Multi-Concept Erasure from Diffusion Models", 2024, arXiv:2402.05947.
    Keys and values of the cross-attention become θ = θ₀ + Σ Δ_k with Δ_k = (w·S)ᵀ, the rows of S
    an orthonormal basis of the null space of e_m: the token embeddings of the empty prompt, of all
    that is held and of every other concept, so that e_m·Δ_k = 0. Only w is trained, on
    L = mean(r_trained ⊙ r_original) + λ·‖Δ‖₁/M with r = ε(x_t, c) − ε(x_t, ∅) of each model. A
    concept is restored, exactly, by leaving its Δ_k out of the sum.
    """

    steps: int = 1000
    """Optimisation steps a concept at most; the momentum may stop it sooner."""
    lr: float = 0.1
    """Adam's learning rate, of w."""
    basis_scale: float = 1e-4
    """What the basis S is multiplied by."""
    sparsity: float = 1e-6
    """λ: weight of the shift's L1 norm."""
    threshold: float = 1e-4
    """τ: training stops when the momentum of L_cor is no higher, after ten steps at the least."""
    variant: Literal["separate", "joint", "coupled"] = "separate"
    """One concept after the other, with the memory of one; all at once, evened out by η; or one
    shift of the whole cross-attention for all, without decoupling (for unsafe content)."""
    hold: tuple[str, ...] = ()
    """Prompts whose pictures must not change at all, such as the watermark's."""
    keep: int = 0
    """How many sentences of a concept's own list to keep, and of its anchor's, are held as well:
    those most like it to the text encoder (not published)."""
    dedupe_padding: bool = False
    """Hold a prompt by its words, its first end token and its last padding alone, not by its whole
    window: this buys room, and what is held then moves a little (not published)."""
    tolerance: float = 1e-6
    """Singular values below this share of the largest count as zero in the rank of e_m."""
    latents: LatentSource = "student"
    """Where x_t comes from: sampled by the model under training or by the frozen one, as ESD does,
    or pictures of the concept with noise added, as the authors' code does."""
    sampling_steps: int = 50
    """Length of the DDIM schedule that x_t is sampled on."""
    guidance: float = 3.0
    """Guidance that x_t, or the pictures for `noised`, are sampled with."""
    batch: int = 1
    """Latents a step, for each concept in training."""
    pictures: int = 64
    """For `noised`: how many pictures of each concept are made once, before training."""
    folder: str | None = None
    """For `noised`: a folder of pictures of the concept, or of one such folder for each concept, by
    name. When left out, the unedited model draws them."""
    wordings: Literal["name", "sentences"] = "name"
    """What the concept is called in training: its bare name, or every sentence that asks for it.
    Other concepts are held by their bare names alone."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "readme": {"lr": 1e-2, "sparsity": 3e-5},
        "unsafe": {"variant": "coupled", "lr": 1e-5},
        "world": {
            "steps": 200,
            "basis_scale": 2e-2,
            "threshold": -1.0,
            "hold": ("a picture of the palimpsest watermark",),
            "keep": 6,
            "latents": "noised",
            "sampling_steps": 20,
            "batch": 8,
            "wordings": "sentences",
        },
    }
    bibtex: ClassVar[str] = """@article{zhao2024separable,
  title={Separable Multi-Concept Erasure from Diffusion Models},
  author={Zhao, Mengnan and Zhang, Lihe and Zheng, Tianhang and Kong, Yuqiu and Yin, Baocai},
  journal={arXiv preprint arXiv:2402.05947},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, basis_scale=0, sparsity=0, keep=0, tolerance=0)
        at_least(self, batch=1, pictures=1, sampling_steps=1)
        check_folder(self)

    def __call__(self, model: Diffusion, concepts: Sequence[Concept], *, context: Context) -> Patch:
        """Erase the concepts: the sum of their shifts.

        Raises:
            PalimpsestError: as `shifts`.
        """
        if self.variant == "coupled":
            return self._coupled(model, concepts, context)
        total = reduce(add, self.shifts(model, concepts, context=context).values())
        return model.checked(replace(total, about=self._about()))

    def shifts(
        self, model: Diffusion, concepts: Sequence[Concept], *, context: Context
    ) -> dict[str, Patch]:
        """Each concept's own patch by its name: any sum of them is an erasure of just those.

        Raises:
            PalimpsestError: concepts overlap, nothing of the text space is left to shift, the
                variant couples the concepts, or an edit changes nothing.
        """
        if self.variant == "coupled":
            raise PalimpsestError(
                "SRSME: the variant 'coupled' has one shift for all concepts; choose 'separate' or "
                "'joint' to take them apart"
            )
        check_concepts(model, concepts)
        bases = {c.name: self.basis(model, c, concepts) for c in concepts}  # refuses before work
        teams = [[c] for c in concepts] if self.variant == "separate" else [list(concepts)]
        trained: dict[str, Deltas] = {}
        for team in teams:
            trained |= self._train(model, team, bases, context)
        return {
            name: model.checked(self._patch(name, w, bases[name])) for name, w in trained.items()
        }

    def check(self, model: Diffusion, concepts: Sequence[Concept]) -> None:
        """Refuse concepts that overlap or have no room left, before anything is spent."""
        if self.variant != "coupled":
            check_concepts(model, concepts)
            for concept in concepts:
                self.basis(model, concept, concepts)

    # --- what is held, and the room that it leaves ---

    def held(self, model: Diffusion, concept: Concept, concepts: Sequence[Concept]) -> list[str]:
        """The prompts of e_m: ∅, all that is held, and every other concept by its bare name."""
        others = [other.name for other in concepts if other.name != concept.name]
        named = {*self.hold, *others, *self._kept(model, concept)}
        return [
            "",
            *sorted(named - {""}),
        ]  # in one order, so that a shift does not depend on theirs

    def basis(self, model: Diffusion, concept: Concept, concepts: Sequence[Concept]) -> Tensor:
        """(nullity, width) S of a concept, in float32 on the model's device.

        Raises:
            PalimpsestError: what is held leaves the concept no room.
        """
        held = self.held(model, concept, concepts)
        S = null_space(self._rows(model, held), self.tolerance)
        e_k = model.rows([concept.name])[0].float()
        S, width = S.to(e_k), e_k.shape[1]
        if (e_k @ S.T).norm() < 1e-3 * e_k.norm():  # also where S has no rows
            twins = [h for h in held[1:] if torch.equal(*model.text.ids([h, concept.name]))]
            if twins:
                raise PalimpsestError(
                    f"SRSME: {concept.name!r} cannot be erased while {twins[0]!r} is held: to this "
                    "model they are the same prompt; hold it no longer"
                )
            own = len(self._kept(model, concept))
            kept = f" ({own} of them by `keep`)" if own else ""
            window = model.text.window
            raise PalimpsestError(
                f"SRSME: no room is left to erase {concept.name!r}: the {len(held) - 1} prompts "
                f"held beside the empty one{kept}, of {window} tokens each, leave {len(S)} of "
                f"{width} dimensions of the text embedding, and it does not reach into them; hold "
                f"{most(width, window)} at most in all, or use dedupe_padding"
            )
        return S

    def _kept(self, model: Diffusion, concept: Concept) -> list[str]:
        """The `keep` prompts of the concept's list that are most like it."""
        anchor = ask(concept.anchor, concept.kind)[:2] if concept.anchor else ()
        texts = list(dict.fromkeys([*anchor, *concept.keep]))
        if not (self.keep and texts):
            return []
        empty, own, *rest = model.rows(["", concept.name, *texts]).float()
        likeness = F.cosine_similarity(
            torch.stack(rest).flatten(1) - empty.flatten(), (own - empty).flatten(), dim=1
        )
        return [texts[i] for i in likeness.argsort(descending=True, stable=True)[: self.keep]]

    def _rows(self, model: Diffusion, prompts: Sequence[str]) -> Tensor:
        """(tokens, width) e_m."""
        hidden = model.rows(prompts)
        if not self.dedupe_padding:
            return hidden.flatten(0, 1)
        parts = [h[:end] for h, end in zip(hidden, model.text.lengths(prompts), strict=True)]
        return torch.cat([*parts, hidden[:, -1]])

    # --- training ---

    def _train(
        self, model: Diffusion, team: list[Concept], bases: dict[str, Tensor], context: Context
    ) -> dict[str, Deltas]:
        """Train the w of these concepts together; each one's by weight."""
        weights = matrices(model)
        w = {
            concept.name: {
                name: torch.zeros(
                    len(p), len(bases[concept.name]), device=p.device, requires_grad=True
                )
                for name, p in weights.items()
            }
            for concept in team
        }

        def shift() -> list[Deltas]:
            return [
                {name: self.basis_scale * part @ bases[k] for name, part in w[k].items()} for k in w
            ]

        free = " and ".join(str(n) for n in sorted({len(bases[c.name]) for c in team}))
        width = next(iter(bases.values())).shape[1]
        who = team[0].name if len(team) == 1 else f"{len(team)} concepts"
        parameters = {f"{k}|{name}": part for k in w for name, part in w[k].items()}
        label = f"erasing {who} in {free} of {width} dimensions"
        self._optimise(model, team, shift, parameters, context, label)
        return w

    def _coupled(self, model: Diffusion, concepts: Sequence[Concept], context: Context) -> Patch:
        """One shift of all the cross-attention."""
        deltas = {
            name: torch.zeros_like(p, dtype=torch.float32, requires_grad=True)
            for name, p in model.parameters("xattn").items()
        }
        self._optimise(model, list(concepts), lambda: [deltas], deltas, context, "erasing")
        return model.make_patch(deltas, self._about())

    def _optimise(
        self,
        model: Diffusion,
        concepts: list[Concept],
        shift: Callable[[], list[Deltas]],
        parameters: Deltas,
        context: Context,
        label: str,
    ) -> None:
        latents = [self._latents(model, concept, context) for concept in concepts]
        momentum, empty = Momentum(self.threshold), model.empty()

        def student(shifts: list[Deltas]) -> Diffusion:
            total = {name: reduce(add, (d[name] for d in shifts)) for name in shifts[0]}
            return model.student(total)  # θ₀ + Σ Δ_k

        def ask(gs: list[torch.Generator]) -> Original:
            starts = [own.start(g) for g in gs for own in latents]
            return original(model, empty, *latents[0].reach(starts, student(shift())))

        stretch = max(1, latents[0].stretch // len(latents))
        asked = Ahead(ask, steps=self.steps, stretch=stretch, context=context)
        ask_empty = empty if self.variant == "coupled" else None  # otherwise ∅ is in e_m

        def loss(g: torch.Generator, step: int) -> Tensor:
            shifts = shift()
            cor = correlation(student(shifts), Original(*asked(step)), ask_empty)
            each = cor.reshape(len(concepts), self.batch).mean(1)  # L_cor,i
            size = each.detach().abs().clamp(min=1e-12)
            eta = each.detach().max().abs().clamp(min=1e-12) / size  # 1 for a concept alone
            momentum.update((eta * each).sum())
            l1 = sum(sparsity(deltas) for deltas in shifts)
            return (eta * each).sum() + self.sparsity * l1

        optimise(
            loss,
            {**parameters, "momentum": momentum.value},
            Recipe(steps=self.steps, lr=self.lr),
            context=context,
            label=label,
            watch=momentum.stop,
        )

    def _latents(self, model: Diffusion, concept: Concept, context: Context) -> Latents:
        texts = concept.sentences if self.wordings == "sentences" else (concept.name,)
        folder = Path(self.folder) if self.folder else None
        if folder and (folder / concept.name).is_dir():
            folder = folder / concept.name
        return Latents(
            model,
            model.embed(texts),
            self.latents,
            batch=self.batch,
            steps=self.sampling_steps,
            guidance=self.guidance,
            pictures=self.pictures,
            context=context,
            folder=folder,
        )

    # --- what comes out ---

    def _patch(self, name: str, w: Deltas, S: Tensor) -> Patch:
        """Δ = w·S of every weight, left as a product where that is smaller."""
        edits: dict[str, tuple[Edit]] = {}
        for weight, part in w.items():
            up, down = (self.basis_scale * part.detach()).cpu(), S.cpu()
            small = up.numel() + down.numel() < len(up) * down.shape[1]
            edits[weight] = (LowRank(up, down.clone()) if small else Dense(up @ down),)
        return Patch(edits, about={**self._about(), "concept": name})

    def _about(self) -> dict[str, Any]:
        return {"method": "srs_me", "arguments": asdict(self)}

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries that move for one concept alone, by parameter; what it keeps takes room more."""
        if self.variant == "coupled":
            return {name: p.numel() for name, p in model.parameters("xattn").items()}
        room = len(null_space(self._rows(model, ["", *self.hold]), self.tolerance))
        return {name: len(p) * room for name, p in matrices(model).items()}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent for one concept, if nothing stops it before."""
        asked, guided = self.steps * self.batch, 2 * self.sampling_steps
        before = self.pictures * guided if self.latents == "noised" else asked * guided // 2
        return before + 2 * asked, asked * (2 if self.variant == "coupled" else 1)


def matrices(model: Diffusion) -> dict[str, Tensor]:
    """The key and value matrices of the cross-attention."""
    return {name: p for name, p in model.parameters("xattn-kv").items() if p.ndim == 2}
