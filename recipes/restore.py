"""Erase and restore over time: SRS-ME's four published scenarios on the built-in world.

    python recipes/restore.py            # resumable; writes docs/results/restore.md and a picture

All concepts are declared from the start, each one's shift is trained once, and every time step is
the sum of the shifts of what is erased then. Concepts, seeds and sizes stand here and were fixed
before anything was run. Every picture is compared with the unedited model's of the same prompt and
seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor

from palimpsest.cli import console, machine
from palimpsest.core.atomic import whole, write_text
from palimpsest.core.concepts import ask
from palimpsest.core.prompts import Prompt
from palimpsest.core.provenance import commit
from palimpsest.erase import SRSME
from palimpsest.judge.world import Classifier
from palimpsest.methods import Context
from palimpsest.metrics import distances, rates
from palimpsest.models.diffusion import Diffusion
from palimpsest.models.loading import load_model
from palimpsest.patch import Patch
from palimpsest.runs.folder import Run
from palimpsest.world import suite
from palimpsest.world.vocabulary import STYLES, WATERMARK

ERASED = ("parachute", "church", "truck", "cat", "kite", "boat")
"""Concepts 0 to 5 of the scenarios."""
KEPT = ("umbrella", "castle", "rabbit")
LATER = "owl"
"""Named only when the six are gone."""
LITERAL = {WATERMARK: f"a picture of the {WATERMARK}"}
"""The prompt that is held, where it is not the bare name."""
SCENARIOS: dict[str, tuple[str, ...]] = {
    "S1": ("-012345", "+01", "+2"),
    "S2": ("-012345", "+34", "+5"),
    "S3": ("-024", "+02", "-13", "+1", "-5"),
    "S4": ("-012", "+0", "-34", "+1", "-5", "+2"),
}
"""Time steps: - erases, + restores the concepts of these numbers."""
DOCS = Path(__file__).parents[1] / "docs"
SUBJECTS = (*ERASED, *KEPT, WATERMARK, LATER)
WORDINGS = ("literal", "paraphrase")
COLOURS = {"erased": "#c0392b", "restored": "#2e8b57", "untouched": "#b8b8b8", "kept": "#b8b8b8"}


@dataclass(frozen=True)
class State:
    """What is erased at one moment."""

    names: tuple[str, ...]

    @property
    def title(self) -> str:
        """A file's name."""
        return "-".join(self.names).replace(" ", "_") or "original"


@dataclass
class Story:
    """The model, its judge, and the folder where shifts and measurements are kept."""

    folder: Path
    model: Diffusion
    judge: Classifier
    method: SRSME
    n: int
    """Pictures a concept and wording."""
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    """Which are run."""
    known: dict[State, dict[str, Tensor]] = field(default_factory=dict)
    """What was measured already."""

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every subject's literal prompts, then its paraphrases."""
        return [p for name in SUBJECTS for word in WORDINGS for p in self._asked(name, word)]

    def _asked(self, name: str, wording: str) -> Iterator[Prompt]:
        kind, literal = suite.kind_of(name), LITERAL.get(name, name)
        texts = [literal]
        if wording == "paraphrase":
            styled = [suite.pair(name, s, 0).text for s in STYLES] if kind == "object" else []
            texts = [text for text in (*ask(name, kind), *styled) if text != literal]
        for i, seed in enumerate(suite.seeds(self.n)):
            yield Prompt(texts[i % len(texts)], seed, asks={kind: name})

    def rows(self, names: Iterable[str], wording: str) -> Tensor:
        """Where some subjects' pictures stand among all."""
        block = {name: i for i, name in enumerate(SUBJECTS)}
        starts = [(2 * block[name] + WORDINGS.index(wording)) * self.n for name in names]
        return torch.tensor([start + i for start in starts for i in range(self.n)])

    # --- shifts ---

    def shift(self, name: str) -> Patch:
        """The shift of one concept, trained once; all others and what is kept are held."""
        path = self.folder / f"shift-{name}.safetensors"
        if not path.exists():
            others = tuple(other for other in ERASED if other != name)
            method = replace(self.method, hold=(*KEPT, LITERAL[WATERMARK], *others))
            context = Context(folder=self.folder / "checkpoints", progress=console.progress())
            method(self.model, suite.concept(name), context=context).patch.save(path)
        return Patch.load(path)

    # --- measurements ---

    @cached_property
    def original(self) -> Tensor:
        """The unedited model's pictures."""
        path = self.folder / "original.safetensors"
        if not path.exists():
            images = self.model.generate(self.prompts, Context(progress=console.progress()))
            with whole(path) as part:
                save_file({"images": images.contiguous()}, part)
        return load_file(path)["images"]

    def measured(self, state: State) -> dict[str, Tensor]:
        """Pictures, their distances to the unedited model's, features, the judge's word."""
        if state in self.known:
            return self.known[state]
        path = self.folder / f"state-{state.title}.safetensors"
        if not path.exists():
            images = self.original
            if state.names:
                with self.model.patched(*(self.shift(name) for name in state.names)):
                    context = Context(progress=console.progress())
                    images = self.model.generate(self.prompts, context, f"erased: {state.title}")
            with whole(path) as part:
                found = {**self._look(images), "images": images}
                save_file({name: tensor.contiguous() for name, tensor in found.items()}, part)
        self.known[state] = load_file(path)
        return self.known[state]

    def _look(self, images: Tensor) -> dict[str, Tensor]:
        said = self.judge.read(images).labels
        wanted = [next(iter(p.asks.items())) for p in self.prompts]
        away = (images - self.original).abs().flatten(1)
        return {
            "hit": torch.tensor([said[kind][i] == name for i, (kind, name) in enumerate(wanted)]),
            "features": self.judge.features(images),
            "mean": away.mean(1),
            "max": away.max(1).values,
        }

    def figures(self, state: State, names: Iterable[str], wording: str) -> list[str]:
        """Accuracy, world-FID, distance of features, mean and largest difference, as text."""
        index, now = self.rows(names, wording), self.measured(state)
        then = self.measured(State(()))["features"][index]
        features = now["features"][index]
        distance = 1 - F.cosine_similarity(features.double(), then.double()).mean()
        fid = distances.frechet(then, features) if len(index) > 1 else float("nan")
        return [
            share(rates.rate(now["hit"][index].tolist())),
            f"{max(0.0, fid):.2f}",
            f"{max(0.0, float(distance)):.4f}",
            f"{float(now['mean'][index].mean()):.4f}",
            f"{255 * float(now['max'][index].max()):.3f}",
        ]


