"""Draws of rows with penalties, biases, words and log-probabilities, on the device: those of the CPU's sampler, whoever
else draws in the step. Over plain kernels, and interpreted: `TRITON_INTERPRET=1 pytest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from triton import knobs

from kernels.gpu.sampling.token_draw import TokenDraw
from kernels.keep_newest import keep_newest
from protocol.messages import TokenLogprob
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.cuda.device_sampler import DeviceSampler
from workers.model.cuda.step_upload import StepUpload
from workers.model.cuda.token_head import DrawKind, TokenHead
from workers.model.sampling.sampler import Sampler
from workers.step_plan import RowStart
from workers.tensor_parallel import TensorParallelGroup

VOCABULARY = 12
EOS = (2,)
ROWS = 12
PROMPT = (3, 4, 4)
LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.9, 1.4, -0.2, 0.0, 2.3, -3.0, 0.7, 1.1, -0.6])  # best: 7, 2, 4, 10
GREEDY = SamplingParams(temperature=0.0)
WISHES = {
    "greedy": GREEDY,
    "random": SamplingParams(top_p=0.9, temperature=1.3),
    "presence": SamplingParams(temperature=0.0, presence_penalty=2.0),
    "frequency": SamplingParams(temperature=0.0, frequency_penalty=0.2),
    "repetition": SamplingParams(temperature=0.0, repetition_penalty=5.0),
    "all penalties": SamplingParams(
        temperature=0.8, presence_penalty=-0.3, frequency_penalty=0.4, repetition_penalty=1.3, min_p=0.01
    ),
    "bias": SamplingParams(logit_bias={3: 2.0, 4: -1.0, 0: 1e9, 99: 5.0}),
    "allowed": SamplingParams(
        min_tokens=5, stop_token_ids=(7,), allowed_token_ids=(1, 2, 3, 7, 8, 99), logit_bias={3: 1.5, 5: 9.0}
    ),
    "nothing left": SamplingParams(temperature=0.0, allowed_token_ids=(7, 4), bad_word_ids=((7,), (4,))),
    "words": SamplingParams(
        temperature=0.0, bad_word_ids=((7, 7), (2, 7), (4, 4, 7), (2, 7, 7), (9,), (99, 7))
    ),
    "other words": SamplingParams(temperature=0.5, bad_word_ids=((1, 1, 1, 1, 1, 7), (7, 7), (7, 2, 4))),
    "everything": SamplingParams(
        temperature=0.7,
        logprobs=4,
        presence_penalty=0.5,
        repetition_penalty=1.2,
        bad_word_ids=((7, 2), (10,)),
        logit_bias={8: 4.0},
        min_tokens=9,
        top_k=6,
    ),
}


class Device:
    """A head over logits that are given, and rows that are started by hand."""

    def __init__(self, device: Any, draw: Any, logits: torch.Tensor, captured: bool, num_bytes: int) -> None:
        self.device = device
        self.upload = StepUpload(device, num_bytes)
        self.sampler = DeviceSampler(len(logits), EOS, ROWS, device.torch_device, draws=True)

        def logits_of(hidden: torch.Tensor) -> torch.Tensor:
            return logits.expand(len(hidden), -1).clone()

        model = SimpleNamespace(
            decoder=SimpleNamespace(logits=logits_of, logits_part=lambda hidden: (logits_of(hidden), 0)),
            kernels=SimpleNamespace(draw=draw, keep_newest=keep_newest),
            described=SimpleNamespace(
                spec=SimpleNamespace(hidden_size=4, vocab_size=len(logits)), dtype=torch.float32
            ),
        )
        group: Any = TensorParallelGroup()
        self.head = TokenHead(device, model, group, self.sampler, ROWS, ROWS)  # type: ignore[arg-type]
        if captured:
            self.head.capture((4, ROWS), self.upload)

    def start(self, row: int, sampling: SamplingParams, generated: Iterable[int] = (), seed: int = 0) -> None:
        self.sampler.start(RowStart(row, pack_tokens(PROMPT), pack_tokens(generated), sampling, seed))
        self.head.start(row, sampling)

    def launch(self, rows: Sequence[int], num_generated: Sequence[int]) -> Any:
        self.sampler.send(self.upload)
        self.upload.begin()
        columns, positions = np.array(rows), len(PROMPT) + np.array(num_generated)
        wishes = self.head.put(self.upload, self.head.padded(len(rows)), columns, positions)
        self.upload.send()
        return self.head.draw(wishes, self.upload, columns)

    def step(self, rows: Sequence[int], num_generated: int | Sequence[int]) -> tuple[list[int], Any]:
        each = [num_generated] * len(rows) if isinstance(num_generated, int) else num_generated
        drawn = self.launch(rows, each)
        drawn.arrived.wait()
        return drawn.token_ids.tolist(), drawn.read_logprobs()


class Cpu:
    """The same, by the CPU's sampler."""

    def __init__(self) -> None:
        self.sampler = Sampler(VOCABULARY, EOS, ROWS)

    def start(self, row: int, sampling: SamplingParams, generated: Iterable[int] = (), seed: int = 0) -> None:
        self.sampler.start(RowStart(row, pack_tokens(PROMPT), pack_tokens(generated), sampling, seed))

    def step(self, rows: Sequence[int], num_generated: Sequence[int]) -> tuple[list[int], Any]:
        logits, positions = LOGITS.expand(len(rows), -1).clone(), len(PROMPT) + torch.tensor(num_generated)
        drawn = self.sampler.sample(logits, np.array(rows), positions)
        return drawn.token_ids.tolist(), dict(drawn.logprobs)


