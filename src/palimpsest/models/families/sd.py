"""Stable Diffusion 1.x and 2.x, the built-in world's included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import diffusers
import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import Memory, Sampler
from palimpsest.core.lazily import no_grad
from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.models.protocol import Conditioning, Sites, Text
from palimpsest.models.rows import in_calls, rows_a_call
from palimpsest.models.schedule import VariancePreserving
from palimpsest.models.text import ClipText

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from torch import Tensor

HEAD = ("unet.time_embedding.", "unet.conv_norm_out.", "unet.conv_out.")
"""Time embedding and output head, by Diffusers' names; `out.` alone would also match `to_out.`."""
CUT = ("unet.up_blocks.1.attentions.1.", "unet.up_blocks.2.attentions.1.")
"""Where Scissorhands' authors cut, in CompVis' names `output_blocks.4` and `output_blocks.7`."""


SCHEDULERS: dict[Sampler, str] = {
    "ddim": "DDIMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Sampler → Diffusers' class."""


def of_unet(inside: Callable[[str], bool]) -> Callable[[str], bool]:
    """Return whether a parameter is the U-Net's and `inside` says yes."""
    return lambda name: name.startswith("unet.") and inside(name)


GROUPS: dict[str, Callable[[str], bool]] = {
    "xattn": of_unet(lambda name: ".attn2." in name),
    "xattn-kv": of_unet(lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name),
    "noxattn": of_unet(lambda name: ".attn2." not in name and not name.startswith(HEAD)),
    "selfattn": of_unet(lambda name: ".attn1." in name),
    "decoder-selfattn": of_unet(lambda name: ".attn1." in name and name.startswith(CUT)),
    "transformer": of_unet(lambda name: ".attentions." in name),
    "full": of_unet(lambda name: True),
    "text": lambda name: name.startswith("text_encoder"),
}


@dataclass(frozen=True)
class VaeLatents:
    """Latents of an autoencoder, scaled; computed sixteen pictures at a time."""

    vae: AutoencoderKL
    shape: tuple[int, int, int]
    """Channels, height and width of a latent."""

    @property
    def side(self) -> int:
        """Height and width of a picture in pixels."""
        return self.shape[1] * 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def _factor(self) -> float:
        return self.vae.config["scaling_factor"]

    @no_grad
    def encode(self, images: Tensor) -> Tensor:
        """Encode pictures in [0, 1] as the mean of the posterior, scaled."""

        def mean(x: Tensor) -> Tensor:
            return self.vae.encode(x).latent_dist.mean  # type: ignore[union-attr]

        return self._each(2 * images - 1, mean) * self._factor

    @no_grad
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to pictures in [0, 1]."""
        out = self._each(latents / self._factor, lambda z: self.vae.decode(z).sample)  # type: ignore[union-attr]
        return (out / 2 + 0.5).clamp(0, 1)

    def _each(self, x: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        """Return in float32 what is made of each; on the CPU none depends on the others."""
        where = self.vae.device, self.vae.dtype  # a few at a time: all may be too many for it
        found = []
        for some in x.split(1 if self.vae.use_slicing else 16):
            own = some.to(*where)
            rows = rows_a_call(own, self.shape[1:])  # two of each picture while it is sampled
            found.append(in_calls(call, rows and rows // 2, own).float())
        return torch.cat(found)


def trained_schedule(scheduler: DDIMScheduler, device: torch.device) -> VariancePreserving:
    """Return the schedule of a Diffusers scheduler's table, walked as DDIM walks it.

    Raises:
        PalimpsestError: ᾱ falls to 0 in the table, and the network predicts ε: then x_t = ε, which
            says nothing of x_0.
    """
    predicts = str(scheduler.config["prediction_type"])
    if predicts == "epsilon" and float(scheduler.alphas_cumprod.min()) <= 0:
        raise PalimpsestError(
            "the scheduler has zero terminal SNR, where epsilon says nothing of the picture: "
            "correct prediction_type or rescale_betas_zero_snr in scheduler_config.json"
        )

    def spaced(steps: int) -> list[int]:
        fresh: Any = diffusers.DDIMScheduler.from_config(scheduler.config)
        fresh.set_timesteps(steps)
        return [int(t) for t in fresh.timesteps]

    return VariancePreserving(
        scheduler.alphas_cumprod.float().to(device),
        scheduler.final_alpha_cumprod.float().to(device),
        predicts,
        spaced,
    )


def unet_sites(unet: UNet2DConditionModel) -> Sites:
    """Return where things are in a U-Net that reads one sequence of text embeddings."""
    from diffusers.models.attention_processor import Attention

    matrices = [name for name, p in unet.named_parameters() if p.ndim == 2]
    keys_and_values = [f"unet.{n}" for n in matrices if GROUPS["xattn-kv"](f"unet.{n}")]
    blocks: list[Any] = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return Sites(
        denoiser="unet",
        groups=GROUPS,
        text_inputs={"hidden": tuple(keys_and_values)},
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
        blocks=blocks,
        attention={
            name: module
            for name, module in unet.named_modules()
            if isinstance(module, Attention) and name.endswith("attn2")
        },
    )


class UNetDiffusion(Diffusion):
    """A U-Net that reads CLIP's text towers, under a trained schedule, on an autoencoder's latents.

    A family is made of a pipeline of Diffusers, and says in `read_text` what its text side is.
    """

    networks: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "vae")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __init__(self, name: str, pipeline: Any, sampling: Sampling) -> None:
        parts = {part: getattr(pipeline, part) for part in self.networks}
        super().__init__(name, parts, sampling)
        self.unet: UNet2DConditionModel = parts["unet"]
        self.vae: AutoencoderKL = parts["vae"]
        for part in (self.unet, self.vae):  # a tenth to a fifth faster on two cores, and the same
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._made, self.tokenizer = pipeline, pipeline.tokenizer
        self.text_encoder = pipeline.text_encoder
        config = pipeline.scheduler.config
        self.scheduler: Any = diffusers.DDIMScheduler.from_config(config, clip_sample=False)
        size = int(self.unet.config["sample_size"])
        self.schedule = trained_schedule(self.scheduler, self.unet.conv_in.weight.device)
        self.text = self.read_text(pipeline)
        self.sites = unet_sites(self.unet)
        self.latents = VaeLatents(self.vae, (int(self.unet.config["in_channels"]), size, size))

    def use_memory(self, memory: Memory) -> None:
        """Let the autoencoder keep to it, too."""
        super().use_memory(memory)
        self.vae.use_slicing = self.vae.use_tiling = memory == "low"

    @property
    def tiled(self) -> bool:
        """Whether its pictures are larger than the autoencoder's tiles, and low memory is kept."""
        return self.memory == "low" and max(self.drawn_shape[1:]) > self.vae.tile_latent_min_size

    def read_text(self, pipeline: Any) -> Text:
        """Return the text side of a pipeline of Diffusers."""
        raise NotImplementedError

    def pipeline(self) -> Any:
        """Return the model as a Diffusers pipeline, with the scheduler that it came with."""
        made, kind = self._made, type(self._made)
        given = {**made.config, **made.components}
        return kind(**{name: given[name] for name in signature(kind).parameters if name in given})

    def sampler(self, name: Sampler) -> Any:
        """Return a new Diffusers scheduler; `sample` is DDIM where times are evenly spaced.

        With other spacings Diffusers' DDIM does not step to the next of its times.

        Raises:
            PalimpsestError: PNDM in fewer steps than it begins with.
        """
        config = self.scheduler.config
        if name not in SCHEDULERS or (name, config["timestep_spacing"]) == ("ddim", "leading"):
            return super().sampler(name)
        if name == "pndm" and not config.get("skip_prk_steps") and self.sampling.steps < 4:
            raise PalimpsestError(
                f"{self.name!r} by pndm takes 4 steps or more, since its first three are of Runge "
                f"and Kutta; {self.sampling.steps} are asked for"
            )
        return getattr(diffusers, SCHEDULERS[name]).from_config(config)

    @classmethod
    def obstacle(cls, read: Callable[[str], Any]) -> str | None:
        """Return which part is lacking, or that the U-Net reads a picture beside the noised one."""
        index, own = read("model_index.json"), read("unet/config.json")
        parts = (*cls.networks, *cls.tokenizers, "scheduler")
        lacking = [part for part in parts if not (index.get(part) or [None])[0]]
        if lacking:
            return f"a {cls.made_of} without {lacking[0]}; name a whole one"
        given, back = own.get("in_channels", 4), own.get("out_channels", 4)
        beside = f"a U-Net of {given} channels in and {back} out, which reads a picture beside the "
        return beside + "noised one, for inpainting or editing" if given != back else None


class StableDiffusion(UNetDiffusion):
    """A U-Net that reads the last hidden states of one CLIP text tower."""

    made_of: ClassVar = "StableDiffusionPipeline"
    without: ClassVar = {"safety_checker": None, "requires_safety_checker": False}

    def read_text(self, pipeline: Any) -> Text:
        """Return the one tower."""
        return ClipText(pipeline.tokenizer, pipeline.text_encoder)

    def network(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Ask the U-Net."""
        hidden = cond.parts["hidden"].to(self.dtype)
        return self._call("unet", x_t.to(self.dtype), t, encoder_hidden_states=hidden).sample
