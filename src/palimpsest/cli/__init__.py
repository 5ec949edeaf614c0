"""The command line: one file a verb, every flag a documented field of its dataclass."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper

from palimpsest.cli import telling
from palimpsest.core import processes, quiet
from palimpsest.core.atomic import reason
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.trouble import sentence

REFUSED, STOPPED, PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Returns:
        0 when all went well, 1 when a check fell short, 2 for bad input (one sentence on stderr), 3
        when a search did not reach its end and the best is kept,
        130 when stopped by Ctrl-C, 141 when whoever read the output went away.
    """
    code = _run(argv)
    processes.end(code)
    return code


def _run(argv: Sequence[str] | None) -> int:
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # before they are imported and speak
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for name in ("stdout", "stderr"):  # whoever closed one wants to hear nothing
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # what a terminal's locale cannot show is no error
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        if (code := processes.start()) is not None:
            return code
        if processes.left_alone():
            from palimpsest.cli.console import warn

            warn("accelerate launch started one process, as it does on CPUs; add --multi_gpu")
        from palimpsest.cli.tree import dispatch

        words = [_read(word) for word in (sys.argv[1:] if argv is None else argv)]
        code = dispatch(telling.begin(words))
        telling.end(code)
        sys.stdout.flush()
        return code
    except PalimpsestError as error:
        return _say(str(error), REFUSED)
    except KeyboardInterrupt:
        return _say("stopped; run the same command to go on", STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _say(place + reason(error), REFUSED)
    except (RuntimeError, MemoryError) as error:
        if (said := sentence(error)) is None:
            raise
        return _say(said, REFUSED)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    finally:
        quiet.over()


def _read(word: str) -> str:
    """Return a word as UTF-8, whatever the locale made of it."""
    if "\0" in word:
        raise PalimpsestError(f"{word!a}: a NUL stands in it; leave it out")
    try:
        return word.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise PalimpsestError(f"{word!a}: these words are no UTF-8; write them in it") from None


def _say(sentence: str, code: int) -> int:
    if not processes.here().speaks():  # another process of this run has said why
        return code
    with suppress(OSError):  # nobody reads it
        print(f"palimpsest: {' '.join(sentence.split())}", file=sys.stderr)  # noqa: T201
    return code
