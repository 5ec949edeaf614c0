"""The published loops as they were published: written out, one latent a step, nothing kept.

Each is written from the paper's equations and does its work as the authors' programs do theirs:

- batch 1; every prediction is a call of its own, but for guided sampling, which always paired them;
- the picture is read, and encoded by the VAE, at every step; the prompts too (SRS-ME's once, as
  there);
- ESD, CiE and SRS-ME hold two whole models: the frozen one is a copy beside the trained one (ESD's
  newer program copies the U-Net alone; FMN needs one model);
- every weight of the trained U-Net gets a gradient, whichever of them the optimiser moves;
- weights lie as PyTorch lays them.

Left out is what would favour us: the activation checkpointing of the older programs. Changed is
what would make the curves differ: latents are the posterior's mean, and all draws come from the
generators of `palimpsest`, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from palimpsest.core.concepts import Concept
from palimpsest.erase import ESD, FMN, SRSME, CiE
from palimpsest.methods import Context
from palimpsest.models.diffusion import Diffusion
from palimpsest.toolbox.optimise import draws

Losses = list[float]


class Plain:
    """The parts of a Stable Diffusion model, asked one thing at a time."""

    def __init__(self, model: Diffusion) -> None:
        self.tokenizer, self.text_encoder = model.tokenizer, model.text_encoder
        self.unet: UNet2DConditionModel = model.unet.to(memory_format=torch.contiguous_format)  # type: ignore[assignment]
        self.vae = model.vae.to(memory_format=torch.contiguous_format)  # type: ignore[call-arg]
        self.unet.requires_grad_(True)
        self.alphas, self.device = model.schedule.alphas_cumprod, model.device
        self.shape = model.latents.shape

    def text(self, prompt: str) -> Tensor:
        """(1, window, width) the embedded prompt."""
        ids = self.tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        with torch.no_grad():
            return self.text_encoder(ids.to(self.device)).last_hidden_state

    def picture(self, file: Path) -> Tensor:
        """(1, 4, h, w) the latent of a picture file."""
        with Image.open(file) as image:
            array = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1
        x = torch.from_numpy(array).permute(2, 0, 1)[None].to(self.device)
        with torch.no_grad():
            return self.vae.encode(x).latent_dist.mean * self.vae.config["scaling_factor"]  # type: ignore[union-attr]

    def noised(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = √ᾱ_t·z + √(1−ᾱ_t)·ε."""
        a = self.alphas[t].reshape(-1, 1, 1, 1)
        return a.sqrt() * z + (1 - a).sqrt() * noise

    def noise(self, g: torch.Generator) -> Tensor:
        """(1, 4, h, w)."""
        return torch.randn(1, *self.shape, generator=g).to(self.device)


