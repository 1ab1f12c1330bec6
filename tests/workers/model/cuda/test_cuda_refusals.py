"""Models that run on a CPU and not on a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import UnsupportedModel


def test_heads_that_do_not_come_in_pairs_of_dimensions_are_refused_with_what_to_do(
    make_checkpoint: Callable[[str], Path], open_runner: Any, open_cuda_runner: Any, tmp_path: Path
) -> None:
    config = json.loads((make_checkpoint("falcon_multi_query_alibi") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    open_runner(tmp_path, load_format="dummy")
    with pytest.raises(
        UnsupportedModel, match="have 3 dimensions, which a GPU takes in pairs: set device to cpu"
    ):
        open_cuda_runner(tmp_path, load_format="dummy")
