"""Load a model by the name a person would give: the built-in world, a folder, a Hub id, a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import model_kind
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.models.families.sd import StableDiffusion
from palimpsest.models.llava import Answerer
from palimpsest.world import assets

WORLD, REAL = Sampling(steps=20, guidance=3.0, batch=32), Sampling(noise="torch")
"""Evaluation sampling of the world and of models as small, and that of real checkpoints."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str = "world",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    sampling: Sampling | None = None,
    revision: str | None = None,
) -> Any:
    """Load a model of any kind: a `Diffusion`, a `ContrastiveEncoder` or an `Answerer`.

    Args:
        name: a text-to-image model's as of `load_diffusion`; `clip:` and a name as of `load_clip`;
            `llava:` and a name as of `load_llava`.
        device: `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        sampling: how a text-to-image model makes evaluation pictures; None takes its family's.
        revision: the Hub revision; None takes the default branch.

    Raises:
        PalimpsestError: nothing of that name, a model of another kind, or no such device.
    """
    kind, own = model_kind(name)
    if not kind:
        return load_diffusion(
            name, device=device, dtype=dtype, sampling=sampling, revision=revision
        )
    if sampling is not None:
        raise PalimpsestError(f"{name!r} samples no pictures, so it takes no sampling")
    load = {"clip": load_clip, "llava": load_llava}[kind]
    return load(own, device=device, dtype=dtype, revision=revision)


def load_diffusion(
    name: str = "world",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    sampling: Sampling | None = None,
    revision: str | None = None,
) -> Diffusion:
    """Load a text-to-image model.

    Args:
        name: `world`, a Diffusers folder, a `.safetensors` checkpoint, or a Hub id.
        device: `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        sampling: how evaluation pictures are made; None takes `WORLD` for the world and small
            models, `REAL` for others.
        revision: the Hub revision; None takes the default branch.

    Raises:
        PalimpsestError: nothing of that name, a pipeline of another family, no such device, or
            zero terminal SNR with a network that predicts ε.
    """
    if dtype not in DTYPES:
        raise PalimpsestError(f"no precision {dtype!r}; there are {', '.join(DTYPES)}")
    path = assets.stable_diffusion() if name == "world" else Path(name)
    small = name == "world" or path.resolve() == assets.stable_diffusion().resolve()
    pipeline = _pipeline(name, path, DTYPES[dtype], revision)
    names = ("text_encoder", "vae", "unet")
    parts = {part: _moved(getattr(pipeline, part), device) for part in names}
    for part in ("vae", "unet"):  # a tenth to a fifth faster on two cores; the values are the same
        parts[part].to(memory_format=torch.channels_last)
    default = WORLD if small or pipeline.unet.config["sample_size"] <= 16 else REAL
    return StableDiffusion(
        name=name,
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler,
        sampling=sampling or default,
        **parts,
    )


def _pipeline(name: str, path: Path, dtype: torch.dtype, revision: str | None):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    if path.is_dir():
        _check_folder(path)
    elif path.suffix in (".safetensors", ".ckpt") and not path.is_file():
        raise PalimpsestError(f"{path}: no such file")
    elif path.suffix == ".ckpt":
        raise PalimpsestError(f"{path}: a pickle is not read; convert it to safetensors first")
    with _or_refused(name, "a Diffusers folder, a .safetensors checkpoint or a Hub id"):
        if path.is_file():
            pipeline = StableDiffusionPipeline.from_single_file(str(path), torch_dtype=dtype)
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(
                str(path) if path.is_dir() else name,
                torch_dtype=dtype,
                revision=revision,
                safety_checker=None,
                requires_safety_checker=False,
                use_safetensors=True,
            )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    return pipeline


def _check_folder(path: Path) -> None:
    index = path / "model_index.json"
    if not index.is_file():
        raise PalimpsestError(f"{path}: no model_index.json, so not a Diffusers folder")
    kind = json.loads(index.read_text()).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise PalimpsestError(f"{path}: a {kind}; only StableDiffusionPipeline is supported yet")


def load_clip(
    name: str = "world",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
) -> ContrastiveEncoder:
    """Load a CLIP.

    Args:
        name: `world`, a Transformers folder or a Hub id of a `CLIPModel`.
        device: `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        revision: the Hub revision; None takes the default branch.

    Raises:
        PalimpsestError: nothing of that name, another kind of model, or no such device.
    """
    from transformers import CLIPModel, CLIPTokenizer

    kinds = ("CLIP", CLIPModel, CLIPTokenizer)
    return ContrastiveEncoder(name, *_parts(name, assets.clip(), kinds, (device, dtype, revision)))


def load_llava(
    name: str = "world",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
) -> Answerer:
    """Load a LLaVA.

    Args:
        name: `world`, a Transformers folder or a Hub id of a `LlavaForConditionalGeneration`.
        device: `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        revision: the Hub revision; None takes the default branch.

    Raises:
        PalimpsestError: nothing of that name, another kind of model, or no such device.
    """
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    kinds = ("LLaVA", LlavaForConditionalGeneration, AutoTokenizer)
    return Answerer(name, *_parts(name, assets.llava(), kinds, (device, dtype, revision)))


def _parts(
    name: str, world: Path, kinds: tuple[str, Any, Any], how: tuple[str, str, str | None]
) -> tuple[Any, Any, Any, Any]:
    """Model, tokenizer, mean and standard deviation from a Transformers folder or the Hub.

    Args:
        name: what a person called it.
        world: where the world's own lies.
        kinds: the family's name, and the classes of model and tokenizer.
        how: device, precision and revision.
    """
    from transformers import AutoConfig, CLIPImageProcessorPil

    family, of_model, of_tokenizer = kinds
    device, dtype, revision = how
    place = str(world) if name == "world" else name
    if dtype not in DTYPES:
        raise PalimpsestError(f"no precision {dtype!r}; there are {', '.join(DTYPES)}")
    given: dict[str, Any] = {"revision": revision} if revision else {}
    with _or_refused(name, f"a Transformers folder or a Hub id of a {family}"):
        kind = AutoConfig.from_pretrained(place, **given).model_type
        if kind != family.lower():
            raise PalimpsestError(f"{name!r}: a model of type {kind!r}; name a {of_model.__name__}")
        model = of_model.from_pretrained(place, dtype=DTYPES[dtype], **given)
        processor = CLIPImageProcessorPil.from_pretrained(place, **given)
        tokenizer = of_tokenizer.from_pretrained(place, **given)
    return _moved(model, device), tokenizer, processor.image_mean, processor.image_std


@contextmanager
def _or_refused(name: str, what: str) -> Iterator[None]:
    """Refuse in one sentence what cannot be loaded."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise PalimpsestError(
            f"{name!r} is neither 'world', nor {what} that can be loaded here ({reason})"
        ) from error


def _moved(module: Any, device: str) -> Any:
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise PalimpsestError(f"the device {device!r} cannot be used here ({error})") from error
