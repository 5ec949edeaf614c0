"""What several verbs share: the model and who judges it, prompts, runs and their patches."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from palimpsest.core.atomic import reason
from palimpsest.core.concepts import Concept
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import model_kind, presets_for
from palimpsest.core.prompts import Prompt, read_csv
from palimpsest.core.registry import nearest
from palimpsest.judge import references
from palimpsest.runs.folder import Run
from palimpsest.world import assets

if TYPE_CHECKING:
    from palimpsest.judge.clip import Clip
    from palimpsest.models.diffusion import Diffusion
    from palimpsest.patch import Patch
    from palimpsest.runs.scoring import Panel

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the work is done."""

    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1` or `mps`."""
    dtype: Dtype | None = None
    """Precision of the model's weights; that of the run, or float32, when left out."""

    def load(self, name: str, dtype: str = "float32") -> Diffusion:
        """Load a text-to-image model by the name a person gave; memory is counted from here on.

        Raises:
            PalimpsestError: there is none of that name.
        """
        kind, own = model_kind(name)
        if kind:
            raise PalimpsestError(
                f"--model {name}: this command wants a text-to-image model; try palimpsest erase "
                f"with it, or palimpsest {kind} --model {own or 'world'}"
            )
        silence()
        from palimpsest.core.memory import set_baseline
        from palimpsest.models.loading import load_diffusion

        set_baseline()
        place = name if name == "world" or not Path(name).exists() else str(Path(name).resolve())
        return load_diffusion(place, device=self.device, dtype=self.dtype or dtype)

    def load_of(self, run: Run) -> Diffusion:
        """Load the model of a run, with the precision and the sampling of the run."""
        record = run.record()
        model = self.load(record["model"]["name"], record["model"]["dtype"])
        model.sampling = model.sampling.recorded(record)
        return model


def panel(device: str) -> Panel:
    """The world's judge and its CLIP."""
    silence()
    from palimpsest.judge.clip import Clip
    from palimpsest.judge.world import Classifier
    from palimpsest.runs.scoring import Panel
    from palimpsest.world import assets

    judge = Classifier.load(assets.judge(), device)
    if not assets.clip().is_dir():
        raise PalimpsestError(f"{assets.clip()}: the world's CLIP does not lie here")
    return Panel(judge, Clip.load(assets.clip(), device))


def panel_of(run: Run, device: str, look_with: str | None = None) -> Panel:
    """Load the judges that a run's record names; `look_with` names another CLIP than the record.

    Raises:
        PalimpsestError: one of them cannot be loaded.
    """
    silence()
    from palimpsest.runs.scoring import Panel

    record = run.record()
    default = {"name": "world CLIP"} if of_world(record) else None  # of records without `clip`
    try:
        judge = references.load_judge(record.get("judge"), device)
        if look_with is not None:
            return Panel(judge, clip(look_with, device))
        return Panel(judge, references.load_clip(record.get("clip", default), device))
    except PalimpsestError as error:
        raise PalimpsestError(f"{run.folder}: {error}") from error


def of_world(record: Mapping[str, Any]) -> bool:
    """Whether a run was judged by the world's judge."""
    return references.reference(record.get("judge")) == references.WORLD


def check_look_with(name: str | None, world: bool) -> None:
    """Refuse the world's CLIP for pictures of another model.

    Raises:
        PalimpsestError: `name` is the world's CLIP, and not every picture is of the world.
    """
    own = name is not None and (name == "world" or Path(name).resolve() == assets.clip().resolve())
    if own and not world:
        raise PalimpsestError(
            f"--look-with {name}: the world's CLIP knows only the world's pictures and words, and "
            "these are pictures of another model; name another CLIP, such as "
            "openai/clip-vit-base-patch32"
        )


def clip(name: str, device: str) -> Clip:
    """A CLIP by its folder or Hub id.

    Raises:
        PalimpsestError: there is none, or a model of another kind.
    """
    silence()
    from palimpsest.judge.clip import Clip

    return Clip.load(name, device)


def world_concept(name: str, anchor: str | None, panel: Panel) -> Concept:
    """A concept of the world; its anchor, if none is given, is the kin most like it to CLIP."""
    from palimpsest.world import suite

    choice = suite.anchors(name)
    if anchor is None and choice and panel.clip is not None:
        anchor = panel.clip.nearest(name, choice)
    return suite.concept(name, anchor)


def choose_preset(asked: str, world: bool, presets: dict[str, Any], kind: str = "") -> str:
    """Return the preset asked for; `auto` takes the world's on the world, else the published one.

    Raises:
        PalimpsestError: the method has no such preset.
    """
    known = [name for name in presets_for(asked, world, kind) if name in presets]
    if not known and asked != "auto":
        raise PalimpsestError(f"no preset {asked!r}{nearest(asked, [*presets, 'auto'])}")
    return known[0] if known else ""


def prompts_from(path: Path, model: Diffusion) -> list[Prompt]:
    """The prompts of a CSV; those that do not fit the model's window are named on stderr."""
    prompts = read_csv(path)
    warn_overlong(model, prompts, f"{path}, row", first=2)
    return prompts


def warn_overlong(model: Diffusion, prompts: Sequence[Prompt], what: str, first: int) -> None:
    """Say which prompts are cut because they do not fit the model's window."""
    long = [str(i + first) for i in model.text.overlong([p.text for p in prompts])]
    if long:
        plural, verb = ("s", "are") if len(long) > 1 else ("", "is")
        window = model.text.window
        warn(
            f"{what}{plural} {', '.join(long)}: longer than the model's window of {window} tokens "
            f"and {verb} cut there"
        )


def warn(sentence: str) -> None:
    """One line on stderr; the work goes on."""
    sys.stderr.write(f"palimpsest: warning: {sentence}\n")


def concept_of(run: Run) -> Concept:
    """The concept that a run was about.

    Raises:
        PalimpsestError: it was about none, as the pictures of the unedited model are.
    """
    fields = run.record().get("concept")
    if not fields:
        raise PalimpsestError(f"{run.folder}: this run is about no concept; name another run")
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    return Concept(**given)


def erasure(folder: Path) -> Run:
    """A finished erasing run.

    Raises:
        PalimpsestError: no run lies there, it is of another kind, or not finished.
    """
    run = Run.open(folder)
    kind = run.record().get("kind")
    if kind != "erase":
        raise PalimpsestError(f"{folder}: a run of kind {kind!r}; name an erasing run")
    return finished(run)


def finished(run: Run) -> Run:
    """The run itself.

    Raises:
        PalimpsestError: it did not go to the end.
    """
    if not run.done:
        command = run.record().get("command") or "its command"
        raise PalimpsestError(f"{run.folder}: this run is not finished; go on with: {command}")
    return run


def patches_from(path: Path) -> list[Patch]:
    """The patches behind a file or a run; a recovery's lies on that of its subject."""
    from palimpsest.patch import Patch

    if not path.is_dir():
        return [Patch.load(path)]
    run = Run.open(path)
    subject = run.record().get("subject")
    if run.record().get("answers"):
        raise PalimpsestError(
            f"{path}: this recovery changed what is asked and has no patch; name the run that it "
            f"attacked{f', {subject}' if subject else ''}"
        )
    below = patches_from(path.parent / subject) if subject else []
    return [*below, Patch.load(run.path("patch.safetensors"))]


def joined(patches: Iterable[Patch]) -> Patch | None:
    """All patches as one."""
    from palimpsest.patch.patch import together

    given = list(patches)
    return together(given) if given else None


def patch_from(path: Path) -> Patch:
    """All patches behind a file or a run as one."""
    joint = joined(patches_from(path))
    assert joint is not None
    return joint


def check_file(out: Path, force: bool, what: str = "patch") -> None:
    """Refuse early a file that exists or cannot be made.

    Raises:
        PalimpsestError: `out` exists and `force` is not set, is a folder, or lies under a file.
    """
    if out.is_dir():
        raise PalimpsestError(f"{out}: a folder; name the {what} file to write with --out")
    if out.exists() and not force:
        raise PalimpsestError(f"{out}: exists; use --force to overwrite it, or another --out")
    above = [place for place in out.resolve().parents if place.is_file()]
    if above:
        raise PalimpsestError(f"{out}: {above[0]} is a file; choose another place with --out")


def write_patch(patch: Patch, out: Path, half: bool = False) -> None:
    """Write a patch file; what half precision costs is said on stderr."""
    lost = patch.save(out, half)
    if lost:
        warn(f"half precision moves the shifts by up to {lost:.2g}")


def runs_folder(root: Path) -> None:
    """Refuse early a place where no folder can be.

    Raises:
        PalimpsestError: it, or something above it, is a file.
    """
    for place in (root, *root.resolve().parents):
        if place.is_file():
            raise PalimpsestError(
                f"{root}: cannot be made a folder ({place} is a file); choose another place "
                "with --runs"
            )


def check_out(out: Path, force: bool, forcible: bool = True) -> None:
    """Refuse early an output folder that is in use or cannot be made.

    Args:
        out: the folder.
        force: whether it may hold something.
        forcible: whether --force would help.

    Raises:
        PalimpsestError: `out` holds something and `force` is not set, or lies under a file.
    """
    above = [place for place in (out, *out.resolve().parents) if place.is_file()]
    if above:
        raise PalimpsestError(f"{out}: {above[0]} is a file; choose another place with --out")
    if out.is_dir() and any(out.iterdir()) and not force:
        way = "use --force to write into it, or " if forcible else ""
        raise PalimpsestError(f"{out}: not empty; {way}choose another place with --out")


@contextmanager
def folder_made(out: Path, force: bool) -> Iterator[Path]:
    """A folder that appears whole or not at all.

    Yields a temporary folder beside `out`, whose files move there when the block is done.

    Raises:
        PalimpsestError: `out` holds something and `force` is not set, or cannot be written.
    """
    import shutil

    check_out(out, force)
    part = out.with_name(out.name + ".part")
    try:
        if part.is_dir():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        yield part
        shutil.copytree(part, out, dirs_exist_ok=True, copy_function=shutil.move)
    except OSError as error:
        raise PalimpsestError(f"{out}: cannot be written ({reason(error)})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def silence() -> None:
    """Quiet the libraries: their warnings and bars say nothing that a person here can act on."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    for logging in (of_diffusers, of_transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def fell_short(sentence: str | None) -> int:
    """The exit code of an erasure: 3, with the sentence on stderr, if its search fell short."""
    if not sentence:
        return 0
    warn(sentence)
    return 3