OpenDevice = Callable[..., Device]


@pytest.fixture
def plain_device(strict_device: Any, plain_draw: Any) -> OpenDevice:
    def open_one(captured: bool = True, logits: torch.Tensor = LOGITS, num_bytes: int = 1 << 16) -> Device:
        return Device(strict_device(), plain_draw(), logits, captured, num_bytes)

    return open_one


@pytest.fixture(params=("plain", "interpreted"))
def open_device(request: pytest.FixtureRequest, strict_device: Any, plain_device: OpenDevice) -> OpenDevice:
    """The latter captures no graphs, which takes long."""
    if request.param == "plain":
        return plain_device
    if not knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET=1 was not set")
    draw = TokenDraw(ROWS, VOCABULARY, torch.device("cpu"))
    return lambda: Device(strict_device(), draw, LOGITS, captured=False, num_bytes=1 << 16)


def alone(
    device: Device, sampling: SamplingParams, num_steps: int, generated: Sequence[int] = ()
) -> list[int]:
    device.start(0, sampling, generated)
    return [device.step([0], len(generated) + each)[0][0] for each in range(num_steps)]


def assert_alike(found: dict[int, TokenLogprob], expected: dict[int, TokenLogprob]) -> None:
    assert list(found) == list(expected)
    for place, entry in expected.items():
        assert found[place].rank == entry.rank and len(found[place].top) == len(entry.top)
        assert [token for token, _ in found[place].top] == [token for token, _ in entry.top]
        values = [[each.logprob, *(value for _, value in each.top)] for each in (found[place], entry)]
        torch.testing.assert_close(*map(torch.tensor, values))


@pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning"
)  # numpy's, of a counter's random bits
def test_rows_in_changing_batches_draw_what_a_cpu_draws(open_device: OpenDevice) -> None:
    cpu, device = Cpu(), open_device()
    everyone = [*range(len(WISHES))]
    for row, sampling in enumerate(WISHES.values()):
        generated = (7, 7, 2) if row % 2 else ()  # as after a preemption
        for each in (cpu, device):
            each.start(row, sampling, generated, seed=row)
    numbers = {row: 3 * (row % 2) for row in everyone}
    for rows in (everyone, everyone[::-1], [3, 8, 9], [11], [1, 0], everyone[3:], everyone):
        now = [numbers[row] for row in rows]
        expected, logprobs = cpu.step(rows, now)
        found, scores = device.step(rows, now)
        assert dict(zip(rows, found, strict=True)) == dict(zip(rows, expected, strict=True))
        assert_alike(scores, logprobs)
        for row in rows:
            numbers[row] += 1


def test_penalties_count_what_the_device_drew_itself(plain_device: OpenDevice) -> None:
    device = plain_device()
    assert alone(device, SamplingParams(temperature=0.0, presence_penalty=2.0), 4) == [7, 2, 4, 10]
    assert alone(device, SamplingParams(temperature=0.0, frequency_penalty=0.2), 4) == [7, 7, 2, 7]
    assert alone(device, SamplingParams(temperature=0.0, repetition_penalty=5.0), 4) == [7, 2, 10, 9]


def test_words_are_forbidden_behind_their_beginnings_alone(open_device: OpenDevice) -> None:
    words, device = ((7, 7), (2, 7), (4, 4, 7), (2, 7, 7)), open_device()
    assert alone(device, SamplingParams(temperature=0.0, bad_word_ids=words), 6) == [7, 2, 2, 2, 2, 2]
    assert alone(device, SamplingParams(temperature=0.0, bad_word_ids=((4, 7), (4, 4, 7))), 1) == [7]
    assert alone(device, SamplingParams(temperature=0.0, bad_word_ids=((7, 7, 7),)), 5) == [7, 7, 2, 7, 7]


