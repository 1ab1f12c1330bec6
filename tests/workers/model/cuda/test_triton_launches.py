"""When triton compiles and what torch is asked for, found without a GPU: the JIT works out each launch's kernel as on
one, for a driver without a device, and neither compiles nor runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kernels.gpu import kernel_table
from kernels.gpu.compilation import SHARED_LIMITS, TARGETS
from kernels.gpu.kernel_table import select_gpu_kernels
from protocol.model_source import resolve_model
from protocol.sampling import SamplingParams
from tests.workers.model.cuda.host_devices import PlainDevice

pytestmark = pytest.mark.skipif(knobs.runtime.interpret, reason="interpreted kernels are not compiled")

GREEDY, DRAWN = SamplingParams(temperature=0.0), SamplingParams(temperature=0.9, top_p=0.9, top_k=20)
EDITED = SamplingParams(
    prompt_logprobs=1,
    logprobs=2,
    bad_word_ids=((3, 4), (5,)),
    logit_bias={3: 1.0},
    min_tokens=2,
    presence_penalty=0.5,
)
WISHES = (GREEDY, DRAWN, SamplingParams(min_p=0.1), EDITED, GREEDY, DRAWN)
TARGET = "sm_90"
_DEVICES = count(1000)  # triton keeps a device's kernels: each test has a device of its own


@dataclass
class NoDevice:
    """What the JIT asks a driver for. `met`: the kernels that it would compile, and while what was going on."""

    compile: Callable[..., Any] | None = None
    phase: str = "start"
    met: list[tuple[str, str]] = field(default_factory=list)
    device: int = field(default_factory=_DEVICES.__next__)

    def get_current_target(self) -> GPUTarget:
        return TARGETS[TARGET]

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def keep(self, function: Any, key: Any, *given: Any) -> Any:
        """In place of compiling, or behind it."""
        self.met.append((self.phase, function.__name__))
        if self.compile is not None:
            assert self.compile(function, key, *given).metadata.shared <= SHARED_LIMITS[TARGET]
        kernel = SimpleNamespace(function=None, packed_metadata=None, run=_nothing, launch_metadata=_nothing)
        function.device_caches[self.device][0][key] = kernel
        return kernel


compile_kernel = JITFunction._do_compile  # as it is outside of tests


def _nothing(*_: Any) -> None:
    """A launch that changes nothing."""


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> NoDevice:
    found = NoDevice()
    monkeypatch.setattr(driver, "_active", found)
    monkeypatch.setattr(
        JITFunction, "_do_compile", lambda function, key, *given: found.keep(function, key, *given)
    )
    return found


class Waits(TorchDispatchMode):
    """Refuses what makes a host wait for a device, or a capture fail."""

    _REFUSED = (
        *("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2"),
        *("equal", "lift_fresh", "is_nonzero"),
    )

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        chosen = args[1] if name in ("index", "index_put_", "_index_put_impl_") else ()
        masked = any(each is not None and each.dtype == torch.bool for each in chosen)
        assert name not in self._REFUSED and not masked, f"aten.{name} waits for the device"
        return function(*args, **(kwargs or {}))


class WatchedDevice(PlainDevice):
    """Says when a graph is captured, and lets nothing in it wait."""

    def __init__(self, no_device: NoDevice) -> None:
        super().__init__(256 << 20)
        self.num_processors = 132
        self._no_device = no_device

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        before, self._no_device.phase = self._no_device.phase, "capture"
        with Waits():
            run()
        self._no_device.phase = before
        return run


@dataclass
class Watched:
    """A runner whose steps may not wait before they are launched."""

    runner: Any

    @property
    def facts(self) -> Any:
        return self.runner.facts

    def launch(self, plan: Any) -> Any:
        with Waits():
            launched = self.runner.launch(plan)
        return launched.wait()


@pytest.fixture
def open_watched(no_device: NoDevice, open_cuda_runner: Any, drive: Any) -> Iterator[Callable[..., Any]]:
    def open_one(model: str | Path, **config: Any) -> Any:
        device = WatchedDevice(no_device)
        given = {"dtype": "bfloat16", "block_size": 16, **config}
        runner = open_cuda_runner(model, device=device, select_kernels=select_gpu_kernels, **given)
        no_device.phase = "traffic"
        return drive(Watched(runner))

    yield open_one
    no_device.phase = "end"


VARIANTS = ("untied_llama3", "gemma2", "qwen3", "opt", "falcon_new_alibi_biased", "mixtral")
OPTIONS: tuple[dict[str, Any], ...] = (
    {"quantization": "fp8"},
    {"kv_cache_dtype": "fp8"},
    {"quantization": "fp8", "kv_cache_dtype": "fp8"},
    {"deterministic": True},
    {"deterministic": True, "quantization": "fp8"},
)


@pytest.mark.parametrize("enforce_eager", (False, True), ids=("graphs", "eager"))
@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_of_all_kinds_wait_for_nothing_and_need_no_kernel_that_the_start_had_not(
    variant: str, enforce_eager: bool, open_watched: Any, no_device: NoDevice
) -> None:
    driver = open_watched(variant, enforce_eager=enforce_eager)
    run_all_kinds(driver)
    assert {phase for phase, _ in no_device.met} == {"start"}


@pytest.mark.parametrize("enforce_eager", (False, True), ids=("graphs", "eager"))
@pytest.mark.parametrize("variant", ("untied_llama3", "mixtral"))
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_nor_do_they_in_fp8_or_deterministic_mode(
    options: dict[str, Any], variant: str, enforce_eager: bool, open_watched: Any, no_device: NoDevice
) -> None:
    run_all_kinds(open_watched(variant, enforce_eager=enforce_eager, **options))
    assert {phase for phase, _ in no_device.met} == {"start"}


def run_all_kinds(driver: Any) -> None:
    for place, sampling in enumerate(WISHES):
        driver.add([(7 * index + place) % 90 for index in range(1 + 5 * place)], sampling, seed=place)
    driver.generate(range(len(WISHES)), 2, chunk=4)
    for copies in range(1, 4):
        driver.step({0: 1, 1: 1}, copies=tuple((1 + each, 9 + each) for each in range(copies)))


@pytest.mark.parametrize("enforce_eager", (False, True), ids=("graphs", "eager"))
def test_rows_deep_in_their_contexts_need_no_kernel_that_the_start_had_not(
    enforce_eager: bool, open_watched: Any, no_device: NoDevice
) -> None:
    sapling = resolve_model("sapling").directory
    driver = open_watched(sapling, enforce_eager=enforce_eager, kv_cache_memory_bytes=16 << 20)
    for row in range(2):
        driver.add([row] * 3010, shared=range(1, 188))
    driver.step({0: 2, 1: 2})
    driver.step({0: 1, 1: 1})
    assert {phase for phase, _ in no_device.met} == {"start"}


@pytest.mark.slow
def test_all_that_any_family_launches_compiles(
    family_variant: str, open_watched: Any, no_device: NoDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_table, "target_of", lambda _: TARGET)
    no_device.compile = compile_kernel
    driver = open_watched(family_variant, enforce_eager=True)
    driver.add([1, 2, 3], DRAWN)
    driver.generate([0], 2)
    assert len(no_device.met) > 5


def test_a_wait_is_seen() -> None:
    with Waits(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(3)[torch.ones(3) > 0]


def test_a_kernel_that_is_met_too_late_is_seen(open_watched: Any, no_device: NoDevice) -> None:
    driver = open_watched("untied_llama3", enforce_eager=True)
    assert ("start", "_copy_blocks_kernel") in no_device.met
    no_device.device = next(_DEVICES)
    driver.add([1, 2, 3])
    driver.step({0: 3})
    assert ("traffic", "_add_rms_norm_kernel") in no_device.met
