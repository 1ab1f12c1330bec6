"""Small synthetic traces: conversations that grow, all behind one shared first block."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from simulator.trace import BLOCK_TOKENS, TraceRequest

TICK_MS = 3000


def conversations(num_requests: int, gap_s: float, seed: int = 0) -> list[TraceRequest]:
    """Each request continues one of a few conversations by a few blocks, or begins a new one."""
    rng = random.Random(seed)
    next_block = 1
    open_chains: list[tuple[int, ...]] = []
    requests = []
    for index in range(num_requests):
        continues = len(open_chains) > 6 and rng.random() < 0.6
        chain = open_chains.pop(rng.randrange(len(open_chains))) if continues else (0,)
        grown = tuple(range(next_block, next_block + rng.randint(1, 12)))
        next_block += len(grown) + 1
        open_chains.append(chain + grown)
        blocks = (*chain, *grown, next_block - 1)  # the last is partial
        num_tokens = (len(blocks) - 1) * BLOCK_TOKENS + rng.randint(1, BLOCK_TOKENS - 1)
        requests.append(TraceRequest(index, index * gap_s, num_tokens, rng.randint(1, 60), blocks))
    return requests


def trace_lines(requests: Sequence[TraceRequest]) -> str:
    """As the file holds them: times in milliseconds, by ticks."""
    rows = [
        {
            "timestamp": int(request.arrival_s * 1000) // TICK_MS * TICK_MS,
            "input_length": request.num_tokens,
            "output_length": request.num_output_tokens,
            "hash_ids": list(request.blocks),
        }
        for request in requests
    ]
    return "\n".join(json.dumps(row) for row in rows) + "\n"


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text(trace_lines(conversations(120, 0.3)), encoding="utf-8")
    return file


@pytest.fixture
def write_trace(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        file = tmp_path / "other.jsonl"
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.fixture
def busy_trace() -> list[TraceRequest]:
    """A trace that keeps four replicas with small caches rather busy."""
    return conversations(300, 0.12, seed=1)


@pytest.fixture
def sequential_trace() -> list[TraceRequest]:
    """Every request has ended before the next arrives."""
    return conversations(150, 100.0, seed=2)
