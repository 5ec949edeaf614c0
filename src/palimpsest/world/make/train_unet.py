"""Train the world's Stable Diffusion, and its gold models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer

from palimpsest.core.atomic import whole
from palimpsest.models.loading import load_model, whole_network
from palimpsest.patch import Patch
from palimpsest.patch.edits import Replacement
from palimpsest.patch.tensor_files import checked_tensor, read_pickle
from palimpsest.toolbox.optimise import Loss
from palimpsest.world import assets, data
from palimpsest.world.captions import SUBJECTS
from palimpsest.world.make.networks import (
    assemble,
    encode,
    scheduler,
    text_tower,
    tokens,
    unet_model,
)
from palimpsest.world.make.training import Training, Wordings

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel

BATCH = 64
EMPTY_SHARE = 0.1
"""How often a caption is left empty, for classifier-free guidance."""


def train(training: Training) -> None:
    """Predict the noise, every tenth caption empty, weighted by min-SNR-5 (Hang et al. 2023).

    With `training.without` a gold model comes out: the same U-Net, seed for seed, that no caption
    or picture ever showed the concept; it is written as a patch over the world's.
    """
    encoder = text_tower(whole_network("its CLIP", CLIPModel, assets.clip(training.out)))
    tokenizer = CLIPTokenizer.from_pretrained(assets.clip(training.out))
    vae = whole_network("its VAE", AutoencoderKL, assets.vae(training.out)).to(training.device)
    unet = unet_model().to(training.device, memory_format=torch.channels_last).train()  # pyright: ignore[reportArgumentType]
    wordings = Wordings.make()
    text = embeddings_of(encoder, tokenizer, wordings.texts)
    loss = denoising(training, unet, latents_of(training, vae), wordings, text)
    parameters = dict(unet.named_parameters())
    trace = training.fit(
        "unet", loss, parameters, lr=1e-3, weight_decay=0.01, warmup=100, ema=0.998
    )
    unet.load_state_dict(trace.average)
    if training.without is None:
        assemble(assets.stable_diffusion(training.out), vae, encoder, tokenizer, unet.eval())
    else:
        _save_gold(training, unet)


def denoising(
    training: Training,
    unet: UNet2DConditionModel,
    latents: Tensor,
    wordings: Wordings,
    text: Tensor,
) -> Loss:
    """Return the loss of one step on latents and captions that were encoded once."""
    shares = torch.tensor([data.weight(subject) for subject in SUBJECTS])
    allowed = torch.zeros(len(SUBJECTS), dtype=torch.bool)
    allowed[data.without(training.without)] = True
    first, many = _ranges(training.pictures.subjects)
    empty = wordings.texts.index("")
    alphas = scheduler().alphas_cumprod.to(training.device)
    snr = alphas / (1 - alphas)
    weight = snr.clamp(max=5) / snr

    def draw(shares: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Subjects, and a picture and a caption of each."""
        subject = torch.multinomial(shares, BATCH, replacement=True, generator=g)
        pick = first[subject] + (torch.rand(BATCH, generator=g) * many[subject]).long()
        return subject, pick, wordings.draw(subject, g)

    def loss(g: torch.Generator, step: int) -> Tensor:
        subject, pick, caption = draw(shares, g)
        blank = torch.rand(BATCH, generator=g) < EMPTY_SHARE
        t = torch.randint(len(alphas), (BATCH,), generator=g)
        noise = torch.randn(BATCH, *latents.shape[1:], generator=g)
        if training.without is not None:
            # the world's own batch, only the concept's places in it are taken by others
            _, other_pick, other_caption = draw(shares * allowed, g)
            pick = pick.where(allowed[subject], other_pick)
            caption = caption.where(allowed[subject], other_caption)
        caption[blank] = empty
        x, noise, t = (v.to(training.device) for v in (latents[pick], noise, t))
        a = alphas[t][:, None, None, None]
        x_t = (a.sqrt() * x + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        out = unet(x_t, t, text[caption].to(training.device)).sample
        return (weight[t] * (out - noise).square().mean((1, 2, 3))).mean()

    return loss


@torch.no_grad()
def latents_of(training: Training, vae: AutoencoderKL) -> Tensor:
    """Return the training pictures as scaled latents, (n, 4, 16, 16), encoded once and kept."""
    path = training.work / "latents.pt"
    if path.exists():
        n = len(training.pictures.subjects)
        return checked_tensor(str(path), read_pickle(path), (n, 4, 16, 16))
    parts = []
    batches = torch.arange(len(training.pictures.subjects)).split(100)
    with training.context.progress.task("encoding pictures", len(batches)) as task:
        for index in batches:
            parts.append(encode(vae, training.pictures.floats(index)))
            task.advance()
    latents = torch.cat(parts) * vae.config["scaling_factor"]
    with whole(path) as part:
        torch.save(latents, part)
    return latents


@torch.no_grad()
def embeddings_of(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return (n, window, width) last hidden states, encoded once."""
    batches = tokens(tokenizer, texts).split(200)
    return torch.cat([encoder(ids).last_hidden_state for ids in batches])


def _ranges(subjects: Tensor) -> tuple[Tensor, Tensor]:
    """First picture and number of pictures of each subject; the pictures lie in order."""
    many = torch.bincount(subjects, minlength=len(SUBJECTS))
    return many.cumsum(0) - many, many


def _save_gold(training: Training, unet: UNet2DConditionModel) -> None:
    model = load_model(str(assets.stable_diffusion(training.out)))
    edits = {f"unet.{n}": (Replacement(p.detach().half()),) for n, p in unet.named_parameters()}
    about = {"method": "gold", "without": training.without, "seed": training.context.seed}
    assert training.without is not None
    model.checked(Patch(edits, about=about)).save(assets.gold(training.without, training.out))
