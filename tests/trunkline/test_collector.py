"""A request's outputs on their way to a `RequestOutput`, with no engine behind them."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import FinishReason, SequenceOutput, TokenLogprob
from protocol.sampling import SamplingParams
from router.text.tokenizer import Tokenizer
from trunkline.collector import RequestCollector
from trunkline.outputs import Logprob, RequestOutput

SAPLING = Path(__file__).parents[2] / "sapling"
PROMPT = "The fox"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(SAPLING)


def collect(
    tokenizer: Tokenizer, sampling: SamplingParams, outputs: list[SequenceOutput], prompt: str = PROMPT
) -> RequestOutput:
    collector = RequestCollector("0", prompt, array("i", tokenizer.encode(prompt)), sampling, tokenizer)
    for output in outputs:
        collector.add(output)
    assert collector.finished
    return collector.result()


def output(token_ids: list[int], **fields: Any) -> SequenceOutput:
    return SequenceOutput("0", fields.pop("index", 0), tuple(token_ids), 0, **fields)


def last(token_ids: list[int], **fields: Any) -> SequenceOutput:
    return output(token_ids, finish_reason=FinishReason.LENGTH, **fields)


def scores(count: int, *top: tuple[int, float]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(-float(place), 3, top) for place in range(1, count + 1))


def test_a_prompts_logprobs_stand_beside_its_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPT)
    sampling = SamplingParams(prompt_logprobs=1)
    result = collect(tokenizer, sampling, [last([ids[0]], prompt_logprobs=scores(len(ids) - 1, (9, -0.5)))])
    assert result.prompt_logprobs is not None and result.prompt_logprobs[0] is None
    assert result.prompt_logprobs[1] == {
        ids[1]: Logprob(-1.0, 3, tokenizer.token_text(ids[1])),
        9: Logprob(-0.5, 1, tokenizer.token_text(9)),
    }
    assert len(result.prompt_logprobs) == len(ids)


def test_they_stay_none_where_nobody_asked(tokenizer: Tokenizer) -> None:
    assert collect(tokenizer, SamplingParams(), [last([5])]).prompt_logprobs is None


def test_a_prompt_of_one_token_has_one_empty_entry(tokenizer: Tokenizer) -> None:
    result = collect(tokenizer, SamplingParams(prompt_logprobs=0), [last([5])], prompt="a")
    assert result.prompt_logprobs == [None]


def test_a_prompt_can_be_scored_and_not_continued(tokenizer: Tokenizer) -> None:
    count = len(tokenizer.encode(PROMPT)) - 1
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0, logprobs=0)
    result = collect(tokenizer, sampling, [last([], prompt_logprobs=scores(count))])
    completion = result.outputs[0]
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("", [], "length")
    assert (completion.logprobs, completion.cumulative_logprob) == ([], 0.0)
    assert result.prompt_logprobs is not None and len(result.prompt_logprobs) == count + 1


def test_all_sequences_share_what_the_first_one_brought(tokenizer: Tokenizer) -> None:
    count = len(tokenizer.encode(PROMPT)) - 1
    sampling = SamplingParams(n=2, prompt_logprobs=0)
    first = last([5], prompt_logprobs=scores(count))
    assert collect(tokenizer, sampling, [first, last([6], index=1)]).prompt_logprobs is not None


def test_the_cumulative_logprob_is_that_of_the_tokens_that_are_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" a stop b")
    outputs = [output([each], logprobs=(TokenLogprob(-1.0, 1),)) for each in ids]
    collector = RequestCollector(
        "0", PROMPT, array("i", [5]), SamplingParams(logprobs=0, stop="stop"), tokenizer
    )
    ended = [collector.add(each) for each in outputs]
    completion = collector.result().outputs[0]
    assert completion.text == " a " and ended.count(True) == 1
    assert completion.cumulative_logprob == -len(completion.token_ids)
    assert len(completion.token_ids) < len(ids)


def test_without_logprobs_there_is_no_cumulative_one(tokenizer: Tokenizer) -> None:
    assert collect(tokenizer, SamplingParams(), [last([5])]).outputs[0].cumulative_logprob is None


def test_with_detokenize_off_no_token_is_turned_into_text(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> str:
        raise AssertionError("text was asked for")

    ids = tokenizer.encode(PROMPT)
    for name in ("decode", "token_text", "token_bytes"):
        monkeypatch.setattr(Tokenizer, name, forbidden)
    sampling = SamplingParams(detokenize=False, logprobs=1, prompt_logprobs=0)
    drawn = last([7], logprobs=(TokenLogprob(-1.0, 1, ((7, -1.0),)),), prompt_logprobs=scores(len(ids) - 1))
    collector = RequestCollector("0", PROMPT, array("i", ids), sampling, tokenizer)
    collector.add(drawn)
    completion = collector.result().outputs[0]
    assert (completion.text, completion.token_ids) == ("", [7])
    assert completion.logprobs == [{7: Logprob(-1.0, 1, None)}]


@pytest.mark.parametrize("stop_token_id", [None, 42])
def test_with_detokenize_off_an_end_has_its_reason_too(
    tokenizer: Tokenizer, stop_token_id: int | None
) -> None:
    end = output([42], finish_reason=FinishReason.STOP, stop_token_id=stop_token_id)
    completion = collect(tokenizer, SamplingParams(detokenize=False), [end]).outputs[0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop_token_id)
