"""Stable Diffusion 1.x and 2.x, the built-in world's included, as the methods see it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from palimpsest.hooks import Hook, Shut
from palimpsest.models.adapters import Gate, adapted
from palimpsest.models.editable import Editable
from palimpsest.models.groups import select
from palimpsest.optimise import generator
from palimpsest.patch import Patch
from palimpsest.prompts import Prompt
from palimpsest.types import Context, PalimpsestError, ParameterGroup

COMPONENTS = ("unet", "text_encoder", "vae")


@dataclass(frozen=True)
class Conditioning:
    """Embedded prompts. Opaque to methods: they index, repeat and join it."""

    hidden: Tensor
    """(n, window, width) last hidden states of the text encoder."""
    ids: Tensor | None = None
    """(n, window) token ids of the prompts, −1 in rows that came from no words; None if none did.
    Nothing is computed from them but by hooks that look at what was asked."""

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, index: Tensor | slice | list[int]) -> Conditioning:
        return Conditioning(self.hidden[index], None if self.ids is None else self.ids[index])

    def expand(self, n: int) -> Conditioning:
        """One prompt, n times."""
        ids = None if self.ids is None else self.ids.expand(n, -1)
        return Conditioning(self.hidden.expand(n, -1, -1), ids)

    def __add__(self, other: Conditioning) -> Conditioning:
        hidden = torch.cat([self.hidden, other.hidden])
        if self.ids is None and other.ids is None:
            return Conditioning(hidden)
        return Conditioning(hidden, torch.cat([self._ids(), other._ids()]))

    def _ids(self) -> Tensor:
        if self.ids is not None:
            return self.ids
        return torch.full(self.hidden.shape[:2], -1, device=self.hidden.device)


@dataclass(frozen=True)
class Sampling:
    """How pictures are made for evaluation; methods state their own sampling in their fields."""

    steps: int = 50
    """Steps of DDIM (η = 0)."""
    guidance: float = 7.5
    """Classifier-free guidance."""
    batch: int = 4
    """Pictures made at once; no picture depends on it."""

    def __str__(self) -> str:
        return f"DDIM {self.steps} steps, guidance {self.guidance:g}"

    def recorded(self, record: Mapping[str, Any]) -> Sampling:
        """Return this sampling with the steps and the guidance of a run's record.

        Older records have only the text, in `model`; what a record lacks stays as it is.

        Raises:
            PalimpsestError: the text is not one of `Sampling`.
        """
        if "sampling" in record:
            return replace(self, **record["sampling"])
        text = record.get("model", {}).get("sampling")
        if text is None:
            return self
        found = re.fullmatch(r"DDIM (\d+) steps, guidance (\S+)", text)
        if found is None:
            raise PalimpsestError(f"the record's sampling {text!r} cannot be read; run it again")
        return replace(self, steps=int(found[1]), guidance=float(found[2]))


@dataclass
class Diffusion(Editable):
    """A latent diffusion model behind a small set of verbs.

    Losses are written in ε, as the papers do; `eps` converts from whatever the U-Net predicts.
    Shapes: pictures (n, 3, height, width) in [0, 1]; latents (n, 4, height/f, width/f), scaled.
    """

    name: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        self._adopt({name: getattr(self, name) for name in COMPONENTS})
        self._hook: Hook | None = None
        self._gate = Gate()

    # --- what it is ---

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return self.unet.conv_in.weight.device  # the module's own property walks all of it

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.unet.conv_in.weight.dtype

    @property
    def window(self) -> int:
        """Tokens of a prompt, begin and end included."""
        return int(self.tokenizer.model_max_length)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        size = int(self.unet.config["sample_size"])
        return int(self.unet.config["in_channels"]), size, size

    @property
    def side(self) -> int:
        """Height and width of its pictures in pixels."""
        return self.latent_shape[1] * 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: `epsilon`, `v_prediction` or `sample`."""
        return str(self.scheduler.config["prediction_type"])

    @cached_property
    def alphas(self) -> Tensor:
        """(1000,) ᾱ_t in float32."""
        return self.scheduler.alphas_cumprod.float().to(self.device)

    def parameters(self, group: ParameterGroup) -> dict[str, Tensor]:
        """The named group's parameters by canonical name."""
        return {name: self._parameters[name] for name in select(list(self._parameters), group)}

    # --- edits ---

    @contextmanager
    def patched(self, *patches: Patch | None) -> Iterator[Self]:
        """The model under patches; afterwards its weights are the very same tensors as before.

        One of the patches may have a sampling hook, which is honoured until then: `unconditional`
        says what the hook puts in the empty prompt's place, and so `sample`, `invert` and
        `generate` start guidance there; `eps` opens the hook's adapters as far as its own prompts
        ask, and `guided` as far as the prompts asked for do, for both of its predictions. Views
        made by `student` and `overlaid` inside keep to it.

        Raises:
            PalimpsestError: a patch of another base model, or a second hook.
        """
        with super().patched(*patches):
            yield self

    @contextmanager
    def _worn(self, hook: Hook) -> Iterator[None]:
        """Honour a hook."""
        if self._hook is not None:
            raise PalimpsestError(
                f"the model already wears a patch with a sampling hook ({self._hook.kind}), and "
                "can wear one; leave one out"
            )
        self._hook = hook
        try:
            with adapted({"unet": self.unet}, hook.adapters, self._gate):
                yield
        finally:
            self._hook = None

    def unedited(self) -> Diffusion:
        """A view, from within `patched`, that answers as the model does without any patch."""
        view = self.overlaid(lambda: self._pristine)
        view._hook = self._hook and Shut(self._hook)
        return view

    # --- text ---

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """(n, window) token ids, padded and cut."""
        return self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.window,
            return_tensors="pt",
        ).input_ids.to(self.device)

    def overlong(self, prompts: Sequence[str]) -> list[int]:
        """Positions of the prompts that do not fit the window and will be cut."""
        ids = self.tokenizer(list(prompts)).input_ids
        return [i for i, row in enumerate(ids) if len(row) > self.window]

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, each distinct one once."""
        distinct = list(dict.fromkeys(prompts))
        ids = self.tokens(distinct)
        parts = [self.embed_tokens(part).hidden for part in ids.split(64)]
        place = {text: i for i, text in enumerate(distinct)}
        return Conditioning(torch.cat(parts), ids)[[place[text] for text in prompts]]

    def unconditional(self) -> Conditioning:
        """What guidance starts from: the empty prompt, or what a hook puts in its place."""
        return self.embed([self._hook.empty if self._hook else ""])

    def embed_tokens(self, ids: Tensor) -> Conditioning:
        """Encode (n, window) token ids as they stand."""
        return Conditioning(self._call("text_encoder", input_ids=ids).last_hidden_state)

    @property
    def token_table(self) -> str:
        """Name of the parameter that holds one embedding a token, (vocabulary, width)."""
        table = self.text_encoder.get_input_embeddings().weight
        return next(name for name, p in self._parameters.items() if p is table)

    def token_span(self, prompt: str, words: str) -> list[int]:
        """Every token position of `prompt` that belongs to an occurrence of `words`.

        Raises:
            PalimpsestError: the prompt does not contain the words, or not within the window.
        """
        whole = self.tokenizer(prompt, truncation=True, max_length=self.window).input_ids
        part = self.tokenizer(words, add_special_tokens=False).input_ids
        starts = [i for i in range(len(whole)) if part and whole[i : i + len(part)] == part]
        if not starts and self.overlong([prompt]):
            raise PalimpsestError(
                f"the prompt {prompt!r} is longer than the model's window of {self.window} tokens "
                f"and is cut before {words!r} ends; shorten it"
            )
        if not starts:
            raise PalimpsestError(f"the prompt {prompt!r} does not contain {words!r}")
        return [i + k for i in starts for k in range(len(part))]

    # --- pictures and latents ---

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures to latents (the posterior's mean, scaled)."""
        factor = self.vae.config["scaling_factor"]
        x = (2 * images - 1).to(self.device, self.vae.dtype)
        parts = [self.vae.encode(b).latent_dist.mean for b in x.split(16)]  # type: ignore[union-attr]
        return torch.cat(parts).float() * factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures."""
        z = (latents / self.vae.config["scaling_factor"]).to(self.device, self.vae.dtype)
        parts = [self.vae.decode(b).sample for b in z.split(16)]  # type: ignore[union-attr]
        return (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1)

    def noise(self, n: int, g: torch.Generator) -> Tensor:
        """(n, 4, h, w) standard normal noise, drawn on the CPU so that every device agrees."""
        return torch.randn(n, *self.latent_shape, generator=g).to(self.device)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·ε."""
        a = self._alpha(t)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def _alpha(self, t: Tensor) -> Tensor:
        return self.alphas[t].reshape(-1, 1, 1, 1)

    # --- prediction ---

    def eps(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """ε(x_t, t, c) in float32.

        Args:
            x_t: (n, 4, h, w) noised latents.
            t: (n,) or () timesteps.
            cond: n embedded prompts, or one for all.
        """
        return self._eps(x_t, t, cond, cond)

    def _eps(self, x_t: Tensor, t: Tensor, cond: Conditioning, asked: Conditioning) -> Tensor:
        """ε(x_t, t, c) with a hook's adapters opened by the prompts of `asked`."""
        t = t.to(self.device).expand(len(x_t))
        hidden = cond.hidden.expand(len(x_t), -1, -1)
        blend = self._hook.blend if self._hook is not None else ()
        if self._hook is not None and self._hook.adapters:
            asked = asked.expand(len(x_t))
            scales = self._hook.scales(asked.hidden, asked.ids)
            self._gate.scale = torch.cat([scales * opening for _, opening in blend])
        if len(blend) > 1:  # all in one batch, then added up
            n, shares = len(blend), [share for share, _ in blend]
            parts = self._predicted(x_t.repeat(n, 1, 1, 1), t.repeat(n), hidden.repeat(n, 1, 1))
            return sum(s * e for s, e in zip(shares, parts.chunk(n), strict=True))  # type: ignore[return-value]
        return self._predicted(x_t, t, hidden)

    def _predicted(self, x_t: Tensor, t: Tensor, hidden: Tensor) -> Tensor:
        """What the U-Net predicts, as ε; all of one length."""
        out = self._call(
            "unet", x_t.to(self.dtype), t, encoder_hidden_states=hidden.to(self.dtype)
        ).sample.float()
        a = self._alpha(t)
        if self.prediction_type == "v_prediction":
            return a.sqrt() * out + (1 - a).sqrt() * x_t
        if self.prediction_type == "sample":
            return (x_t - a.sqrt() * out) / (1 - a).sqrt()
        return out

    def guided(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, empty: Conditioning, guidance: Tensor
    ) -> Tensor:
        """ε(∅) + w·(ε(c) − ε(∅)), both in one batch; w is (n, 1, 1, 1), ∅ is `unconditional()`."""
        if bool((guidance == 1).all()):
            return self.eps(x_t, t, cond)
        n = len(x_t)
        cond, empty = cond.expand(n), empty.expand(n)
        e_0, e_c = self._eps(
            torch.cat([x_t, x_t]), t.expand(n).repeat(2), empty + cond, cond + cond
        ).chunk(2)
        return e_0 + guidance * (e_c - e_0)

    # --- sampling ---

    def timesteps(self, steps: int) -> list[int]:
        """DDIM's timesteps, from noise to picture."""
        if not 1 <= steps <= len(self.alphas):
            raise PalimpsestError(f"{steps} sampling steps; there must be 1 to {len(self.alphas)}")
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(steps)  # pyright: ignore[reportAttributeAccessIssue]
        return [int(t) for t in scheduler.timesteps]  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def sample(
        self,
        x: Tensor,
        cond: Conditioning,
        *,
        steps: int,
        guidance: float | Tensor,
        start: int = 0,
        stop: int | Tensor | None = None,
    ) -> Tensor:
        """Deterministic DDIM (Song et al. 2021, eq. 12, σ = 0) from step `start` to `stop`.

        Args:
            x: (n, 4, h, w) latents as they stand before step `start`.
            cond: n prompts, or one for all.
            steps: length of the whole schedule.
            guidance: one number, or one per latent.
            start: first step taken, 0 being pure noise.
            stop: first step not taken, one number or one per latent; None goes to the end.

        Returns:
            (n, 4, h, w) latents; clean ones if it went to the end.
        """
        view = self if self._overlay is None else self.still()  # the weights of all steps
        times, empty, cond = self.timesteps(steps), self.unconditional(), cond.expand(len(x))
        w = torch.as_tensor(guidance, device=x.device, dtype=x.dtype).reshape(-1, 1, 1, 1)
        w = w.expand(len(x), 1, 1, 1)
        last = torch.as_tensor(len(times) if stop is None else stop).expand(len(x))
        for i in range(start, int(last.max())):
            t = torch.tensor(times[i], device=x.device)
            on = (last > i).nonzero().flatten().to(x.device)  # those still on their way
            eps = view.guided(x[on], t, cond[on], empty, w[on])
            moved = self._move(x[on], eps, self.alphas[t], self._alpha_after(times, i))
            x = x.index_copy(0, on, moved)
        return x

    def _alpha_after(self, times: list[int], i: int) -> Tensor:
        if i + 1 < len(times):
            return self.alphas[times[i + 1]]
        return self.scheduler.final_alpha_cumprod.float().to(self.device)

    @staticmethod
    def _move(x: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """From noise level ᾱ = a to b along ε: the same step forwards and backwards."""
        return (x - (1 - a).sqrt() * eps) * (b / a).sqrt() + (1 - b).sqrt() * eps

    @torch.no_grad()
    def invert(
        self,
        x: Tensor,
        cond: Conditioning,
        *,
        steps: int,
        guidance: float,
        until: int,
    ) -> Tensor:
        """DDIM backwards: from clean latents up to the noise level of step `until`.

        x_t = (x_s − √(1−ᾱ_s)·ε)·√(ᾱ_t/ᾱ_s) + √(1−ᾱ_t)·ε  with ε taken at (x_s, t), s just below t.

        Args:
            x: (n, 4, h, w) clean latents, taken to stand at the schedule's lowest level.
            cond: n prompts, or one for all.
            steps: length of the whole schedule.
            guidance: classifier-free guidance.
            until: the step whose noise level is reached; `sample(start=until)` leads back.
        """
        levels = self.timesteps(steps)[until:][::-1]
        empty = self.unconditional()
        w = torch.full((len(x), 1, 1, 1), float(guidance), device=x.device)
        for below, level in pairwise(levels):
            eps = self.guided(x, torch.tensor(level, device=x.device), cond, empty, w)
            x = self._move(x, eps, self.alphas[below], self.alphas[level])
        return x

    def start(self, prompts: Sequence[Prompt]) -> Tensor:
        """The noise each picture starts from, by its seed and index alone."""
        draws = [self.noise(1, generator(p.seed, p.index)) for p in prompts]
        return torch.cat(draws)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt | str],
        context: Context | None = None,
        label: str = "",
        cond: Conditioning | None = None,
    ) -> Tensor:
        """Make one picture per prompt, by this model's own evaluation sampling.

        A picture depends on its text, seed, index and guidance, not on its neighbours.

        Args:
            prompts: what to make; a bare string is a prompt with seed 0.
            context: shows the progress, if given.
            label: names the progress line.
            cond: what is asked in place of the prompts' texts, one for each of them.

        Returns:
            (n, 3, height, width) pictures in [0, 1] on the CPU.
        """
        full = [Prompt(p) if isinstance(p, str) else p for p in prompts]
        cond = self.embed([p.text for p in full]) if cond is None else cond
        images = []
        with (context or Context()).progress.task(label or "pictures", len(full)) as task:
            for index in torch.arange(len(full)).split(self.sampling.batch):
                batch = [full[i] for i in index.tolist()]
                own = self.sampling.guidance
                w = torch.tensor([own if p.guidance is None else p.guidance for p in batch])
                latents = self.sample(
                    self.start(batch), cond[index], steps=self.sampling.steps, guidance=w
                )
                images.append(self.decode(latents).cpu())
                task.advance(len(batch))
        return torch.cat(images)
