"""Defaults, lengths and seeds of a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ContextLengthExceeded, UnsupportedModel
from protocol.sampling import SamplingParams
from router.http.openai_types import CompletionBody
from router.http.request_sampling import Bounds, SamplingDefaults, sampling_params

BOUNDS = Bounds(context_tokens=100, vocab_size=50)


def sampling(defaults: SamplingDefaults | None = None, **fields: Any) -> SamplingParams:
    body = CompletionBody(prompt="a", **fields)
    return sampling_params(
        body,
        defaults or SamplingDefaults(),
        BOUNDS,
        num_prompt_tokens=90,
        max_tokens=body.max_tokens,
        logprobs=None,
    )


def test_the_request_goes_before_the_model_and_the_model_before_the_rest() -> None:
    authors = SamplingDefaults(temperature=0.6, top_k=20)
    chosen = sampling(authors, temperature=0.0)
    assert (chosen.temperature, chosen.top_k, chosen.top_p) == (0.0, 20, 1.0)


def test_a_models_defaults_come_from_its_generation_config(tmp_path: Path) -> None:
    assert SamplingDefaults.from_directory(tmp_path) == SamplingDefaults()
    config = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 1, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert SamplingDefaults.from_directory(tmp_path) == SamplingDefaults(temperature=0.6, top_p=0.9)


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": "hot"}', '{"top_p": 7}'])
def test_nonsense_in_the_generation_config_is_the_models_fault(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UnsupportedModel, match="generation_config"):
        SamplingDefaults.from_directory(tmp_path)


def test_the_last_token_of_the_context_can_be_asked_for() -> None:
    assert sampling(max_tokens=10).max_tokens == 10
    assert sampling().max_tokens == 10
    with pytest.raises(ContextLengthExceeded):
        sampling(max_tokens=11)


def test_greedy_may_have_several_choices() -> None:
    assert sampling(n=3, temperature=0.0).greedy


def test_ids_are_counted_once() -> None:
    assert sampling(stop_token_ids=[4, 2, 4]).stop_token_ids == (4, 2)


def test_a_top_k_beyond_the_vocabulary_travels_as_the_vocabulary() -> None:
    assert sampling(top_k=10**30).top_k == 50
