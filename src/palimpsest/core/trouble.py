"""Ordinary trouble of a machine, in whatever words a library reports it: no memory, no room."""

from __future__ import annotations

NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_failed",
)
"""What CUDA, MPS, the processor's allocators and CUBLAS say; PyTorch has an error for one alone."""

NOT_WRITTEN = ("unexpected pos", "failed writing", "write(): fd", "I/O error")
"""What PyTorch and safetensors say of a file that they cannot write."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the machine or of a device ran out."""
    said = str(error).lower()
    told = isinstance(error, RuntimeError) and any(words in said for words in NO_MEMORY)
    return told or isinstance(error, MemoryError)


def not_written(error: BaseException) -> bool:
    """Return whether an error that is no `OSError` says that a file cannot be written."""
    return not isinstance(error, OSError) and any(words in str(error) for words in NOT_WRITTEN)


def sentence(error: Exception) -> str | None:
    """Return what a command says of an error that is nobody's mistake; None of any other."""
    if out_of_memory(error):
        return (
            "the memory ran out: take --memory low, with --dtype float32 to go on with the same "
            "run for more time, or else in bfloat16 as another run; or make less at once "
            "(--draw.batch 1, or the method's own batch), or take another --device"
        )
    if isinstance(error, RecursionError):
        return "what was given is nested too deeply to be read; make it flatter"
    return None
