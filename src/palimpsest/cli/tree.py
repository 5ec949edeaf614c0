"""From words to a verb: what there is, and the parsing of its flags by tyro.

A verb is a frozen dataclass; called with a `Call`, it does its work and returns an exit code or
None. A verb with `methods` takes a method's name first, and that method's fields become flags too;
a method with a command line of its own is named in the verb's `apart`.
Nothing is imported but the verb that was asked for.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from inspect import cleandoc
from itertools import pairwise
from textwrap import fill
from typing import Annotated, Any, get_args, get_origin

from palimpsest.cli.helping import parser_of, row, shown, width
from palimpsest.cli.telling import FLAGS
from palimpsest.core import processes
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.kinds import MODEL_KINDS, model_kind, presets_for
from palimpsest.core.lazily import HEAVY, lazily
from palimpsest.core.registry import Registry, nearest

WIDTH = 11
"""Letters of the longest command."""
HELP = ("-h", "--help", "help")


def _commands(noun: str, group: str, package: str, names: str) -> Registry:
    """Return a package's commands: each in the file of its name, and a class called likewise."""
    own = {name: name.title().replace("-", "") for name in names.split()}
    return Registry(noun, f"palimpsest.{group}", own, f"palimpsest.cli.{package}")


VERBS = _commands(
    "command",
    "commands",
    "verbs",
    "demo list erase recover audit bench generate judge train-judge compare evaluate clip llava "
    "report "
    "cite",
)
GROUPS = {
    name: _commands(f"command of `palimpsest {name}`", f"{name}_commands", name, commands)
    for name, commands in (
        ("world", "show save train check"),
        ("data", "cut"),
        ("patch", "show merge diff export import"),
    )
}
ABOUT = "Erase concepts from text-to-image models, try to recover them, judge both, and look."
GROUP_ABOUT = {
    "world": "The built-in world: look at it, write it out, train it again, check it.",
    "data": "Captioned pictures: cut out what is to be forgotten.",
    "patch": "Patches: look into, add up, compare; to and from Diffusers, A1111 and ComfyUI.",
}


@dataclass(frozen=True)
class Call:
    """What a verb is told besides its own flags."""

    words: tuple[str, ...] = ()
    """The command line, without the program's name."""
    name: str = ""
    """The method's name, for a verb that takes one."""
    method: Any = None
    """The method with all its hyperparameters."""
    preset: str = ""
    """The preset that its values started from."""
    until_done: ExitStack = field(default_factory=ExitStack, compare=False)
    """What a verb holds until it is done."""

    @property
    def command(self) -> str:
        """The command line that repeats this; who is told of it is no part of it."""
        words = [*self.words]
        while "--log" in words:
            del words[(at := words.index("--log")) : at + 2]
        own = (word for word in words if not word.startswith("--log="))
        n = processes.here().size
        launched = f"accelerate launch --multi_gpu --num_processes {n} -m".split() if n > 1 else ()
        return shlex.join([*launched, "palimpsest", *own])


def dispatch(words: list[str]) -> int:
    """Find the verb, parse its flags, run it.

    Raises:
        PalimpsestError: no such verb, method or flag, or a value that cannot be read.
    """
    first = words[0] if words else "--help"
    if first in HELP:
        return _print(_overview())
    if first == "--version":
        return _print(f"palimpsest {version('palimpsest-ml')}")
    if first.startswith("-"):
        raise PalimpsestError(f"no flag {first!r}{nearest(first, ['--help', '--version'])}")
    if first not in GROUPS and first not in VERBS:
        raise PalimpsestError(f"no command {first!r}{nearest(first, [*VERBS, *GROUPS])}")
    load_late()
    if first in GROUPS:
        return _group(first, words)
    verb = VERBS.load(first)
    if hasattr(verb, "methods"):
        return _with_method(verb, words)
    if hasattr(verb, "engines"):
        return _with_engine(verb, words)
    return _run(parse(verb, words[1:], f"palimpsest {first}"), Call(tuple(words)))


def load_late() -> None:
    """Let what is heavy be loaded when it is used, which parsing does not."""
    from tyro.constructors import ConstructorRegistry

    with ConstructorRegistry():  # now, since it would ask torch what a device is if it were there
        lazily(*HEAVY)


def _run(verb: Any, call: Call) -> int:
    with call.until_done:
        return verb(call) or 0


def _group(first: str, words: list[str]) -> int:
    registry, second = GROUPS[first], words[1] if len(words) > 1 else "--help"
    if second in HELP:
        return _print(_listing(f"palimpsest {first} COMMAND", GROUP_ABOUT[first], registry))
    verb = registry.load(second)
    return _run(parse(verb, words[2:], f"palimpsest {first} {second}"), Call(tuple(words)))


