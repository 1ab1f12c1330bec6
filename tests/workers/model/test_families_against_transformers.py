"""Every family in every variant against transformers on the same random fp32 weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

ReferenceLogits = Callable[[Path, Sequence[int]], torch.Tensor]
PROMPT = [1, 17, 42, 5, 77, 31, 8, 64, 90, 23, 11, 3, 50, 28, 9, 81, 66, 14, 37, 72, 6]
NUM_TOKENS = 64  # generated, which takes every sliding window beyond its width
TOLERANCE = 2e-5  # of the largest logit


@pytest.fixture
def generate(open_runner: Any, drive: Any) -> Callable[..., list[int]]:
    """Greedy tokens after the prompt, on a runner of their own."""

    def generated(directory: Path, chunk: int = 1 << 30, num_cached_blocks: int = 0) -> list[int]:
        driver = drive(open_runner(directory))
        shared: list[int] = []
        if num_cached_blocks:
            first = driver.add(PROMPT)
            driver.generate([first], 1)
            shared = driver.sequences[first].blocks[:num_cached_blocks]
        row = driver.add(PROMPT, shared=shared)
        driver.generate([row], NUM_TOKENS, chunk)
        tokens: list[int] = driver.sequences[row].generated
        return tokens

    return generated


@pytest.fixture(scope="session")
def known_tokens() -> dict[Path, list[int]]:
    """What `generate_whole` has generated so far."""
    return {}


@pytest.fixture
def generate_whole(
    generate: Callable[[Path], list[int]], known_tokens: dict[Path, list[int]]
) -> Callable[[Path], list[int]]:
    """Greedy tokens after the prompt in one chunk and computed anew; once a checkpoint."""

    def generated(directory: Path) -> list[int]:
        if directory not in known_tokens:
            known_tokens[directory] = generate(directory)
        return known_tokens[directory]

    return generated


def test_logits_and_greedy_tokens_equal_those_of_transformers(
    family_variant: str,
    open_runner: Any,
    make_checkpoint: Any,
    reference_logits: ReferenceLogits,
    record_logits: Any,
    drive: Any,
    record_property: Callable[[str, object], None],
) -> None:
    directory = make_checkpoint(family_variant)
    runner = open_runner(directory)
    recorded, driver = record_logits(runner), drive(runner)
    row = driver.add(PROMPT)
    driver.generate([row], NUM_TOKENS)
    sequence = driver.sequences[row]
    expected = reference_logits(directory, sequence.tokens)[len(PROMPT) - 1 : -1]
    error, largest = float((torch.cat(recorded) - expected).abs().max()), float(expected.abs().max())
    record_property("logits_error", error / largest)  # for benchmarks/families.py
    assert error < TOLERANCE * largest, f"logits differ by {error:.2g}, and the largest is {largest:.2g}"
    assert sequence.generated == expected.argmax(-1).tolist()


@pytest.mark.parametrize("chunk", (1, 3, 8, 13))
def test_a_prompt_in_chunks_equals_a_whole_one(
    family_variant: str, chunk: int, make_checkpoint: Any, generate: Any, generate_whole: Any
) -> None:
    directory = make_checkpoint(family_variant)
    assert generate(directory, chunk) == generate_whole(directory)


@pytest.mark.parametrize("num_cached_blocks", (1, 5))
def test_a_cached_prompt_equals_a_computed_one(
    family_variant: str, num_cached_blocks: int, make_checkpoint: Any, generate: Any, generate_whole: Any
) -> None:
    directory = make_checkpoint(family_variant)
    assert generate(directory, num_cached_blocks=num_cached_blocks) == generate_whole(directory)