def predict(unet: UNet2DConditionModel, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """ε(x, t, c)."""
    return unet(x, t, encoder_hidden_states=c).sample


def train(
    moved: Iterable[nn.Parameter] | Iterable[Tensor],
    loss: Callable[[torch.Generator], Tensor],
    steps: int,
    seed: int,
    optimizer: Callable[..., torch.optim.Optimizer],
    summed: bool = False,
    clip: float | None = None,
) -> Losses:
    """Step by step; the losses. `summed` never clears the gradient."""
    moved = list(moved)
    optimizer, losses = optimizer(moved), []
    for step in range(steps):
        if not summed:
            optimizer.zero_grad()
        value = loss(draws(Context(seed=seed), step))
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(moved, clip)
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def esd(model: Diffusion, concept: Concept, method: ESD, seed: int) -> Losses:
    """ESD-x: eq. 7 on latents sampled to a random step, by the trained or the frozen model."""
    plain = Plain(model)
    student = method.latents.source == "student"
    if student:
        frozen, *_ = deepcopy((plain.unet, plain.vae, plain.text_encoder))
    else:
        frozen = deepcopy(plain.unet).requires_grad_(False)
    sampler = plain.unet if student else frozen
    times = model.schedule.grid(method.latents.steps)[:-1]

    @torch.no_grad()
    def sampled(x: Tensor, c: Tensor, stop: int) -> Tensor:
        empty = plain.text("")
        for i in range(stop):
            t = torch.tensor([times[i]], device=plain.device)
            a, b = plain.alphas[times[i]], plain.alphas[times[i + 1]]
            e_0, e_c = predict(
                sampler, torch.cat([x, x]), torch.cat([t, t]), torch.cat([empty, c])
            ).chunk(2)
            e = e_0 + method.latents.guidance * (e_c - e_0)
            x = b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e
        return x

    def loss(g: torch.Generator) -> Tensor:
        emb_0, emb_p, emb_n = plain.text(""), plain.text(concept.name), plain.text(concept.name)
        torch.randint(1, (1,), generator=g)
        stop = int(torch.randint(len(times), (1,), generator=g))
        noise, low = plain.noise(g), max(0, times[stop] - (times[0] - times[1]) + 1)
        t = torch.randint(low, times[stop] + 1, (1,), generator=g).to(plain.device)
        with torch.no_grad():
            x_t = sampled(noise, emb_p, stop)
            e_0 = predict(frozen, x_t, t, emb_0)
            e_p = predict(frozen, x_t, t, emb_p)
        e_n = predict(plain.unet, x_t, t, emb_n)
        return nn.functional.mse_loss(e_n, e_0 - method.eta * (e_p - e_0))

    moved = [p for name, p in plain.unet.named_parameters() if "attn2" in name]
    return train(moved, loss, method.steps, seed, lambda p: torch.optim.Adam(p, lr=method.lr))


def pictured(plain: Plain, folder: Path, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """A picture of the folder, read, encoded and noised: x_t and t."""
    files = sorted(folder.iterdir())
    file = files[int(torch.randint(len(files), (1,), generator=g))]
    t = torch.randint(len(plain.alphas), (1,), generator=g).to(plain.device)
    noise = plain.noise(g)
    return plain.noised(plain.picture(file), noise, t), t


def cie(model: Diffusion, concept: Concept, method: CiE, seed: int) -> Losses:
    """CiE: the correlation, and the L1 distance of the cross-attention from the frozen model's."""
    plain = Plain(model)
    frozen, *_ = deepcopy((plain.unet, plain.vae, plain.text_encoder))
    moved = [p for name, p in plain.unet.named_parameters() if "attn2" in name]
    fixed = [p for name, p in frozen.named_parameters() if "attn2" in name]
    folder = method.latents.folder
    assert folder is not None

    def loss(g: torch.Generator) -> Tensor:
        x_t, t = pictured(plain, folder, g)
        emb, emb_0 = plain.text(concept.name), plain.text("")
        l1 = sum((p - q).abs().sum() for p, q in zip(moved, fixed, strict=True)) / len(moved)
        with torch.no_grad():
            e_0 = predict(frozen, x_t, t, emb_0)
            e_c = predict(frozen, x_t, t, emb)
        own_0 = predict(plain.unet, x_t, t, emb_0)
        own_c = predict(plain.unet, x_t, t, emb)
        return ((own_c - own_0) * (e_c - e_0)).mean() + method.sparsity * l1

    adam = lambda p: torch.optim.Adam(p, lr=method.lr)  # noqa: E731
    return train(moved, loss, method.steps, seed, adam, summed=method.recipe.summed)


def srs_me(model: Diffusion, concept: Concept, method: SRSME, seed: int) -> Losses:
    """SRS-ME for one concept: w·S added in every key and value, both predictions asked for anew."""
    S = method.basis_scale * method.basis(model, concept, [concept])
    plain = Plain(model)
    frozen, *_ = deepcopy((plain.unet, plain.vae, plain.text_encoder))
    w: list[Tensor] = []
    for name, layer in plain.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            assert isinstance(layer, nn.Linear)
            part = torch.zeros(layer.out_features, len(S), device=plain.device, requires_grad=True)
            layer.register_forward_hook(
                lambda module, args, out, part=part: out + args[0] @ (part @ S).T
            )
            w.append(part)
    folder, emb, emb_0 = method.latents.folder, plain.text(concept.name), plain.text("")
    assert folder is not None

    def loss(g: torch.Generator) -> Tensor:
        x_t, t = pictured(plain, folder, g)
        with torch.no_grad():
            e_0 = predict(frozen, x_t, t, emb_0)
            e_c = predict(frozen, x_t, t, emb)
        own_c = predict(plain.unet, x_t, t, emb)
        own_0 = predict(plain.unet, x_t, t, emb_0)
        l1 = torch.stack([(part @ S).abs().sum() for part in w]).sum() / len(w)
        return ((own_c - own_0) * (e_c - e_0)).mean() + method.sparsity * l1

    adam = lambda p: torch.optim.Adam(p, lr=method.lr)  # noqa: E731
    return train(w, loss, method.steps, seed, adam, summed=method.recipe.summed)


class Recording:
    """Attention that keeps the probabilities of some tokens."""

    def __init__(self, kept: list[Tensor], positions: list[int]) -> None:
        self.kept, self.positions = kept, positions

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *_: Any, **__: Any):
        """What the layer answers."""
        q = attn.head_to_batch_dim(attn.to_q(hidden_states))
        k = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        v = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        A = attn.get_attention_scores(q, k)
        self.kept.append(A[..., self.positions])
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(A @ v)))


def fmn(model: Diffusion, concept: Concept, method: FMN, seed: int) -> Losses:
    """Forget-Me-Not: the norm of the attention of the concept's words and of the prompt's ends."""
    plain, kept = Plain(model), []
    prompt = f"a photo of {concept.name}"
    ends = model.text.ids([prompt])[0].eq(model.text.end).nonzero().flatten().tolist()
    recording = Recording(kept, [*model.text.span(prompt, concept.name), *ends])
    for name, module in plain.unet.named_modules():
        if name.endswith("attn2"):
            module.set_processor(recording)  # type: ignore[operator]
    assert method.drawn.folder is not None
    files = sorted(method.drawn.folder.iterdir())

    def loss(g: torch.Generator) -> Tensor:
        file = files[int(torch.randint(len(files), (1,), generator=g))]
        t = torch.randint(len(plain.alphas), (1,), generator=g).to(plain.device)
        noise = plain.noise(g)
        kept.clear()
        predict(plain.unet, plain.noised(plain.picture(file), noise, t), t, plain.text(prompt))
        return torch.cat([A.flatten() for A in kept]).norm()

    def adamw(p: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(p, lr=method.lr, weight_decay=method.weight_decay)

    return train(plain.unet.parameters(), loss, method.steps, seed, adamw, clip=method.clip)


LOOPS = {ESD: esd, CiE: cie, SRSME: srs_me, FMN: fmn}
"""An eraser → its plain loop."""
