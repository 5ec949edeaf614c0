"""Concept-semipermeable membranes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from palimpsest.core.bibliography import cite
from palimpsest.core.concepts import Concept
from palimpsest.core.demand import Demand
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.methods import Context, Eraser, Result, Task
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.factors import Factors, parameters, untrained
from palimpsest.models.protocol import Conditioning
from palimpsest.patch import Patch
from palimpsest.patch.edits import LowRank
from palimpsest.patch.hooks import Transport
from palimpsest.toolbox.latents import Latents, noised
from palimpsest.toolbox.lora import added
from palimpsest.toolbox.optimise import Loss, Recipe, Trained, optimise
from palimpsest.toolbox.transport import transport

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SPM(Trained, Eraser):
    """Train a rank-1 adapter per concept, and let each prompt open it as far as it asks.

    Lyu et al., "One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing
    Applications", CVPR 2024, arXiv:2312.16145. With ε* the frozen model, ε the one with the
    adapter and a the anchors, L = L_era + λ·L_anc:
    L_era = ‖ε(x_t, c) − [ε*(x_t, ∅) − η·(ε*(x_t, c) − ε*(x_t, ∅))]‖²,
    L_anc = ‖ε(x_t, a) − ε*(x_t, a)‖², anchors random directions or, with P(a) ∝
    (1 − |cos(a, c)|)^α, texts to keep. AdamW, decayed along a half cosine.

    Traps: the cosine opens the adapter part of the way for whatever resembles the concept. Prompts
    that lead to it by other words, and embeddings that came from none, open it by their cosine
    alone. The unedited model is still there behind the adapter.
    """

    steps: int = 3000
    lr: float = 1e-4
    warmup: int = 500
    """Steps of linear warm-up."""
    eta: float = 1.0
    """η: how far to the other side of the empty prompt's the concept's prediction is put."""
    anchor_weight: float = 1000.0
    """λ: weight of latent anchoring; 0 leaves it out."""
    anchor_count: int = 2
    """Anchors a step."""
    anchor_empty: int = 2
    """How often the empty prompt is anchored beside them: of the authors' batch of four directions,
    each after an empty prompt, their code keeps the second half."""
    anchors: Literal["directions", "keep"] = "directions"
    """What is held: random directions as long as the concept's own embedding (the authors' code),
    or what the concept keeps."""
    anchor_power: float = 1.0
    """α: how strongly distant anchors are preferred among what is kept."""
    layers: Literal["transformer", "all"] = "transformer"
    """What has adapters: every linear layer and convolution of the transformer blocks (the authors'
    code), or of the whole U-Net."""
    latents: Latents = Latents("student", steps=30, guidance=3.0, batch=1)
    """Where x_t comes from: sampled by the `student` (paper) or the `frozen` model to a step of the
    grid, whose time is t; or `noised` pictures (not published)."""
    transport: bool = True
    """Facilitated transport: a sampling hook opens each adapter as far as the prompt asks for its
    concept. Off, the adapters are shifts of weights like any other, which add up."""
    match: Literal["max", "text", "tokens"] = "max"
    """What opens an adapter: the larger of the text embeddings' cosine and the share of the
    concept's words in the prompt, or one of the two."""
    opening: Literal["squared", "linear"] = "squared"
    """How far it opens: by the square of that, since the authors' code scales both factors of the
    adapter, or in proportion, as the paper says."""

    needs: ClassVar[frozenset[str]] = frozenset({"diffusion", "an empty prompt"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "keep": {"anchors": "keep", "anchor_count": 4, "anchor_empty": 0},
        "world": {
            "steps": 250,
            "lr": 3e-3,
            "warmup": 0,
            "anchor_weight": 10.0,
            "anchor_count": 4,
            "anchor_empty": 0,
            "anchors": "keep",
            "opening": "linear",
            "latents": Latents("noised", steps=20, batch=4, wordings="sentences"),
        },
    }
    bibtex: ClassVar[str] = cite("lyu2024one")
    least: ClassVar = dict(
        warmup=0, anchor_weight=0, anchor_count=1, anchor_empty=0, anchor_power=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.latents, steps=2)  # x_t is never noise alone

    def erase(self, model: Diffusion, task: Task, context: Context) -> Result:
        """Erase the concepts, each by an adapter of its own.

        Raises:
            PalimpsestError: the edit changes nothing.
        """
        each = [self._adapter(model, c, k, context) for k, c in enumerate(task.concepts)]
        factors = added(each)
        if self.transport:
            hook = self._transport(model, task.concepts, factors)
            return Result(model.checked(Patch({}, hook=hook)))
        return Result(model.checked(Patch({n: (LowRank(*pair),) for n, pair in factors.items()})))

    def check(self, model: Diffusion, task: Task) -> None:
        """Refuse concepts whose adapter has nothing to be anchored on."""
        for concept in task.concepts:
            if self._anchored and self.anchors == "keep" and not concept.keep:
                raise PalimpsestError(
                    f"{concept.name!r} keeps nothing that its adapter could be anchored on: give "
                    "it a list to keep, or set anchors to `directions` or anchor_weight to 0"
                )

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Return the entries of one concept's adapter, by the weight that it is beside."""
        return {n: len(p) + p[0].numel() for n, p in self._weights(model).items()}

    def demand(self, model: Diffusion) -> Demand:
        """Return what one of its steps holds at once."""
        batch, held = self.latents.batch, self._anchored * (self.anchor_count + self.anchor_empty)
        return Demand(batch + held, plain=2 * batch + held)

    def evaluations(self) -> tuple[int, int]:
        """Return its network evaluations of one latent for one concept."""
        batch, held = self.latents.batch, self._anchored * (self.anchor_count + self.anchor_empty)
        asked = self.latents.evaluations(self.steps) + self.steps * (2 * batch + held)
        return asked, self.steps * (batch + held)

    # --- training ---

    @property
    def _anchored(self) -> bool:
        return self.anchor_weight > 0

    def _weights(self, model: Diffusion) -> dict[str, Tensor]:
        """Return the weights that get an adapter."""
        every = model.parameters("full" if self.layers == "all" else "transformer")
        return {name: p for name, p in every.items() if p.ndim in (2, 4)}

    def _adapter(self, model: Diffusion, concept: Concept, k: int, context: Context) -> Factors:
        """Train one concept's adapter; its factors, on the CPU."""
        weights = self._weights(model)
        factors = untrained(weights, 1, context.stream("adapters", k))

        def overlay() -> dict[str, Tensor]:
            return {
                n: (p.detach().float() + (up @ down).reshape(p.shape)).to(p.dtype)
                for (n, p), (up, down) in zip(weights.items(), factors.values(), strict=True)
            }

        loss = self._loss(model, model.overlaid(overlay), concept, context)
        recipe = Recipe(
            self.steps, self.lr, "adamw", weight_decay=1e-2, schedule="cosine", warmup=self.warmup
        )
        label = f"erasing {concept.name}"
        optimise(loss, parameters(factors), recipe, context=context, label=label)
        return {n: (up.detach().cpu(), down.detach().cpu()) for n, (up, down) in factors.items()}

    def _loss(
        self, model: Diffusion, student: Diffusion, concept: Concept, context: Context
    ) -> Loss:
        """Return L_era + λ·L_anc."""
        cond, empty = model.embed(self.latents.texts([concept])), model.empty()
        draw, n = self._latents(model, student, cond, context), self.latents.batch
        anchors = self._anchors(model, concept) if self._anchored else None

        def loss(g: torch.Generator, step: int) -> Tensor:
            c = cond[torch.randint(len(cond), (n,), generator=g)]
            x_t, t = draw(g, c)
            a = anchors(g) + empty.expand(self.anchor_empty) if anchors else c[:0]
            rows = torch.arange(len(a)) % n  # every anchor at one of the latents
            x, times = torch.cat([x_t, x_t[rows]]), torch.cat([t, t[rows]])
            with torch.no_grad():
                all_x, all_t = torch.cat([x_t, x]), torch.cat([t, times])
                asked = empty.expand(n) + c + a
                e_0, e_c, e_a = model.eps(all_x, all_t, asked).split([n, n, len(a)])
                target = e_0 - self.eta * (e_c - e_0)
            s_c, s_a = student.eps(x, times, c + a).split([n, len(a)])
            erase = (s_c - target).square().mean()  # step: erasing loss, L_era
            if not len(a):
                return erase
            return erase + self.anchor_weight * (s_a - e_a).square().mean()  # + λ·L_anc

        return loss

    def _latents(
        self, model: Diffusion, student: Diffusion, cond: Conditioning, context: Context
    ) -> Callable[[torch.Generator, Conditioning], tuple[Tensor, Tensor]]:
        """Return what draws one step's x_t and t for its prompts."""
        s = self.latents
        if s.source == "noised":
            own, label = context.stream("pictures"), "pictures of the concept"
            x_0, _ = s.drawn.latents(model, cond, own, context, label)

            def from_pictures(g: torch.Generator, c: Conditioning) -> tuple[Tensor, Tensor]:
                return noised(model, x_0[torch.randint(len(x_0), (s.batch,), generator=g)], g)[:2]

            return from_pictures
        sampler, times = student if s.source == "student" else model, model.schedule.grid(s.steps)

        def sampled(g: torch.Generator, c: Conditioning) -> tuple[Tensor, Tensor]:
            stop = int(torch.randint(1, s.steps, (1,), generator=g))
            noise = model.noise(s.batch, g)
            x_t = sampler.sample(noise, c, steps=s.steps, guidance=s.guidance, stop=stop)
            return x_t, torch.full((s.batch,), times[stop], device=x_t.device)

        return sampled

    def _anchors(
        self, model: Diffusion, concept: Concept
    ) -> Callable[[torch.Generator], Conditioning]:
        """Return what draws the anchors of one step."""
        named, m = model.embed([concept.name]), self.anchor_count
        part = model.sites.sequence
        c = named.rows(part).float()
        if self.anchors == "directions":
            return lambda g: named.expand(m).replaced(
                part, torch.cat([direction(c.cpu(), g).to(c) for _ in range(m)])
            )
        kept = model.embed(concept.keep)
        cosine = torch.cosine_similarity(kept.rows(part).float().flatten(1), c.flatten(1))
        chance = (1 - cosine.abs()).clamp(min=1e-6).pow(self.anchor_power).cpu()  # step: P(a)
        return lambda g: kept[torch.multinomial(chance, m, replacement=True, generator=g)]

    # --- the hook ---

    def _transport(
        self, model: Diffusion, concepts: Sequence[Concept], factors: Factors
    ) -> Transport:
        """Return facilitated transport by the concepts' names and synonyms."""
        called = [(k, name) for k, c in enumerate(concepts) for name in c.names]
        return transport(model, called, factors, self.match, 2 if self.opening == "squared" else 1)


def direction(c: Tensor, g: torch.Generator) -> Tensor:
    """Draw an embedding about as long as `c`, taken with probability 1 − cos, as in their code."""
    while True:
        u = torch.randn(c.shape, generator=g)
        u = u / u.norm()
        if torch.rand((), generator=g) < 1 - (u * c).sum() / c.norm():
            return (0.8 + 0.4 * torch.rand((), generator=g)) * c.norm() * u
