"""Small random models made with transformers, runners over them, and a driver that makes step plans by hand.

`family_variants/` holds the models: a file per family with the name of transformers' config class, the values that all
its variants share, and each variant's own. A test that takes `family_variant` runs once for each of them.
"""

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
from workers.step_plan import Chunk, RowStart, SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup

GREEDY = SamplingParams(temperature=0.0)
FAMILIES = [
    json.loads(path.read_text()) for path in sorted(Path(__file__).parent.glob("family_variants/*.json"))
]
# A variant's name to its family's config class and all values.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (family["config_class"], {**family["shared"], **own})
    for family in FAMILIES
    for name, own in family["variants"].items()
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
            made[variant] = _save(tmp_path_factory.mktemp(variant), *VARIANTS[variant])
        return made[variant]

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family_variant" in metafunc.fixturenames:
        metafunc.parametrize("family_variant", VARIANTS)


def _save(directory: Path, config_class: str, values: dict[str, Any]) -> Path:
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**values))
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() == 1:  # norms and biases start at values that hide mistakes
                tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def reference_logits() -> Callable[[Path, Sequence[int]], torch.Tensor]:
    """What transformers computes: logits [tokens, vocabulary]."""
    models: dict[Path, Any] = {}

    def logits(directory: Path, tokens: Sequence[int]) -> torch.Tensor:
        from transformers import AutoConfig, AutoModelForCausalLM

        if directory not in models:
            # Written out products are the most exact, but Falcon's add ALiBi's biases twice.
            is_falcon = AutoConfig.from_pretrained(directory).model_type == "falcon"
            models[directory] = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, attn_implementation="sdpa" if is_falcon else "eager"
            )
        with torch.inference_mode():
            result: torch.Tensor = models[directory](torch.tensor([list(tokens)])).logits[0]
        return result

    return logits


@pytest.fixture(scope="session")
def record_logits() -> Callable[[CpuRunner], list[torch.Tensor]]:
    """From here on, every logits tensor [samples, vocabulary] that a runner's decoder computes is added to the list."""

    def record(runner: CpuRunner) -> list[torch.Tensor]:
        compute, recorded = runner._decoder.logits, list[torch.Tensor]()

        def compute_and_record(normed: torch.Tensor) -> torch.Tensor | None:
            logits = compute(normed)
            if logits is not None:
                recorded.append(logits.clone())
            return logits

        runner._decoder.logits = compute_and_record  # type: ignore[method-assign]
        return recorded

    return record


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

    @property
    def feeds_drawn(self) -> bool:
        """Its next token is the one that the runner drew last for it."""
        return bool(self.drawn) and self.num_computed == len(self.tokens) - 1


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
        decodes = [row for row, count in num_tokens.items() if count == 1 and self.sequences[row].feeds_drawn]
        starts = [self.sequences[row].num_computed for row in decodes]
        chunks = tuple(self._chunk(row, count) for row, count in num_tokens.items() if row not in decodes)
        for row in decodes:
            self.sequences[row].num_computed += 1
        grown = tuple((row, blocks) for row in num_tokens if (blocks := self._grow(row)))
        plan = StepPlan(
            len(self.plans),
            tuple(self._ends),
            tuple(self._starts),
            copies,
            grown,
            pack_tokens(decodes),
            pack_tokens(starts),
            chunks,
        )
        self._starts, self._ends = [], []
        self.plans.append(plan)
        drawn = self.runner.launch(plan)
        drawing = [*decodes, *(chunk.row for chunk in chunks if chunk.sample)]
        for place, (row, token_id) in enumerate(zip(drawing, drawn.token_ids, strict=True)):
            self.sequences[row].tokens.append(token_id)
            logprobs = {0: drawn.logprobs[place]} if place in drawn.logprobs else {}
            self.sequences[row].drawn.append(SampledTokens((token_id,), logprobs))
        return drawn

    def generate(self, rows: Sequence[int], num_tokens: int, chunk: int = 1 << 30) -> None:
        """Prefill in chunks and decode, all rows in each step, until each has drawn so many more."""
        wanted = {row: len(self.sequences[row].generated) + num_tokens for row in rows}
        while left := [row for row in rows if len(self.sequences[row].generated) < wanted[row]]:
            self.step({row: min(chunk, self._num_left(row)) for row in left})

    def _num_left(self, row: int) -> int:
        return len(self.sequences[row].tokens) - self.sequences[row].num_computed

    def _chunk(self, row: int, count: int) -> Chunk:
        sequence, start = self.sequences[row], self.sequences[row].num_computed
        sequence.num_computed += count
        tokens = pack_tokens(sequence.tokens[start : sequence.num_computed])
        return Chunk(row, start, tokens, sequence.num_computed == len(sequence.tokens))

    def _grow(self, row: int) -> tuple[int, ...]:
        """The blocks that the runner has not been told of."""
        sequence = self.sequences[row]
        needed = -(-sequence.num_computed // self.runner.facts.block_size) - len(sequence.blocks)
        sequence.blocks.extend(self._next_block + 2 * index for index in range(needed))  # never side by side
        self._next_block += 2 * needed
        new_blocks = tuple(sequence.blocks[sequence.num_told_blocks :])
        sequence.num_told_blocks = len(sequence.blocks)
        return new_blocks


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
