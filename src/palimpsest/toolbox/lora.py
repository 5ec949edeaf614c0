"""PEFT's LoRAs on a model's attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import peft
import torch

from palimpsest.models.diffusion import Diffusion
from palimpsest.models.factors import Factors

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def lora(model: Diffusion, rank: int, g: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Put PEFT's LoRA on every attention projection of the denoiser; remove it in the end.

    Yields its trainable weights by name, in float32 whatever the model's precision: Adam's steps
    vanish in half precision. Up-projections start at zero, so nothing changes yet; the others start
    from draws that `g` seeds, since PEFT takes no generator.
    """
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        init_lora_weights="gaussian",
        target_modules=list(model.sites.lora_targets),
    )
    network: Any = model.component(model.sites.denoiser)
    with torch.random.fork_rng():
        torch.manual_seed(g.initial_seed())
        network.add_adapter(config)
    try:
        weights: dict[str, Tensor] = {
            name: p for name, p in network.named_parameters() if p.requires_grad
        }
        for parameter in weights.values():
            parameter.data = parameter.data.float()
        yield weights
    finally:
        network.unload_lora()
        network.requires_grad_(False)


def factors_of(model: Diffusion) -> Factors:
    """Return (up, down) of every adapted weight, with LoRA's own scaling multiplied in."""
    found, part = {}, model.sites.denoiser
    for name, module in model.component(part).named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            up = module.lora_B["default"].weight.detach() * module.scaling["default"]  # pyright: ignore[reportCallIssue]
            down = module.lora_A["default"].weight.detach()  # pyright: ignore[reportCallIssue]
            found[f"{part}.{name}.weight"] = (up.float().cpu(), down.float().cpu().clone())
    return found


def added(parts: Sequence[Factors], scale: float = 1.0) -> Factors:
    """Return several LoRAs of the same layers as one: their ranks add up, as do their shifts."""
    return {
        name: (
            torch.cat([part[name][0] * scale for part in parts], 1),
            torch.cat([part[name][1] for part in parts]),
        )
        for name in parts[0]
    }
