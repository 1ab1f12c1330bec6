"""SamplingParams: what is accepted, what is refused, and by which name."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams

REFUSED: list[dict[str, Any]] = [
    {"n": 0},
    {"n": 129},
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"temperature": 2.5},
    {"top_p": 0.0},
    {"top_p": 1.1},
    {"top_k": -2},
    {"min_p": 1.5},
    {"presence_penalty": 3.0},
    {"frequency_penalty": -3.0},
    {"repetition_penalty": 0.0},
    {"repetition_penalty": 1e300},
    {"max_tokens": -1},
    {"min_tokens": 17},
    {"seed": 2**63},
    {"stop": [""]},
    {"stop": ["x"] * 33},
    {"logprobs": 21},
    {"logit_bias": {1: float("inf")}},
]


@pytest.mark.parametrize("fields", REFUSED, ids=str)
def test_a_value_out_of_range_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**fields)
    assert refused.value.param == next(iter(fields))


def test_lists_and_dicts_become_tuples() -> None:
    params = SamplingParams(stop="end", stop_token_ids=[1, 2], logit_bias={3: 1}, top_k=-1)  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids, params.logit_bias, params.top_k) == (
        ("end",),
        (1, 2),
        ((3, 1.0),),
        0,
    )


def test_a_tiny_temperature_is_greedy() -> None:
    assert SamplingParams(temperature=0.0).greedy
    assert not SamplingParams(temperature=0.01).greedy
