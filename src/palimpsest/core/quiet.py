"""Quiet for the libraries that load models, for as long as they load.

Nothing heavy is imported here: each library is fetched when quiet begins.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from threading import RLock

CATEGORIES = (FutureWarning, DeprecationWarning, UserWarning)
"""What the libraries warn of by Python's own warnings."""
LIBRARIES = ("transformers", "diffusers", "huggingface_hub")

_lock, _depth, _held = RLock(), 0, ExitStack()
_downloads = _for_good = False


def show_downloads(shown: bool = True) -> None:
    """Let the Hub's client show its bars while it downloads, also inside `quiet`."""
    global _downloads
    _downloads = shown


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Transformers, Diffusers and the Hub's client from speaking inside the block.

    Their bars, their log below errors and their warnings are off; what a person has set of all
    that is put back after the outermost block, whatever other thread is inside one.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def for_good() -> None:
    """Be quiet from now on, until `over`; once is as good as often."""
    global _for_good
    if not _for_good:
        _for_good = True
        _enter()


def over() -> None:
    """End what `for_good` began, if it did."""
    global _for_good
    if _for_good:
        _for_good = False
        _leave()


def _enter() -> None:
    global _depth
    with _lock:
        if not _depth:
            _begin()
        _depth += 1


def _leave() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if not _depth:
            _held.close()


def _begin() -> None:
    """Turn all of it off, and remember how it was."""
    _held.enter_context(warnings.catch_warnings())
    for category in CATEGORIES:
        warnings.simplefilter("ignore", category)
    for name in LIBRARIES:
        logging = import_module(f"{name}.utils.logging")
        was: int = logging.get_verbosity()
        _held.callback(partial(logging.set_verbosity, was))
        logging.set_verbosity(max(was, logging.ERROR))
    bars = sys.modules["huggingface_hub.utils.tqdm"].progress_bar_states
    of_the_hub = dict(bars)
    _held.callback(partial(_put_back, bars, of_the_hub))  # after Transformers, which sets these too
    for name in LIBRARIES[:2]:
        logging = import_module(f"{name}.utils.logging")
        back: Callable[[], None] = logging.enable_progress_bar
        if logging.is_progress_bar_enabled():
            _held.callback(back)
        logging.disable_progress_bar()
    if _downloads:
        _put_back(bars, of_the_hub)


def _put_back(bars: dict[str, bool], was: dict[str, bool]) -> None:
    bars.clear()
    bars.update(was)
