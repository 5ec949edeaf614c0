"""Used as a library Palimpsest says nothing, and leaves what others set of their libraries."""

from __future__ import annotations

import subprocess
import sys
import threading

LIBRARY = """
import warnings

import transformers.utils.logging as logging
import diffusers.utils.logging as of_diffusers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars

of_diffusers.set_verbosity_debug()
of_diffusers.enable_progress_bar()
disable_progress_bars("mine.own")
before = logging.get_verbosity()

from palimpsest import Concept, Context, load_model
from palimpsest.erase import ESD, UCE
from palimpsest.judge import Opening, open_judge

model, clip, llava = (load_model(name) for name in ("world", "clip:world", "llava:world"))
with warnings.catch_warnings(record=True) as heard:
    for kind in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.warn("a person's own", kind)
assert len(heard) == 3, "warnings are kept from a person"
assert logging.get_verbosity() == before and logging.is_progress_bar_enabled()
assert of_diffusers.get_verbosity() == of_diffusers.DEBUG
assert of_diffusers.is_progress_bar_enabled()
assert are_progress_bars_disabled("mine.own") and not are_progress_bars_disabled()

of_diffusers.set_verbosity_warning()
concept, judge = Concept("parachute", anchor="balloon"), open_judge("world", Opening())
pictures = model.generate(concept.prompts(2))
assert judge.read(pictures).says("object", "parachute") == [True, True]
assert llava.ask(pictures, "what is it?")
for method in (UCE(), ESD(steps=1)):
    with model.patched(method(model, concept, context=Context(seed=0)).patch):
        model.generate(concept.prompts(1))
"""


def test_a_library_says_nothing_and_leaves_the_settings_of_others():
    words = [sys.executable, "-W", "always", "-c", LIBRARY]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", ""), told.stderr


def test_two_threads_that_are_quiet_at_once_leave_nothing_turned_off():
    """The one that begins first ends first, so each would put back the other's quiet."""
    import diffusers.utils.logging as logging

    from palimpsest.core.quiet import quiet

    inside, done = threading.Event(), threading.Event()

    def second() -> None:
        with quiet():
            inside.set()
            done.wait(10)

    was, other = logging.get_verbosity(), threading.Thread(target=second)
    logging.set_verbosity_info()
    try:
        with quiet():
            other.start()
            assert inside.wait(10)
        done.set()
        other.join()
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(was)
