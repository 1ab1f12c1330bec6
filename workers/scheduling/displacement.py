"""Who leaves so that a sequence of a better class, or of a tenant that has had less, can start. Asked by `prefill.py`;
preempts nobody itself.

By the claimant's own class, ageing aside, against the class that the other was admitted in: no two can displace each
other in turn, and whoever was let in for having waited long is not displaced by the next of a better class. Within a
class a tenant of which little waits displaces a heavy one on a higher level. The heavy one displaces nobody.
"""

from __future__ import annotations

from collections import Counter

from workers.kv.block import Block
from workers.kv.kv_cache import KvCache
from workers.scheduling.prompt_holds import PromptHolds
from workers.scheduling.running import Running, preemption_rank
from workers.scheduling.sequence import Sequence


class Displacement:
    __slots__ = ("_holds", "_kv", "_running")

    def __init__(self, kv: KvCache, running: Running, holds: PromptHolds) -> None:
        self._kv = kv
        self._running = running
        self._holds = holds

    def is_open_to(self, claimant: Sequence, highest_level: int) -> bool:
        """Somebody runs whom it may displace. `highest_level`: of any tenant."""
        priority, account = claimant.live.request.priority, claimant.live.account
        begun, decoding = self._running.begun, self._running.decoding
        if any(each.admitted_class > priority for each in decoding):
            return True
        if any(each.admitted_class > priority for each in begun):
            return True
        return not account.heavy and highest_level > account.level and bool(self._displaceable(claimant))

    def victims(self, claimant: Sequence, shared: list[Block], reserve: int) -> list[Sequence]:
        """As few as will do, the worst first; nobody when all together would not do, or when room is near.

        `shared`: blocks that the claimant needs not take. `reserve`: blocks to be left over while others run.
        """
        pool, no_row = self._kv.pool, self._running.rows.num_free == 0
        num_fresh = self._kv.num_blocks_for(len(claimant.tokens)) - len(shared)
        num_missing = num_fresh + sum(block.ref_count == 0 for block in shared) + reserve - pool.num_free
        if num_missing > 0 and self._holds.close_all():
            return []  # that frees blocks at nobody's cost: asked again in the next step if it does not do
        if any(each.num_computed >= each.most_computed for each in self._running.decoding):
            return []  # its last token is being drawn: likewise
        taken: list[Sequence] = []
        uses: Counter[Block] = Counter()  # by those taken
        kept = set(shared)
        for victim in sorted(self._displaceable(claimant), key=preemption_rank, reverse=True):
            if num_missing <= 0 and (taken or not no_row):
                break
            taken.append(victim)
            uses.update(victim.table.blocks)
            num_missing -= sum(
                uses[block] == block.ref_count and block not in kept for block in victim.table.blocks
            )
        if len(taken) == len(self._running):
            num_missing -= reserve
        return taken if num_missing <= 0 and (taken or not no_row) else []

    def _displaceable(self, claimant: Sequence) -> list[Sequence]:
        running = [*self._running.begun, *self._running.decoding]
        return [each for each in running if self._yields(each, claimant)]

    def _yields(self, runner: Sequence, claimant: Sequence) -> bool:
        priority, own, its = claimant.live.request.priority, claimant.live.account, runner.live.account
        if runner.admitted_class != priority or own.heavy:
            return runner.admitted_class > priority
        return its.heavy and its.level > own.level