def moments(scenario: str) -> Iterator[tuple[str, State, dict[str, list[str]]]]:
    """(what happens, what is erased then, the groups of subjects) of each time step."""
    gone: set[int] = set()
    ever: set[int] = set()
    for deed in SCENARIOS[scenario]:
        numbers = {int(digit) for digit in deed[1:]}
        gone = gone | numbers if deed[0] == "-" else gone - numbers
        ever |= gone
        groups = {
            "erased": [ERASED[i] for i in sorted(gone)],
            "restored": [ERASED[i] for i in sorted(ever - gone)],
            "untouched": [ERASED[i] for i in range(len(ERASED)) if i not in ever],
            "kept": list(KEPT),
            "watermark": [WATERMARK],
        }
        verb = "erase" if deed[0] == "-" else "restore"
        said = f"{verb} {', '.join(sorted(deed[1:]))}"
        yield said, State(tuple(groups["erased"])), {k: v for k, v in groups.items() if v}


# --- the page ---

HEAD = (
    "| accuracy | world-FID | feature distance | mean difference | largest difference, of 255 |",
    "|---|---|---|---|---|",
)


def page(story: Story) -> str:
    """Everything that was measured."""
    numbered = ", ".join(f"{i} {name}" for i, name in enumerate(ERASED))
    return "\n".join(
        [
            "# Erasing and restoring over time",
            "",
            f"Made by `python recipes/restore.py`, commit {commit().get('commit', 'unknown')}, "
            f"{story.model.device}. SRS-ME's four scenarios, with the concepts {numbered}; kept: "
            f"{', '.join(KEPT)} and the prompt `{LITERAL[WATERMARK]}`. All were declared from the "
            "start, and each shift was trained once.",
            "",
            f"*Literal* prompts are the held ones (bare names and the watermark's sentence), "
            f"*paraphrases* other sentences; {story.n} pictures a concept and wording, "
            f"{story.model.sampling}. Accuracy is how often the judge ({story.judge.spec.name} "
            f"v{story.judge.spec.version}) names the concept, in per cent with its 95 % Wilson "
            "interval and n. Distances are to the unedited model's pictures of the same prompts "
            "and seeds: the Fréchet distance and one less the cosine, of the judge's features; the "
            "mean and the largest absolute difference of pixels.",
            "",
            "![Time steps from left to right, one row a concept](../images/restore.png)",
            "",
            *(line for name in story.scenarios for line in scenario(story, name)),
            *still(story),
            *later(story),
        ]
    )


def scenario(story: Story, name: str) -> Iterator[str]:
    """A scenario's table."""
    yield f"## {name}"
    yield ""
    yield "| time | prompts | concepts " + HEAD[0]
    yield "|---|---|---" + HEAD[1]
    for t, (deed, state, groups) in enumerate(moments(name)):
        for wording in WORDINGS:
            for group, names in groups.items():
                cells = " | ".join(story.figures(state, names, wording))
                yield f"| t{t}: {deed} | {wording} | {group} ({len(names)}) | {cells} |"
    yield ""


def still(story: Story) -> Iterator[str]:
    """How far the pictures of what stays erased move when another concept is restored."""
    yield "## What stays erased while another is restored"
    yield ""
    yield "| time | stays erased | mean difference | largest difference, of 255 |"
    yield "|---|---|---|---|"
    for name in story.scenarios:
        before: State | None = None
        for t, (deed, state, groups) in enumerate(moments(name)):
            if before is not None and deed.startswith("restore") and "erased" in groups:
                now, then = (story.measured(each)["images"] for each in (state, before))
                away = (now - then).abs()[story.rows(groups["erased"], "literal")]
                names = ", ".join(groups["erased"])
                yield f"| {name} t{t}: {deed} | {names} | {cells_of(away)} |"
            before = state
    yield ""


