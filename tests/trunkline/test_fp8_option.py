"""Weights in fp8 as users ask for them."""

from __future__ import annotations

import pytest

from protocol.errors import InvalidRequest
from trunkline import LLM, SamplingParams
from trunkline.cli import build_parser
from trunkline.serve import config_from


def test_the_built_in_model_still_knows_its_capitals_by_other_logits() -> None:
    wanted, found = SamplingParams(temperature=0.0, max_tokens=1, logprobs=0), []
    for quantization in (None, "fp8"):
        with LLM("sapling", quantization=quantization, device="cpu", use_tqdm=False) as llm:
            found.append(llm.generate("The capital of France is", wanted, use_tqdm=False)[0].outputs[0])
    plain, quantised = found
    assert plain.text == quantised.text == " Paris"
    assert plain.cumulative_logprob != quantised.cumulative_logprob


def test_the_option_reaches_the_engine_and_is_off_by_itself() -> None:
    for arguments, expected in ((["--quantization", "fp8"], "fp8"), ([], None)):
        config = config_from(build_parser().parse_args(["serve", *arguments]))
        assert config.models[0].engine().quantization == expected


def test_another_quantization_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match="quantization must be fp8, or left out"):
        LLM("sapling", quantization="int4")
