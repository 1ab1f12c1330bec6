"""A report of requests that a real deployment answered: what came when, where it ran, what it hit, how long it took.

Written by `benchmarks/replay.py`, read by `trunkline simulate --fit`, which fits a service model to it. Knows nothing
of how it was measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from protocol.errors import InvalidRequest
from protocol.speeds import Speeds
from simulator.trace import TraceRequest

FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MeasuredReplica:
    name: str
    speeds: Speeds  # as it had learnt them at the end


@dataclass(frozen=True, slots=True)
class MeasuredDeployment:
    model: str
    policy: str  # by the name that the simulation has for it
    block_size: int
    num_blocks: int  # that each replica can use
    max_num_seqs: int
    max_num_batched_tokens: int
    replicas: tuple[MeasuredReplica, ...]


@dataclass(frozen=True, slots=True)
class MeasuredRequest:
    """Times are the client's. `blocks` covers the whole prompt, as in a trace."""

    arrival_s: float  # since the first
    num_tokens: int
    num_output_tokens: int
    cached_tokens: int
    replica: str
    ttft_s: float
    end_to_end_s: float
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """In order of arrival."""

    trace_block_tokens: int  # that each of `blocks` stands for
    deployment: MeasuredDeployment
    requests: tuple[MeasuredRequest, ...]

    def trace(self) -> list[TraceRequest]:
        """The same requests for a simulation."""
        return [
            TraceRequest(index, each.arrival_s, each.num_tokens, each.num_output_tokens, each.blocks)
            for index, each in enumerate(self.requests)
        ]


def write_measurement(path: Path, measurement: Measurement) -> None:
    fields = {"format": FORMAT, **dataclasses.asdict(measurement)}
    path.write_text(json.dumps(fields) + "\n", encoding="utf-8")


def read_measurement(path: Path) -> Measurement:
    """Raises InvalidRequest with a sentence."""
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
        if fields["format"] != FORMAT:
            raise _fault(path, f"has the format {fields['format']}, not {FORMAT}: measure again")
        measurement = Measurement(
            trace_block_tokens=int(fields["trace_block_tokens"]),
            deployment=_deployment(fields["deployment"]),
            requests=tuple(_parsed(_request, number, row) for number, row in enumerate(fields["requests"])),
        )
    except OSError as error:
        raise _fault(path, f"cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise _fault(path, f"is not one of benchmarks/replay.py: {_said(error)}") from None
    _check(path, measurement)
    return measurement


def _deployment(fields: Any) -> MeasuredDeployment:
    replicas = [
        MeasuredReplica(str(each["name"]), _made(Speeds, each["speeds"])) for each in fields["replicas"]
    ]
    return _made(MeasuredDeployment, {**fields, "replicas": tuple(replicas)})


def _request(fields: Any) -> MeasuredRequest:
    return _made(MeasuredRequest, {**fields, "blocks": tuple(map(int, fields["blocks"]))})


def _made(kind: type[T], fields: Any) -> T:
    """Raises TypeError for what has another type than its field, or is no finite number."""
    made = kind(**fields)
    for field in dataclasses.fields(made):  # type: ignore[arg-type]  # `kind` is one of ours
        value = getattr(made, field.name)
        if field.type == "float" and not (isinstance(value, int | float) and math.isfinite(value)):
            raise TypeError(f"{field.name} is no number: {value!r}")
        if field.type in ("int", "str") and type(value).__name__ != field.type:
            raise TypeError(f"{field.name} is of another type: {value!r}")
    return made


def _parsed(parse: Callable[[Any], T], number: int, row: Any) -> T:
    try:
        return parse(row)
    except (ValueError, KeyError, TypeError) as error:
        raise TypeError(f"request {number}: {_said(error)}") from None


def _check(path: Path, measurement: Measurement) -> None:
    """What a simulation takes for granted."""
    deployment, requests = measurement.deployment, measurement.requests
    if not requests or not deployment.replicas:
        raise _fault(path, "holds no requests or no replicas: measure again")
    if min(deployment.block_size, deployment.num_blocks, measurement.trace_block_tokens) < 1:
        raise _fault(path, "needs block sizes and a number of blocks above zero")
    names = {replica.name for replica in deployment.replicas}
    previous_s = 0.0
    for number, request in enumerate(requests):
        wrong = _wrong(request, measurement.trace_block_tokens, names, previous_s)
        if wrong is not None:
            raise _fault(path, f"says of request {number} that {wrong}")
        previous_s = request.arrival_s


def _wrong(
    request: MeasuredRequest, trace_block_tokens: int, names: Collection[str], previous_s: float
) -> str | None:
    num_blocks = -(-request.num_tokens // trace_block_tokens)
    if request.num_tokens < 1 or len(request.blocks) != num_blocks:
        return f"it has {request.num_tokens} tokens in {len(request.blocks)} blocks of {trace_block_tokens}"
    if not 0 <= request.cached_tokens < request.num_tokens:
        return f"{request.cached_tokens} of its {request.num_tokens} tokens were cached"
    if request.num_output_tokens < 1:
        return "no token came"
    if request.replica not in names:
        return f"it ran on {request.replica!r}, which is none of the replicas"
    if not 0.0 < request.ttft_s <= request.end_to_end_s:
        return f"its first token came after {request.ttft_s} s and its last after {request.end_to_end_s} s"
    if request.arrival_s < previous_s:
        return "it arrived before the one before it"
    return None


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _fault(path: Path, what: str) -> InvalidRequest:
    return InvalidRequest(f"the report {path} {what}", param="--fit")
