"""The runner for GPUs, on plain kernels, draws what the CPU's runner draws, however steps are cut and mixed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from protocol.sampling import SamplingParams

PROMPT = [1, 17, 42, 5, 77, 31, 8, 64, 90, 23, 11, 3, 50]
OTHERS = ([1, 9, 9, 30], [1] + [60, 61, 62] * 9, [2], [1, 88, 4, 4, 4, 71, 13])
GREEDY = SamplingParams(temperature=0.0)
DRAWS = (
    GREEDY,
    SamplingParams(temperature=1.3),
    SamplingParams(top_k=5),
    SamplingParams(top_p=0.7),
    SamplingParams(temperature=0.8, min_p=0.1, top_k=40, top_p=0.95),
)
EDITED = (
    SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5),
    SamplingParams(temperature=0.0, logit_bias={7: 5.0}, bad_word_ids=((3, 4), (9,))),
    SamplingParams(min_tokens=5, stop_token_ids=(1, 2, 3), allowed_token_ids=(1, 2, 3, 4, 5)),
)


def generate(
    driver: Any, samplings: Any, num_tokens: int, chunk: int = 1 << 30, prompts: Any = (PROMPT, *OTHERS)
) -> list[list[int]]:
    rows = [
        driver.add(prompt, sampling, seed=11 + place)
        for place, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=False))
    ]
    driver.generate(rows, num_tokens, chunk)
    return [driver.sequences[row].generated[:num_tokens] for row in rows]


@pytest.mark.parametrize("enforce_eager", (False, True), ids=("graphs", "eager"))
@pytest.mark.parametrize("chunk", (1, 4, 5, 1 << 30))
def test_rows_in_chunks_draw_what_a_cpu_draws(
    chunk: int, enforce_eager: bool, open_runner: Any, open_cuda_runner: Any, drive: Any, drive_cuda: Any
) -> None:
    expected = generate(drive(open_runner()), [GREEDY] * 5, 9)
    runner = open_cuda_runner(enforce_eager=enforce_eager)
    assert generate(drive_cuda(runner), [GREEDY] * 5, 9, chunk) == expected


@pytest.mark.parametrize("samplings", (DRAWS, EDITED, (DRAWS[4], EDITED[0])), ids=("drawn", "edited", "both"))
@pytest.mark.parametrize("enforce_eager", (False, True), ids=("graphs", "eager"))
def test_seeded_rows_draw_what_a_cpu_draws(
    samplings: Any, enforce_eager: bool, open_runner: Any, open_cuda_runner: Any, drive: Any, drive_cuda: Any
) -> None:
    expected = generate(drive(open_runner()), samplings, 12)
    runner = open_cuda_runner(enforce_eager=enforce_eager)
    assert generate(drive_cuda(runner), samplings, 12, 7) == expected


def test_every_family_draws_what_a_cpu_draws(
    family_variant: str, open_runner: Any, open_cuda_runner: Any, drive: Any, drive_cuda: Any
) -> None:
    samplings = (GREEDY, DRAWS[1])
    expected = generate(drive(open_runner(family_variant)), samplings, 4)
    assert generate(drive_cuda(open_cuda_runner(family_variant)), samplings, 4, 8) == expected


@pytest.mark.parametrize("num_shared", (1, 3))
def test_a_cached_prefix_equals_a_computed_one(
    num_shared: int, open_cuda_runner: Any, drive_cuda: Any
) -> None:
    driver = drive_cuda(open_cuda_runner())
    first = driver.add(PROMPT)
    driver.generate([first], 12)
    again = driver.add(PROMPT, shared=driver.sequences[first].blocks[:num_shared])
    driver.generate([again], 12)
    assert driver.sequences[again].generated == driver.sequences[first].generated


def test_a_copied_block_continues_like_its_source(open_cuda_runner: Any, drive_cuda: Any) -> None:
    prompt = [*PROMPT, 4, 9]  # three tokens in its last block
    (expected,) = generate(drive_cuda(open_cuda_runner()), [GREEDY], 8, prompts=[prompt])
    driver = drive_cuda(open_cuda_runner())
    first = driver.add(prompt)
    driver.generate([first], 1)
    *full, partial = driver.sequences[first].blocks
    second = driver.add(prompt, shared=[*full, partial + 1])
    driver.sequences[second].num_computed = len(prompt)
    driver.sequences[second].tokens.append(expected[0])
    driver.step({second: 1}, copies=((partial, partial + 1),))
    driver.generate([first], 7)
    driver.generate([second], 6)
    assert driver.sequences[first].generated == driver.sequences[second].generated == expected


def test_a_row_is_fresh_for_its_next_sequence(open_cuda_runner: Any, drive_cuda: Any) -> None:
    runner = open_cuda_runner()
    expected = generate(drive_cuda(runner), [GREEDY], 6)
    assert generate(drive_cuda(runner), [EDITED[0]], 6) != expected
    assert generate(drive_cuda(runner), [GREEDY], 6) == expected


def test_padding_writes_nowhere(open_cuda_runner: Any, drive_cuda: Any) -> None:
    runner = open_cuda_runner()
    driver = drive_cuda(runner)
    generate(driver, [GREEDY] * 3, 6)  # three rows in graphs of four
    used = {block for sequence in driver.sequences.values() for block in sequence.blocks}
    for kv in runner._pool:
        untouched = [block for block in range(kv.shape[1]) if block not in used]
        assert 0 in untouched and not kv[:, untouched].any()
        assert all(kv[:, block].any() for block in used)


def test_a_step_is_one_upload(open_cuda_runner: Any, drive_cuda: Any, strict_device: Any) -> None:
    device = strict_device()
    driver = drive_cuda(open_cuda_runner(device=device))
    before = device.num_uploads
    generate(driver, DRAWS, 9, 4)
    assert device.num_uploads - before == len(driver.plans)


def test_a_step_that_decodes_is_two_replays(
    open_cuda_runner: Any, drive_cuda: Any, strict_device: Any
) -> None:
    device = strict_device()
    runner = open_cuda_runner(device=device)
    assert device.num_graphs == 4 * 3  # 1, 2, 4 and 8 rows: the decoder's, and two kinds of draw
    driver = drive_cuda(runner)
    rows = [driver.add(prompt, sampling) for prompt, sampling in zip(OTHERS, DRAWS, strict=False)]
    driver.generate(rows, 1)
    assert device.num_replays == 1  # the draw behind a prefill
    driver.generate(rows, 4)
    assert device.num_replays == 1 + 2 * 4


def test_rows_that_no_graph_has_room_for_are_launched_one_by_one(
    open_runner: Any,
    open_cuda_runner: Any,
    drive: Any,
    drive_cuda: Any,
    strict_device: Any,
    plain_kernels: Any,
) -> None:
    def few_slots(sizes: Any, variants: Any) -> Any:
        kernels = plain_kernels(sizes, variants)
        shape = replace(kernels.planner.decode, split_tokens=32)
        return replace(kernels, planner=replace(kernels.planner, decode=shape, prefill=shape, num_slots=3))

    device = strict_device()
    driver = drive_cuda(open_cuda_runner(device=device, select_kernels=few_slots))
    prompts = [PROMPT * 3, PROMPT * 4]  # each of two splits
    found = generate(driver, [GREEDY] * 2, 5, prompts=prompts)
    assert found == generate(drive(open_runner()), [GREEDY] * 2, 5, prompts=prompts)
    assert device.num_replays == 5  # of the draw alone


def test_prompt_logprobs_are_a_cpus(
    open_runner: Any, open_cuda_runner: Any, drive: Any, drive_cuda: Any
) -> None:
    sampling = SamplingParams(temperature=0.0, prompt_logprobs=2, logprobs=2)
    found = []
    for driver in (drive(open_runner()), drive_cuda(open_cuda_runner())):
        driver.add(PROMPT, sampling)
        drawn = driver.step({0: len(PROMPT)})
        found.append([*drawn.prompt_logprobs[0], drawn.logprobs[0]])
    for expected, other in zip(*found, strict=True):
        assert other.rank == expected.rank
        assert [token for token, _ in other.top] == [token for token, _ in expected.top]
        torch.testing.assert_close(other.logprob, expected.logprob, rtol=1e-4, atol=1e-4)
