"""Concept-semipermeable membranes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError, at_least
from palimpsest.core.streams import generator
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.protocol import Conditioning
from palimpsest.patch import Patch
from palimpsest.patch.edits import LowRank
from palimpsest.patch.hooks import Transport
from palimpsest.toolbox.latents import noised
from palimpsest.toolbox.optimise import Recipe, optimise
from palimpsest.toolbox.pictures import draw

Draw = Callable[[torch.Generator, Conditioning], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SPM:
    """Train a rank-1 adapter per concept, and let each prompt open it as far as it asks.

    Lyu et al., "One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing
    Applications", CVPR 2024, arXiv:2312.16145. With ε* the frozen model, ε the one with the
    membrane and a the anchors, L = L_era + λ·L_anc:
    L_era = ‖ε(x_t, c) − [ε*(x_t, ∅) − η·(ε*(x_t, c) − ε*(x_t, ∅))]‖²,
    L_anc = ‖ε(x_t, a) − ε*(x_t, a)‖², anchors random directions or, with P(a) ∝
    (1 − |cos(a, c)|)^α, texts to keep.
    """

    steps: int = 3000
    """Optimisation steps for each concept."""
    lr: float = 1e-4
    """AdamW's peak learning rate, decayed along a half cosine."""
    warmup: int = 500
    """Steps of linear warm-up."""
    eta: float = 1.0
    """Strength of the negative guidance, η."""
    anchor_weight: float = 1000.0
    """λ: weight of latent anchoring; 0 leaves it out."""
    anchor_count: int = 4
    """Anchors a step."""
    anchors: Literal["directions", "keep"] = "directions"
    """What is held: random directions as long as the concept's own embedding (the authors' code),
    or what the concept keeps."""
    anchor_power: float = 1.0
    """α: how strongly distant anchors are preferred among what is kept."""
    layers: Literal["transformer", "all"] = "transformer"
    """Where adapters lie: every linear layer and convolution of the transformer blocks (the
    authors' code), or of the whole U-Net."""
    latents: Literal["student", "noised"] = "student"
    """Where x_t comes from: sampled by the model under training, or pictures of the concept with
    noise added (cheaper, not published)."""
    sampling_steps: int = 30
    """Length of the DDIM schedule that x_t, or the pictures, are sampled on."""
    guidance: float = 3.0
    """Guidance that x_t, or the pictures, are sampled with."""
    batch: int = 1
    """Latents a step."""
    pictures: int = 64
    """For `noised`: how many pictures of the concept are made once, before training."""
    wordings: Literal["name", "sentences"] = "name"
    """What the concept is called in training: its bare name, or every sentence that asks for it."""
    transport: bool = True
    """Facilitated transport: a sampling hook opens each adapter as far as the prompt asks for its
    concept. Off, the adapters are shifts of weights like any other, which add up."""
    match: Literal["max", "text", "tokens"] = "max"
    """What opens an adapter: the larger of the text embeddings' cosine and the share of the
    concept's words in the prompt, or one of the two."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "keep": {"anchors": "keep"},
        "world": {
            "steps": 250,
            "lr": 3e-3,
            "warmup": 0,
            "anchor_weight": 10.0,
            "anchors": "keep",
            "latents": "noised",
            "sampling_steps": 20,
            "batch": 4,
            "wordings": "sentences",
        },
    }
    bibtex: ClassVar[str] = """@inproceedings{lyu2024one,
  title={One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing
         Applications},
  author={Lyu, Mengyao and Yang, Yuhong and Hong, Haiwen and Chen, Hui and Jin, Xuan and He, Yuan
          and Xue, Hui and Han, Jungong and Ding, Guiguang},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2024}
}"""

    def __post_init__(self) -> None:
        at_least(self, steps=1, lr=0, warmup=0, anchor_weight=0, anchor_count=1, anchor_power=0)
        at_least(self, sampling_steps=2, batch=1, pictures=1)

    def __call__(self, model: Diffusion, concepts: Sequence[Concept], *, context: Context) -> Patch:
        """Erase the concepts, each by a membrane of its own.

        Raises:
            PalimpsestError: a concept keeps nothing to anchor on, or the edit changes nothing.
        """
        self.check(model, concepts)
        each = [self._membrane(model, c, k, context) for k, c in enumerate(concepts)]
        up = {n: torch.cat([found[f"{n}|up"] for found in each], 1) for n in self._weights(model)}
        down = {n: torch.cat([found[f"{n}|down"] for found in each], 0) for n in up}
        about = {"method": "spm", "arguments": asdict(self)}
        if self.transport:
            hook = self._transport(model, concepts, up, down)
            return model.checked(Patch({}, about=about, hook=hook))
        return model.checked(Patch({n: (LowRank(up[n], down[n]),) for n in up}, about=about))

    def check(self, model: Diffusion, concepts: Sequence[Concept]) -> None:
        """Refuse concepts whose membrane has nothing to be anchored on."""
        for concept in concepts:
            if self._anchored and self.anchors == "keep" and not concept.keep:
                raise PalimpsestError(
                    f"{concept.name!r} keeps nothing that its membrane could be anchored on: give "
                    "it a list to keep, or set anchors to `directions` or anchor_weight to 0"
                )

    def moves(self, model: Diffusion) -> dict[str, int]:
        """Entries of one concept's adapter, by the weight beside which they lie."""
        return {n: len(p) + p[0].numel() for n, p in self._weights(model).items()}

    def evaluations(self) -> tuple[int, int]:
        """U-Net evaluations of one latent for one concept, without and with gradient."""
        if self.latents == "noised":
            before = self.pictures * 2 * self.sampling_steps
        else:  # half the schedule on average
            before = self.steps * self.batch * self.sampling_steps
        held = self.anchor_count if self._anchored else 0
        return before + self.steps * (2 * self.batch + held), self.steps * (self.batch + held)

    # --- training ---

    @property
    def _anchored(self) -> bool:
        return self.anchor_weight > 0

    def _weights(self, model: Diffusion) -> dict[str, Tensor]:
        """The weights that get an adapter."""
        return {
            name: p
            for name, p in model.parameters("full").items()
            if p.ndim in (2, 4) and (self.layers == "all" or ".attentions." in name)
        }

    def _membrane(
        self, model: Diffusion, concept: Concept, k: int, context: Context
    ) -> dict[str, Tensor]:
        """One concept's trained factors, `name|up` (out, 1) and `name|down` (1, in), on the CPU."""
        weights, g = self._weights(model), generator(context.seed, 2, k)
        factors: dict[str, Tensor] = {}
        for name, p in weights.items():
            wide = p[0].numel()
            down = (2 * torch.rand(1, wide, generator=g) - 1) / wide**0.5
            factors[f"{name}|up"] = torch.zeros(len(p), 1).to(p.device).requires_grad_()
            factors[f"{name}|down"] = down.to(p.device).requires_grad_()

        def overlay() -> dict[str, Tensor]:
            shifts = {n: factors[f"{n}|up"] @ factors[f"{n}|down"] for n in weights}
            return {n: p.detach().float() + shifts[n].reshape(p.shape) for n, p in weights.items()}

        loss = self._loss(model, model.overlaid(overlay), concept, context)
        recipe = Recipe(
            steps=self.steps,
            lr=self.lr,
            optimizer="adamw",
            weight_decay=1e-2,
            schedule="cosine",
            warmup=self.warmup,
        )
        optimise(loss, factors, recipe, context=context, label=f"erasing {concept.name}")
        return {name: tensor.detach().cpu() for name, tensor in factors.items()}

    def _loss(
        self, model: Diffusion, student: Diffusion, concept: Concept, context: Context
    ) -> Callable[[torch.Generator, int], Tensor]:
        names = concept.sentences if self.wordings == "sentences" else (concept.name,)
        cond, empty, n = model.embed(names), model.empty(), self.batch
        x_of = self._latents(model, student, cond, context)
        anchors = self._anchors(model, concept) if self._anchored else None

        def loss(g: torch.Generator, step: int) -> Tensor:
            c = cond[torch.randint(len(cond), (n,), generator=g)]
            x_t, t = x_of(g, c)
            a = anchors(g) if anchors else c[:0]
            rows = torch.arange(len(a)) % n  # every anchor at one of the latents
            x, times = torch.cat([x_t, x_t[rows]]), torch.cat([t, t[rows]])
            with torch.no_grad():
                all_x, all_t = torch.cat([x_t, x]), torch.cat([t, times])
                e_0, e_c, e_a = model.eps(all_x, all_t, empty.expand(n) + c + a).split(
                    [n, n, len(a)]
                )
                target = e_0 - self.eta * (e_c - e_0)
            s_c, s_a = student.eps(x, times, c + a).split([n, len(a)])
            erase = (s_c - target).square().mean()
            return erase + self.anchor_weight * (s_a - e_a).square().mean() if len(a) else erase

        return loss

    def _anchors(
        self, model: Diffusion, concept: Concept
    ) -> Callable[[torch.Generator], Conditioning]:
        """What draws the anchors of one step."""
        named, m = model.embed([concept.name]), self.anchor_count
        part = model.sites.sequence
        c = named.rows(part).float()
        if self.anchors == "directions":
            return lambda g: named.expand(m).replaced(
                part, torch.cat([direction(c.cpu(), g).to(c) for _ in range(m)])
            )
        kept = model.embed(concept.keep)
        cosine = torch.cosine_similarity(kept.rows(part).float().flatten(1), c.flatten(1))
        chance = (1 - cosine.abs()).clamp(min=1e-6).pow(self.anchor_power).cpu()
        return lambda g: kept[torch.multinomial(chance, m, replacement=True, generator=g)]

    def _latents(
        self, model: Diffusion, student: Diffusion, cond: Conditioning, context: Context
    ) -> Draw:
        """What draws (x_t, t) for one step."""
        steps, guidance, n = self.sampling_steps, self.guidance, self.batch
        if self.latents == "noised":
            x_0, _ = draw(
                model,
                cond,
                self.pictures,
                generator(context.seed, 1),
                steps=steps,
                guidance=guidance,
                context=context,
                label="pictures of the concept",
            )

            def from_pictures(g: torch.Generator, c: Conditioning) -> tuple[Tensor, Tensor]:
                return noised(model, x_0[torch.randint(len(x_0), (n,), generator=g)], g)

            return from_pictures
        times = model.schedule.grid(steps)[:-1]

        def sampled(g: torch.Generator, c: Conditioning) -> tuple[Tensor, Tensor]:
            stop = int(torch.randint(1, steps, (1,), generator=g))
            noise = model.noise(n, g)
            x_t = student.sample(noise, c, steps=steps, guidance=guidance, stop=stop)
            return x_t, torch.full((n,), times[stop], device=x_t.device)

        return sampled

    # --- the hook ---

    def _transport(
        self,
        model: Diffusion,
        concepts: Sequence[Concept],
        up: dict[str, Tensor],
        down: dict[str, Tensor],
    ) -> Transport:
        """Facilitated transport by the concepts' names and synonyms."""
        called = [(k, name) for k, c in enumerate(concepts) for name in (c.name, *c.synonyms)]
        special = set(model.text.special)
        rows = [model.text.plain(name) for _, name in called]
        return Transport(
            up=up,
            down=down,
            references=model.rows([name for _, name in called]).float().cpu(),
            owner=tuple(k for k, _ in called),
            words=tuple(tuple(w for w in dict.fromkeys(row) if w not in special) for row in rows),
            match=self.match,
        )


def direction(c: Tensor, g: torch.Generator) -> Tensor:
    """A random embedding about as long as `c`, taken with probability 1 − cos, as in their code."""
    while True:
        u = torch.randn(c.shape, generator=g)
        u = u / u.norm()
        if torch.rand((), generator=g) < 1 - (u * c).sum() / c.norm():
            return (0.8 + 0.4 * torch.rand((), generator=g)) * c.norm() * u
