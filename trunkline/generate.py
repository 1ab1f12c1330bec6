"""`trunkline generate`: completes prompts with the offline `LLM`, in this process."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from trunkline.model_options import model_options

if TYPE_CHECKING:
    from trunkline.outputs import RequestOutput


def run(options: argparse.Namespace) -> int:
    prompts = options.prompt or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise InvalidRequest("there is no prompt: give --prompt, or lines on stdin")
    sampling = sampling_from(options)
    from trunkline import LLM  # from here on it costs torch

    with LLM(**model_options(options)) as llm:
        for output in llm.generate(prompts, sampling, use_tqdm=sys.stderr.isatty()):
            print(_as_json(output) if options.json else _as_text(output))
    return 0


def sampling_from(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        n=options.n,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        stop=tuple(options.stop or ()),
        seed=options.sampling_seed,
    )


def _as_text(output: RequestOutput) -> str:
    return "\n".join(f"{output.prompt}{completion.text}" for completion in output.outputs)


def _as_json(output: RequestOutput) -> str:
    return json.dumps(dataclasses.asdict(output), default=str)
