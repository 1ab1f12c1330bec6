"""Deterministic operators: a row's bits are those that it gets alone, whatever rows it is computed with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention_variant import AttentionVariant, QueryRow
from kernels.deterministic_attention import DeterministicAttention
from kernels.deterministic_linear import DeterministicPacker, TiledLinear
from kernels.deterministic_products import FixedProducts
from kernels.dispatch import Kernels, select_kernels
from kernels.fixed_tiles import aligned, cut
from kernels.largest import largest_with_places
from kernels.naive_attention import attend_naively

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
NUM_ROWS = (1, 2, 3, 5, 8, 17, 33, 65, 100, 260)
RowOperator = Callable[[Tensor], Tensor]


@pytest.fixture(params=(1, 2), ids=("one_thread", "two_threads"), autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def assert_rows_stand_alone(operator: RowOperator, x: Tensor) -> None:
    """`operator` may change its argument."""
    alone = torch.cat([operator(row.clone()) for row in torch.split(x, 1)])
    for num_rows in NUM_ROWS:
        begin = random.Random(num_rows).randint(0, len(x) - num_rows)
        rows = slice(begin, begin + num_rows)
        assert torch.equal(operator(x[rows].clone()), alone[rows]), f"{num_rows} rows from {begin} on"


@DTYPES
@pytest.mark.parametrize("biased", (False, True), ids=("plain", "biased"))
@pytest.mark.parametrize("shape", ((33, 65), (96, 200), (640, 256), (256, 1500)), ids=str)
def test_a_linears_rows_stand_alone(shape: tuple[int, int], biased: bool, dtype: torch.dtype) -> None:
    weight = (torch.randn(shape) * shape[1] ** -0.5).to(dtype)
    bias = torch.randn(shape[0]).to(dtype) if biased else None
    linear = DeterministicPacker(dtype).pack(weight, bias)
    x = torch.randn(300, shape[1]).to(dtype)
    assert_rows_stand_alone(linear, x)
    expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    torch.testing.assert_close(linear(x).float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_linear_of_no_rows_has_none() -> None:
    linear = DeterministicPacker(torch.float32).pack(torch.randn(33, 65), None)
    assert linear(torch.randn(0, 65)).shape == (0, 33)


def test_a_linears_rows_may_lie_anywhere() -> None:
    linear = DeterministicPacker(torch.float32).pack(torch.randn(33, 65), None)
    x = torch.randn(40, 130)
    assert torch.equal(linear(x[3:, 65:]), linear(x[:, 65:].contiguous())[3:])


def by_size(kernel_of: Callable[[int], float]) -> RowOperator:
    """Stands for a library that takes another kernel, and rounds otherwise, for another number of rows."""
    weight = torch.randn(48, 24, generator=torch.Generator().manual_seed(1))
    return lambda x: F.linear(x.double(), weight.double()).float() * (1 + kernel_of(len(x)))


def test_only_sizes_that_agree_are_used() -> None:
    library = by_size(lambda num_rows: 1e-6 if num_rows in (1, 2, 24) or num_rows > 64 else 0.0)
    linear = TiledLinear(library, torch.empty(48, 24), None, {})
    assert linear.sizes() == (4, 8, 16, 32, 40, 48, 56, 64)
    assert_rows_stand_alone(linear, torch.randn(300, 24))


def test_where_a_place_in_a_tile_tells_rows_are_computed_one_by_one() -> None:
    exact = by_size(lambda num_rows: 0.0)
    linear = TiledLinear(lambda x: exact(x) + torch.arange(len(x))[:, None], torch.empty(48, 24), None, {})
    assert linear.sizes() == (1,)
    assert_rows_stand_alone(linear, torch.randn(300, 24))


def test_another_number_of_threads_is_another_machine() -> None:
    library = by_size(lambda num_rows: 1e-6 if torch.get_num_threads() == 1 and num_rows < 8 else 0.0)
    linear = TiledLinear(library, torch.empty(48, 24), None, {})
    torch.set_num_threads(1)
    assert linear.sizes()[0] == 8
    torch.set_num_threads(2)
    assert linear.sizes()[0] == 1


@pytest.mark.parametrize("sizes", ((1,), (4,), (1, 2, 4), (4, 8, 16, 64), (2, 64, 128)), ids=str)
def test_tiles_hold_all_rows_and_only_the_last_is_padded(sizes: tuple[int, ...]) -> None:
    for num_rows in range(200):
        tiles = cut(num_rows, sizes)
        assert set(tiles) <= set(sizes)
        assert sum(tiles) >= num_rows
        assert sum(tiles[:-1]) < num_rows or not tiles


def test_a_row_more_than_a_large_tile_does_not_fill_another_one() -> None:
    assert cut(65, (1, 8, 64, 128)) == (64, 1)
    assert cut(120, (1, 8, 64, 128)) == (128,)


def test_what_starts_elsewhere_is_copied_to_an_aligned_start() -> None:
    x = torch.randn(100)
    assert aligned(x) is x
    assert aligned(x[1:]).data_ptr() % 64 == 0
    assert torch.equal(aligned(x[1:]), x[1:])


@pytest.mark.parametrize("transposed", (True, False), ids=("scores", "outputs"))
@pytest.mark.parametrize("head_dim", (7, 64))
def test_products_stand_alone(head_dim: int, transposed: bool) -> None:
    inner, columns = (head_dim, 128) if transposed else (128, head_dim)
    products = FixedProducts(inner, columns, transposed)
    a = torch.randn(37, 70, inner)
    b = torch.randn(37, columns, inner).transpose(1, 2) if transposed else torch.randn(37, inner, columns)
    together = products.multiply(a, b)
    torch.testing.assert_close(together, a @ b, rtol=1e-4, atol=1e-4)
    for num_products, num_rows in ((1, 1), (1, 70), (2, 3), (5, 4), (37, 1), (20, 33)):
        found = products.multiply(a[-num_products:, -num_rows:].contiguous(), b[-num_products:])
        assert torch.equal(found, together[-num_products:, -num_rows:])


@pytest.fixture(scope="module")
def kernels() -> dict[torch.dtype, Kernels]:
    return {dtype: select_kernels(dtype, 4, 32, (), deterministic=True) for dtype in TOLERANCE}


@DTYPES
@pytest.mark.parametrize("num_features", (17, 64, 1000, 3072, 17_000))
@pytest.mark.parametrize("name", ("silu", "gelu", "gelu_tanh", "relu"))
def test_activated_rows_stand_alone(
    name: str, num_features: int, dtype: torch.dtype, kernels: dict[torch.dtype, Kernels]
) -> None:
    x = torch.randn(262, 2 * num_features).to(dtype)
    assert_rows_stand_alone(kernels[dtype].gated_activations[name], x)
    assert_rows_stand_alone(kernels[dtype].activations[name], x[:, :num_features].contiguous())


@DTYPES
@pytest.mark.parametrize("hidden_size", (48, 65, 1000, 4096))
def test_normed_rows_stand_alone(
    hidden_size: int, dtype: torch.dtype, kernels: dict[torch.dtype, Kernels]
) -> None:
    weight, bias = torch.randn(2, hidden_size).to(dtype).unbind()
    x, ops = torch.randn(262, hidden_size).to(dtype), kernels[dtype]
    assert_rows_stand_alone(lambda rows: ops.rms_norm(rows, weight, 1e-5), x)
    assert_rows_stand_alone(lambda rows: ops.add_rms_norm(rows, rows.flip(-1), weight, 1e-5), x)
    assert_rows_stand_alone(lambda rows: ops.layer_norm(rows, weight, bias, 1e-5), x)
    assert_rows_stand_alone(lambda rows: rows.float().div_(7.0).tanh_().mul_(7.0), x)  # capped logits


@DTYPES
@pytest.mark.parametrize(("num_heads", "head_dim"), ((5, 10), (9, 64), (40, 128)))
def test_turned_and_stored_rows_stand_alone(
    num_heads: int, head_dim: int, dtype: torch.dtype, kernels: dict[torch.dtype, Kernels]
) -> None:
    ops, weight = kernels[dtype], torch.randn(num_heads - 1, head_dim).to(dtype)
    x = torch.randn(262, num_heads * head_dim + 2 * head_dim).to(dtype)

    def turn(rows: Tensor) -> Tensor:
        qkv = rows[:, : num_heads * head_dim].reshape(len(rows), num_heads, head_dim)
        cos, sin = rows[:, None, -2 * head_dim :].chunk(2, -1)
        kv = torch.zeros(2, 1, len(rows), 1, head_dim, dtype=dtype)
        ops.rope_kv_write(qkv, cos, sin, kv, torch.arange(len(rows)), norm=weight, eps=1e-5)
        return torch.cat([qkv.flatten(1), *kv[:, 0, :, 0]], -1)

    assert_rows_stand_alone(turn, x)


@DTYPES
@pytest.mark.parametrize("normalized", (True, False))
def test_tokens_sent_to_experts_stand_alone(
    normalized: bool, dtype: torch.dtype, kernels: dict[torch.dtype, Kernels]
) -> None:
    ops, packer = kernels[dtype], DeterministicPacker(dtype)
    router = packer.pack(torch.randn(5, 72).to(dtype), None)
    experts = ops.pack_experts((torch.randn(shape).to(dtype) for shape in 5 * ((144, 72), (72, 72))), 5)
    activate = ops.gated_activations["silu"]

    def route(rows: Tensor) -> Tensor:
        return experts(rows, *ops.choose_experts(router(rows), 3, normalized), activate)

    assert_rows_stand_alone(route, torch.randn(262, 72).to(dtype))


@pytest.mark.parametrize("size", (99, 2000))
def test_of_equal_numbers_the_first_are_the_largest(size: int) -> None:
    values = torch.randint(9, (5, size)).float()
    expected = torch.sort(values, dim=-1, descending=True, stable=True)
    for count in (0, 1, 2, 20, size):
        found, places = largest_with_places(values, count)
        assert torch.equal(found, expected.values[:, :count])
        assert torch.equal(places, expected.indices[:, :count])


PLAIN = AttentionVariant(0.3)
SLOPES = tuple(0.7 / (1.3 * index + 1) for index in range(8))
VARIANTS = {
    "plain": PLAIN,
    "window": replace(PLAIN, window=37),
    "window_of_many_tiles": replace(PLAIN, window=150),
    "softcap": replace(PLAIN, softcap=2.0),
    "alibi": replace(PLAIN, alibi_slopes=SLOPES),
    "falcons_alibi": replace(PLAIN, alibi_slopes=SLOPES, alibi_in_bfloat16=True),
    "everything": AttentionVariant(0.3, 140, 2.0, SLOPES),
}
NUM_TOKENS = 300
NUM_BLOCKS = 500


class Sequences:
    """Four sequences' queries and KV in scattered blocks, with noise in every other block."""

    def __init__(self, dtype: torch.dtype, block_size: int, kv_heads: int, head_dim: int) -> None:
        num_blocks = -(-NUM_TOKENS // block_size)
        self.q = torch.randn(4, NUM_TOKENS, 8, head_dim).to(dtype)
        self.content = torch.randn(2, kv_heads, 4 * num_blocks, block_size, head_dim).to(dtype)
        self.shuffle(0)

    def shuffle(self, seed: int) -> None:
        order = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(seed))
        order = order[: self.content.shape[2]]
        _, kv_heads, _, block_size, head_dim = self.content.shape
        self.kv = torch.randn(2, kv_heads, NUM_BLOCKS, block_size, head_dim).to(self.content.dtype)
        self.kv[:, :, order] = self.content
        self.tables = order.view(4, -1)

    def attend(self, attention: DeterministicAttention, rows: list[QueryRow]) -> list[Tensor]:
        q = torch.cat([self.q[row.row, row.start : row.num_keys] for row in rows])
        out = attention.run(q, self.kv, attention.plan(rows, self.tables))
        return list(torch.split(out, [row.num_queries for row in rows]))


