"""Activations in Triton, plain and gated, against what they mean, computed in fp32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels import activations as meant
from kernels.gpu import activations as ours

AssertClose = Callable[[torch.Tensor, torch.Tensor], None]
NAMES = pytest.mark.parametrize("name", meant.ACTIVATIONS)
DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)


def test_every_activation_has_its_kernel() -> None:
    assert ours.ACTIVATIONS.keys() == meant.ACTIVATIONS.keys()
    assert ours.GATED_ACTIVATIONS.keys() == meant.GATED_ACTIVATIONS.keys()


@pytest.mark.usefixtures("fresh_memory_is_nan")
@pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning"
)  # numpy's, of an exp that may be inf
@NAMES
@DTYPES
@pytest.mark.parametrize("shape", ((1, 1), (3, 65), (2, 1030)), ids=str)
@pytest.mark.parametrize("gated", (False, True), ids=("plain", "gated"))
def test_equals_the_meaning(
    gated: bool,
    shape: tuple[int, int],
    dtype: torch.dtype,
    name: str,
    device: torch.device,
    assert_close: AssertClose,
) -> None:
    x = 3.0 * torch.randn(shape[0], shape[1] * (1 + gated))
    x[0, 0] = -90.0  # where exp overflows
    x = x.to(device, dtype)
    found, meaning = ((each.GATED_ACTIVATIONS if gated else each.ACTIVATIONS)[name] for each in (ours, meant))
    assert_close(found(x).cpu(), meaning(x.float()).cpu())
