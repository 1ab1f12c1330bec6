"""One offline LLM on the built-in model for all tests that only read from it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trunkline import LLM


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    with LLM("sapling", dtype="float32", use_tqdm=False, max_num_seqs=16) as shared:
        yield shared
