"""A trace of requests: what arrives when, how long it is, and which blocks of tokens its prompt begins with.

Read by the command line and by benchmarks. The schema is that of Mooncake's public traces, one JSON object a line:
`timestamp` in milliseconds, `input_length` and `output_length` in tokens, `hash_ids` of the prompt's blocks, each
id standing for a block and everything before it; and if wanted `tenant`, whose it is, and `priority`, its class.
Knows nothing of replicas.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from protocol.errors import InvalidRequest

BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """`blocks` covers the whole prompt, a partial last block included."""

    index: int
    arrival_s: float
    num_tokens: int  # of the prompt
    num_output_tokens: int  # at least one
    blocks: tuple[int, ...]
    tenant: str = ""  # between whom replicas are shared fairly
    priority: int = 0  # lower is earlier


def read_trace(path: Path, speed: float = 1.0) -> list[TraceRequest]:
    """In order of arrival, the first at 0 s. `speed` divides the times. Raises InvalidRequest with a sentence."""
    if not speed > 0.0:
        raise InvalidRequest(f"--speed must be above zero, not {speed}", param="speed")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read the trace {path}: {error}", param="trace") from None
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InvalidRequest(f"the trace {path} holds no request", param="trace")
    rows.sort(key=lambda row: row.arrival_s)
    _check_chains(path, rows)
    return _spread(rows, speed)


def _row(path: Path, number: int, line: str) -> TraceRequest:
    """With its time in seconds as it stands in the file."""
    try:
        fields: Any = json.loads(line)
        blocks = tuple(int(block) for block in fields["hash_ids"])
        milliseconds, num_tokens = float(fields["timestamp"]), int(fields["input_length"])
        num_output_tokens = int(fields["output_length"])
        tenant, priority = str(fields.get("tenant", "")), int(fields.get("priority", 0))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(
            f"line {number} of the trace {path} needs timestamp, input_length, output_length and hash_ids: {error!r}",
            param="trace",
        ) from None
    if num_tokens < 1 or len(blocks) != -(-num_tokens // BLOCK_TOKENS):
        raise InvalidRequest(
            f"line {number} of the trace {path} has {num_tokens} tokens in {len(blocks)} blocks: "
            f"there must be one of hash_ids for every {BLOCK_TOKENS} tokens begun",
            param="trace",
        )
    num_output_tokens = max(1, num_output_tokens)
    return TraceRequest(number, milliseconds / 1e3, num_tokens, num_output_tokens, blocks, tenant, priority)


def _check_chains(path: Path, rows: Sequence[TraceRequest]) -> None:
    """An id names a block and all before it, so whatever stands before it must be the same each time."""
    parents: dict[int, int | None] = {}
    for row in rows:
        parent: int | None = None
        for block in row.blocks:
            if parents.setdefault(block, parent) != parent:
                raise InvalidRequest(
                    f"line {row.index} of the trace {path}: block {block} follows another block than before; "
                    "ids must stand for a block and everything before it",
                    param="trace",
                )
            parent = block


def _spread(rows: Sequence[TraceRequest], speed: float) -> list[TraceRequest]:
    """Clocks that tick slowly make bursts that nobody sent: requests of one tick are spread evenly over it."""
    times = Counter(row.arrival_s for row in rows)
    ticks = sorted(times)
    tick_s = min((after - before for before, after in pairwise(ticks)), default=0.0)
    seen: Counter[float] = Counter()
    spread = []
    for index, row in enumerate(rows):
        share = seen[row.arrival_s] / times[row.arrival_s]
        seen[row.arrival_s] += 1
        arrival_s = (row.arrival_s - ticks[0] + share * tick_s) / speed
        spread.append(replace(row, index=index, arrival_s=arrival_s))
    return spread
