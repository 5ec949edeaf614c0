"""Load a model by the name a person would give: the built-in world, a folder, a Hub id, a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_utf8
from palimpsest.core.kinds import model_kind
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.models.families import FAMILIES
from palimpsest.models.llava import Answerer
from palimpsest.world import assets

WORLD = Sampling(steps=20, guidance=3.0, batch=32)
"""Evaluation sampling of the world and of models as small."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Files(TypedDict, total=False):
    """Which files of a model are read."""

    revision: str | None
    """The Hub revision; None takes the default branch."""
    variant: str | None
    """What the names of the weights' files hold before their ending, such as `fp16`."""
    base: str | None
    """For a single file: `world`, a Diffusers folder, or a Hub id that was downloaded before, whose
    configuration and tokenizers the file is read with."""


def load_model(
    name: str = "world",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    sampling: Sampling | None = None,
    **files: Unpack[Files],
) -> Any:
    """Load a model of any kind: a `Diffusion`, a `ContrastiveEncoder` or an `Answerer`.

    Args:
        name: a text-to-image model's as of `load_diffusion`; `clip:` and a name as of `load_clip`;
            `llava:` and a name as of `load_llava`.
        device: `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        sampling: how a text-to-image model makes evaluation pictures; None takes its family's.
        files: which files are read, of `Files`.

    Raises:
        PalimpsestError: nothing of that name, a model of another kind, or no such device.
    """
    kind, own = model_kind(name)
    if not kind:
        return load_diffusion(name, device=device, dtype=dtype, sampling=sampling, **files)
    if sampling is not None:
        raise PalimpsestError(f"{name!r} samples no pictures, so it takes no sampling")
    if files.get("variant") or files.get("base"):
        raise PalimpsestError(f"{name!r} is no text-to-image model: it takes no variant or base")
    load = {"clip": load_clip, "llava": load_llava}[kind]
    return load(own, device=device, dtype=dtype, revision=files.get("revision"))


def load_diffusion(
    name: str = "world",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    sampling: Sampling | None = None,
    **files: Unpack[Files],
) -> Diffusion:
    """Load a text-to-image model.

    Args:
        name: `world`, a Diffusers folder, a `.safetensors` checkpoint, or a Hub id.
        device: `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        sampling: how evaluation pictures are made; None takes `WORLD` for the world and small
            models, and the family's for others.
        files: which files are read, of `Files`.

    Raises:
        PalimpsestError: nothing of that name, a pipeline of another family, no such device, or
            zero terminal SNR with a network that predicts ε.
    """
    if dtype not in DTYPES:
        raise PalimpsestError(f"no precision {dtype!r}; there are {', '.join(DTYPES)}")
    path = assets.stable_diffusion() if name == "world" else Path(name)
    with _or_refused(name, "a Diffusers folder, a .safetensors checkpoint or a Hub id"):
        kind, pipeline = _pipeline(name, path, DTYPES[dtype], files)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            _moved(part, device)
    model = kind(name, pipeline, sampling or kind.usual)
    model.files = {what: value for what, value in files.items() if value}
    small = model.latents.shape[1] <= 16
    return model.with_sampling(WORLD) if small and sampling is None else model


def _pipeline(name: str, path: Path, dtype: torch.dtype, files: Files) -> tuple[Any, Any]:
    """Return a family, and a pipeline that it is made of."""
    import diffusers

    revision, single = files.get("revision"), path.suffix in (".safetensors", ".ckpt")
    place = _base(path, files.get("base")) if single else path if path.is_dir() else name
    kind = _family(name, place, revision)
    source, how = getattr(diffusers, kind.made_of), {"torch_dtype": dtype, **kind.without}
    if single:  # a Hub id as `config` might be downloaded, a folder is not
        how |= {"config": str(place), "local_files_only": True}
        return kind, source.from_single_file(str(path), **how)
    kinds = {file.name.split(".")[1].split("-")[0] for file in path.glob("*/*.[bs]*")}
    if kinds and not kinds & {"bin", "safetensors"} and not files.get("variant"):
        raise PalimpsestError(f"{name}: all weights are of a variant; add --variant {min(kinds)}")
    how |= {"revision": revision, "variant": files.get("variant")}
    return kind, source.from_pretrained(str(place), **how)  # safetensors first; pickles as tensors


def _base(path: Path, base: str | None) -> Path:
    """Return the folder whose configuration a single file is read with."""
    from huggingface_hub import hf_hub_download

    if not path.is_file():
        raise PalimpsestError(f"{path}: no such file")
    if path.suffix == ".ckpt":
        raise PalimpsestError(f"{path}: a pickle is not read; convert it to safetensors first")
    if base is None:
        raise PalimpsestError(
            f"{path}: a single file holds weights alone; name with --base a Diffusers folder, or a "
            "Hub id that was downloaded before, whose configuration and tokenizers it was made with"
        )
    if base == "world" or Path(base).is_dir():
        return assets.stable_diffusion() if base == "world" else Path(base)
    try:
        return Path(hf_hub_download(base, "model_index.json", local_files_only=True)).parent
    except (OSError, ValueError) as error:
        raise PalimpsestError(
            f"--base {base}: neither a Diffusers folder nor a Hub id that was downloaded before"
        ) from error


def _family(name: str, place: Path | str, revision: str | None) -> Any:
    """Return the family of a pipeline in a folder or on the Hub, by its configuration alone.

    Raises:
        PalimpsestError: saying what it is, if no family is made of it.
    """
    from huggingface_hub import hf_hub_download

    def read(file: str) -> Any:
        path = Path(place, file)
        if isinstance(place, str):
            path = Path(hf_hub_download(place, file, revision=revision))
        if not path.is_file():
            raise PalimpsestError(f"{place}: no {file}, so not a Diffusers folder")
        return json.loads(read_utf8(path))

    asked = str(read("model_index.json").get("_class_name"))
    kinds = {kind.made_of: kind for kind in map(FAMILIES.load, FAMILIES)}
    known = " and ".join(kinds)
    wrong = f"a {asked}, which no family is made of; there are {known}"
    if asked in kinds:
        wrong = kinds[asked].obstacle(read)
    if wrong:
        raise PalimpsestError(f"{name}: {wrong}")
    return kinds[asked]


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
    except PalimpsestError:
        raise
    except Exception as error:  # whatever a stranger's file makes of the libraries
        reason = str(error).strip().split("\n")[0]
        raise PalimpsestError(
            f"{name!r} is neither 'world', nor {what} that can be loaded here ({reason})"
        ) from error


def _moved(module: Any, device: str) -> Any:
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise PalimpsestError(f"the device {device!r} cannot be used here ({error})") from error
