"""What fp8 costs in precision: logits of the built-in model with quantised weights, a quantised pool, and both.

    python benchmarks/fp8_error.py [--dtype float32] [--tokens 768]

Two texts of the repository: documents of the model's own corpus from a seed that it was not trained with, and its
README, which is far from what it was taught. Each is read as it stands, token after token (teacher-forced), in chunks,
so that keys and values of earlier chunks come out of the pool. Every position's logits are held against those of the
plain model in fp32 of the same run; bf16 without fp8 is there to compare with. "Top token kept": the share of positions
where the most likely token stays the same.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from report import print_header
from tokenizers import Tokenizer
from torch import Tensor

from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from sapling.corpus import stream
from sapling.documents import BREAK
from workers.model.cpu_runner import CpuRunner
from workers.model.runner_config import RunnerConfig
from workers.step_plan import Chunk, RowStart, StepPlan
from workers.tensor_parallel import TensorParallelGroup

SAPLING = Path(__file__).resolve().parents[1] / "sapling"
SEED, TRAINED_SEED = 2026, 7
BLOCK_SIZE, CHUNK = 16, 64  # tokens
END_OF_TEXT = 0
PLAIN = {"dtype": "float32"}
OPTIONS: dict[str, dict[str, str]] = {
    "bf16 in place of fp32": {"dtype": "bfloat16"},
    "quantization=fp8": {"quantization": "fp8"},
    "kv_cache_dtype=fp8": {"kv_cache_dtype": "fp8"},
    "both": {"quantization": "fp8", "kv_cache_dtype": "fp8"},
}


class Text(NamedTuple):
    name: str
    token_ids: list[int]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    texts = make_texts(options.tokens)
    print_header(
        "Logit error of fp8",
        model="sapling, 3.5 M parameters, 4 layers, hidden 256, not tuned for fp8",
        texts="; ".join(f"{text.name}: {len(text.token_ids)} tokens" for text in texts),
        computed_in=options.dtype,
        read_in=f"chunks of {CHUNK} tokens, blocks of {BLOCK_SIZE}",
    )
    print("Against fp32 without fp8, at every position but a text's last:")
    for text in texts:
        meant = logits_of(text.token_ids, PLAIN)
        print(f"\n| {text.name} | \\|Δlogit\\| mean | max | KL, nats, mean | top token kept | perplexity |")
        print("|---|---|---|---|---|---|")
        print(f"| fp32 | | | | | {perplexity(meant, text.token_ids):.3f} |")
        for name, own in OPTIONS.items():
            print(
                f"| {name} | {row(logits_of(text.token_ids, {'dtype': options.dtype, **own}), meant, text)} |"
            )
        print(f"\nLogits of a position are spread by {meant.std(-1).mean():.1f} (standard deviation).")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", help="what is not fp8 (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=768, help="of each text, at most (default: %(default)s)"
    )
    return parser.parse_args()


def make_texts(num_tokens: int) -> list[Text]:
    tokenizer = Tokenizer.from_file(str(SAPLING / "tokenizer.json"))

    def encoded(text: str) -> list[int]:
        pieces = tokenizer.encode_batch(text.split(BREAK), add_special_tokens=False)
        return [token for piece in pieces for token in piece.ids]

    assert SEED != TRAINED_SEED, "what it was trained on would not tell"
    documents = itertools.islice(stream(Random(SEED), long_share=0.1), num_tokens)
    tokens = (token for each in documents for token in (*encoded(each), END_OF_TEXT))
    readme = encoded((SAPLING / "README.md").read_text("utf-8"))
    return [
        Text(f"documents of sapling's corpus, seed {SEED}", list(itertools.islice(tokens, num_tokens))),
        Text("sapling/README.md", readme[:num_tokens]),
    ]


def logits_of(token_ids: Sequence[int], own: dict[str, str]) -> Tensor:
    """[tokens - 1, vocabulary] fp32: what follows each token but the last."""
    config = RunnerConfig(SAPLING, block_size=BLOCK_SIZE, max_num_seqs=1, **own)  # type: ignore[arg-type]
    runner = CpuRunner(config, TensorParallelGroup())
    recorded = record_logits(runner)
    num_blocks = -(-len(token_ids) // BLOCK_SIZE)
    scored = SamplingParams(temperature=0.0, prompt_logprobs=0)
    starts: tuple[RowStart, ...] = (RowStart(0, pack_tokens(token_ids), b"", scored, seed=0),)
    grown: tuple[tuple[int, tuple[int, ...]], ...] = ((0, tuple(range(1, num_blocks + 1))),)
    for step, begin in enumerate(range(0, len(token_ids), CHUNK)):
        chunk = Chunk(0, begin, pack_tokens(token_ids[begin : begin + CHUNK]), sample=False)
        runner.launch(StepPlan(step, starts=starts, grown=grown, chunks=(chunk,)))
        starts, grown = (), ()
    runner.close()
    return torch.cat(recorded)


def record_logits(runner: CpuRunner) -> list[Tensor]:
    compute, recorded = runner._decoder.logits, list[Tensor]()

    def compute_and_record(normed: Tensor) -> Tensor | None:
        logits = compute(normed)
        assert logits is not None, "there is one rank"
        recorded.append(logits.float())
        return logits

    runner._decoder.logits = compute_and_record  # type: ignore[method-assign]
    return recorded


def row(found: Tensor, meant: Tensor, text: Text) -> str:
    error = (found - meant).abs()
    expected, log_found = meant.log_softmax(-1), found.log_softmax(-1)
    divergence = (expected.exp() * (expected - log_found)).sum(-1).mean()
    kept = (found.argmax(-1) == meant.argmax(-1)).double().mean()
    return (
        f"{error.mean():.4f} | {error.max():.2f} | {divergence:.5f} | {100 * kept:.1f} %"
        f" | {perplexity(found, text.token_ids):.3f}"
    )


def perplexity(logits: Tensor, token_ids: Sequence[int]) -> float:
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(token_ids[1:])).exp())


if __name__ == "__main__":
    main()
