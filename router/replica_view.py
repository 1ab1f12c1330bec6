"""One replica as this router sees it: its membership entry, its connection, its load and what runs there.

Made by `router.py` for every replica of the membership. Turns what its link says into calls on its owner, the
dispatcher, which alone decides about requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from protocol.handshake import HelloRefused
from protocol.membership import ReplicaInfo, ReplicaState
from protocol.messages import (
    Cancel,
    Load,
    Rejected,
    Resync,
    SequenceOutput,
    SnapshotChunk,
    StepFrame,
    Welcome,
)
from protocol.token_rows import TokenRows
from protocol.tokens import unpack_tokens
from router.agreement import Agreement
from router.deployment import Deployment
from router.generation import Generation, Placement
from router.index_feed import IndexFeed
from router.prefill_board import PrefillBoard
from router.prefix_index import IndexState, PrefixIndex
from router.replica_link import ReplicaLink, ToListener
from router.router_config import RouterConfig
from router.router_status import ReplicaStatus


class ViewOwner(Protocol):
    def replica_ready(self) -> None: ...

    def replica_lost(self, view: ReplicaView, reason: str) -> None: ...

    def deliver(self, view: ReplicaView, output: SequenceOutput) -> None: ...

    def reject(self, view: ReplicaView, rejected: Rejected) -> None: ...


class ReplicaView:
    """A `LinkListener`. One object for a replica's whole time in the membership, whatever its incarnation."""

    def __init__(
        self,
        info: ReplicaInfo,
        config: RouterConfig,
        deployment: Deployment,
        index: PrefixIndex,
        board: PrefillBoard,
        owner: ViewOwner,
        clock: Callable[[], float],
    ) -> None:
        self.info = info
        self.incarnation = info.incarnation  # the highest ever met
        self.live: dict[str, Generation] = {}  # by wire id
        self.welcome: Welcome | None = None  # of the present connection
        self.leaving = False  # on purpose: what it loses now is no death
        self._config = config
        self._deployment = deployment
        self._index = index
        self._board = board
        self._owner = owner
        self._clock = clock
        self._link: ReplicaLink | None = None
        self._feed: IndexFeed | None = None
        self._reported: Load | None = None  # over the present connection
        self._rows = TokenRows()
        self._agreement = Agreement(config.resync_interval_s)
        self._refuses_new = False  # it said so itself, before the controller did

    @property
    def replica_id(self) -> str:
        return self.info.replica_id

    @property
    def accepting(self) -> bool:
        """New requests may be sent there."""
        ready = self.welcome is not None and self.info.state is ReplicaState.READY
        return ready and not self.leaving and not self._refuses_new

    # Membership

    async def follow(self, info: ReplicaInfo) -> None:
        """Take the controller's newest word; one about an incarnation that is past changes nothing."""
        if info.incarnation < self.incarnation:
            return
        old, self.info = self.info, info
        if info.incarnation > self.incarnation or (info.host, info.port) != (old.host, old.port):
            self.incarnation = info.incarnation
            await self._disconnect()
        if info != old:
            self._refuses_new = False
        if info.state in (ReplicaState.READY, ReplicaState.DRAINING):
            self._connect()
        else:
            await self._disconnect()
        if self.accepting:
            self._owner.replica_ready()

    async def aclose(self) -> None:
        """Its live requests move; nothing of it is left in the index."""
        self.leaving = True
        await self._disconnect()

    def _connect(self) -> None:
        host, port = self.info.host, self.info.port
        if self._link is None and host is not None and port is not None:
            self._link = ReplicaLink(host, port, self._config, self._deployment, listener=self)
            self._link.start()

    async def _disconnect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()

    # What the link says

    def admit(self, welcome: Welcome) -> None:
        if welcome.replica_id != self.replica_id:
            raise HelloRefused(f"replica {welcome.replica_id} answers at the address of {self.replica_id}")
        if welcome.incarnation < self.incarnation:
            raise HelloRefused(
                f"incarnation {welcome.incarnation} answers; it was replaced by {self.incarnation}"
            )

    def connected(self, welcome: Welcome) -> None:
        self.welcome, self.incarnation = welcome, welcome.incarnation
        self._index.connect(self.replica_id)
        self._feed = IndexFeed(self._index, self.replica_id)
        self._rows = TokenRows()
        self._board.add(self.replica_id)
        if self.accepting:
            self._owner.replica_ready()

    def received(self, message: ToListener) -> None:
        assert self._feed is not None, "messages come over a connection"
        if isinstance(message, SnapshotChunk):
            self._feed.chunk(message)
        elif isinstance(message, StepFrame):
            self._feed.frame(message)  # before the outputs: they belong to blocks that the events announce
            for output in self._rows.expand(
                message.outputs, unpack_tokens(message.rows), unpack_tokens(message.tokens)
            ):
                self._owner.deliver(self, output)
            self._report(message.load)  # after the first tokens: it does not contain their prefills any more
        else:
            self._owner.reject(self, message)

    def _report(self, load: Load) -> None:
        self._reported = load
        self._board.report(
            self.replica_id,
            waiting_prefill_tokens=load.waiting_prefill_tokens,
            num_in_flight=load.num_running + load.num_waiting,
            speeds=load.speeds,
            utilization=load.prefill_utilization,
            now_s=self._clock(),
        )

    def lost(self, reason: str) -> None:
        self.welcome = self._feed = self._reported = None
        self._index.disconnect(self.replica_id)
        self._board.remove(self.replica_id)
        self._owner.replica_lost(self, reason)

    # What the dispatcher does with it

    def submit(self, generation: Generation, placement: Placement) -> None:
        assert self._link is not None, "a candidate is connected"
        wire_id, now_s = placement.wire_id, self._clock()
        message = generation.submit(wire_id, now_s)
        num_cached = placement.decision.matched_tokens
        num_tokens = generation.num_prompt_tokens + generation.num_generated_tokens
        self._board.dispatched(
            self.replica_id,
            wire_id,
            num_uncached=max(0, num_tokens - num_cached),
            num_cached=num_cached,
            now_s=now_s,
            num_sequences=message.num_live_sequences,
        )
        self.live[wire_id] = generation
        self._link.send(message)

    def drop(self, wire_id: str, *, cancel: bool) -> None:
        """The request is no longer live here; `cancel`: the replica does not know that yet."""
        self.live.pop(wire_id, None)
        self._board.ended(self.replica_id, wire_id)
        if cancel and self._link is not None:
            self._link.send(Cancel(wire_id))

    def stop_sequence(self, wire_id: str, index: int) -> None:
        if self._link is not None:
            self._link.send(Cancel(wire_id, index))

    def settle(self, wire_id: str) -> None:
        """Its first token has come: its prefill is over."""
        self._board.prefilled(self.replica_id, wire_id)

    def refuse_new(self) -> None:
        self._refuses_new = True

    def check_prediction(self, predicted: int, actual: int) -> bool:
        """Compare what the index said with what the replica did. True: it had drifted; a snapshot is on its way."""
        if self._index.state(self.replica_id) is not IndexState.SYNCED:
            return False
        if self._feed is None or self._link is None:
            return False
        if not self._agreement.drifted(predicted, actual, self._clock()):
            return False
        self._feed.restart()
        self._link.send(Resync())
        return True

    async def reset_cache(self) -> int:
        """Raises ReplicaLost."""
        return 0 if self._link is None or not self._link.connected else await self._link.reset_cache()

    def status(self) -> ReplicaStatus:
        index = self._index
        return ReplicaStatus(
            replica_id=self.replica_id,
            state=self.info.state,
            incarnation=self.incarnation,
            connected=self.welcome is not None,
            index=index.state(self.replica_id),
            num_indexed_blocks=index.num_blocks(self.replica_id),
            num_live_requests=len(self.live),
            prefill_tokens=0 if self.welcome is None else self._board.waiting_prefill_tokens(self.replica_id),
            load=self._reported,
            workers=self.info.workers,
            detail=self.info.detail or ("" if self._link is None else self._link.detail),
        )