def random_step(dice: random.Random) -> list[QueryRow]:
    """Some rows that decode, shortest first, then some chunks."""
    starts = [dice.choice((0, 127, 128, dice.randrange(NUM_TOKENS))) for _ in range(dice.randint(1, 4))]
    decodes = [QueryRow(row, start, 1) for row, start in enumerate(sorted(starts))]
    chunks = []
    for row in range(dice.randint(0, 2)):
        start = dice.randrange(NUM_TOKENS - 2)
        chunks.append(QueryRow(row, start, dice.randint(2, NUM_TOKENS - start)))
    return decodes + chunks


@DTYPES
@pytest.mark.parametrize("shape", ((3, 8, 7), (16, 2, 64)), ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_attention_to_the_same_keys_has_the_same_bits_in_any_step(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    block_size, kv_heads, head_dim = shape
    attention = DeterministicAttention(VARIANTS[name], dtype, block_size, 2 * kv_heads * head_dim)
    sequences, dice = Sequences(dtype, *shape), random.Random(1)
    whole = [sequences.attend(attention, [QueryRow(row, 0, NUM_TOKENS)])[0] for row in range(4)]
    for step in range(8):
        sequences.shuffle(step)
        rows = random_step(dice)
        for row, out in zip(rows, sequences.attend(attention, rows), strict=True):
            assert torch.equal(out, whole[row.row][row.start : row.num_keys]), f"{row} of {rows}"


@DTYPES
@pytest.mark.parametrize("name", VARIANTS)
def test_deterministic_attention_equals_its_meaning(name: str, dtype: torch.dtype) -> None:
    attention = DeterministicAttention(VARIANTS[name], dtype, 4, 64)
    sequences = Sequences(dtype, 4, 2, 16)
    rows = [QueryRow(0, 9, 1), QueryRow(1, 140, 1), QueryRow(2, 290, 1), QueryRow(3, 120, 150)]
    found = torch.cat(sequences.attend(attention, rows))
    q = torch.cat([sequences.q[row.row, row.start : row.num_keys] for row in rows])
    expected = attend_naively(VARIANTS[name], q, sequences.kv, rows, sequences.tables)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
