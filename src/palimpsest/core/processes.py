"""The processes that share the work of one run, as `accelerate launch` or `torchrun` starts them.

The first one carries the command out as if it were alone: it alone decides, writes records and
speaks. The others wait for what it asks of them, `follow`: to draw a part of some pictures, or to
go through a method's training with it. There each takes the losses of draws of its own, and all
take the same steps.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from palimpsest.core import quiet
from palimpsest.core.errors import PalimpsestError, PeerError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells each process."""
WORKING = timedelta(hours=2)
"""How long one process waits for another that works, such as for a judge that looks."""
IDLE = timedelta(days=20)
"""How long the others wait to be asked for something."""


class Alone:
    """A process that works by itself: what it would share with others is its own."""

    rank = 0
    """Its number; 0 is the first one."""
    size = 1
    """How many there are."""
    local_rank = 0
    """Its number on its machine."""
    local_size = 1
    """How many there are on its machine."""

    # --- what the first asks of the others ---

    def ask(self, work: Callable[..., None], *args: Any) -> None:
        """Let all others call `work` with this process's group and arguments, and wait for none."""

    @contextmanager
    def helped(self, work: Callable[..., None], *args: Any) -> Iterator[None]:
        """Let all others do so while the block runs; it ends when all have."""
        yield

    # --- what all do together, in the same order ---

    def told(self, make: Callable[[], T]) -> T:
        """Return what the first process makes; no other makes it."""
        return make()

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of some items."""
        return items

    def joined(self, made: list[T]) -> list[T]:
        """Return what all have made of their parts, in the order of the items."""
        return made

    def mean(self, value: float) -> float:
        """Return the mean of all processes' values."""
        return value

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values, in place."""

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average gradients over all processes, in place; of what is not trained, the values."""

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Refuse to go on with tensors that are not the first process's.

        Raises:
            PalimpsestError: they are not.
        """

    # --- the end ---

    def speaks(self) -> bool:
        """Return whether this process is the one that says why all end."""
        return True

    def end(self, code: int) -> None:
        """End all with an exit code."""


ALONE = Alone()


class Together(Alone):
    """One of several processes, which speak to each other by torch.distributed."""

    def __init__(self) -> None:
        import torch
        from torch import distributed
        from torch.distributed.rendezvous import rendezvous

        self._at = distributed
        self._numbers = {name: int(os.environ.get(name, "0")) for name in VARIABLES[2:4]}
        try:
            store, self.rank, self.size = next(iter(rendezvous("env://", timeout=WORKING)))
            how = {"store": store, "rank": self.rank, "world_size": self.size}
            kind = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(kind, timeout=WORKING, **how)
            self._orders: Any = distributed.new_group(backend="gloo", timeout=IDLE)
        except (RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise PalimpsestError(
                f"the processes of this run do not find each other ({why})"
            ) from None
        self.local_rank = self._numbers["LOCAL_RANK"]
        self.local_size = self._numbers["LOCAL_WORLD_SIZE"] or 1
        self._store, self._busy = store, False
        if self.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(self.local_rank)
        for name in VARIABLES:  # so that neither a library nor a program started here takes part
            os.environ.pop(name, None)

    # --- what the first asks of the others ---

    def ask(self, work: Callable[..., None], *args: Any) -> None:
        """Let all others call `work` with this process's group and arguments, and wait for none."""
        self._order((work, args, False))

    @contextmanager
    def helped(self, work: Callable[..., None], *args: Any) -> Iterator[None]:
        """Let all others do so while the block runs; it ends when all have.

        Raises:
            PeerError: one of them ended.
        """
        self._order((work, args, True))
        self._busy = True  # until all are done: after an error nobody waits for an order
        yield
        self.mean(0.0)
        self._busy = False

    def follow(self) -> int:
        """Do what the first process asks for until it ends, and return its exit code."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one hears it, and ends its step
        while True:
            work, args, meet = self._order(None)
            if work is None:
                return args
            quiet.for_good()
            work(self, *args)
            if meet:
                self.mean(0.0)

    def _order(self, order: Any) -> Any:
        return self._sent(order, self._orders)

    # --- what all do together, in the same order ---

    def told(self, make: Callable[[], T]) -> T:
        """Return what the first process makes; no other makes it."""
        return self._sent(make() if self.rank == 0 else None)

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of some items: every n-th."""
        return items[self.rank :: self.size]

    def joined(self, made: list[T]) -> list[T]:
        """Return what all have made of their parts, in the order of the items."""
        each: list[Any] = [None] * self.size
        with _peers():
            self._at.all_gather_object(each, made)
        return [each[i % self.size][i // self.size] for i in range(sum(map(len, each)))]

    def mean(self, value: float) -> float:
        """Return the mean of all processes' values."""
        import torch

        held = torch.tensor(value, dtype=torch.float64)
        self._summed(held)
        return float(held) / self.size

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            with _peers():
                self._at.broadcast(whole, src=0)
            tensor.detach().copy_(whole)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average gradients over all processes, in place; of what is not trained, the values.

        A gradient that some have and others have not is zero in the others.
        """
        import torch

        every = list(tensors)
        there = torch.tensor([float(not t.requires_grad or t.grad is not None) for t in every])
        self._summed(there)
        for tensor, some in zip(every, there.tolist(), strict=True):
            if not some:
                continue
            if tensor.requires_grad and tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
            held = tensor.grad if tensor.requires_grad else tensor
            assert held is not None
            whole = held.contiguous()
            self._summed(whole)
            held.copy_(whole.div_(self.size))

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Refuse to go on with tensors that are not the first process's, by their sums.

        Raises:
            PalimpsestError: they are not.
        """
        own = [float(tensor.detach().double().sum()) for tensor in tensors]
        if self.told(lambda: own) != own:
            raise PalimpsestError(
                f"what process {self.rank} trains is no longer what process 0 trains; run the same "
                "command again, and if it happens again, with one process"
            )

    def _sent(self, held: Any, group: Any = None) -> Any:
        import torch

        each, cpu = [held], torch.device("cpu")
        with _peers():
            self._at.broadcast_object_list(each, src=0, group=group, device=cpu)
        return each[0]

    def _summed(self, tensor: Tensor) -> None:
        with _peers():
            self._at.all_reduce(tensor)

    # --- the end ---

    def speaks(self) -> bool:
        """Return whether this process is the first to say why all end."""
        with suppress(RuntimeError):  # whoever kept the count is gone, and has spoken
            return self._store.add("failed", 1) == 1
        return False

    def end(self, code: int) -> None:
        """End all with an exit code; nothing of that may fail."""
        if self._busy:  # something failed on the way, and the others see that this process ends
            return
        with suppress(PeerError, RuntimeError):
            if self.rank == 0:
                self._order((None, code, False))
            self._at.destroy_process_group()


@contextmanager
def _peers() -> Iterator[None]:
    """Say in one sentence that another process is no longer there."""
    try:
        yield
    except RuntimeError as error:
        raise PeerError(
            "another process of this run ended before its work was done; run the same command to "
            "go on"
        ) from error


_here: Alone = ALONE


def here() -> Alone:
    """Return the processes that this one is one of."""
    return _here


def start() -> int | None:
    """Join the processes that a launcher started this one with, if there are several.

    Returns:
        None in the first of them; all others return when it has ended, with its exit code.

    Raises:
        PalimpsestError: they do not find each other, or what they are asked for cannot be done.
    """
    global _here
    told = os.environ.get("WORLD_SIZE", "")
    if "RANK" not in os.environ or not told.isdecimal() or int(told) < 2:
        return None
    _here = group = Together()
    if group.rank == 0:
        return None
    return group.follow()


def end(code: int) -> None:
    """End all of them with an exit code."""
    global _here
    _here.end(code)
    _here = ALONE


def left_alone() -> bool:
    """Return whether `accelerate launch` was told of several processes and has started one."""
    told = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    return told and "RANK" not in os.environ
