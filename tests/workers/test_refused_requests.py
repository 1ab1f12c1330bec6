"""What the scheduler refuses, in words that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol.block_hash import BlockHasher
from protocol.errors import ContextLengthExceeded, InvalidRequest
from protocol.messages import Submit
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.scheduling.request import Request
from workers.scheduling.scheduler import SchedulerConfig

Make = Callable[..., Any]
SECRET = bytes(range(24))


def test_a_prompt_over_the_context_is_refused(make_driver: Make) -> None:
    driver = make_driver(max_model_len=32)
    with pytest.raises(ContextLengthExceeded, match="shorten the prompt to 31"):
        driver.add(range(32))
    driver.add(range(31))


def test_a_request_that_no_empty_pool_could_hold_is_refused(make_driver: Make) -> None:
    driver = make_driver(num_blocks=3)
    with pytest.raises(ContextLengthExceeded, match="the KV pool holds 32"):
        driver.add(range(20), max_tokens=14)
    driver.add(range(20), max_tokens=13)
    driver.run()


@pytest.mark.parametrize(
    "wishes",
    [
        {"tokens": []},
        {"tokens": [1000]},
        {"tokens": [-1]},
        {"tokens": [1], "digests": bytes(16)},
        {"tokens": [1], "digests": bytes(15)},
        {"tokens": [1], "n": 2, "generated": (b"",)},
        {"tokens": [1], "n": 2, "finished": (0, 1)},
        {"tokens": [1], "n": 2, "finished": (2,)},
    ],
)
def test_a_malformed_request_is_refused_and_leaves_nothing(make_driver: Make, wishes: Any) -> None:
    driver = make_driver()
    with pytest.raises(InvalidRequest):
        driver.add(**wishes)
    assert not driver.scheduler.has_work()
    driver.scheduler.check_integrity()


def test_a_second_request_under_one_id_is_refused(make_driver: Make) -> None:
    driver = make_driver()
    driver.add([1], "twin")
    with pytest.raises(InvalidRequest):
        driver.add([1], "twin")


def test_a_budget_below_the_number_of_rows_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="max_num_batched_tokens"):
        SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=32)


def test_a_request_is_made_from_the_routers_message(make_driver: Make) -> None:
    tokens = pack_tokens(range(32))
    digests = b"".join(BlockHasher(SECRET, 16).digests(tokens))
    submit = Submit("a", tokens, SamplingParams(seed=1), digests, b"salt", (b"",), 3, 1.0, "adapter")
    request = Request.from_submit(submit)
    assert (request.request_id, request.prompt, request.digests) == ("a", tokens, digests)
    assert (request.isolation, request.generated, request.priority) == (b"salt", (b"",), 3)
    assert (request.adapter, request.live_indices) == ("adapter", [0])


@pytest.mark.parametrize("wish", [{"logit_bias": ((1_000_000, 1.0),)}, {"allowed_token_ids": (-1,)}], ids=str)
def test_a_token_id_outside_the_vocabulary_is_refused_by_name(
    make_driver: Make, wish: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_driver().add(range(8), **wish)
    assert refused.value.param == next(iter(wish))
