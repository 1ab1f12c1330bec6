"""Small random Llamas made with transformers, runners over them, and a driver that makes step plans by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.cpu_runner import CpuRunner
from workers.model.runner_config import RunnerConfig
from workers.step_plan import RowStart, RowStep, SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup

GREEDY = SamplingParams(temperature=0.0)
TINY = {
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # far from uniform, so that greedy tokens have no near ties
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied_llama3": {"rope_parameters": LLAMA3},
    "tied": {"tie_word_embeddings": True},
    "biased_linear": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    },
}

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """A variant's name to the directory of its checkpoint; each is made once."""
    made: dict[str, Path] = {}

    def make(variant: str = "untied_llama3") -> Path:
        if variant not in made:
            made[variant] = _save(tmp_path_factory.mktemp(variant), VARIANTS[variant])
        return made[variant]

    return make


def _save(directory: Path, overrides: dict[str, Any]) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**TINY, **overrides}))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def reference_logits() -> Callable[[Path, Sequence[int]], torch.Tensor]:
    """What transformers computes: logits [tokens, vocabulary]."""
    models: dict[Path, Any] = {}

    def logits(directory: Path, tokens: Sequence[int]) -> torch.Tensor:
        from transformers import LlamaForCausalLM

        if directory not in models:
            models[directory] = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
        with torch.inference_mode():
            result: torch.Tensor = models[directory](torch.tensor([list(tokens)])).logits[0]
        return result

    return logits


@pytest.fixture
def open_runner(make_checkpoint: MakeCheckpoint) -> Iterator[Callable[..., CpuRunner]]:
    """Runners in fp32 over small pools, closed at the end."""
    opened: list[CpuRunner] = []

    def open_one(directory: Path | str = "untied_llama3", **config: Any) -> CpuRunner:
        path = make_checkpoint(directory) if isinstance(directory, str) else directory
        given = {"dtype": "float32", "block_size": 4, "max_num_seqs": 8, **config}
        opened.append(CpuRunner(RunnerConfig(path, **given), TensorParallelGroup()))
        return opened[-1]

    yield open_one
    for runner in opened:
        runner.close()


@dataclass
class DrivenSequence:
    tokens: list[int]
    num_prompt_tokens: int
    num_computed: int
    blocks: list[int]
    num_told_blocks: int = 0  # of `blocks`, how many plans have named
    drawn: list[SampledTokens] = field(default_factory=list)

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.num_prompt_tokens :]


class Driver:
    """Stands for the scheduler: gives out blocks, never frees any, and keeps every plan that it ran."""

    def __init__(self, runner: CpuRunner) -> None:
        self.runner = runner
        self.plans: list[StepPlan] = []
        self.sequences: dict[int, DrivenSequence] = {}
        self._starts: list[RowStart] = []
        self._ends: list[int] = []
        self._next_block = 1

    def add(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams = GREEDY,
        seed: int = 0,
        shared: Sequence[int] = (),
        generated: Sequence[int] = (),
    ) -> int:
        """A new row. `shared` are full blocks that hold the first tokens' KV already."""
        row = len(self.sequences)
        cached = len(shared) * self.runner.facts.block_size
        tokens = [*prompt, *generated]
        self.sequences[row] = DrivenSequence(tokens, len(prompt), cached, [*shared])
        self._starts.append(RowStart(row, pack_tokens(prompt), pack_tokens(generated), sampling, seed))
        return row

    def step(self, num_tokens: dict[int, int], copies: tuple[tuple[int, int], ...] = ()) -> SampledTokens:
        """Compute so many tokens of each row; rows that reach their end draw one."""
        rows = tuple(self._row_step(row, count) for row, count in num_tokens.items())
        plan = StepPlan(len(self.plans), tuple(self._ends), tuple(self._starts), copies, rows)
        self._starts, self._ends = [], []
        self.plans.append(plan)
        drawn = self.runner.execute(plan)
        drawing = [row.row for row in rows if row.sample]
        for row, token_id, logprob in zip(drawing, drawn.token_ids, drawn.logprobs, strict=True):
            self.sequences[row].tokens.append(token_id)
            self.sequences[row].drawn.append(SampledTokens((token_id,), (logprob,)))
        return drawn

    def generate(self, rows: Sequence[int], num_tokens: int, chunk: int = 1 << 30) -> None:
        """Prefill in chunks and decode, all rows in each step, until each has drawn so many more."""
        wanted = {row: len(self.sequences[row].generated) + num_tokens for row in rows}
        while left := [row for row in rows if len(self.sequences[row].generated) < wanted[row]]:
            self.step({row: min(chunk, self._num_left(row)) for row in left})

    def _num_left(self, row: int) -> int:
        return len(self.sequences[row].tokens) - self.sequences[row].num_computed

    def _row_step(self, row: int, count: int) -> RowStep:
        sequence, start = self.sequences[row], self.sequences[row].num_computed
        sequence.num_computed += count
        needed = -(-sequence.num_computed // self.runner.facts.block_size) - len(sequence.blocks)
        sequence.blocks.extend(self._next_block + 2 * index for index in range(needed))  # never side by side
        self._next_block += 2 * needed
        new_blocks = tuple(sequence.blocks[sequence.num_told_blocks :])
        sequence.num_told_blocks = len(sequence.blocks)
        tokens = tuple(sequence.tokens[start : sequence.num_computed])
        return RowStep(row, start, tokens, new_blocks, sequence.num_computed == len(sequence.tokens))


@pytest.fixture
def drive() -> type[Driver]:
    return Driver


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change values of a JSON file; None removes one."""

    def edit(path: Path, **values: Any) -> None:
        content = json.loads(path.read_text()) if path.is_file() else {}
        content.update(values)
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return edit
