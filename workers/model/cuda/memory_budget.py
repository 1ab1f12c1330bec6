"""How a GPU's memory is divided: what is left for the pool, and the line of the log that says so.

    total · utilization  =  in use before + weights + a step's activations + graphs + pool

Called by `cuda_runner.py` once the weights lie there and the largest step has been run.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import InvalidRequest
from workers.model.cuda.device import DeviceMemory
from workers.runner import RunnerFacts

_GIB = 1 << 30
_GRAPH_BYTES = 4 << 20  # of one captured graph, beside the memory that it computes in


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    total_bytes: int
    utilization: float
    before_bytes: int  # in use before the weights: other processes, and what a process has of its own
    weights_bytes: int  # and everything that lasts beside them
    step_bytes: int  # at most, on top, while a step runs
    graphs_bytes: int  # estimated, before they are captured

    @classmethod
    def of(
        cls,
        utilization: float,
        before: DeviceMemory,
        loaded: DeviceMemory,  # with weights and all that lasts but the pool
        step_bytes: int,
        graph_step_bytes: int,  # what the largest graph computes in
        num_graphs: int,
    ) -> MemoryBudget:
        return cls(
            total_bytes=loaded.total_bytes,
            utilization=utilization,
            before_bytes=before.total_bytes - before.free_bytes,
            weights_bytes=before.free_bytes - loaded.free_bytes,
            step_bytes=step_bytes,
            graphs_bytes=graph_step_bytes + num_graphs * _GRAPH_BYTES,
        )

    @property
    def left_bytes(self) -> int:
        """For the pool; below 0 where not even the rest fits."""
        taken = self.before_bytes + self.weights_bytes + self.step_bytes + self.graphs_bytes
        return int(self.total_bytes * self.utilization) - taken

    def pool_bytes(self, asked: int | None) -> int:
        """`asked` is the user's word against the utilization's. Raises InvalidRequest where it cannot be had."""
        if asked is None:
            return max(self.left_bytes, 0)
        possible = self.left_bytes + int(self.total_bytes * (1.0 - self.utilization))
        if asked > possible:
            raise InvalidRequest(
                f"kv_cache_memory_bytes asks for {_gib(asked)} of a GPU that has {_gib(max(possible, 0))} left for it:"
                " ask for less, or for a smaller max_num_batched_tokens",
                param="kv_cache_memory_bytes",
            )
        return asked

    def describe(
        self, facts: RunnerFacts, kv_dtype: str, block_bytes: int, graphs_bytes: int, free_bytes: int
    ) -> str:
        """Once everything is there: `graphs_bytes` is what graphs have taken, `free_bytes` what nobody has."""
        return (
            f"GPU memory of {_gib(self.total_bytes)}: {_gib(self.before_bytes)} in use before,"
            f" weights {_gib(self.weights_bytes)}, pool {_gib(facts.num_blocks * block_bytes)}"
            f" ({facts.num_blocks} blocks of {facts.block_size} tokens in {kv_dtype}), graphs {_gib(graphs_bytes)},"
            f" {_gib(free_bytes)} free, of which a step takes {_gib(self.step_bytes)}"
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