def test_words_may_be_many_and_long(open_device: OpenDevice) -> None:
    """More of both than a kernel looks at, and moves, at a time."""
    before = (7, 2) * 19 + (7,)
    others = tuple((9, first, second) for first in range(6) for second in range(12))
    words = (*others, (7, 7), (*before, 2), (*before[1:], 4, 7))
    sampling = SamplingParams(temperature=0.0, bad_word_ids=words)
    assert alone(open_device(), sampling, 3, generated=before) == [4, 2, 7]


def test_ends_wait_for_min_tokens(plain_device: OpenDevice) -> None:
    sampling = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(7,))
    assert alone(plain_device(), sampling, 4) == [4, 4, 7, 7]


def test_logprobs_are_of_raw_logits_and_for_whom_they_were_asked(open_device: OpenDevice) -> None:
    device, asked = open_device(), (None, 0, 2, 20, None)
    for row, num_logprobs in enumerate(asked):
        sampling = SamplingParams(temperature=0.0, logprobs=num_logprobs, allowed_token_ids=(8, 9))
        device.start(row, sampling)
    tokens, logprobs = device.step([4, 3, 2, 1, 0], 0)
    raw = LOGITS.log_softmax(-1)
    assert tokens == [9] * 5
    assert {place: len(each.top) for place, each in logprobs.items()} == {1: VOCABULARY, 2: 2, 3: 0}
    for each in logprobs.values():
        assert (each.logprob, each.rank) == (pytest.approx(float(raw[9])), 6)
    assert logprobs[2].top == ((7, pytest.approx(float(raw[7]))), (2, pytest.approx(float(raw[2]))))


def test_logprobs_arrive_with_the_tokens_behind_one_event(plain_device: OpenDevice) -> None:
    """Those of a step are still right when two more have been launched, and the first of them been read."""
    device, found = plain_device(), []
    device.start(0, SamplingParams(temperature=0.0, logprobs=1, presence_penalty=2.0))
    steps = [device.launch([0], [number]) for number in range(2)]
    assert steps[0].token_ids.tolist() == [-1], "it has not been waited for"
    for number in range(2, 5):
        for each in steps:
            each.arrived.wait()
        first = steps.pop(0)
        found.append((first.token_ids.tolist(), first.read_logprobs()[0].rank))
        steps.append(device.launch([0], [number]))
    assert found == [([7], 1), ([2], 2), ([4], 3)]


def test_a_row_that_is_taken_again_knows_nothing_of_before(plain_device: OpenDevice) -> None:
    device = plain_device()
    for sampling in (GREEDY, SamplingParams(temperature=0.0, logit_bias={1: 0.0}, bad_word_ids=((9, 9),))):
        wishful = SamplingParams(
            allowed_token_ids=(8, 9), bad_word_ids=((8, 8),), presence_penalty=2.0, min_tokens=9, logprobs=1
        )
        assert set(alone(device, wishful, 3)) == {8, 9}
        device.sampler.end(0)
        device.start(0, sampling)
        device.start(1, WISHES["everything"])
        tokens, logprobs = device.step([0, 1], 0)
        assert tokens[0] == 7 and list(logprobs) == [1]


def test_rows_that_want_no_edit_cost_no_upload_but_the_steps(plain_device: OpenDevice) -> None:
    device = plain_device()
    device.start(0, WISHES["everything"])
    device.start(1, GREEDY)
    before = device.device.num_uploads
    for number in range(3):
        device.step([0, 1], number)
    assert device.device.num_uploads - before == 1 + 3
    device.start(1, WISHES["random"])
    device.step([0, 1], 3)
    assert device.device.num_uploads - before == 1 + 4


def test_steps_with_edits_are_one_replay(plain_device: OpenDevice) -> None:
    device = plain_device(captured=True)
    assert device.device.num_graphs == 2 * len(DrawKind)
    for row in range(3):
        device.start(row, [*WISHES.values()][-1 - row])
    before = device.device.num_replays
    device.step([0, 1, 2], 0)
    device.step([0, 1, 2], 1)
    assert device.device.num_replays - before == 2


def test_more_entries_than_an_upload_holds_come_by_several(plain_device: OpenDevice) -> None:
    size = 400
    logits = torch.linspace(-1.0, 1.0, size)
    device = plain_device(captured=False, logits=logits, num_bytes=2048)
    bias = {token: 50.0 - token % 83 for token in range(size)}
    words = tuple((token, token + 1) for token in range(0, size - 1))
    device.start(0, SamplingParams(temperature=0.0, logit_bias=bias, bad_word_ids=words, logprobs=0))
    before = device.device.num_uploads
    (tokens, logprobs), best = device.step([0], 0), logits + torch.tensor([*bias.values()])
    assert tokens == [int(best.argmax())] and logprobs[0].rank == 1 + int((logits > logits[tokens[0]]).sum())
    assert device.device.num_uploads - before > 5
    best[tokens[0] + 1] = -torch.inf  # of a word that has begun
    assert device.step([0], 1)[0] == [int(best.argmax())]
