"""What `--help` shows: a command's flags by what they are about, and a line to paste."""

from __future__ import annotations

import re
import shutil
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

from palimpsest.cli.telling import FLAGS

GROUPS = {
    "judging": "judge class-map look-with prompts column from-row to-row gold measures budget mini "
    "shard wordings recoveries questions",
    "drawing": "draw n pictures",
    "where and how": "runs out rest copies work preset seed log force dry-run open half",
    "the model's files and the machine": "base revision variant dtype memory device",
}
"""What flags are about → their names; others say what is to be done, and come first."""
EXAMPLES = {
    "demo": "",
    "list": "",
    "erase": "--concept parachute",
    "recover": "runs/esd-parachute-*",
    "recover replay": "runs/memora-parachute-on-* --on runs/uce-parachute-*",
    "audit": "lora.safetensors --base world --concept parachute",
    "generate": '"A parachute image in photo style." --n 4 --out pictures',
    "judge": "runs/esd-parachute-* --measures ssim",
    "train-judge": "pictures --out my-judge",
    "compare": "runs/esd-parachute-* runs/uce-parachute-*",
    "evaluate": "object world runs/esd-parachute-*",
    "clip": "--concept church",
    "llava": "--concept church",
    "report": "runs",
    "cite": "esd memora",
    "world show": "--out world.png",
    "world save": "world",
    "world train": "--out my-world",
    "world check": "",
    "data cut": "captions.csv --name parachute",
    "patch show": "runs/esd-parachute-*/patch.safetensors",
    "patch merge": "a.safetensors b.safetensors --out both.safetensors",
    "patch diff": "world edited --out edit.safetensors",
    "patch export": "runs/esd-parachute-* --out lora.safetensors --format lora",
    "patch import": "lora.safetensors --out edit.safetensors",
}
"""Command → what may stand behind it."""
NARROW, WIDE = 60, 110
"""Letters in a line: no fewer, and no more, since those are hard to read."""
COLUMN = 26
"""Where a flag's help begins."""


def shown(parser: Any, prog: str, about: str, more: str = "") -> str:
    """Return a command's help.

    Args:
        parser: its flags, an `argparse.ArgumentParser`.
        prog: the program's name and the command's.
        about: what it does, paragraphs apart by an empty line.
        more: what the example needs besides.
    """
    wide = width()
    actions = [action for action in parser._actions if action.dest != "help"]
    places = [action.metavar for action in actions if not action.option_strings]
    titles = {g.title: " ".join((g.description or "").split()) for g in parser._action_groups}
    found: dict[str, list[str]] = {"": []} | {_own(a): [] for a in actions if _own(a)}
    found |= {title: [] for title in GROUPS}
    for action in sorted(actions, key=_rank):
        found.setdefault(_group(action), []).extend(_lines(action, wide))
    lines = [f"usage: {' '.join([prog, *places])} [FLAGS]", ""]
    for paragraph in about.split("\n\n"):
        lines += [*textwrap.wrap(" ".join(paragraph.split()), wide), ""]
    for title, rows in found.items():
        if rows:
            said = titles.get(f"{title} options", "")
            head = ": ".join(filter(None, [title or "what", said]))
            lines += [*textwrap.wrap(head, wide), *rows, ""]
    lines += [
        "with every command",
        *(row(flag, text, COLUMN) for flag, text in FLAGS.items()),
    ]
    return "\n".join([*lines, "", "example:", f"  {example(prog, parser, more)}"]) + "\n"


def width() -> int:
    """Return how many letters fit in a line of the terminal and are still easy to read."""
    return min(max(shutil.get_terminal_size().columns, NARROW), WIDE)


def row(name: str, about: str, column: int) -> str:
    """Return a name and what it is about, which begins at a column and goes on below it."""
    head, gap = f"  {name}".ljust(column - 1) + " ", " " * column
    return textwrap.fill(head + about, width(), subsequent_indent=gap)


def example(prog: str, parser: Any, more: str = "") -> str:
    """Return a command line that can be pasted, with all that the command needs."""
    words = prog.split()[1:]
    known = next((EXAMPLES[w] for w in (" ".join(words), words[0]) if w in EXAMPLES), "")
    needed = [
        f"{action.option_strings[0]} {_value(action)}"
        for action in parser._actions
        if action.required and action.option_strings and action.option_strings[0] not in known
    ]
    return " ".join(filter(None, [prog, known, *needed, more]))


def parser_of(form: type[Any], prog: str, config: Any) -> Any:
    """Return a form's flags as an `argparse.ArgumentParser`; None where tyro gives it no longer."""
    import tyro

    make = getattr(tyro.extras, "get_parser", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make and make(form, prog=prog, config=config)


def _own(action: Any) -> str:
    """Return the group of a method's own flag: `the method`, or what it is nested in."""
    if not action.dest.startswith("method."):
        return ""
    return action.option_strings[-1].removeprefix("--").rpartition(".")[0] or "the method"


def _group(action: Any) -> str:
    if not action.option_strings:
        return ""
    if own := _own(action):
        return own
    name = action.dest.removeprefix("verb.").partition(".")[0]
    if name == "sets":
        return name
    return next((title for title, names in GROUPS.items() if name in names.split()), "")


def _rank(action: Any) -> int:
    """Return where a flag stands among those of `GROUPS`; all others keep their order."""
    names = " ".join(GROUPS.values()).split()
    name = action.dest.removeprefix("verb.")
    return names.index(name) if name in names else 0


def _lines(action: Any, wide: int) -> Iterator[str]:
    """Yield a flag with what it takes, and its help beside it or below."""
    flags = ", ".join(flag.rstrip("_") for flag in action.option_strings)
    head = f"  {' '.join(filter(None, [flags, _value(action)]))}"
    text = re.sub(r" ?\(default: (None|False|True|''|)\)$", "", " ".join(action.help.split()))
    text = text.replace("%%", "%")  # argparse would fill in after a single one
    if any(flag.startswith("--no-") for flag in action.option_strings):
        text = f"Leave this out: {text[:1].lower()}{text[1:]}"
    gap = " " * COLUMN
    rows = textwrap.wrap(text, wide, initial_indent=gap, subsequent_indent=gap)
    if len(head) + 2 > COLUMN:
        yield from textwrap.wrap(head, wide, subsequent_indent="    ", break_long_words=False)
    elif rows:
        rows[0] = head.ljust(COLUMN) + rows[0].lstrip()
    else:
        yield head
    yield from rows


def _value(action: Any) -> str:
    """Return what a flag takes, such as `INT` or `PATH …`; nothing of one that takes none."""
    if action.metavar is None:
        return ""
    text = re.sub(r"\{None\}\|", "", action.metavar)
    text = re.sub(r"(?<=[{,])None,|,None(?=[},])", "", text)
    text = re.sub(r"\[?(\{[^{}]*\}|\w+(?: \w+)*) \[\1 \.\.\.\]\]?", r"\1 …", text)
    return re.sub(r"^\{([^{},]*…|\{.*\} …)\}$", r"\1", text).replace(",", ", ")
