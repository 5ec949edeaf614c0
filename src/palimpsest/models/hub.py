"""What others published on the Hub, and what to do where it does not give it, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.quiet import quiet

ID = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?P<file>(/[\w .-]+)*)(@(?P<revision>[\w./-]+))?"
)
"""`owner/name`, a file in it or none, and a revision or none."""
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""What files of weights end in."""
WEIGHTS = (*(f"*{suffix}" for suffix in SUFFIXES), "*.json")
"""What is downloaded of a repository that is no pipeline of Diffusers."""


def published(word: Path) -> Path:
    """Return where something lies that a person named: a place on the disk, or a Hub id.

    `owner/name` is downloaded once and lies in the Hub's cache from then on; `owner/name/FILE` is
    one file of it, and `@revision` behind either another revision than the default branch.

    Raises:
        PalimpsestError: nothing of that name lies here or on the Hub, or the Hub refuses it.
    """
    named = ID.fullmatch(word.as_posix())
    if word.exists() or named is None or word.parent.is_dir():
        return word
    if not named["file"] and word.suffix in SUFFIXES:  # a path that is mistyped
        return word
    repo, revision = named["repo"], named["revision"]
    try:
        return _downloaded(repo, named["file"].strip("/"), revision)
    except (OSError, ValueError, RuntimeError) as error:  # which all of the client's errors are
        if told := refusal(repo, error):
            raise PalimpsestError(told) from None
        why = unreached(repo, error) or str(error).strip().split("\n")[0]
        raise PalimpsestError(
            f"{word}: no such file or folder, and not to be had from the Hub ({why})"
        ) from None


def folder(repo: str, revision: str | None) -> Path | None:
    """Return where a repository lies in the Hub's cache, as far as it was downloaded."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo, "config.json", revision=revision)
    except (OSError, ValueError):
        return None
    return Path(found).parent if isinstance(found, str) else None


@quiet()
def _downloaded(repo: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    if file:
        return Path(hf_hub_download(repo, file, revision=revision))
    try:
        hf_hub_download(repo, "model_index.json", revision=revision)
    except EntryNotFoundError:  # a LoRA, one network, or a file alone
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*WEIGHTS]))
    from diffusers import DiffusionPipeline

    return Path(DiffusionPipeline.download(repo, revision=revision))


def refusal(name: str, error: BaseException) -> str | None:
    """Return what a person can do if the Hub gives a model to nobody without access; else None.

    Args:
        name: the Hub id.
        error: of huggingface_hub, or of a library that it came through.
    """
    from huggingface_hub import constants, errors

    site = constants.ENDPOINT
    page = f"{site}/{name}"
    token = (
        f"set HF_TOKEN to a token of an account that has it ({constants.ENDPOINT}/settings/tokens)"
    )
    met = [*_causes(error)]
    status = next((s for s in map(_status, met) if s is not None), None)
    if any(isinstance(each, errors.GatedRepoError) for each in met):
        return f"{name!r} is gated on the Hub: ask for access at {page}, and {token}"
    if status == 401 or any(isinstance(each, errors.RepositoryNotFoundError) for each in met):
        return (
            f"{name!r} is neither 'world', nor a file or folder here, nor a model that the Hub "
            f"shows to whoever asks: check the name; if it is private or gated, ask for access at "
            f"{page}, and {token}"
        )
    if status == 403:
        return f"the Hub refuses {name!r}: ask for access at {page}, and {token}"
    return None


def unreached(name: str, error: BaseException) -> str | None:
    """Return why a model is not had if it was not downloaded and the Hub is not reached; else None.

    Args: as of `refusal`.
    """
    from huggingface_hub import constants, errors

    away = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    if not any(isinstance(each, away) for each in _causes(error)):
        return None
    why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the Hub cannot be reached"
    return (
        f"it was not downloaded before, and {why}; a gated model also needs HF_TOKEN, and access, "
        f"asked for at {constants.ENDPOINT}/{name}"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    met: set[int] = set()
    while error is not None and id(error) not in met:
        met.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
