"""Where kernels run under test, and how close they must come to what they mean.

Without a GPU, triton's interpreter runs them: `TRITON_INTERPRET=1 pytest tests/kernels/gpu`, which must be set before
triton is imported and rules out compiling in the same process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest
import torch

HAS_TRITON = find_spec("triton") is not None
if HAS_TRITON:
    from triton import knobs

    from kernels.gpu.fp8_types import fp8_dtype_of
    from tests.kernels.gpu.checked_launches import LaunchChecker
else:
    collect_ignore_glob = ["*.py"]  # of the folders below too

# Of the largest difference, relative and absolute, to the meaning computed in fp32 from the same inputs.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

AssertClose = Callable[[torch.Tensor, torch.Tensor], None]


@pytest.fixture(autouse=True)
def launch_checker(monkeypatch: pytest.MonkeyPatch) -> LaunchChecker:
    checker = LaunchChecker()
    if knobs.runtime.interpret:
        checker.patch(monkeypatch)
    return checker


@pytest.fixture
def device() -> torch.device:
    if torch.cuda.is_available() and not knobs.runtime.interpret:
        return torch.device("cuda")
    if not knobs.runtime.interpret:
        pytest.skip("there is no GPU, and TRITON_INTERPRET=1 was not set")
    return torch.device("cpu")


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    """Until it is written: so what a kernel leaves out is seen in outputs that its wrapper makes."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def assert_close() -> AssertClose:
    """The tolerance is that of what was found; NaN equals nothing."""

    def compare(found: torch.Tensor, meant: torch.Tensor) -> None:
        tolerance = TOLERANCES[found.dtype]
        torch.testing.assert_close(found.float().cpu(), meant.float().cpu(), rtol=tolerance, atol=tolerance)

    return compare


@pytest.fixture
def require_fp8(device: torch.device) -> Callable[[torch.dtype], None]:
    """A GPU has the numbers of its maker, the interpreter all."""

    def require(dtype: torch.dtype) -> None:
        if device.type == "cuda" and fp8_dtype_of(device) != dtype:
            pytest.skip(f"this GPU has no {dtype}")

    return require