def later(story: Story) -> Iterator[str]:
    """What a concept that is named later does, and what was done to it."""
    six, seven = State(ERASED), State((*ERASED, LATER))
    before, after = story.measured(six)["images"], story.measured(seven)["images"]
    yield "## A concept named later"
    yield ""
    yield (
        f"{LATER!r} is named and erased when the six are gone. Its shift is orthogonal to them; "
        "theirs were trained before it was known and are not orthogonal to it, so that leaving its "
        f"shift out again need not bring its pictures back. {ERASED[0]!r} stands beside it, "
        "declared from the start."
    )
    yield ""
    yield "| literal pictures of | compared | mean difference | largest difference, of 255 |"
    yield "|---|---|---|---|"
    for title, names in (("the six", ERASED), ("those kept", (*KEPT, WATERMARK))):
        away = (after - before).abs()[story.rows(names, "literal")]
        yield f"| {title} | with and without its shift | {cells_of(away)} |"
    for name, state in ((LATER, six), (ERASED[0], State(ERASED[1:]))):
        images = story.measured(state)["images"]
        away = (images - story.original).abs()[story.rows([name], "literal")]
        told = "named later" if name == LATER else "declared from the start"
        yield f"| {name}, {told} | restored and unedited | {cells_of(away)} |"
    yield ""


def cells_of(away: Tensor) -> str:
    """Mean and largest difference."""
    return f"{float(away.mean()):.4f} | {255 * float(away.max()):.3f}"


def share(rate: rates.Rate) -> str:
    """A rate with its interval and n."""
    return f"{100 * rate.value:.0f} [{100 * rate.low:.0f}, {100 * rate.high:.0f}] ({rate.n})"


# --- the picture ---

CELL, EDGE, LEFT, TOP = 64, 4, 120, 30


def timeline(story: Story) -> Image.Image:
    """Columns are time steps, rows concepts, a cell the literal prompt's first picture."""
    rows = (*ERASED, *KEPT, WATERMARK)
    columns: list[tuple[str, State, dict[str, list[str]]]] = [("before", State(()), {})]
    for name in story.scenarios:
        for t, (_, state, groups) in enumerate(moments(name)):
            columns.append((f"{name} t{t}", state, groups))
    side = CELL + 2 * EDGE
    sheet = Image.new("RGB", (LEFT + side * len(columns), TOP + side * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, name in enumerate(rows):
        pen.text((4, TOP + y * side + side // 2 - 6), name.split(" ")[-1], fill="black")
    for x, (title, state, groups) in enumerate(columns):
        left, images = LEFT + x * side, story.measured(state)["images"]
        pen.text((left + EDGE, 10), title, fill="black")
        for y, name in enumerate(rows):
            group = next((g for g, names in groups.items() if name in names), "kept")
            top, image = TOP + y * side, images[int(story.rows([name], "literal")[0])]
            colour = COLOURS.get(group, COLOURS["kept"])
            pen.rectangle((left, top, left + side - 1, top + side - 1), fill=colour)
            array = (image.permute(1, 2, 0) * 255).round().byte().numpy()
            sheet.paste(Image.fromarray(array).resize((CELL, CELL)), (left + EDGE, top + EDGE))
            if group in ("erased", "restored"):
                pen.text(
                    (left + EDGE + 2, top + EDGE),
                    group,
                    fill="white",
                    stroke_width=1,
                    stroke_fill="black",
                )
    return sheet


def main() -> None:
    """Train what is missing, measure every moment, write page and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/restore"))
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "restore.md")
    parser.add_argument("--image", type=Path, default=DOCS / "images" / "restore.png")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny setting: proves nothing")
    chosen = parser.parse_args()
    machine.silence()
    model = load_model("world", device=chosen.device)
    judge = machine.world_panel(chosen.device).judge
    assert judge is not None
    method, n = replace(SRSME(**SRSME.presets["world"]), hold_nearest=0), 12
    if chosen.quick:
        small = {"latents.steps": 2, "latents.batch": 2, "latents.pictures": 2}
        method, n = method.changed({"steps": 2, **small}), 1
        model.sampling = replace(model.sampling, steps=2)
    config = {"method": asdict(method), "model": model.identity, "n": n, "subjects": SUBJECTS}
    run = Run.place(chosen.runs, "restore", {**config, "sampling": str(model.sampling)})
    run.folder.mkdir(parents=True, exist_ok=True)
    story = Story(run.folder, model, judge, method, n)
    if chosen.quick:
        story.scenarios = ("S1",)
    text = page(story)
    picture = timeline(story)
    write_text(chosen.out, text)
    with whole(chosen.image) as part:
        picture.save(part, format="PNG")
    print(f"written: {chosen.out} and {chosen.image}")


if __name__ == "__main__":
    main()
