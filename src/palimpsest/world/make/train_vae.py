"""Train the world's autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from palimpsest.core.atomic import whole_folder
from palimpsest.world import assets
from palimpsest.world.make.networks import autoencoder, encode, save_model
from palimpsest.world.make.training import Training, shifted

if TYPE_CHECKING:
    from torch import Tensor


def train(training: Training) -> None:
    """Reconstruct in colour: 4·MSE + .3·L1 + 1e-6·KL on 16 × 16 latents of 4 channels."""
    pictures = training.pictures
    vae = autoencoder().to(training.device, memory_format=torch.channels_last).train()  # pyright: ignore[reportArgumentType]

    def loss(g: torch.Generator, step: int) -> Tensor:
        pick = torch.randint(len(pictures.subjects), (16,), generator=g)
        x = (2 * shifted(pictures.floats(pick), g) - 1).to(training.device)
        with torch.autocast(x.device.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
            noise = torch.randn(posterior.mean.shape, generator=g).to(x.device)
            y = vae.decode(posterior.mean + posterior.std * noise).sample.float()  # pyright: ignore[reportAttributeAccessIssue]
        return 4 * F.mse_loss(y, x) + 0.3 * F.l1_loss(y, x) + 1e-6 * posterior.kl().float().mean()

    training.fit("vae", loss, dict(vae.named_parameters()), lr=1.2e-3, warmup=100)
    vae.eval()
    sample = torch.randperm(len(pictures.subjects), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = torch.cat([encode(vae, pictures.floats(i)) for i in sample[:2000].split(50)])
    vae.register_to_config(scaling_factor=1 / float(z.std()))
    with whole_folder(assets.vae(training.out)) as folder:
        save_model(vae, folder)
