"""However a sequence is cut into steps, blocks and batches, its tokens stay the same."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.sampling import SamplingParams

PROMPT = [1, 17, 42, 5, 77, 31, 8, 64, 90, 23, 11, 3, 50]
OTHERS = ([1, 9, 9, 30], [1] + [60, 61, 62] * 9, [2], [1, 88, 4, 4, 4, 71, 13])


def generate(
    driver: Any, prompt: list[int], num_tokens: int, chunk: int = 1 << 30, **options: Any
) -> list[int]:
    row = driver.add(prompt, **options)
    driver.generate([row], num_tokens, chunk)
    generated: list[int] = driver.sequences[row].generated
    return generated


@pytest.mark.parametrize("chunk", range(1, len(PROMPT)))
def test_every_chunk_size_equals_one_chunk(chunk: int, open_runner: Any, drive: Any) -> None:
    driver = drive(open_runner())
    assert generate(driver, PROMPT, 12, chunk) == generate(driver, PROMPT, 12)


def test_a_long_chunk_behind_a_prefix_equals_one_chunk(open_runner: Any, drive: Any) -> None:
    prompt = [(11 * index) % 97 for index in range(470)]
    driver = drive(open_runner(max_num_seqs=4))
    assert generate(driver, prompt, 4, chunk=300) == generate(driver, prompt, 4)


@pytest.mark.parametrize("num_shared", (1, 2, 3))
def test_a_cached_prefix_equals_a_computed_one(num_shared: int, open_runner: Any, drive: Any) -> None:
    driver = drive(open_runner())
    first = driver.add(PROMPT)
    driver.generate([first], 20)
    shared = driver.sequences[first].blocks[:num_shared]
    again = generate(driver, PROMPT, 20, shared=shared)
    assert again == driver.sequences[first].generated


def test_a_mixed_batch_gives_each_row_what_it_gets_alone(open_runner: Any, drive: Any) -> None:
    alone = [generate(drive(open_runner()), prompt, 16) for prompt in (PROMPT, *OTHERS)]
    driver = drive(open_runner())
    rows = [driver.add(prompt) for prompt in (PROMPT, *OTHERS)]
    driver.generate(rows[:1], 3)
    driver.generate(rows[1:], 5, chunk=3)  # rows in prefill beside rows that decode
    driver.generate(rows, 11)
    assert [driver.sequences[row].generated[:14] for row in rows] == [tokens[:14] for tokens in alone]


def test_a_copied_block_continues_like_its_source(open_runner: Any, drive: Any) -> None:
    driver = drive(open_runner())
    first = driver.add(PROMPT)
    driver.generate([first], 1)
    *full, partial = driver.sequences[first].blocks
    copy = partial + 1
    second = driver.add(PROMPT, shared=[*full, copy])
    driver.sequences[second].num_computed = len(PROMPT)
    driver.sequences[second].tokens.append(driver.sequences[first].generated[0])
    driver.step({second: 1}, copies=((partial, copy),))
    driver.step({first: 1})
    assert driver.sequences[second].generated == driver.sequences[first].generated


def test_a_moved_sequence_goes_on_drawing_as_it_would_have(open_runner: Any, drive: Any) -> None:
    sampling = SamplingParams(temperature=1.0, frequency_penalty=1.0, top_p=0.9)
    whole = generate(drive(open_runner()), PROMPT, 14, sampling=sampling, seed=5)
    driver = drive(open_runner())
    row = driver.add(PROMPT, sampling, seed=5, generated=whole[:6])
    driver.generate([row], 8)
    assert driver.sequences[row].generated == whole


def test_a_row_is_fresh_for_its_next_sequence(open_runner: Any, drive: Any) -> None:
    runner = open_runner()
    expected = generate(drive(runner), PROMPT, 5)
    assert generate(drive(runner), [4, 4, 4], 5) != expected
    assert generate(drive(runner), PROMPT, 5) == expected
