"""How much of something bounded each tenant has, and what its fair share is. Kept by `overload.py` and
`prefill_board.py`; reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Holding:
    weight: float
    amount: int


class Shares:
    """Tenants that have nothing are forgotten, and count for nothing in the others' shares."""

    def __init__(self) -> None:
        self.total = 0
        self._holdings: dict[bytes, Holding] = {}

    def of(self, tenant: bytes) -> int:
        holding = self._holdings.get(tenant)
        return 0 if holding is None else holding.amount

    def share(self, tenant: bytes, weight: float) -> float:
        """Of 1, if this tenant has `weight`, among those that have something now."""
        others = sum([each.weight for name, each in self._holdings.items() if name != tenant])
        return weight / (weight + others)

    def has_room(self, tenant: bytes, weight: float, most: int) -> bool:
        """It has less than its share of `most`."""
        return self.of(tenant) < most * self.share(tenant, weight)

    def is_only(self, tenant: bytes) -> bool:
        """Nobody else has anything."""
        return len(self._holdings) == (tenant in self._holdings)

    def beyond(self, most: float) -> frozenset[bytes]:
        """Who has more than `most` times its weight."""
        return frozenset(name for name, each in self._holdings.items() if each.amount > most * each.weight)

    def add(self, tenant: bytes, weight: float, amount: int) -> None:
        """`weight` is its weight from now on."""
        if amount == 0:
            return
        holding = self._holdings.setdefault(tenant, Holding(weight, 0))
        holding.weight = weight
        holding.amount += amount
        self.total += amount

    def remove(self, tenant: bytes, amount: int) -> None:
        if amount == 0:
            return
        holding = self._holdings[tenant]
        assert holding.amount >= amount, "more is given back than was taken"
        holding.amount -= amount
        self.total -= amount
        if holding.amount == 0:
            del self._holdings[tenant]

    def check_integrity(self) -> None:
        assert self.total == sum(each.amount for each in self._holdings.values()), "a wrong total"
        assert all(each.amount > 0 for each in self._holdings.values()), "a tenant with nothing is remembered"
