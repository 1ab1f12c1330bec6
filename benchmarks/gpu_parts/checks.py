"""Correctness before any figure: a device says what a CPU says, and in deterministic mode always the same bits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu_parts.models import Machine, Model, open_model, open_small_model
from gpu_parts.requests import Answer, answer

_PROMPT = [5, 9, 200, 31, 7] * 20
_LAYERS = 2  # of the model whose bits are compared


def check_all(machine: Machine) -> None:
    report, device = machine.report, machine.device.type
    if device == "cuda":
        _check_kernels(machine)
        for options in ({}, {"enforce_eager": True}):
            name = f"tokens, {'launched one by one' if options else 'graphs'}: as a CPU's"
            report.check(name, partial(_check_tokens, device, options))
    name = "deterministic bits: alone, beside others, in chunks, behind a hit"
    report.check(name, lambda: _check_bits(machine))


def _check_kernels(machine: Machine) -> None:
    for dtype, block_size in ((torch.bfloat16, 64), (torch.bfloat16, 16), (torch.float32, 64)):
        name = f"attention, {dtype}, blocks of {block_size}: as it is meant"
        machine.report.check(name, partial(_check_attention, machine, dtype, block_size))


def _check_attention(machine: Machine, dtype: torch.dtype, block_size: int) -> None:
    from gpu_parts.kernel_times import KernelBench, KernelScope  # with the kernels it brings triton

    from workers.model.cuda.cuda_device import CudaDevice

    scope = KernelScope(dtype=dtype, block_size=block_size)
    KernelBench(CudaDevice(machine.device), machine.ceilings, scope, machine.report).check_attention()


def _check_tokens(device: str, options: dict[str, Any]) -> None:
    """Of the built-in model, in fp32."""
    said = []
    for where, given in (("cpu", {}), (device, options)):
        with open_small_model(where, dtype="float32", **given) as model:
            said.append(answer(model.engine, [_PROMPT], 40)[0].token_ids)
    assert said[0] == said[1], f"the device says {said[1]}, a CPU {said[0]}"


def _check_bits(machine: Machine) -> None:
    """Tokens and log-probabilities of one prompt, of the scope's model with few layers."""
    with TemporaryDirectory() as directory:
        shape = replace(machine.scope.shape, layers=_LAYERS)
        small = replace(machine, directory=shape.write(Path(directory)))
        with open_model(small, deterministic=True) as model:
            alone, others = _answers(small, model, 1), _answers(small, model, 32)
            hit = _answers(small, model, 1)
        with open_model(small, deterministic=True, max_num_batched_tokens=96) as model:
            chunked = _answers(small, model, 1)
    for name, found in (("beside others", others), ("behind a hit", hit), ("in chunks", chunked)):
        assert found[0] == alone[0], f"{name}: {found[0]}, alone: {alone[0]}"


def _answers(machine: Machine, model: Model, count: int) -> Sequence[Answer]:
    """Of the same prompt and of `count` - 1 others that are shorter and longer."""
    chance, vocabulary = random.Random(0), machine.scope.shape.vocabulary
    prompts = [chance.choices(range(3, vocabulary), k=200)]
    prompts += [chance.choices(range(3, vocabulary), k=20 + 7 * place) for place in range(count - 1)]
    return answer(model.engine, prompts, 24, logprobs=2)
