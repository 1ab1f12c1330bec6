"""A GPU, by torch.cuda: the one file of the runner that needs one to run. Made by `engine_builder.py`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from workers.model.cuda.device import DeviceMemory, Event, Replay


class CudaEvent:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def wait(self) -> None:
        self._event.synchronize()

    def hold_back(self, stream: torch.cuda.Stream) -> None:
        """What is launched there from here on runs behind it."""
        stream.wait_event(self._event)


class CudaDevice:
    """Two streams: one for steps, one for what comes back. Graphs share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.torch_device = device
        self.num_processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._steps = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._downloads = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._last_download: CudaEvent | None = None
        self._graph_memory = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        # The current device is a thread's own. A stream alone would make it the first GPU again at the end, and a
        # context there with it.
        with torch.cuda.device(self.torch_device), torch.cuda.stream(self._steps):
            yield

    def host_memory(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True)

    def upload(self, source: Tensor, target: Tensor) -> Event:
        target.copy_(source, non_blocking=True)
        return self.mark()

    def download(self, source: Tensor, target: Tensor) -> Event:
        self.mark().hold_back(self._downloads)
        with torch.cuda.stream(self._downloads):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._downloads)
        self._last_download = CudaEvent(self._downloads)
        return self._last_download

    def await_downloads(self) -> None:
        if self._last_download is not None:
            self._last_download.hold_back(self._steps)

    def mark(self) -> CudaEvent:
        return CudaEvent(self._steps)

    def capture(self, run: Callable[[], None]) -> Replay:
        """Without torch's own context manager, which collects garbage and empties caches before each of the graphs."""
        run()
        self._steps.synchronize()
        graph = torch.cuda.CUDAGraph()
        with _no_garbage_collected():
            # Only this thread must keep from what a capture forbids: NCCL's watchdog looks at its events all the time.
            graph.capture_begin(pool=self._graph_memory, capture_error_mode="thread_local")
            try:
                run()
                graph.capture_end()
            except BaseException:
                with suppress(RuntimeError):  # that the capture is broken says less than what broke it
                    graph.capture_end()
                # To the other one torch may be recording for ever.
                self._graph_memory = torch.cuda.graph_pool_handle()
                raise
        self._graphs.append(graph)
        replay: Replay = graph.replay
        return replay

    def drop_graphs(self) -> None:
        while self._graphs:
            self._graphs.pop().reset()

    def memory(self) -> DeviceMemory:
        """What other processes hold is not free. Memory that torch has in store is given back first."""
        self._steps.synchronize()
        torch.cuda.empty_cache()
        return DeviceMemory(*torch.cuda.mem_get_info(self.torch_device))

    def peak_bytes(self, run: Callable[[], None]) -> int:
        self._steps.synchronize()
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        run()
        self._steps.synchronize()
        return torch.cuda.max_memory_allocated(self.torch_device) - before


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Pinned memory that is freed while a stream that used it is captured leaves an event in the capture, which torch
    asks for ever after, and that is an error."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
