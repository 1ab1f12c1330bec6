"""The checker of launches: each kernel here computes the right thing in the interpreter, and would not on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs

from tests.kernels.gpu.checked_launches import DataRace

pytestmark = pytest.mark.skipif(not knobs.runtime.interpret, reason="TRITON_INTERPRET=1 was not set")

BLOCK = 8


@triton.jit
def double(x_ptr, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + offs, 2 * tl.load(x_ptr + offs, offs < size), offs < size)


@triton.jit
def read_one_too_many(x_ptr, size, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(x_ptr + offs, tl.load(x_ptr + offs, offs <= size), offs < size)


@triton.jit
def read_by_address(addresses_ptr, size, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x_ptr = tl.load(addresses_ptr).to(tl.pointer_type(tl.float32))
    tl.store(x_ptr + offs, 2 * tl.load(x_ptr + offs, offs < size), offs < size)


@triton.jit
def add_up_without_atomics(x_ptr, size, BLOCK: tl.constexpr):
    tl.store(x_ptr, tl.load(x_ptr) + tl.program_id(0))


@triton.jit
def add_up(x_ptr, size, BLOCK: tl.constexpr):
    tl.atomic_add(x_ptr, 1.0)


@triton.jit
def turn_around(x_ptr, size, BARRIER: tl.constexpr):
    offs = tl.arange(0, 8)
    x = tl.load(x_ptr + offs)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x_ptr + 7 - offs, x)


@triton.jit
def read_back(x_ptr, size, BARRIER: tl.constexpr):
    tl.store(x_ptr, 5.0)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x_ptr + 1 + tl.arange(0, 4), tl.load(x_ptr) + tl.zeros([4], tl.float32))


def test_programs_with_elements_of_their_own_are_let_through(device: torch.device) -> None:
    x = torch.ones(13, device=device)
    double[(2,)](x, 13, BLOCK)
    assert x.tolist() == [2.0] * 13


def test_an_element_behind_the_last_is_found(device: torch.device) -> None:
    with pytest.raises(Exception, match=r"WildAccess.*test_checked_launches.py:\d+: 1 of 6 elements"):
        read_one_too_many[(1,)](torch.ones(8, device=device)[:5], 5, BLOCK)


def test_what_has_its_address_in_a_tensor_may_be_touched(device: torch.device) -> None:
    x = torch.ones(5, device=device)
    addresses = torch.tensor([x.data_ptr()], device=device)
    read_by_address[(1,)](addresses, 5, BLOCK)
    assert x.tolist() == [2.0] * 5
    with pytest.raises(Exception, match="WildAccess"):
        read_by_address[(1,)](addresses, 6, BLOCK)


def test_programs_that_write_one_place_are_found_unless_by_atomics(device: torch.device) -> None:
    x = torch.zeros(1, device=device)
    add_up[(3,)](x, 1, BLOCK)
    assert x.item() == 3
    with pytest.raises(DataRace, match="programs meet at 1 places"):
        add_up_without_atomics[(3,)](x, 1, BLOCK)


@pytest.mark.parametrize("kernel", (turn_around, read_back), ids=lambda each: each.fn.__name__)
def test_threads_that_meet_are_found_unless_a_barrier_parts_them(kernel: Any, device: torch.device) -> None:
    kernel[(1,)](torch.arange(8.0, device=device), 8, True)
    with pytest.raises(DataRace, match="threads of a program meet"):
        kernel[(1,)](torch.arange(8.0, device=device), 8, False)