def _with_method(verb: type[Any], words: list[str]) -> int:
    registry: Registry = verb.methods
    name = words[1] if len(words) > 1 else "--help"
    usage = f"palimpsest {words[0]} METHOD"
    if name in HELP:
        about = f"{(verb.__doc__ or '').splitlines()[0]} A method's own --help shows its flags."
        return _print(_listing(usage, about, registry))
    if name in getattr(verb, "apart", ()):
        own = getattr(import_module(verb.apart[name]), name.capitalize())
        return _run(parse(own, words[2:], f"palimpsest {words[0]} {name}"), Call(tuple(words)))
    if name.startswith("-"):
        names = ", ".join(registry)
        raise PalimpsestError(f"the method comes first: {usage} …; there are {names}")
    kind = registry.load(name)
    _refuse_former(verb, kind, words)
    shown = _guess(words, kind.presets)
    options, method = _read_method(verb, kind, shown, words)
    wanted = options.preset_for(kind.presets)
    if wanted != shown:
        options, method = _read_method(verb, kind, wanted, words)
    return _run(options, Call(tuple(words), name, method, wanted))


def _with_engine(verb: type[Any], words: list[str]) -> int:
    """Run a verb whose flag `--engine` names what has flags of its own."""
    import tyro

    name = (_flags(words).get("--engine") or ["here"])[0]
    kind = verb.engines.load(name)
    parts = [("verb", verb), ("engine", kind)]
    form = make_dataclass("Form", [(n, Annotated[k, tyro.conf.arg(name="")]) for n, k in parts])
    about = f"{cleandoc(verb.__doc__ or '')}\n\n--engine {name}: {cleandoc(kind.__doc__ or '')}"
    read = parse(form, words[1:], f"palimpsest {words[0]}", about)
    return _run(read.verb, Call(tuple(words), name, read.engine))


def read_flags(verb: type[Any], words: Sequence[str]) -> Any:
    """Return a verb with the flags of a command line whose second word names a method.

    Raises:
        PalimpsestError: a flag that there is not, or a value that cannot be read.
    """
    kind = verb.methods.load(words[1])
    return _read_method(verb, kind, _guess(words, kind.presets), list(words))[0]


def _refuse_former(verb: type[Any], kind: type[Any], words: Sequence[str]) -> None:
    """Refuse a flag of a former version by its name of now, and one that a method cannot have."""
    own = {f.name for f in fields(verb)}
    flat = own | {f.name for f in fields(kind) if not is_dataclass(f.default)}
    for flag in _flags(words):
        name = flag.removeprefix("--").replace("-", "_")
        now = kind.renamed(name) if flag and name not in flat else []
        if why := kind.lacks.get(name) or kind.lacks.get(f"{name}_"):
            raise PalimpsestError(f"{kind.__name__} has no {flag}: {why}")
        if now:
            flags = " or ".join("--" + each.replace("_", "-") for each in now)
            raise PalimpsestError(f"{flag} is now {flags}")


def _guess(words: Sequence[str], presets: dict[str, Any]) -> str:
    """Return the preset whose values `--help` shows, before anything is parsed."""
    first = {flag: values[0] for flag, values in _flags(words).items() if values}
    kind, model = model_kind(first.get("--model", "world"))
    kind = words[0] if words[0] in MODEL_KINDS else kind
    wanted = presets_for(first.get("--preset", "auto"), model == "world", kind)
    return next((preset for preset in [*wanted, "published"] if preset in presets), "")


def _read_method(
    verb: type[Any], kind: type[Any], preset: str, words: list[str]
) -> tuple[Any, Any]:
    """Return the verb's own flags, and the method's, with a preset's values as the defaults."""
    import tyro

    default = kind(**kind.presets.get(preset, {}))
    shared = {f.name for f in fields(verb)} & {f.name for f in fields(kind)}
    own = Annotated[verb, tyro.conf.arg(name="")]
    # flags of the same name: the method's then carry its name in front
    theirs = Annotated[kind, tyro.conf.arg(name=words[1] if shared else "")]
    form = make_dataclass(
        "Form", [("verb", own), ("method", theirs, field(default_factory=lambda: default))]
    )
    about = (
        f"{(verb.__doc__ or '').splitlines()[0]}\n\n{kind.__name__}: {cleandoc(kind.__doc__ or '')}"
    )
    if preset:
        about += f"\n\nDefaults of the method are those of its preset {preset!r}."
    more = getattr(verb, "more", lambda name: "")(words[1])
    read = parse(form, words[2:], f"palimpsest {words[0]} {words[1]}", about, more)
    return read.verb, read.method


def parse(
    kind: type[Any],
    words: Sequence[str],
    prog: str,
    description: str | None = None,
    more: str = "",
) -> Any:
    """Let tyro fill a dataclass from words; what it refuses becomes one sentence.

    Args:
        kind: the dataclass.
        words: flags and their values.
        prog: what they stand behind.
        description: of the help; that of the dataclass when left out.
        more: what the help's example needs besides.
    """
    import tyro

    config = (tyro.conf.FlagCreatePairsOff,)
    if not {"-h", "--help"}.isdisjoint(words) and (flags := parser_of(kind, prog, config)):
        sys.stdout.write(shown(flags, prog, cleandoc(description or kind.__doc__ or ""), more))
        raise SystemExit(0)
    said = io.StringIO()
    words, twice = once(words)
    reserved = _reserved(kind)
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=prog,
                args=[_spelt(part, reserved) for word in words for part in _numbers(word)],
                description=description,
                config=config,
            )
    except SystemExit as end:
        if end.code in (0, None):
            sys.stdout.flush()
            raise
        sentence = _sentence(said.getvalue(), prog, words)
        if twice and sentence.startswith("unrecognized"):
            sentence = f"{twice} is given twice and takes one value (see {prog} --help)"
        raise PalimpsestError(sentence) from None


