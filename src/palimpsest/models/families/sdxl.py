"""Stable Diffusion XL: two CLIP text towers, a pooled vector, and the picture's size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.models.diffusion import Sampling
from palimpsest.models.families.sd import UNetDiffusion
from palimpsest.models.protocol import Call, Conditioning, Text, TokenSlots
from palimpsest.models.text import ClipText, injected

if TYPE_CHECKING:
    from torch import Tensor


class TwoTowers(ClipText):
    """Two of CLIP's text towers, side by side token by token; the second gives a pooled vector.

    Podell et al., "SDXL", ICLR 2024, arXiv:2307.01952, §2.1: the penultimate hidden states of both,
    joined. A token's vector is its rows in both tables, joined.

    Traps: the second tokenizer pads with a word, `!`, and reads that word as its padding. A single
    `!` of a prompt is read so here, too; `!!` is one token here and two there. The last layer of
    the first tower, and its final norm, reach nothing.
    """

    def __init__(self, first: ClipText, second: ClipText, zeros: bool) -> None:
        super().__init__(first.tokenizer, first.encoder, first.component)
        if first.pieces() != second.pieces() or first.window != second.window:
            raise PalimpsestError("its two tokenizers differ in more than what they pad with")
        self.towers, self.tables = (first, second), first.tables + second.tables
        last = f"encoder.layers.{len(first.encoder.encoder.layers) - 1}."
        self.unread = tuple(f"{first.component}.{n}" for n in (last, "final_layer_norm."))
        self.zeros = zeros
        """Whether ∅ is zeros in place of what the towers make of the empty prompt."""

    def encode(self, call: Call, ids: Tensor, slots: TokenSlots | None) -> dict[str, Tensor]:
        """Return (n, window, w₁ + w₂) hidden states and (n, width) pooled vectors."""
        found, widths = [], [tower.width for tower in self.towers]
        shares: Any = slots.vectors.split(widths, 1) if slots else (None, None)
        for tower, own, share in zip(self.towers, (ids, self._as_second(ids)), shares, strict=True):
            with injected(tower.table, slots and TokenSlots(slots.where, share)):
                found.append(call(tower.component, input_ids=own, output_hidden_states=True))
        hidden = torch.cat([out.hidden_states[-2] for out in found], -1)
        return {"hidden": hidden, "pooled": found[1].text_embeds}

    def empty(self, call: Call, device: torch.device) -> Conditioning | None:
        """Return zeros, or the embedded empty prompt."""
        written = super().empty(call, device)
        return written.zeros() if written and self.zeros else written

    def _as_second(self, ids: Tensor) -> Tensor:
        """Return token ids of the first tokenizer as the second gives them."""
        second, ends = self.towers[1], ids.eq(self.end)
        padding = ends.cumsum(1) > ends  # behind the first end
        for word in self.plain(str(second.tokenizer.pad_token)):
            padding = padding | ids.eq(word)
        return ids.masked_fill(padding, second.pad)


class StableDiffusionXL(UNetDiffusion):
    """A U-Net that reads two CLIP text towers, a pooled vector of the second, and a size.

    Podell et al., "SDXL", ICLR 2024, arXiv:2307.01952. The sizes that it was trained with (§2.2)
    are those of the picture at hand: original and target are its own, and nothing is cropped.
    The autoencoder stays in float32 where its configuration says that less overflows.
    """

    made_of: ClassVar = "StableDiffusionXLPipeline"
    networks: ClassVar = ("unet", "text_encoder", "text_encoder_2", "vae")
    tokenizers: ClassVar = ("tokenizer", "tokenizer_2")
    usual: ClassVar = Sampling(guidance=5.0, noise="torch")

    def __init__(self, name: str, pipeline: Any, sampling: Sampling) -> None:
        super().__init__(name, pipeline, sampling)
        if self.vae.config["force_upcast"]:
            self.vae.float()

    def read_text(self, pipeline: Any) -> Text:
        """Return both towers."""
        first = ClipText(pipeline.tokenizer, pipeline.text_encoder)
        second = ClipText(pipeline.tokenizer_2, pipeline.text_encoder_2, "text_encoder_2")
        return TwoTowers(first, second, pipeline.config["force_zeros_for_empty_prompt"])

    def network(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Ask the U-Net, for a picture of the size of x_t."""
        pixels = self.side // self.latents.shape[1]
        height, width = (pixels * side for side in x_t.shape[2:])
        sizes = x_t.new_tensor([height, width, 0, 0, height, width]).expand(len(x_t), -1)
        hidden, pooled = (cond.parts[part].to(self.dtype) for part in ("hidden", "pooled"))
        added = {"text_embeds": pooled, "time_ids": sizes.to(self.dtype)}
        asked = {"encoder_hidden_states": hidden, "added_cond_kwargs": added}
        return self._call("unet", x_t.to(self.dtype), t, **asked).sample
