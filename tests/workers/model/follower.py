"""Rank 1 of two as a process of its own: runs every plan of a file. Started by `test_tensor_parallel.py`.

python follower.py DIRECTORY PORT PLANS
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch

from protocol.codec import decode
from workers.model.cpu_runner import CpuRunner
from workers.model.runner_config import RunnerConfig
from workers.step_plan import SampledTokens
from workers.tensor_parallel import connect_group


def main(directory: str, port: str, plans: str) -> None:
    torch.set_num_threads(1)
    group = connect_group(1, 2, "127.0.0.1", int(port), 60.0)
    runner = CpuRunner(RunnerConfig(Path(directory), "float32", block_size=4, max_num_seqs=8), group)
    for encoded in pickle.loads(Path(plans).read_bytes()):
        assert runner.launch(decode(encoded)) == SampledTokens(), "only rank 0 draws"
    runner.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
