"""How much of a replica each tenant has had, so that a heavy one's requests wait behind the others'. Told by, and
asked by, `waiting_line.py`; knows neither requests nor their order within a tenant.

Virtual token counters (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024), changed in two ways. Levels
differ only while somebody is heavy, by what waits of it: at up to twice the speed of a public trace, eight tenants with
8 replicas get the same mean time to the first token as one would, with the plain counters 9 % more. And whoever is not
heavy counts as having had `CREDIT_S` less, so that it goes before a flood at once: with the counters alone it comes
back on a level with the flood, whose requests have waited longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SLACK_S = 1.0  # of prefill; every level is as much again
CREDIT_S = 10.0
HEAVY_S = 4.0  # of prefill that wait of a tenant beside its longest: with more it is heavy
HEAVY_SEQUENCES = 16  # that wait: with more a tenant is heavy, however short they are
GENERATED_TOKEN = 2.0  # what it counts for, in tokens of a prompt that had to be computed
MOST_IDLE = 1024  # tenants with nothing in the line that are remembered


@dataclass(slots=True, eq=False)
class Account:
    """`level`: how far its tenant is ahead of the one that has had least; the lowest goes first."""

    tokens: float = 0.0  # that it has had, weighted, and divided by its tenant's weight
    level: int = 0
    heavy: bool = False  # when levels were settled last, or not there then
    num_waiting: int = 0  # sequences in the line
    waiting_tokens: int = 0  # of these, uncached, when they were counted last
    longest_tokens: int = 0  # of the one that has most of them


class Tenants:
    """Levels stay until the next `settle`, so that all of a tenant's sequences in a line have the same one."""

    __slots__ = ("_accounts", "_base", "_calm", "_floor", "_s_per_token", "highest_level")

    def __init__(self) -> None:
        self._accounts: dict[bytes, Account] = {}
        self._floor = 0.0  # the most that the tenant in the line with least has ever had
        self._base = 0.0  # level 0 of now
        self._calm = True  # nobody is heavy
        self._s_per_token = 0.0  # not read while it is calm
        self.highest_level = 0  # when levels were settled last

    def __len__(self) -> int:
        return len(self._accounts)

    def enter(self, tenant: bytes) -> Account:
        """One of its sequences waits from now on. A pause earns nothing."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account()
        if account.num_waiting == 0:
            account.tokens = max(account.tokens, self._floor)
            account.heavy = False
            account.level = self._level(account)
        account.num_waiting += 1
        return account

    def leave(self, account: Account) -> None:
        account.num_waiting -= 1

    def charge(self, tenant: bytes, account: Account, num_tokens: float) -> None:
        """`num_tokens`: weighted. An account that was forgotten meanwhile is remembered again."""
        self._accounts.setdefault(tenant, account).tokens += num_tokens

    def count(self, waiting: Iterable[tuple[Account, int]]) -> None:
        """The uncached tokens of all in the line."""
        for account in self._accounts.values():
            account.waiting_tokens = account.longest_tokens = 0
        for account, num_tokens in waiting:
            account.waiting_tokens += num_tokens
            if num_tokens > account.longest_tokens:
                account.longest_tokens = num_tokens

    def settle(self, prefill_s_per_token: float) -> None:
        """Levels anew, from what was counted; who is idle is forgotten once that makes no difference."""
        self._s_per_token = prefill_s_per_token
        waiting = [account for account in self._accounts.values() if account.num_waiting]
        self._floor = max(self._floor, min([account.tokens for account in waiting], default=self._floor))
        for account in self._accounts.values():
            account.heavy = self._is_heavy(account)
        self._base = min(map(self._counted, waiting), default=self._floor)
        self._calm = not any(account.heavy for account in waiting)
        if len(self._accounts) > 1:
            self._forget()
        for account in self._accounts.values():
            account.level = self._level(account)
        self.highest_level = max((account.level for account in self._accounts.values()), default=0)

    def _is_heavy(self, account: Account) -> bool:
        others_s = (account.waiting_tokens - account.longest_tokens) * self._s_per_token
        return others_s > HEAVY_S or account.num_waiting > HEAVY_SEQUENCES

    def _counted(self, account: Account) -> float:
        return account.tokens if account.heavy else account.tokens - CREDIT_S / self._s_per_token

    def _level(self, account: Account) -> int:
        if self._calm:
            return 0
        return int((self._counted(account) - self._base) * self._s_per_token / SLACK_S)  # towards 0

    def _forget(self) -> None:
        """Whoever would have no more if it came now; and everybody idle when they are too many."""
        idle = [tenant for tenant, account in self._accounts.items() if not account.num_waiting]
        most = float("inf") if len(idle) > MOST_IDLE else self._floor
        for tenant in idle:
            if self._accounts[tenant].tokens <= most:
                del self._accounts[tenant]

    def check_integrity(self, num_waiting: Mapping[bytes, int]) -> None:
        found = {tenant: each.num_waiting for tenant, each in self._accounts.items() if each.num_waiting}
        assert found == num_waiting, f"sequences of {num_waiting} wait, not of {found}"
