"""What a replica learns of its own speed: from noisy steps, of a device that may become slower."""

from __future__ import annotations

import math
import random

import pytest

from protocol.tokens import pack_tokens
from workers.speed_meter import SpeedMeter
from workers.step_plan import Chunk, StepPlan

PER_TOKEN, PER_PAIR, STEP_S, PER_SEQUENCE = 1 / 8_000, 4e-9, 0.02, 0.000_5


class Device:
    """Steps take what the constants say, `slow` times as long, with some noise that only makes them slower."""

    def __init__(self, noise: float = 0.0) -> None:
        self.meter = SpeedMeter()
        self.slow = 1.0
        self.noise = noise
        self._rng = random.Random(3)

    def decode(self, num_sequences: int) -> None:
        self._observe(StepPlan(1, decode_rows=pack_tokens(range(num_sequences))), STEP_S)

    def prefill(self, num_tokens: int, start: int = 0, num_decodes: int = 0) -> None:
        chunk = Chunk(999, start, pack_tokens([7] * num_tokens), True)
        self._observe(StepPlan(1, decode_rows=pack_tokens(range(num_decodes)), chunks=(chunk,)), 0.0)

    def _observe(self, plan: StepPlan, seconds: float) -> None:
        seconds += PER_SEQUENCE * plan.num_decodes
        for chunk in plan.chunks:
            seconds += PER_TOKEN * chunk.num_tokens
            seconds += PER_PAIR * chunk.num_tokens * (chunk.start + chunk.num_tokens / 2)
        self.meter.observe(plan, seconds * self.slow * (1.0 + self._rng.random() * self.noise))

    def work(self, num_steps: int) -> None:
        """Prompts of many lengths in chunks, and decodes of many batch sizes, mixed."""
        for _ in range(num_steps):
            self.prefill(self._rng.choice([256, 1024, 2048]), self._rng.choice([0, 2048, 32_000, 90_000]))
            self.decode(self._rng.randint(1, 64))
            self.prefill(512, self._rng.choice([0, 60_000]), num_decodes=self._rng.randint(1, 64))

    def predicted(self, num_uncached: int, num_cached: int) -> float:
        """Without the part that any prefill takes."""
        speeds = self.meter.speeds
        return speeds.seconds_to_prefill(num_uncached, num_cached) - speeds.prefill_s


def truth(num_uncached: int, num_cached: int) -> float:
    return PER_TOKEN * num_uncached + PER_PAIR * num_uncached * (num_cached + num_uncached / 2)


LENGTHS = [(500, 0), (2_000, 30_000), (100_000, 0), (4_000, 120_000)]


def test_nothing_is_measured_before_the_first_prefill() -> None:
    device = Device()
    assert not device.meter.speeds.measured
    device.decode(3)
    assert not device.meter.speeds.measured
    device.prefill(512)
    assert device.meter.speeds.measured


@pytest.mark.parametrize(("num_uncached", "num_cached"), LENGTHS)
def test_prefill_is_predicted_by_what_is_computed_and_what_lies_before_it(
    num_uncached: int, num_cached: int
) -> None:
    device = Device()
    device.work(40)
    assert device.predicted(num_uncached, num_cached) == pytest.approx(
        truth(num_uncached, num_cached), rel=0.1
    )


@pytest.mark.parametrize(("num_uncached", "num_cached"), LENGTHS)
def test_noise_makes_the_prediction_no_more_than_noisy(num_uncached: int, num_cached: int) -> None:
    device = Device(noise=0.4)
    device.work(200)
    mean = 1.2 * truth(num_uncached, num_cached)
    assert device.predicted(num_uncached, num_cached) == pytest.approx(mean, rel=0.25)


def test_prompts_of_one_length_do_not_invent_a_cost_of_length() -> None:
    device = Device(noise=0.2)
    for _ in range(50):
        device.prefill(512)
    assert device.predicted(100_000, 0) < 4 * truth(100_000, 0)


def test_a_device_that_is_suddenly_three_times_slower_is_known_to_be_so() -> None:
    device = Device(noise=0.1)
    device.work(40)
    device.slow = 3.0
    device.work(20)
    for lengths in LENGTHS:
        assert device.predicted(*lengths) == pytest.approx(3 * truth(*lengths), rel=0.25)
    assert device.meter.decode.at(32) == pytest.approx(3 * (STEP_S + 32 * PER_SEQUENCE), rel=0.25)


def test_one_step_that_hangs_says_little() -> None:
    device = Device()
    device.work(40)
    before = device.predicted(2_000, 0)
    device.slow = 1_000.0
    device.prefill(1_024)
    assert before < device.predicted(2_000, 0) < 1.5 * before


def test_a_slow_first_step_is_soon_forgotten() -> None:
    device = Device()
    device.slow = 100.0
    device.prefill(512)
    device.slow = 1.0
    device.work(40)
    assert device.predicted(2_000, 0) == pytest.approx(truth(2_000, 0), rel=0.2)


def test_a_decode_step_is_predicted_by_its_batch() -> None:
    device = Device()
    device.work(40)
    for num_sequences in (1, 30, 128):
        expected = STEP_S + PER_SEQUENCE * num_sequences
        assert device.meter.decode.at(num_sequences) == pytest.approx(expected, rel=0.15)


def test_batches_of_one_size_say_nothing_about_others() -> None:
    device = Device()
    for _ in range(40):
        device.decode(8)
    assert device.meter.decode.per_sequence_s == 0.0
    assert device.meter.decode.at(64) == pytest.approx(STEP_S + 8 * PER_SEQUENCE)


def test_a_clock_that_stands_still_measures_nothing() -> None:
    meter = SpeedMeter()
    meter.observe(StepPlan(1, chunks=(Chunk(0, 0, pack_tokens([7] * 64), True),)), 0.0)
    assert not meter.speeds.measured


def test_utilization_is_the_share_of_the_last_minute_that_prefill_took() -> None:
    meter = SpeedMeter()
    prefill = StepPlan(1, chunks=(Chunk(0, 0, pack_tokens([7] * 64), True),))
    decode = StepPlan(1, decode_rows=pack_tokens([0]))
    for number in range(600):
        meter.observe(prefill if number % 4 == 0 else decode, 0.5, float(number))
    assert meter.utilization.at(600.0) == pytest.approx(0.125, rel=0.05)
    assert meter.utilization.at(720.0) == pytest.approx(0.125 * math.exp(-2), rel=0.05)
