"""Fits a service model to requests that a real deployment answered. Called by `trunkline simulate --fit`.

A first-token time is that of a prefill where nobody else's prefill shared it, so these teach prefill; what passes
between first and last token, less the prefills of others, teaches decode steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import InvalidRequest
from simulator.measurement import MeasuredDeployment, MeasuredRequest
from simulator.service_model import ServiceModel

FEWEST = 20  # prefills without company: fewer say too little
ROUNDS = 50  # of the fit
LEAST_DEVIATION_S = 1e-5  # smaller ones weigh no more
Company = tuple[
    MeasuredRequest, Sequence[MeasuredRequest]
]  # a request, and those at its replica while it was
Row = tuple[float, ...]
Floats = NDArray[np.floating[Any]]


def fitted(requests: Sequence[MeasuredRequest], deployment: MeasuredDeployment) -> ServiceModel:
    """Raises InvalidRequest if they say too little.

    What a sequence adds to a step is taken from the replicas' own word: clients see too little of it.
    """
    company = [(request, _others(request, requests)) for request in requests]
    model = _prefill_model(company, deployment)
    budget = deployment.max_num_batched_tokens
    decodes = [row for each in company if (row := _decode_row(*each, model, budget)) is not None]
    if not decodes:
        raise InvalidRequest(
            "no request of the report had a second token: measure longer answers", param="--fit"
        )
    [step_s] = _least_deviations(decodes)
    return replace(model, decode_step_s=step_s)


def _prefill_model(company: Sequence[Company], deployment: MeasuredDeployment) -> ServiceModel:
    speeds = [replica.speeds for replica in deployment.replicas]
    decode_s = fmean(each.decode_s for each in speeds)
    sequence_s = fmean(each.decode_s_per_sequence for each in speeds)
    alone = [each for each in company if _prefilled_alone(*each)]
    if len(alone) < FEWEST:
        raise InvalidRequest(
            f"only {len(alone)} requests of the report had a replica's prefill to themselves: "
            "measure more, or at less load",
            param="--fit",
        )
    budget = deployment.max_num_batched_tokens
    rows = [_prefill_row(*each, decode_s, sequence_s, budget) for each in alone]
    once_s, token_s, pair_s = _least_deviations(rows)
    step_s = fmean(request.ttft_s / _num_steps(request, budget) for request, _ in alone)
    return ServiceModel(
        prefill_s=once_s,
        token_s=token_s,
        token_pair_s=pair_s,
        prefill_slowdown=sequence_s / step_s,
        decode_sequence_s=sequence_s,
        mixed_step_s=step_s,
        max_running=deployment.max_num_seqs,
    )


# Who was where when


def _prefill(request: MeasuredRequest) -> tuple[float, float]:
    return request.arrival_s, request.arrival_s + request.ttft_s


def _decode(request: MeasuredRequest) -> tuple[float, float]:
    return request.arrival_s + request.ttft_s, request.arrival_s + request.end_to_end_s


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))


def _others(request: MeasuredRequest, requests: Sequence[MeasuredRequest]) -> list[MeasuredRequest]:
    """That were at its replica while it was."""
    stay = request.arrival_s, request.arrival_s + request.end_to_end_s
    return [
        other
        for other in requests
        if other is not request
        and other.replica == request.replica
        and _overlap(stay, (other.arrival_s, other.arrival_s + other.end_to_end_s))
    ]


def _prefilled_alone(request: MeasuredRequest, others: Sequence[MeasuredRequest]) -> bool:
    return not any(_overlap(_prefill(request), _prefill(other)) for other in others)


# What they teach


def _prefill_row(
    request: MeasuredRequest,
    others: Sequence[MeasuredRequest],
    decode_s: float,
    sequence_s: float,
    budget: int,
) -> tuple[Row, float]:
    """Once, by token, by pair: of its time without what others' decodes add, and without half a step that ran when
    it came.
    """
    uncached = request.num_tokens - request.cached_tokens
    pairs = uncached * (request.cached_tokens + uncached / 2)
    beside = sum(_overlap(_prefill(request), _decode(other)) for other in others) / request.ttft_s
    waited_s = 0.5 * min(1.0, beside) * (decode_s + sequence_s * beside)
    slowed_s = sequence_s * beside * _num_steps(request, budget)
    return (1.0, float(uncached), pairs), request.ttft_s - waited_s - slowed_s


def _num_steps(request: MeasuredRequest, budget: int) -> int:
    return -(-(request.num_tokens - request.cached_tokens) // budget)


def _decode_row(
    request: MeasuredRequest, others: Sequence[MeasuredRequest], model: ServiceModel, budget: int
) -> tuple[Row, float] | None:
    """Steps without a prefill in them: these take what others' prefills leave, and the sequences their part of it."""
    began_s, ended_s = _decode(request)
    mixed = [other for other in others if began_s < _prefill(other)[1] <= ended_s]
    num_steps = request.num_output_tokens - 1 - sum(_num_steps(other, budget) for other in mixed)
    seconds = ended_s - began_s - sum(_alone_s(other, model) for other in mixed)
    if num_steps < 1 or seconds <= 0.0:
        return None
    beside = sum(_overlap((began_s, ended_s), _decode(other)) for other in others) / (ended_s - began_s)
    return (float(num_steps),), seconds - model.decode_sequence_s * num_steps * (1.0 + beside)


def _alone_s(request: MeasuredRequest, model: ServiceModel) -> float:
    return model.prefill_time_s(request.cached_tokens, request.num_tokens - request.cached_tokens)


def _least_deviations(rows: Sequence[tuple[Row, float]]) -> list[float]:
    """A coefficient for each column, none of them negative: what comes out so is left out.

    The sum of the deviations is the least, not that of their squares: a pause of the machine teaches nothing.
    """
    features: Floats = np.array([row for row, _ in rows])
    seconds: Floats = np.array([each for _, each in rows])
    scale = np.abs(features).max(axis=0).clip(min=1e-300)
    kept = list(range(features.shape[1]))
    solution = _reweighted(features / scale, seconds)
    while solution.min() < 0.0 and len(kept) > 1:
        del kept[int(np.argmin(solution))]
        solution = _reweighted(features[:, kept] / scale[kept], seconds)
    found = [0.0] * features.shape[1]
    for column, value in zip(kept, solution, strict=True):
        found[column] = max(0.0, float(value / scale[column]))
    return found


def _reweighted(features: Floats, seconds: Floats) -> Floats:
    """Least squares again and again, each row weighed by the inverse of how far it was off before."""
    weights = np.ones(len(seconds))
    solution: Floats = np.zeros(features.shape[1])
    for _ in range(ROUNDS):
        solution, *_ = np.linalg.lstsq(features * weights[:, None], seconds * weights, rcond=None)
        weights = 1.0 / np.sqrt(np.maximum(np.abs(features @ solution - seconds), LEAST_DEVIATION_S))
    return solution
