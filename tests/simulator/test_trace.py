"""The trace reader: times, ticks, and what is wrong with a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import InvalidRequest
from simulator.trace import BLOCK_TOKENS, read_trace

Write = Callable[[str], Path]


def line(timestamp: float = 0, input_length: int = 600, hash_ids: tuple[int, ...] = (0, 1)) -> str:
    fields = {"timestamp": timestamp, "input_length": input_length, "output_length": 5, "hash_ids": hash_ids}
    return json.dumps(fields) + "\n"


def test_requests_of_one_tick_are_spread_evenly_over_it(write_trace: Write) -> None:
    file = write_trace(line(3000) * 3 + line(6000) * 2 + line(12000))
    arrivals = [request.arrival_s for request in read_trace(file)]
    assert arrivals == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.5, 9.0])


def test_speed_divides_the_times(write_trace: Write) -> None:
    file = write_trace(line(0) * 2 + line(2000))
    assert [request.arrival_s for request in read_trace(file, speed=2.0)] == pytest.approx([0.0, 0.5, 1.0])


def test_a_trace_out_of_order_is_sorted_and_numbered_anew(write_trace: Write) -> None:
    requests = read_trace(write_trace(line(5000, 700) + line(1000, 600)))
    assert [(request.index, request.num_tokens) for request in requests] == [(0, 600), (1, 700)]


def test_a_request_without_output_still_has_a_first_token(write_trace: Write) -> None:
    row = {"timestamp": 0, "input_length": 9, "output_length": 0, "hash_ids": [7]}
    assert read_trace(write_trace(json.dumps(row)))[0].num_output_tokens == 1


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read the trace /no/such/file"):
        read_trace(Path("/no/such/file"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n", "holds no request"),
        (line() + "{not json}\n", "line 2 .* needs timestamp"),
        ('{"timestamp": 0, "input_length": 9, "hash_ids": [1]}\n', "line 1 .* needs timestamp"),
        ("[1, 2]\n", "line 1 .* needs timestamp"),
        (line(input_length=2 * BLOCK_TOKENS + 1), "line 1 .* has 1025 tokens in 2 blocks"),
        (line(input_length=0, hash_ids=()), "line 1 .* has 0 tokens"),
        (line() + line(hash_ids=(3, 1)), "line 2 .* block 1 follows another block"),
    ],
)
def test_a_wrong_line_is_named_by_number(write_trace: Write, text: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        read_trace(write_trace(text))


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_time_does_not_stand_still_nor_run_backwards(write_trace: Write, speed: float) -> None:
    with pytest.raises(InvalidRequest, match="--speed must be above zero"):
        read_trace(write_trace(line()), speed)


def test_a_row_may_say_whose_it_is_and_of_which_class(write_trace: Write) -> None:
    plain = json.loads(line())
    rows = [plain, {**plain, "tenant": "a", "priority": -1}]
    requests = read_trace(write_trace("\n".join(map(json.dumps, rows))))
    assert [(request.tenant, request.priority) for request in requests] == [("", 0), ("a", -1)]


def test_a_priority_that_is_no_number_is_named_by_line(write_trace: Write) -> None:
    row = {**json.loads(line()), "priority": "first"}
    with pytest.raises(InvalidRequest, match="line 1"):
        read_trace(write_trace(json.dumps(row)))
