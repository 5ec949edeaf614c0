"""Train the world's judge."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from palimpsest.core.kinds import NONE
from palimpsest.judge.networks import Network
from palimpsest.judge.world import heads_of
from palimpsest.models.loading import whole_network
from palimpsest.patch.tensor_files import write_tensors
from palimpsest.world import assets, data
from palimpsest.world.captions import SUBJECTS
from palimpsest.world.make.networks import round_trip
from palimpsest.world.make.training import Training, shifted
from palimpsest.world.vocabulary import DOMAINS

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "1"


def train(training: Training) -> None:
    """Learn from renders, round-tripped renders and degraded ones; never from generated pictures.

    Pictures cut into tiles and shuffled keep their style and show no object: *none of these*.
    """
    heads = heads_of(DOMAINS)
    widths = (32, 64, 96, 128)
    network = Network(heads, widths).to(training.device)
    per_pair = -(-training.pictures_per_pair * 6 // 11)
    pictures = data.load("judge", per_pair, training.context, training.work)
    vae = whole_network("its VAE", AutoencoderKL, assets.vae(training.out)).to(training.device)
    tripped = (round_trip(vae, pictures.floats()) * 255).round().byte()
    truth = {
        kind: torch.tensor([classes.index(data.label(s, kind)) for s in SUBJECTS])
        for kind, classes in heads.items()
    }
    nothing = {kind: classes.index(NONE) for kind, classes in heads.items()}

    def loss(g: torch.Generator, step: int) -> Tensor:
        pick = torch.randint(len(pictures.subjects), (80,), generator=g)
        fresh = torch.rand(len(pick), 1, 1, 1, generator=g) < 0.5
        x = torch.where(fresh, pictures.images[pick], tripped[pick]).float() / 255
        x = degrade(x, g)
        x[:10] = shuffled(x[:10], g)
        x = shifted(x, g).to(training.device)
        total = x.new_zeros(())
        for kind, logits in network(x).items():
            target = truth[kind][pictures.subjects[pick]].clone()
            if kind != "style":
                target[:10] = nothing[kind]
            total = total + F.cross_entropy(logits, target.to(x.device), label_smoothing=0.02)
        return total

    parameters = dict(network.train().named_parameters())
    training.fit("judge", loss, parameters, lr=2e-3, weight_decay=0.02, warmup=50)
    header = {"heads": heads, "widths": widths, "version": VERSION}
    state = {name: t.half().contiguous() for name, t in network.state_dict().items()}
    write_tensors(assets.judge(training.out), state, {"judge": json.dumps(header)})


def degrade(x: Tensor, g: torch.Generator) -> Tensor:
    """Blur, noise, and change of light, each on part of a batch in [0, 1]."""
    n = len(x)
    draw = torch.rand(n, 5, 1, 1, 1, generator=g)
    soft = F.avg_pool2d(F.pad(x, (1,) * 4, mode="replicate"), 3, stride=1)
    x = torch.where(draw[:, 0] < 0.35, torch.lerp(x, soft, draw[:, 1]), x)
    noise = torch.randn(x.shape, generator=g) * 0.06 * draw[:, 2]
    light = 1 + 0.2 * (draw[:, 3] - 0.5)
    shift = 0.1 * (draw[:, 4] - 0.5)
    return (x * light + shift + noise).clamp(0, 1)


def shuffled(x: Tensor, g: torch.Generator, tile: int = 16) -> Tensor:
    """Cut pictures into tiles and lay them in another order."""
    n = x.shape[-1] // tile
    tiles = x.unfold(2, tile, tile).unfold(3, tile, tile).flatten(2, 3)
    tiles = tiles[:, :, torch.randperm(n * n, generator=g)].unflatten(2, (n, n))
    return tiles.permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
