"""Load a model by the name a person would give: the built-in world, a folder, a Hub id, a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import isclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import torch

from palimpsest.core import hashes
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_object
from palimpsest.core.kinds import model_kind
from palimpsest.core.quiet import quiet
from palimpsest.models import hub, single_file
from palimpsest.models.clip import ContrastiveEncoder
from palimpsest.models.devices import usable
from palimpsest.models.diffusion import Diffusion, Sampling
from palimpsest.models.families import FAMILIES
from palimpsest.models.llava import Answerer
from palimpsest.patch.tensor_files import checked_tensor, read_dtype
from palimpsest.world import assets

WORLD = Sampling(steps=20, guidance=3.0, batch=32)
"""Evaluation sampling of the world and of models as small."""

FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""How the names of single files end."""
DTYPES = ("float32", "bfloat16", "float16")


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
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        sampling: how a text-to-image model makes evaluation pictures; None takes its family's.
        files: which files are read, of `Files`.

    Raises:
        PalimpsestError: nothing of that name, a model of another kind, or no such device.
    """
    kind, own = model_kind(name)
    told = {"name": name, "device": device, "dtype": dtype, **files}
    if not kind:
        model = load_diffusion(name, device=device, dtype=dtype, sampling=sampling, **files)
        model.loaded = told
        return model
    if sampling is not None:
        raise PalimpsestError(f"{name!r} samples no pictures, so it takes no sampling")
    if files.get("variant") or files.get("base"):
        raise PalimpsestError(f"{name!r} is no text-to-image model: it takes no variant or base")
    load = {"clip": load_clip, "llava": load_llava}[kind]
    model = load(own, device=device, dtype=dtype, revision=files.get("revision"))
    model.loaded = told
    return model


@quiet()
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
        name: `world`, a Diffusers folder, a single file of a whole model, or a Hub id.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
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
    path, device = assets.stable_diffusion() if name == "world" else Path(name), usable(device)
    with or_refused(name, "'world', nor a Diffusers folder, a single file or a Hub id"):
        read = _read(name, path, getattr(torch, dtype), files)
    for part, module in read.pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            moved(module, device, f"{name}: {part}")
    model = read.kind(name, read.pipeline, sampling or read.kind.usual)
    model.files = {what: value for what, value in files.items() if value}
    model.stored, model.left_out = read.stored, read.left_out
    model.read_from(read.files)
    small = model.latents.shape[1] <= 16
    return model.with_sampling(WORLD) if small and sampling is None else model


class Read(NamedTuple):
    """What was read of a text-to-image model."""

    kind: Any
    """Its family."""
    pipeline: Any
    """What that is made of."""
    stored: dict[str, torch.dtype]
    """Network → the precision that its file holds it in."""
    left_out: list[str]
    """Parts that were not loaded."""
    files: hashes.Files
    """What it was read of, as it was before."""


def _read(name: str, path: Path, dtype: torch.dtype, files: Files) -> Read:
    """Return a pipeline of a folder, a single file or the Hub, with what is known of it."""
    import diffusers

    revision, single = files.get("revision"), path.is_file() or path.suffix in FILES
    place = _base(path, files.get("base")) if single else path if path.is_dir() else name
    kind, index, left_out = _family(name, place, revision)
    source, how = getattr(diffusers, kind.made_of), kind.without
    if single:
        origin = hashes.Files.of([path, *_within(place)])
        networks, stored = single_file.networks(path, Path(place), _classes(index), dtype)
        made = source.from_pretrained(str(place), **networks, **how, trust_remote_code=False)
        return Read(kind, made, stored, left_out, origin)
    kinds = {file.name.split(".")[1].split("-")[0] for file in path.glob("*/*.[bs]*")}
    variant = files.get("variant")
    if kinds and not kinds & {"bin", "safetensors"} and not variant:
        variant = min(kinds)  # there are no others
    told = {"variant": variant, "trust_remote_code": False}
    if isinstance(place, str):
        place = Path(source.download(place, revision=revision, **told))
    origin = hashes.Files.of(_within(place))
    networks = _networks(name, place, index, dtype, told)
    stored = {part: found for part in networks if (found := _stored(place / part, variant))}
    made = source.from_pretrained(str(place), **how, **networks, **told)
    return Read(kind, made, stored, left_out, origin)


def _within(place: Path | str) -> list[Path]:
    """Return the files of a folder of Diffusers and of its parts."""
    return sorted([*Path(place).glob("*.*"), *Path(place).glob("*/*.*")])


def _classes(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes of the networks of a folder of Diffusers, by their parts in its index."""
    found = {}
    for part, entry in index.items():
        library, kind = entry if isinstance(entry, list) else (None, "")
        cls = library and getattr(import_module(library), kind, None)
        if isclass(cls) and issubclass(cls, torch.nn.Module):
            found[part] = cls
    return found


