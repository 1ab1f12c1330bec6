"""The runner for GPUs, on plain kernels, draws what the CPU's runner draws, however steps are cut and mixed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from protocol.messages import TokenLogprob
from protocol.sampling import SamplingParams
from workers.model.cuda import prompt_scoring

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
    runner = open_cuda_runner(device=device)
    generate(drive_cuda(runner), EDITED, 1)
    # One more where rows start that wish something of their logits, or take the place of such rows.
    for samplings, num_more in ((DRAWS, 1), (DRAWS, 0), (EDITED, 1)):
        driver, before = drive_cuda(runner), device.num_uploads
        generate(driver, samplings, 9, 4)
        assert device.num_uploads - before == len(driver.plans) + num_more


@pytest.mark.parametrize("samplings", ([GREEDY] * 4, DRAWS, EDITED), ids=("likeliest", "drawn", "edited"))
def test_a_step_that_decodes_is_two_replays(
    samplings: Any, open_cuda_runner: Any, drive_cuda: Any, strict_device: Any
) -> None:
    device = strict_device()
    runner = open_cuda_runner(device=device)
    assert device.num_graphs == 4 * 4  # 1, 2, 4 and 8 rows: the decoder's, and three kinds of draw
    driver = drive_cuda(runner)
    rows = [driver.add(prompt, sampling) for prompt, sampling in zip(OTHERS, samplings, strict=False)]
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


def scored_prompts(driver: Any) -> list[TokenLogprob]:
    """Of two prompts in chunks, one of which asks for fewer alternatives, and of the tokens drawn after them."""
    for prompt, num_alternatives in ((PROMPT, 2), (OTHERS[1], 0)):
        driver.add(prompt, SamplingParams(temperature=0.0, prompt_logprobs=num_alternatives, logprobs=2))
    found: list[TokenLogprob] = []
    for numbers in ({0: 5, 1: 9}, {0: 8, 1: 19}):
        drawn = driver.step(numbers)
        found += [*drawn.prompt_logprobs[0], *drawn.prompt_logprobs[1], *drawn.logprobs.values()]
    return found


def test_prompt_logprobs_are_a_cpus(
    open_runner: Any, open_cuda_runner: Any, drive: Any, drive_cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scored_prompts(drive(open_runner()))
    monkeypatch.setattr(prompt_scoring, "MAX_SCORED_TOKENS", 6)  # whose logits exist at a time
    found = scored_prompts(drive_cuda(open_cuda_runner()))
    assert len(found) == len(PROMPT) - 1 + len(OTHERS[1]) - 1 + 2
    for entry, other in zip(expected, found, strict=True):
        assert other.rank == entry.rank
        assert [token for token, _ in other.top] == [token for token, _ in entry.top]
        torch.testing.assert_close(other.logprob, entry.logprob, rtol=1e-4, atol=1e-4)


def test_scored_prompts_are_not_waited_for(open_cuda_runner: Any, drive_cuda: Any) -> None:
    """Launched with another step behind it, before anybody reads."""
    driver = drive_cuda(open_cuda_runner())
    driver.add(PROMPT, SamplingParams(temperature=0.0, prompt_logprobs=1))
    driver.step({0: len(PROMPT)})
    runner = open_cuda_runner()
    first, second = (runner.launch(replace(driver.plans[0], step=step)) for step in range(2))
    assert not first.scored.arrived.done and not second.scored.arrived.done
    assert first.wait().prompt_logprobs == second.wait().prompt_logprobs
