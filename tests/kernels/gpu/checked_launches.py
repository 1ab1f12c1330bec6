"""What a GPU's memory checker would say of a kernel, for the tests that run kernels in Triton's interpreter.

The interpreter runs one program after the other, each operation for all its elements at once. So it computes what was
meant where a GPU would compute something else. Here each launch is held to three rules more:

    bounds      what is read or written lies in a tensor that the launch was given, or was given the address of
    programs    none reads or writes what another one writes, but by atomics
    threads     none reads or writes what another of its program has written or writes, but for a barrier between

Elements of two accesses belong to one thread if both have the same place in a block of the same size.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

_TRITON = str(Path(triton.__file__).parent)
_ONE_THREAD, _ALL_THREADS = -1, -2  # write a scalar, and read one

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class WildAccess(AssertionError):
    """Memory that the launch was not given."""


class DataRace(AssertionError):
    """What is read, or kept, depends on who comes first."""


class _Access(NamedTuple):
    """One operation of one program, of the elements that no mask hides."""

    addresses: Integers
    threads: Integers
    program: int
    epoch: int  # barriers that the program has passed
    writes: bool
    atomic: bool
    place: str


class CheckedLaunch:
    """Hears of what the programs of one launch do."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [each for each in tensors if each.numel()]
        self._memory = _Memory(self._tensors)
        self._accesses: list[_Access] = []
        self._program, self._epoch = -1, 0

    def begin_program(self) -> None:
        self._program, self._epoch = self._program + 1, 0

    def pass_barrier(self) -> None:
        self._epoch += 1

    def load(self, pointers: Any, mask: Flags) -> None:
        self._note(pointers, mask, writes=False, atomic=False)

    def store(self, pointers: Any, mask: Flags) -> None:
        self._note(pointers, mask, writes=True, atomic=False)

    def update(self, pointers: Any, mask: Flags) -> None:
        self._note(pointers, mask, writes=True, atomic=True)

    def _note(self, pointers: Any, mask: Flags, writes: bool, atomic: bool) -> None:
        all_addresses, shown = np.broadcast_arrays(pointers.data, mask)
        lanes = np.flatnonzero(shown)
        if not lanes.size:
            return
        addresses = all_addresses.reshape(-1)[lanes].astype(np.int64)
        place = _kernels_line()
        self._check_bounds(addresses, max(pointers.get_element_ty().primitive_bitwidth // 8, 1), place)
        scalar = np.full(1, _ONE_THREAD if writes else _ALL_THREADS)
        threads = lanes + (shown.size << 32) if shown.size > 1 else scalar
        self._accesses.append(_Access(addresses, threads, self._program, self._epoch, writes, atomic, place))

    def _check_bounds(self, addresses: Integers, itemsize: int, place: str) -> None:
        if self._memory.holds(addresses, itemsize).all():
            return
        self._memory = _Memory([*self._tensors, *_addressed(self._tensors)])
        held = self._memory.holds(addresses, itemsize)
        if not held.all():
            raise WildAccess(
                f"{place}: {(~held).sum()} of {held.size} elements lie in no tensor of the launch"
            )

    def check_races(self) -> None:
        written = [each.addresses for each in self._accesses if each.writes]
        if not written:
            return
        spots = np.unique(np.concatenate(written))
        kept = [np.isin(each.addresses, spots) for each in self._accesses]
        of = np.repeat(np.arange(len(kept)), [each.sum() for each in kept])
        addresses, threads = (
            np.concatenate([column[chosen] for column, chosen in zip(columns, kept, strict=True)])
            for columns in zip(*((each.addresses, each.threads) for each in self._accesses), strict=True)
        )
        programs = np.array([each.program for each in self._accesses])[of]
        epochs = np.array([each.epoch for each in self._accesses])[of]
        self._check_race("programs", (addresses,), programs, of)
        self._check_race("threads of a program", (addresses, programs, epochs), threads, of)

    def _check_race(self, racers: str, spot: Sequence[Integers], who: Integers, of: Integers) -> None:
        """`spot`: what must agree for two accesses to meet; `who` accesses, by the operation `of`."""
        order = np.lexsort(spot)
        changes = np.logical_or.reduce([np.diff(key[order]) != 0 for key in spot])
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        writes = np.array([each.writes for each in self._accesses])[of][order]
        atomic = np.array([each.atomic for each in self._accesses])[of][order]
        meets = np.minimum.reduceat(who[order], starts) != np.maximum.reduceat(who[order], starts)
        raced = meets & np.logical_or.reduceat(writes, starts) & ~np.logical_and.reduceat(atomic, starts)
        if raced.any():
            first = int(np.flatnonzero(raced)[0])
            end = [*starts, len(order)][first + 1]
            places = sorted({self._accesses[each].place for each in of[order[starts[first] : end]]})
            raise DataRace(
                f"{racers} meet at {raced.sum()} places in memory, at the first of them by {places}"
            )


class _Memory:
    """Some tensors', each from its first to its last element."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        spans = sorted([(0, 0), *map(_span, tensors)])
        self._begins = np.array([begin for begin, _ in spans])
        self._ends = np.maximum.accumulate(np.array([end for _, end in spans]))

    def holds(self, addresses: Integers, itemsize: int) -> Flags:
        held: Flags = (
            addresses + itemsize <= self._ends[np.searchsorted(self._begins, addresses, "right") - 1]
        )
        return held


def _span(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _addressed(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """The living tensors whose addresses lie in one of these."""
    addresses = {
        number for each in tensors if each.dtype == torch.int64 for number in each.reshape(-1).tolist()
    }
    for each in gc.get_objects():
        if issubclass(type(each), Tensor) and each.numel() and each.data_ptr() in addresses:
            yield each


def _kernels_line() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_TRITON, __file__)):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for each in values:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, tuple):
            yield from _tensors(each)


class LaunchChecker:
    """Each launch of the interpreter, as long as it is patched."""

    def __init__(self) -> None:
        self._launch = CheckedLaunch(())
        self._forgives_races = False

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        run = GridExecutor.__call__

        def run_checked(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
            self._launch = CheckedLaunch(_tensors((*args, *kwargs.values())))
            run(executor, *args, **kwargs)
            if not self._forgives_races:
                self._launch.check_races()

        def also(name: str, tell: Callable[..., None]) -> None:
            member = getattr(InterpreterBuilder, name)

            def told(builder: InterpreterBuilder, *args: Any) -> Any:
                tell(self._launch, *args)
                return member(builder, *args)

            patch.setattr(InterpreterBuilder, name, told)

        patch.setattr(GridExecutor, "__call__", run_checked)
        also("set_grid_idx", lambda launch, *_: launch.begin_program())
        also("create_barrier", lambda launch: launch.pass_barrier())
        also("create_masked_load", lambda launch, ptrs, mask, *_: launch.load(ptrs, mask.data))
        also("create_masked_store", lambda launch, ptrs, _, mask, *__: launch.store(ptrs, mask.data))
        also("create_atomic_rmw", lambda launch, _, ptrs, __, mask, *___: launch.update(ptrs, mask.data))

    @contextmanager
    def forgiving_races(self) -> Iterator[None]:
        self._forgives_races = True
        try:
            yield
        finally:
            self._forgives_races = False