def once(words: Sequence[str]) -> tuple[list[str], str]:
    """Return words in which a repeated flag stands once, before all its values, and such a flag."""
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    twice = next((flag for flag in given if given.count(flag) > 1), "")
    if not twice:
        return [*words], ""
    flags = _flags(words)
    return [*flags.pop(""), *(word for flag in flags for word in (flag, *flags[flag]))], twice


def _flags(words: Sequence[str]) -> dict[str, list[str]]:
    """Return each flag's words behind it; under no name those that stand before all flags."""
    found: dict[str, list[str]] = {"": []}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            found.setdefault(flag, []).extend([value] if equals else [])
        else:
            found[flag].append(word)
    return found


def _reserved(kind: type[Any]) -> set[str]:
    """Return the flags that are words of Python's, so that their fields are called `as_`."""
    parts = [get_args(f.type)[0] for f in fields(kind) if get_origin(f.type) is Annotated]
    held = [f for part in (kind, *filter(is_dataclass, parts)) for f in fields(part)]
    return {f"--{f.name[:-1]}" for f in held if f.name.endswith("_")}


def _spelt(word: str, reserved: set[str]) -> str:
    """Return a flag as its field is called."""
    flag, equals, value = word.partition("=")
    return f"{flag}_{equals}{value}" if flag in reserved else word


def _numbers(word: str) -> list[str]:
    """Return `50,100`, as papers' scripts want their lists, as the two words that it stands for."""
    flag, _, value = word.rpartition("=")
    if not re.fullmatch(r"\d+(,\d+)+", value):
        return [word]
    return [*filter(None, [flag]), *value.split(",")]


def _sentence(box: str, prog: str, words: Sequence[str]) -> str:
    """Tyro's box of an error, told in one sentence."""
    plain = re.sub(r"(--[a-z][a-z.-]*)_(?![a-z])", r"\1", re.sub(r"\x1b\[[0-9;]*m", "", box))
    rows = [line.strip("│| ") for line in plain.splitlines()]
    sections, meant = [[]], ""
    for line in rows:
        if re.search("─{3}|-{3}|[╭╰]", line):  # a rule, or a border
            sections.append([])
        elif line:
            sections[-1].append(line)
    told = [" ".join(section) for section in sections if section]
    titled = len(told) > 1 and "╭" not in box  # without borders the title has a row of its own
    text = told[titled] if told else "these words cannot be read"
    for label, line in pairwise(rows):
        if label.startswith(("Perhaps you meant", "Arguments similar to")):
            meant = f"; did you mean {line.split()[0]}?"
    text = re.sub(
        r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is no whole number", text
    )
    text = re.sub(r"no type matching \{None\}\|.* <class '\w+'>: (?!.*<class)", "", text)
    text = re.sub(r"could not convert string to float: ('.*')", r"\1 is no number", text)
    text = re.sub(r"^Unrecognized options: (\S+?),? .*$", r"Unrecognized options: \1", text)
    text = re.sub(r"Expected 1 values\.", "It takes one.", text)
    text = re.sub(r"^Missing from [^:]*: (\S+).*$", r"needs \1", text)
    if lacks := re.match(r"needs (--\S+)", text):
        for word in get_close_matches(lacks[1], words, n=1, cutoff=0.7):  # misspelt, not missing
            text, meant = f"no flag {word!r}", f"; did you mean {lacks[1]!r}?"
    return f"{text[:1].lower()}{text[1:]}{meant} (see {prog} --help)"


def _overview() -> str:
    lines = _listing("palimpsest COMMAND", ABOUT, VERBS).rstrip().splitlines()
    lines += [row(name, about, WIDTH + 3) for name, about in GROUP_ABOUT.items()]
    lines += ["", "options:", "  --help      Of the program, a command or a method."]
    lines += ["  --version   The version.", "", "With every command, wherever it stands:"]
    lines += [row(flag, about, WIDTH + 4) for flag, about in FLAGS.items()]
    lines += ["", "Begin with: palimpsest demo"]
    return "\n".join(lines)


def _listing(usage: str, about: str, registry: Registry) -> str:
    lines = [f"usage: {usage} …", "", fill(about, width()), ""]
    column = max(WIDTH, *map(len, registry)) + 3
    lines += [row(name, registry.summary(name), column) for name in registry]
    return "\n".join(lines)


def _print(text: str) -> int:
    sys.stdout.write(text + "\n")
    return 0
