"""Activations in Triton, plain and gated, against what they mean, computed in fp32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels import activations as meant
from kernels.gpu.activations import ACTIVATIONS, GATED_ACTIVATIONS, Activation

AssertClose = Callable[[torch.Tensor, torch.Tensor], None]
NAMES = pytest.mark.parametrize("name", meant.ACTIVATIONS)
DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)


def test_every_activation_has_its_kernel() -> None:
    assert ACTIVATIONS.keys() == meant.ACTIVATIONS.keys()
    assert GATED_ACTIVATIONS.keys() == meant.GATED_ACTIVATIONS.keys()


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
    out = torch.full(shape, torch.nan, dtype=dtype, device=device)
    Activation(name, gated)(x, out)
    meaning = (meant.GATED_ACTIVATIONS if gated else meant.ACTIVATIONS)[name]
    assert_close(out.cpu(), meaning(x.float()).cpu())


def test_the_output_is_made_where_none_is_given(device: torch.device, assert_close: AssertClose) -> None:
    x = torch.randn(2, 6, device=device)
    assert_close(GATED_ACTIVATIONS["relu"](x).cpu(), meant.GATED_ACTIVATIONS["relu"](x).cpu())