def _stored(folder: Path, variant: str | None) -> torch.dtype | None:
    """Return the precision in which a network's weights lie in its folder; None if unknown."""
    files = sorted(folder.glob(f"*.{variant}*.safetensors" if variant else "*.safetensors"))
    if not files:
        return None
    return read_dtype(files[0])


def _networks(
    name: str, place: Path, index: Mapping[str, Any], dtype: torch.dtype, told: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the networks of a folder of Diffusers, each of them whole.

    Args:
        name: what a person called the model.
        place: the folder.
        index: part → library and class, as of the folder's index.
        dtype: their precision.
        told: a variant, if any, and that no code of a stranger is run.

    Raises:
        PalimpsestError: one lacks a weight.
    """
    from diffusers import __version__

    found, variant = {}, told["variant"]
    named = "dtype" if [*map(int, __version__.split(".")[:2])] >= [0, 40] else "torch_dtype"
    for part, cls in _classes(index).items():
        how: dict[str, Any] = {named: dtype}
        if index[part][0] == "transformers":
            how = {"dtype": dtype, "trust_remote_code": False}
        if variant and any((place / part).glob(f"*.{variant}*.*")):
            how["variant"] = variant
        found[part] = whole_network(f"{name}: {part}", cls, place / part, **how)
    return found


def whole_network(what: str, cls: Any, place: Path | str, **how: Any) -> Any:
    """Return a network of Diffusers or Transformers that none of its weights is missing from.

    Safetensors are read first; a pickle is read as tensors alone.

    Args:
        what: names it, in words.
        cls: its class.
        place: its folder or Hub id.
        how: what its `from_pretrained` takes besides.

    Raises:
        PalimpsestError: naming a weight that its file lacks or has in another shape; the libraries
            would draw it at random.
    """
    try:
        model, info = cls.from_pretrained(str(place), output_loading_info=True, **how)
    except (RuntimeError, ValueError) as error:
        why = str(error).strip().split("\n")[0]
        if "ignore_mismatched_sizes" in why:  # where Transformers says which, it is in its log
            why = "one is of another shape than its configuration says"
        raise PalimpsestError(f"{what}: its weights cannot be read ({why})") from error
    wrong = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    lacking = sorted({*info["missing_keys"], *wrong})
    if lacking or info["error_msgs"]:
        which = lacking[0] if lacking else str(info["error_msgs"][0]).split("\n")[0]
        raise PalimpsestError(
            f"{what}: its weights are not whole ({which} is missing or of another shape, one of "
            f"{len(lacking)}); download it again or name another"
        )
    return model


def _base(path: Path, base: str | None) -> Path:
    """Return the folder whose configuration a single file is read with."""
    from huggingface_hub import hf_hub_download

    if not path.is_file():
        raise PalimpsestError(f"{path}: no such file")
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


def _family(
    name: str, place: Path | str, revision: str | None
) -> tuple[Any, dict[str, Any], list[str]]:
    """Return the family of a pipeline in a folder or on the Hub, its index, and what it leaves out.

    Raises:
        PalimpsestError: saying what it is, if no family is made of it, or which part of it is none
            of the libraries' own.
    """
    from huggingface_hub import hf_hub_download

    def read(file: str) -> Any:
        path = Path(place, file)
        if isinstance(place, str):
            path = Path(hf_hub_download(place, file, revision=revision))
        if not path.is_file():
            raise PalimpsestError(f"{place}: no {file}, so not a Diffusers folder")
        return read_object(path)

    index = read("model_index.json")
    asked = str(index.get("_class_name"))
    kinds = {kind.made_of: kind for kind in map(FAMILIES.load, FAMILIES)}
    known = " and ".join(kinds)
    wrong = f"a {asked}, which no family is made of; there are {known}"
    if asked in kinds:
        wrong = kinds[asked].obstacle(read)
    if wrong:
        raise PalimpsestError(f"{name}: {wrong}")
    without = kinds[asked].without
    left_out = [n for n, e in index.items() if n in without and isinstance(e, list) and e and e[0]]
    index = {part: entry for part, entry in index.items() if part not in without}
    for part, entry in index.items():
        library = entry[0] if isinstance(entry, list) and len(entry) == 2 else ""
        if isinstance(entry, list) and library not in ("diffusers", "transformers", None):
            raise PalimpsestError(
                f"{name}: its {part} is {entry}, which may be code of a stranger; only classes of "
                "diffusers and transformers are loaded"
            )
    return kinds[asked], index, left_out


@quiet()
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
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        revision: the Hub revision; None takes the default branch.

    Raises:
        PalimpsestError: nothing of that name, another kind of model, or no such device.
    """
    from transformers import CLIPModel, CLIPTokenizer

    kinds = ("CLIP", CLIPModel, CLIPTokenizer)
    *parts, files = _parts(name, assets.clip(), kinds, (device, dtype, revision))
    model = ContrastiveEncoder(name, *parts)
    model.read_from(files)
    return model


@quiet()
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
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        revision: the Hub revision; None takes the default branch.

    Raises:
        PalimpsestError: nothing of that name, another kind of model, or no such device.
    """
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    kinds = ("LLaVA", LlavaForConditionalGeneration, AutoTokenizer)
    *parts, files = _parts(name, assets.llava(), kinds, (device, dtype, revision))
    model = Answerer(name, *parts)
    model.read_from(files)
    return model


def _parts(
    name: str, world: Path, kinds: tuple[str, Any, Any], how: tuple[str, str, str | None]
) -> tuple[Any, Any, Any, Any, hashes.Files]:
    """Model, tokenizer, mean and deviation from a Transformers folder or the Hub, and its files.

    Args:
        name: what a person called it.
        world: where the world's own lies.
        kinds: the family's name, and the classes of model and tokenizer.
        how: device, precision and revision.
    """
    from transformers import AutoConfig, CLIPImageProcessorPil

    family, of_model, of_tokenizer = kinds
    device, dtype, revision = usable(how[0]), *how[1:]
    place = str(world) if name == "world" else name
    if dtype not in DTYPES:
        raise PalimpsestError(f"no precision {dtype!r}; there are {', '.join(DTYPES)}")
    given: dict[str, Any] = {"trust_remote_code": False}
    given |= {"revision": revision} if revision else {}
    with or_refused(name, f"'world', nor a Transformers folder or a Hub id of a {family}"):
        kind = AutoConfig.from_pretrained(place, **given).model_type
        if kind != family.lower():
            raise PalimpsestError(f"{name!r}: a model of type {kind!r}; name a {of_model.__name__}")
        folder = Path(place) if Path(place).is_dir() else hub.folder(place, revision)
        files = hashes.Files.of(_within(folder) if folder else ())
        model = whole_network(name, of_model, place, dtype=getattr(torch, dtype), **given)
        processor = CLIPImageProcessorPil.from_pretrained(place, **given)
        tokenizer = of_tokenizer.from_pretrained(place, **given)
    mean, deviation = processor.image_mean, processor.image_std
    return moved(model, device, name), tokenizer, mean, deviation, files


@contextmanager
def or_refused(name: str, what: str) -> Iterator[None]:
    """Refuse in one sentence what cannot be loaded; the libraries say nothing meanwhile.

    Args:
        name: what a person called it.
        what: all that it could have been, behind *neither*.

    Raises:
        PalimpsestError: the block raised anything.
    """
    try:
        with quiet():
            yield
    except PalimpsestError:
        raise
    except Exception as error:  # whatever a stranger's file makes of the libraries
        if told := hub.refusal(name, error):
            raise PalimpsestError(told) from error
        reason = hub.unreached(name, error) or str(error).strip().split("\n")[0]
        raise PalimpsestError(
            f"{name!r} is neither {what} that can be loaded here ({reason})"
        ) from error


def moved(module: Any, device: str, what: str) -> Any:
    """Return a network on its device, where all its weights are finite.

    Raises:
        PalimpsestError: no such device, or a weight that is not finite, by its name.
    """
    try:
        module = module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise PalimpsestError(f"the device {device!r} cannot be used here ({error})") from error
    for name, tensor in module.named_parameters():
        checked_tensor(f"{what}: the weight {name}", tensor)
    return module
