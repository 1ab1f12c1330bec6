"""The decoder against transformers on the same random fp32 weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.sampling import SamplingParams

ReferenceLogits = Callable[[Path, Sequence[int]], torch.Tensor]
PROMPT = [1, 17, 42, 5, 77, 31, 8, 64, 90, 23, 11]
VARIANTS = ("untied_llama3", "tied", "biased_linear")
ALL_LOGPROBS = SamplingParams(temperature=0.0, logprobs=20)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forty_greedy_tokens_equal_those_of_transformers(
    variant: str, open_runner: Any, make_checkpoint: Any, reference_logits: ReferenceLogits, drive: Any
) -> None:
    driver = drive(open_runner(variant))
    row = driver.add(PROMPT)
    driver.generate([row], 40)
    tokens = driver.sequences[row].tokens
    expected = reference_logits(make_checkpoint(variant), tokens).argmax(-1).tolist()
    assert driver.sequences[row].generated == expected[len(PROMPT) - 1 : -1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_log_probabilities_equal_those_of_transformers(
    variant: str, open_runner: Any, make_checkpoint: Any, reference_logits: ReferenceLogits, drive: Any
) -> None:
    driver = drive(open_runner(variant))
    row = driver.add(PROMPT, ALL_LOGPROBS)
    driver.generate([row], 6)
    sequence = driver.sequences[row]
    expected = reference_logits(make_checkpoint(variant), sequence.tokens).log_softmax(-1)
    for index, drawn in enumerate(sequence.drawn):
        ids, values = zip(*drawn.logprobs[0].top, strict=True)
        wanted = expected[len(PROMPT) - 1 + index, list(ids)]
        torch.testing.assert_close(torch.tensor(values), wanted, rtol=1e-4, atol=1e-4)


def test_a_position_beyond_the_original_context_is_scaled_like_transformers_does(
    open_runner: Any, make_checkpoint: Any, reference_logits: ReferenceLogits, drive: Any
) -> None:
    prompt = [(7 * index) % 97 for index in range(300)]
    driver = drive(open_runner())
    row = driver.add(prompt, ALL_LOGPROBS)
    driver.generate([row], 1)
    ids, values = zip(*driver.sequences[row].drawn[0].logprobs[0].top, strict=True)
    wanted = reference_logits(make_checkpoint(), prompt).log_softmax(-1)[-1, list(ids)]
    torch.testing.assert_close(torch.tensor(values), wanted, rtol=1e-4, atol=1e-4)
