"""What a graph keeps of its capture is right for every replay: which launches there are, their grids and numbers, and
the addresses of all that they read and write. Found without a GPU: replays launch again, and are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kernels.gpu.kernel_table import select_gpu_kernels
from tests.workers.model.cuda.host_devices import PlainDevice
from tests.workers.model.cuda.test_triton_launches import NoDevice, Watched, run_all_kinds
from workers.model.cuda.token_head import TokenHead

pytestmark = pytest.mark.skipif(knobs.runtime.interpret, reason="interpreted kernels are not compiled")


class Address(NamedTuple):
    value: int


class Recording(TorchDispatchMode):
    """Of torch's operators and triton's launches, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[tuple[str, list[Any]]] = []
        self.made: list[Tensor] = []  # kept, so that what another recording makes lies elsewhere

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.note(str(function), (args, kwargs))
        self.made += [each for each in tree_leaves(made) if isinstance(each, Tensor)]
        return made

    def note(self, name: str, given: Any) -> None:
        leaves = tree_leaves(given)
        seen = [Address(each.data_ptr()) if isinstance(each, Tensor) else repr(each) for each in leaves]
        self.launches.append((name, seen))


class RecordingDevice(PlainDevice):
    """`num_compared`: numbers and addresses that replays were held to."""

    def __init__(self) -> None:
        super().__init__(256 << 20)
        self.num_processors = 132
        self.num_compared = 0
        self.recording: Recording | None = None

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        first = self._record(run)
        captured = self._record(run).launches
        made = [
            [one != other for one, other in zip(before, after, strict=True)]
            for (_, before), (_, after) in zip(first.launches, captured, strict=True)
        ]

        def replay() -> None:
            replayed = self._record(run).launches
            assert [name for name, _ in replayed] == [name for name, _ in captured]
            for (name, meant), (_, found), is_made in zip(captured, replayed, made, strict=True):
                for one, other, skipped in zip(meant, found, is_made, strict=True):
                    assert one == other or (skipped and isinstance(one, Address)), f"{name}: {one}, {other}"
                    self.num_compared += not skipped

        return replay

    def _record(self, run: Callable[[], None]) -> Recording:
        self.recording = Recording()
        with self.recording:
            run()
        recorded, self.recording = self.recording, None
        return recorded


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> RecordingDevice:
    found, no_device = RecordingDevice(), NoDevice()

    def launch(name: str, *given: Any) -> None:
        """Its grid, and behind what is the driver's its arguments."""
        if found.recording is not None:
            found.recording.note(name, (given[:3], given[9:]))

    def keep(function: Any, key: Any, *given: Any) -> Any:
        kernel = no_device.keep(function, key, *given)
        kernel.run = partial(launch, function.__name__)
        return kernel

    monkeypatch.setattr(driver, "_active", no_device)
    monkeypatch.setattr(JITFunction, "_do_compile", keep)
    return found


@pytest.fixture
def open_recorded(device: RecordingDevice, open_cuda_runner: Any, drive: Any) -> Callable[..., Any]:
    def open_one(model: str, **config: Any) -> Any:
        given = {"dtype": "bfloat16", "block_size": 16, "select_kernels": select_gpu_kernels, **config}
        return drive(Watched(open_cuda_runner(model, device=device, **given)))

    return open_one


@pytest.mark.parametrize(
    ("variant", "options"),
    (("untied_llama3", {}), ("gemma2", {}), ("mixtral", {"quantization": "fp8", "kv_cache_dtype": "fp8"})),
    ids=("llama", "gemma", "mixtral in fp8"),
)
def test_replays_launch_what_was_captured_where_it_was_captured(
    variant: str, options: dict[str, Any], open_recorded: Any, device: RecordingDevice
) -> None:
    run_all_kinds(open_recorded(variant, **options))
    assert device.num_compared > 1000


def test_what_a_graph_reads_and_then_is_elsewhere_is_seen(
    open_recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = TokenHead.draw

    def draw_elsewhere(head: TokenHead, *given: Any) -> Any:
        head.newest = head.newest.clone()
        return draw(head, *given)

    driver = open_recorded("untied_llama3")
    monkeypatch.setattr(TokenHead, "draw", draw_elsewhere)
    with pytest.raises(AssertionError, match="Address"):
        run_all_kinds(driver)
