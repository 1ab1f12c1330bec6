"""Deterministic mode as users ask for it."""

from __future__ import annotations

from trunkline import LLM, SamplingParams
from trunkline.cli import build_parser
from trunkline.outputs import RequestOutput
from trunkline.serve import config_from

PROMPTS = ["Once upon a time", "Once upon a time there was a fox", "The sea"]


def test_an_answer_of_the_built_in_model_has_the_same_bits_alone_and_in_company() -> None:
    sampling = SamplingParams(max_tokens=20, seed=3, logprobs=5)
    with LLM("sapling", deterministic=True, use_tqdm=False, max_num_batched_tokens=64) as llm:
        together = llm.generate(PROMPTS, sampling, use_tqdm=False)
        alone = [llm.generate(prompt, sampling, use_tqdm=False)[0] for prompt in PROMPTS]
    assert list(map(bits, together)) == list(map(bits, alone))


def bits(output: RequestOutput) -> object:
    sequence = output.outputs[0]
    assert sequence.logprobs is not None
    return sequence.token_ids, [sorted((t, e.logprob) for t, e in each.items()) for each in sequence.logprobs]


def test_the_option_reaches_the_engine_and_is_off_by_itself() -> None:
    for arguments, expected in ((["--deterministic"], True), (["--no-deterministic"], False), ([], False)):
        config = config_from(build_parser().parse_args(["serve", *arguments]))
        assert config.models[0].engine().deterministic is expected
