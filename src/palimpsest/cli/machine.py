"""Where the work is done: the model, those who judge it, and the prompts that both get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from palimpsest.cli import telling
from palimpsest.cli.console import progress, warn
from palimpsest.cli.tree import Call
from palimpsest.core import hashes
from palimpsest.core.concepts import Concept
from palimpsest.core.draw import Draw
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.files import read_object
from palimpsest.core.kinds import Memory, Optimizer, model_kind, presets_for
from palimpsest.core.prompts import Prompt, said_rows
from palimpsest.core.registry import nearest
from palimpsest.judge import JUDGES, Opening, open_judge
from palimpsest.methods import Judge, TextJudge
from palimpsest.runs.folder import Run
from palimpsest.world import assets

if TYPE_CHECKING:
    from palimpsest.judge.clip import Clip
    from palimpsest.models.diffusion import Diffusion
    from palimpsest.runs.runner import Runner
    from palimpsest.runs.scoring import Panel

Dtype = Literal["float32", "bfloat16", "float16"]
WORLDS = ("world", "clip:world")
"""Who looks at the world's pictures when nobody is named."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the work is done."""

    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1` or `mps`; `auto` takes a GPU where there is one, else the CPU."""
    dtype: Dtype | None = None
    """Precision of the model's weights; when left out that of the run, or float32, or with
    `--memory low` bfloat16."""
    memory: Memory = "normal"
    """`low` takes little memory for more time and gives the same in the same --dtype
    (docs/memory.md): predictions latent by latent and block by block, text encoders on the CPU,
    pictures one at a time. What moves stays in float32."""
    revision: str | None = None
    """Revision on the Hub of the model; that of the run, or the default branch, when left out."""
    variant: str | None = None
    """Which weights of the model: what the names of their files hold before the ending, such as
    `fp16`."""
    base: str | None = None
    """For a model in one `.safetensors` file: `world`, a Diffusers folder, or a Hub id that was
    downloaded before, whose configuration and tokenizers the file is read with."""

    @property
    def files(self) -> dict[str, Any]:
        """Which of a model's files are read, as far as a person said."""
        said = {"revision": self.revision, "variant": self.variant, "base": placed(self.base)}
        return {name: value for name, value in said.items() if value}

    def load(self, name: str, dtype: str | None = None, files: Any = None) -> Diffusion:
        """Load a text-to-image model by the name a person gave; memory is counted from here on.

        Args:
            name: what the person called it.
            dtype: its precision, unless a person says otherwise; None is the memory's.
            files: which of its files are read, a mapping, unless a person says otherwise.

        Raises:
            PalimpsestError: there is none of that name.
        """
        kind, own = model_kind(name)
        if kind:
            raise PalimpsestError(
                f"--model {name}: this command wants a text-to-image model; try palimpsest erase "
                f"with it, or palimpsest {kind} --model {own or 'world'}"
            )
        model = self.load_any(placed(name), dtype or self.precision(self.memory), files)
        model.use_memory(self.memory)
        return model

    def precision(self, memory: Memory) -> Dtype:
        """Return the precision of a model's weights with so much memory, unless a run says it."""
        return self.dtype or ("bfloat16" if memory == "low" else "float32")

    def load_any(self, name: str, dtype: str = "float32", files: Any = None) -> Any:
        """Load a model of any kind by its name for the machine, likewise."""
        silence()
        from palimpsest.core.memory import set_baseline
        from palimpsest.models.loading import load_model

        set_baseline()
        wanted = {**(files or {}), **self.files}
        return load_model(name, device=self.device, dtype=self.dtype or dtype, **wanted)

    def runner(
        self, call: Call, root: Path, model: Any, panel: Panel | None = None, seed: int = 0
    ) -> Runner:
        """Return what carries out a command's runs, with its progress and warnings shown."""
        from palimpsest.runs import loggers
        from palimpsest.runs.runner import Runner
        from palimpsest.runs.scoring import Panel

        bars = progress()
        looks = replace(panel or Panel(), progress=bars)
        name = getattr(self, "log", None)
        logger = loggers.logger(name) if name else None
        return Runner(root, model, looks, bars, call.command, seed, warn, logger)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What training takes its steps by, and who is told of them."""

    optimizer: Optimizer = "own"
    """What training takes its steps by: the method's `own` Adam, or `adam8bit`, whose moments have
    8 bits (bitsandbytes, on CUDA; not published): 2 bytes an entry in place of 8."""
    log: str | None = None
    """Where training rows and final numbers go, too: `trackio`, `wandb` (extras of these names), or
    another package's logger (docs/scripts.md). No part of the run."""

    def __post_init__(self) -> None:
        """Refuse a logger that is not there.

        Raises:
            PalimpsestError: naming the nearest, or the extra.
        """
        if self.log is not None:
            from palimpsest.runs import loggers

            loggers.check(self.log)

    def refuse_optimizer(self, call: Call, preset: str) -> None:
        """Refuse 8 bits where they would be taken for what was published, or do nothing.

        Args:
            call: with the method.
            preset: that a person named.

        Raises:
            PalimpsestError: saying which.
        """
        if self.optimizer == "own":
            return
        if preset == "published":
            raise PalimpsestError(
                f"--optimizer {self.optimizer}: no method was published with it; leave out "
                "--preset published, whose values are the defaults of every model but the world"
            )
        if not hasattr(call.method, "lr"):
            raise PalimpsestError(
                f"--optimizer {self.optimizer}: {call.name} takes no steps of Adam; leave it out"
            )

    def refuse_device(self, model: Any) -> None:
        """Refuse 8 bits where they cannot be computed, before anything is spent.

        Raises:
            PalimpsestError: as of `eight_bit`.
        """
        if self.optimizer != "own":
            from palimpsest.toolbox.optimizers import eight_bit

            eight_bit(model.device)

    def preset_of(self, call: Call) -> str:
        """Return the preset for the record: with another optimiser nothing is `published`."""
        own = self.optimizer == "own" or call.preset != "published"
        return call.preset if own else ""


@dataclass(frozen=True, kw_only=True)
class Drawing(Machine):
    """Where the work is done, and how pictures are drawn there."""

    draw: Draw = Draw()
    """How pictures are drawn."""

    def load(self, name: str, dtype: str | None = None, files: Any = None) -> Diffusion:
        """Load a model that draws as it is told to.

        Raises:
            PalimpsestError: there is no such model, or it cannot draw so.
        """
        return drawing(super().load(name, dtype, files), self.draw)

    def load_of(self, run: Run) -> Diffusion:
        """Load the model of a run, which draws as the run did unless it is told otherwise."""
        record, own = run.record(), run.record().model
        model = drawing(self.load(own.name, own.dtype, own.files), record.drawn)
        return drawing(model, self.draw)


def placed(name: Any) -> Any:
    """Return a name as it holds in every folder: a file's or folder's whole path."""
    local = name and name != "world" and Path(name).exists()
    return str(Path(name).resolve()) if local else name


def published(word: Path) -> Path:
    """Return the path of what others published; from the Hub it is downloaded first.

    Raises:
        PalimpsestError: it is neither here nor there.
    """
    if word.exists():
        return word
    silence()
    from palimpsest.models.hub import published as fetched

    return fetched(word)


def drawing(model: Diffusion, draw: Draw) -> Diffusion:
    """Return the model, which draws as it is told to from now on.

    Raises:
        PalimpsestError: it cannot.
    """
    model.sampling = model.sampling.drawn(draw)
    _ = model.drawn_shape, model.sampler(model.sampling.sampler)
    return model


def judges_of(words: Sequence[str], world: bool, theirs: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the judges that a person named, the world's for `auto` on the world.

    Args:
        words: what the person said.
        world: whether all pictures are of the world.
        theirs: a protocol's, which `auto` takes elsewhere.

    Raises:
        PalimpsestError: one that there is not, one twice, or `auto` or `none` beside another.
    """
    for word in words:
        if word in ("auto", "none") and len(words) > 1:
            raise PalimpsestError(f"--judge {' '.join(words)}: {word} stands alone; leave it out")
        if words.count(word) > 1:
            raise PalimpsestError(f"--judge {' '.join(words)}: {word} twice; name it once")
        if word not in ("auto", "none") and word.partition(":")[0] not in JUDGES:
            known = nearest(word.partition(":")[0], [*JUDGES, "auto", "none"])
            raise PalimpsestError(f"--judge {word}: no such judge{known}")
    if tuple(words) == ("auto",):
        return WORLDS if world else tuple(theirs)
    return () if tuple(words) == ("none",) else tuple(words)


def panel(words: Sequence[str], opening: Opening, clip: Clip | None = None) -> Panel:
    """Return judges by their names, the first one first, and the CLIP that is asked for cosines.

    Args:
        words: as of `judges_of`.
        opening: what they are opened for.
        clip: asked for cosines; that of a judge when left out.
    """
    silence()
    from palimpsest.judge.clip import ZeroShotJudge
    from palimpsest.runs.scoring import Panel

    found: list[Any] = []
    for word in words:
        own = clip is not None and word == f"clip:{clip.ref}"
        judge = ZeroShotJudge(clip, opening) if own and clip else open_judge(word, opening)
        found.append(_knowing(judge, word, opening))
        clip = clip or getattr(judge, "clip", None)
    return Panel(found[0] if found else None, clip, tuple(found[1:]))


def world_panel(device: str) -> Panel:
    """Return the world's judge, and its CLIP for cosines."""
    return panel(("world",), Opening(device=device), clip("world", device))


def _knowing(judge: Judge, word: str, opening: Opening) -> Judge:
    """Return a judge that can name something of what is asked for."""
    asked = {name for names in opening.names.values() for name in names}
    if asked and not any(asked & {*names} for names in judge.classes.values()):
        some = ", ".join(sorted(asked)[:4])
        raise PalimpsestError(f"--judge {word}: it knows nothing of what is asked for ({some})")
    return judge


def warn_blind(panel: Panel, concepts: Sequence[Concept]) -> None:
    """Say which judges can name nothing of what is forgotten."""
    for judge in panel.judges:
        if not any(c.name in judge.classes.get(c.kind, ()) for c in concepts):
            names = ", ".join(concept.name for concept in concepts)
            warn(f"{judge.spec.name}: cannot name {names}, so it cannot say whether it is gone")


def class_map(path: Path | None) -> dict[str, str]:
    """Return what a file says of a classifier's labels: label → the concept's name.

    Raises:
        PalimpsestError: it is no JSON object of texts.
    """
    found = {} if path is None else read_object(path)
    if not all(isinstance(name, str) for name in found.values()):
        raise PalimpsestError(f'{path}: write {{"the classifier\'s label": "the concept\'s name"}}')
    return found


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
    """Return a CLIP by its folder or Hub id.

    Raises:
        PalimpsestError: there is none, or a model of another kind.
    """
    silence()
    from palimpsest.judge.clip import Clip

    return Clip.load(name, device)


def world_concept(
    name: str, anchor: str | None, clip: TextJudge | None, others: Sequence[str] = ()
) -> Concept:
    """Return a concept of the world; its anchor, if none is given, is the kin most like it to CLIP.

    Args:
        name: the concept's.
        anchor: what takes its place.
        clip: the world's CLIP; without it a concept without an anchor has none.
        others: concepts that cannot be anchors, since they are forgotten too.
    """
    from palimpsest.world import suite

    choice = [kin for kin in suite.anchors(name) if kin not in others]
    if anchor is None and choice and clip is not None:
        from palimpsest.judge.clip import Clip

        anchor = clip.nearest(name, choice) if isinstance(clip, Clip) else None
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


def warn_overlong(model: Diffusion, prompts: Mapping[int, Prompt], table: Path | None) -> None:
    """Say which prompts, by their rows, are cut because they do not fit the model's window."""
    texts = [prompt.text for prompt in prompts.values()]
    if long := [[*prompts][i] for i in model.text.overlong(texts)] if texts else []:
        verb, window = "are" if len(long) > 1 else "is", model.text.window
        warn(
            f"{f'{table}, {said_rows(long)}' if table else said_rows(long, 'prompt')}: longer than "
            f"the model's window of {window} tokens and {verb} cut there"
        )


def silence() -> None:
    """Quiet the libraries, whose warnings and bars nobody can act on, and show our progress."""
    from palimpsest.core import quiet

    hashes.shown = progress

    quiet.show_downloads(not telling.now.quiet)
    quiet.for_good()
