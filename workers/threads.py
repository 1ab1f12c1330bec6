"""How many threads a worker computes with, and how they wait. Torch is imported only where it must be told.

OpenMP reads its environment once, when torch loads: whoever starts a worker's process sets it before.
"""

from __future__ import annotations

from workers.model.model_spec import ModelSpec

SMALL_HIDDEN_SIZE = 512


def openmp_environment(num_threads: int) -> dict[str, str]:
    """Variables of a worker's process. Waiting threads sleep: spinning ones cost a scheduler slice (8 ms) at every
    barrier where the cores are shared."""
    return {
        "OMP_NUM_THREADS": str(num_threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
    }


def useful_threads(spec: ModelSpec, num_threads: int) -> int:
    """At most so many. On a small model, waking a second thread costs more than it computes: a 16-token step of
    sapling takes 2.7 ms with one and 3.7 ms with two (two cores, sleeping threads)."""
    return 1 if spec.hidden_size < SMALL_HIDDEN_SIZE else max(1, num_threads)


def set_num_threads(num_threads: int) -> None:
    """Tell torch the same number; for the whole process."""
    import torch

    torch.set_num_threads(num_threads)
