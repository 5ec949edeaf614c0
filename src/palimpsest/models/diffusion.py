"""A text-to-image diffusion model as methods see it; what families differ in is in `families/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from palimpsest.core.errors import PalimpsestError, check_finite
from palimpsest.core.kinds import Sampler
from palimpsest.core.lazily import no_grad
from palimpsest.core.moved import ATTRIBUTES
from palimpsest.core.prompts import Prompt, named, several
from palimpsest.methods import Context
from palimpsest.models.adapters import Gate, adapted
from palimpsest.models.groups import Grouped
from palimpsest.models.protocol import Conditioning, LatentSpace, Schedule, Sites, Text, TokenSlots
from palimpsest.models.rows import in_calls, rows_a_call
from palimpsest.models.sampling import Sampling as Sampling
from palimpsest.models.sampling import halved, noise_of
from palimpsest.patch.hooks import ClosedHook, Hook

if TYPE_CHECKING:
    from torch import Tensor, nn


class Diffusion(Grouped):
    """A latent diffusion model behind a small set of verbs.

    A family gives the five attributes below and `network`. Losses are written in ε, as the papers
    do: `eps` converts from whatever the network predicts, and `predict` is its own output.
    Shapes: pictures (n, 3, height, width) in [0, 1]; latents (n, channels, h, w), scaled.
    """

    schedule: Schedule
    text: Text
    sites: Sites
    latents: LatentSpace
    sampling: Sampling

    files: Mapping[str, Any] = {}
    """Which of its files it was loaded from, where someone said."""
    made_of: ClassVar[str] = ""
    """The class of the pipelines of Diffusers that it is made of: `kind(name, pipeline, sampling)`;
    empty of a family that is made otherwise."""
    without: ClassVar[Mapping[str, Any]] = {}
    """What is left out of such a pipeline when it is loaded."""
    usual: ClassVar[Sampling] = Sampling(noise="torch")
    """How it makes evaluation pictures unless someone says otherwise."""

    def __init__(self, name: str, parts: Mapping[str, nn.Module], sampling: Sampling) -> None:
        self.name, self.sampling = name, sampling
        self._adopt(parts)
        self._hook: Hook | None = None
        self._gate = Gate()

    def __getattr__(self, name: str) -> Any:
        if name in ATTRIBUTES:
            raise AttributeError(f"model.{name} is now model.{ATTRIBUTES[name]}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def network(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Ask the denoiser: (n, channels, h, w) noised latents, (n,) times, n prompts."""
        raise NotImplementedError

    def pipeline(self) -> Any:
        """Return the model as a Diffusers pipeline, with the scheduler that it came with."""
        raise NotImplementedError

    @classmethod
    def obstacle(cls, read: Callable[[str], Any]) -> str | None:
        """Return why a pipeline of `made_of` is none of this family, if so, by its configuration.

        Args:
            read: returns what a JSON file of the pipeline's folder says.
        """

    # --- what it is ---

    @property
    def _first(self) -> Tensor:
        """The denoiser's first parameter; walking over all of them would take time."""
        return next(self._parts[self.sites.denoiser].parameters())

    @property
    def side(self) -> int:
        """Height and width of its pictures in pixels."""
        return self.latents.side

    @property
    def offers(self) -> frozenset[str]:
        """What a method may need of this model."""
        found = {
            "diffusion": True,
            "an empty prompt": self.text.guides,
            "attention maps of the text": bool(self.sites.attention),
            "a CLIP text encoder": bool(self.text.tables),
            "text inputs": bool(self.sites.text_inputs),
            "adapters": bool(self.sites.lora_targets),
        }
        return frozenset(name for name, there in found.items() if there)

    def with_sampling(self, sampling: Sampling) -> Self:
        """Return a view that makes evaluation pictures in another way."""
        view = copy(self)
        view.sampling = sampling
        return view

    # --- edits ---

    @contextmanager
    def _hooked(self, hook: Hook) -> Iterator[None]:
        """Honour a sampling hook, of which there may be one.

        `unconditional` says what the hook puts in the empty prompt's place, and so `sample`,
        `invert` and `generate` start guidance there; `eps` opens the hook's adapters as far as its
        own prompts ask, and `guided` as far as the prompts asked for do, for both of its
        predictions. Views made by `student` and `overlaid` meanwhile keep to it.

        Raises:
            PalimpsestError: a second hook, or one that does not read this model's prompts.
        """
        if self._hook is not None:
            raise PalimpsestError(
                f"a patch with a sampling hook ({self._hook.kind}) is applied already, and a model "
                "can have one; leave one out"
            )
        if hook.adapters:
            asked = self.embed([""])
            hook.scales(asked.rows(self.sites.sequence), asked.ids)
        self._hook = hook
        try:
            with adapted(self._parts, hook.adapters, self._gate):
                yield
        finally:
            self._hook = None

    def unedited(self) -> Self:
        """Return a view, from within `patched`, that answers as the model without any patch."""
        view = self.overlaid(lambda: self._pristine)
        view._hook = self._hook and ClosedHook(self._hook)
        return view

    # --- text ---

    def embed(self, prompts: Sequence[str] | str, *, apart: bool = False) -> Conditioning:
        """Encode prompts, each distinct one once; a text alone is one prompt.

        Args:
            prompts: their texts.
            apart: on the CPU, none depends on the others, in its last bits either.

        Raises:
            PalimpsestError: no prompt at all.
        """
        prompts = named(prompts, self.name)
        distinct = list(dict.fromkeys(prompts))
        ids, rows = self.text.ids(distinct).to(self.device), 64
        if apart and self.device.type == "cpu":
            rows = 8
            ids = ids[torch.arange(-(-len(ids) // rows) * rows).clamp(max=len(ids) - 1)]
        each = [self.text.encode(self._call, part, None) for part in ids.split(rows)]
        parts = {name: torch.cat([some[name] for some in each]) for name in each[0]}
        place = {text: i for i, text in enumerate(distinct)}
        return Conditioning(parts, ids)[[place[text] for text in prompts]]

    def embed_ids(self, ids: Tensor, slots: TokenSlots | None = None) -> Conditioning:
        """Encode (n, window) token ids as they are, with vectors in place of some if wanted."""
        parts = self.text.encode(self._call, ids, slots)
        return Conditioning(parts, ids if slots is None else None)

    def rows(self, prompts: Sequence[str], part: str = "") -> Tensor:
        """Return the (n, rows, width) text embeddings that the matrices of `part` read.

        Args:
            prompts: n prompts.
            part: of `sites.text_inputs`; the one that holds a row a token when left out.
        """
        return self.embed(prompts).rows(part or self.sites.sequence)

    def empty(self) -> Conditioning:
        """Return ∅, what guidance starts from without any hook: by `sampling`, or the family's."""
        cond = self.text.empty(self._call, self.device)
        if cond is None:
            raise PalimpsestError(f"{self.name!r} has distilled guidance and no empty prompt")
        if self.sampling.empty is None:
            return cond
        return self.embed([""]) if self.sampling.empty == "text" else cond.zeros()

    def unconditional(self) -> Conditioning:
        """Return what guidance starts from: ∅, or what a hook puts in its place."""
        return self.embed([self._hook.empty]) if self._hook and self._hook.empty else self.empty()

    def token_vectors(self) -> Tensor:
        """Return (vocabulary, width) token embeddings, those of several encoders joined."""
        return torch.cat([self.weight(n).to(self.device) for n in self.text.tables], 1).detach()

    # --- pictures and latents ---

    def encode(self, images: Tensor) -> Tensor:
        """Encode pictures as latents."""
        return self.latents.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to pictures."""
        return self.latents.decode(latents)

    def noise(self, n: int, g: torch.Generator) -> Tensor:
        """Draw (n, channels, h, w) standard normal noise on the CPU: every device agrees."""
        return torch.randn(n, *self.latents.shape, generator=g).to(self.device)

    def times(self, n: int, g: torch.Generator) -> Tensor:
        """Draw (n,) times to train at."""
        return self.schedule.draw(n, g).to(self.device)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t = α_t·x_0 + σ_t·ε."""
        a, s = self.schedule.scales(t)
        return a * latents + s * noise

    # --- prediction ---

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the network's own output (ε, v or x_0) in float32; a hook is honoured.

        Args:
            x_t: (n, channels, h, w) noised latents.
            t: (n,) or () times.
            cond: n embedded prompts, or one for all.
        """
        return self._predict(x_t, t, cond, cond)

    def eps(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return ε(x_t, t, c) in float32; arguments as of `predict`."""
        t = t.to(self.device).expand(len(x_t))
        return self.schedule.split(self.predict(x_t, t, cond), x_t, t)[1]

    def _predict(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        asked: Conditioning,
        rows: int | None = None,
    ) -> Tensor:
        """Return the network's output with a hook's adapters opened by the prompts of `asked`.

        Args:
            x_t: (n, channels, h, w) noised latents.
            t: (n,) or () times.
            cond: n embedded prompts, or one for all.
            asked: n, or one for all.
            rows: how many rows a call computes; None computes all in one.
        """
        n = len(x_t)
        t, cond = t.to(self.device).expand(n), cond.expand(n)
        blend = self._hook.blend if self._hook is not None else ((1.0, 1.0),)
        k, shares = len(blend), [share for share, _ in blend]
        inputs = [x_t.repeat(k, 1, 1, 1), t.repeat(k), sum([cond] * (k - 1), cond)]
        if self._hook is not None and self._hook.adapters:
            asked = asked.expand(n)
            scales = self._hook.scales(asked.rows(self.sites.sequence), asked.ids)
            inputs.append(torch.cat([scales * opening for _, opening in blend]))
        out = in_calls(self._ask, rows, *inputs)
        if k == 1:
            return out
        parts = zip(shares, out.chunk(k), strict=True)  # all in one batch, then added up
        return sum(share * part for share, part in parts)  # type: ignore[return-value]

    def _ask(self, *inputs: Any) -> Tensor:
        """Return what `_asked` does; with low memory row by row."""
        return self._in_rows(self._asked, *inputs, kept=len(inputs) < 4)

    def _asked(self, x_t: Tensor, t: Tensor, cond: Conditioning, scale: Any = None) -> Tensor:
        """Return the network's output in float32, with a hook's adapters opened by `scale`."""
        self._gate.scale = scale
        return self.network(x_t, t, cond).float()

    def guided(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        empty: Conditioning,
        guidance: Tensor,
        rows: int | None = None,
    ) -> Tensor:
        """Return out(∅) + w·(out(c) − out(∅)), both in one batch (Ho & Salimans 2022, eq. 6).

        The output is the network's own, which x_0 and ε are linear in. w is (n, 1, 1, 1), ∅ is
        `unconditional()`; where w is 1, ∅ has no say.
        """
        n = len(x_t)
        cond = cond.expand(n)
        if bool((guidance == 1).all()):
            return self._predict(x_t, t, cond, cond, rows)
        both = torch.cat([x_t, x_t]), t.expand(n).repeat(2), empty.expand(n) + cond
        out_0, out_c = self._predict(*both, cond + cond, rows).chunk(2)
        return torch.where(guidance == 1, out_c, out_0 + guidance * (out_c - out_0))

    # --- sampling ---

    @no_grad
    def sample(
        self,
        x: Tensor,
        cond: Conditioning,
        *,
        steps: int,
        guidance: float | Tensor,
        start: int = 0,
        stop: int | Tensor | None = None,
        apart: bool = False,
    ) -> Tensor:
        """Sample deterministically from step `start` to `stop` of the schedule's grid.

        x_s = α_s·x_0 + σ_s·ε with x_0 and ε as predicted at t: DDIM with σ = 0 (Song et al. 2021,
        eq. 12) for a variance-preserving schedule, Euler's method for a rectified flow.

        Args:
            x: (n, channels, h, w) latents as they are before step `start`.
            cond: n prompts, or one for all.
            steps: length of the whole grid.
            guidance: one number, or one per latent.
            start: first step taken, 0 being pure noise.
            stop: first step not taken, one number or one per latent; None goes to the end.
            apart: on the CPU, no latent depends on how many are sampled with it; where their number
                is a setting of the method's own, that is not worth its time.

        Returns:
            (n, channels, h, w) latents; clean ones if it went to the end.
        """
        view = self if self._overlay is None else self.still()  # the weights of all steps
        grid, empty = self._grid(steps), self.unconditional()
        cond = cond.expand(len(x))
        w = torch.as_tensor(guidance, device=x.device, dtype=x.dtype).reshape(-1, 1, 1, 1)
        w = w.expand(len(x), 1, 1, 1)
        last = torch.as_tensor(steps if stop is None else stop).expand(len(x))
        rows = rows_a_call(x) if apart else None
        for i in range(start, int(last.max())):
            on = (last > i).nonzero().flatten().to(x.device)  # those still on their way
            out = view.guided(x[on], grid[i], cond[on], empty, w[on], rows)
            x = x.index_copy(0, on, self._move(x[on], out, grid[i], grid[i + 1]))
        return x

    def _grid(self, steps: int) -> list[Tensor]:
        return [torch.tensor(t, device=self.device) for t in self.schedule.grid(steps)]

    def _move(self, x: Tensor, out: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Go from time t, where x is, to s: the same step forwards and backwards."""
        x_0, eps = self.schedule.split(out, x, t)
        a, b = self.schedule.scales(s)
        return a * x_0 + b * eps

    @no_grad
    def invert(
        self, x: Tensor, cond: Conditioning, *, steps: int, guidance: float, until: int
    ) -> Tensor:
        """Run the sampler backwards: from clean latents up to the noise level of step `until`.

        x_t = α_t·x_0 + σ_t·ε with x_0 and ε read off (x_s, ε(x_s, t)), s the next lower time.

        Args:
            x: (n, channels, h, w) clean latents, taken to be at the grid's lowest level.
            cond: n prompts, or one for all.
            steps: length of the whole grid.
            guidance: classifier-free guidance.
            until: the step whose noise level is reached; `sample(start=until)` leads back.
        """
        levels = self._grid(steps)[until:-1][::-1]
        empty = self.unconditional()
        w = torch.full((len(x), 1, 1, 1), float(guidance), device=x.device)
        for below, level in pairwise(levels):
            out = self.guided(x, level, cond, empty, w)
            x = self._move(x, out, below, level)
        return x

    def sampler(self, name: Sampler) -> Any:
        """Return a new Diffusers scheduler for evaluation pictures; None means `sample`.

        Raises:
            PalimpsestError: the family has no such sampler.
        """
        if name != "ddim":
            raise PalimpsestError(f"draw.sampler is {name}, which {self.name!r} does not have")
        return None

    def _evaluate(self, x: Tensor, cond: Conditioning, w: Tensor) -> Tensor:
        """Sample from pure noise by the evaluation sampler, as a Diffusers pipeline does.

        Args:
            x: (n, channels, h, w) standard normal noise.
            cond: n prompts.
            w: (n,) guidance.

        Returns:
            (n, channels, h, w) clean latents.
        """
        steps, scheduler = self.sampling.steps, self.sampler(self.sampling.sampler)
        if scheduler is None:
            return self.sample(x, cond, steps=steps, guidance=w, apart=True)
        self.schedule.grid(steps)  # which refuses a number of steps that there cannot be
        view = self if self._overlay is None else self.still()  # the weights of all steps
        w, empty = w.to(x).reshape(-1, 1, 1, 1), self.unconditional()
        scheduler.set_timesteps(steps, device=x.device)
        x = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            y = scheduler.scale_model_input(x, t)
            out = view.guided(y, t, cond, empty, w, rows_a_call(y))
            x = scheduler.step(out, t, x).prev_sample
        return x

    def start(self, prompts: Sequence[Prompt]) -> Tensor:
        """Draw the noise each picture starts from, by its seed and index alone."""
        how, shape = self.sampling.noise, self.drawn_shape
        return torch.cat([noise_of(p, shape, how) for p in prompts]).to(self.device)

    @property
    def drawn_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents of evaluation pictures.

        Raises:
            PalimpsestError: a size that no latent of this model has.
        """
        size, (channels, height, width) = self.sampling.size, self.latents.shape
        if size is None:
            return channels, height, width
        pixels = self.side // height  # that one entry of a latent stands for
        if size < pixels or size % pixels:
            raise PalimpsestError(
                f"draw.size is {size}; it must be a multiple of {pixels} pixels for {self.name!r}"
            )
        return channels, size // pixels, size // pixels

    @no_grad
    def generate(
        self,
        prompts: Sequence[Prompt | str] | Prompt | str,
        context: Context | None = None,
        label: str = "",
        cond: Conditioning | None = None,
    ) -> Tensor:
        """Make one picture per prompt, by this model's own evaluation sampling.

        A picture depends on its text, seed, index and guidance, not on its neighbours.

        Args:
            prompts: what to make; a bare string is a prompt with seed 0. Of none, n is 0.
            context: shows the progress, if given, and is told when the memory holds no such batch:
                the next are half as large. Of several processes each makes a part of the batches.
            label: names the progress line.
            cond: what is asked in place of the prompts' texts, one for each of them.

        Returns:
            (n, 3, height, width) pictures in [0, 1] on the CPU.

        Raises:
            PalimpsestError: a picture with NaN or an infinite number, or a sampler that the family
                does not have.
            OutOfMemoryError: the memory does not hold one picture.
        """
        context = context or Context()
        full = [Prompt(p) if isinstance(p, str) else p for p in several(prompts)]
        if not full:
            side = self.sampling.size or self.side
            return torch.empty(0, 3, side, side)
        texts = [p.text for p in full]
        cond = self.embed(texts, apart=True) if cond is None else cond
        images, size = [], self.sampling.batch
        with context.progress.task(label or "pictures", len(full)) as task:
            for which in context.group.own(torch.arange(len(full)).split(size)):
                batch = [full[i] for i in which.tolist()]
                made, size = self._fitting(batch, cond[which], size, context)
                images.append(made)
                task.advance(len(made))
            every = context.group.joined(images)
            task.advance(len(full) - sum(map(len, images)))
        return torch.cat(every)

    def _fitting(
        self, batch: Sequence[Prompt], cond: Conditioning, size: int, context: Context
    ) -> tuple[Tensor, int]:
        """Return the pictures of a batch, and how many at once the memory holds, `size` at most."""
        parts, done = [], 0
        while done < len(batch):
            some = batch[done : done + size]
            try:
                parts.append(self._pictures(some, cond[torch.arange(done, done + len(some))]))
            except (RuntimeError, MemoryError) as error:
                size = halved(len(some), error, context)
                continue
            done += len(some)
        return torch.cat(parts), size

    def _pictures(self, batch: Sequence[Prompt], cond: Conditioning) -> Tensor:
        """Return the pictures of a batch, (n, 3, height, width) on the CPU."""
        own = self.sampling.guidance
        w = torch.tensor([own if p.guidance is None else p.guidance for p in batch])
        latents = self._evaluate(self.start(batch), cond, w)
        images = self.decode(latents).cpu()
        for prompt, z, image in zip(batch, latents, images, strict=True):
            check_finite(f"the picture of {prompt.text!r}", z, image)
        return images
