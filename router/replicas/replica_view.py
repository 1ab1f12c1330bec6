"""One replica as this router sees it: its membership entry, its connection, its load and what runs there.

Made by `router.py` for every replica of the membership. Turns what its link says into calls on its owner, the
dispatcher, which alone decides about requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from router.deployment import Deployment
from router.prefixes.agreement import Agreement
from router.prefixes.index_feed import IndexFeed
from router.prefixes.prefix_index import IndexState, PrefixIndex
from router.replicas.replica_drain import ReplicaDrain
from router.replicas.replica_link import ReplicaLink, ToListener
from router.replicas.replica_work import ReplicaWork
from router.requests.generation import Death, Generation, Placement
from router.router_config import RouterConfig
from router.router_status import ReplicaStatus
from router.routing.prefill_board import PrefillBoard


class ViewOwner(Protocol):
    def replica_ready(self) -> None: ...

    def replica_back(self, view: ReplicaView) -> None: ...  # connected, or it steps again

    def replica_lost(self, view: ReplicaView, reason: str) -> None: ...

    def replica_hung(self, view: ReplicaView, reason: str) -> None: ...

    def drain_overdue(self, view: ReplicaView) -> None: ...

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
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """`changed` is called whenever the connection's side of what `met` answers is another one."""
        self.info = info
        self.incarnation = info.incarnation  # the highest ever met
        self.welcome: Welcome | None = None  # of the present connection
        self.leaving = False
        self._config = config
        self._deployment = deployment
        self._index = index
        self._owner = owner
        self._changed = changed
        self._clock = clock
        self._link: ReplicaLink | None = None
        self._feed: IndexFeed | None = None
        self._work = ReplicaWork(
            info.replica_id, deployment, board, config.hang_timeout_s, self._hangs, clock
        )
        self._rows = TokenRows()
        self._agreement = Agreement(config.resync_interval_s)
        self._refusal = ""  # why the latest greeting came to nothing
        self._refuses_new = False  # it said so itself, before the controller did
        self._drain: ReplicaDrain | None = None  # asked for at this router
        self._life = info.incarnation  # of the latest connection

    @property
    def replica_id(self) -> str:
        return self.info.replica_id

    @property
    def live(self) -> Mapping[str, Generation]:
        """By wire id."""
        return self._work.live

    @property
    def reported(self) -> Load | None:
        """Its own latest word, over the present connection."""
        return self._work.reported

    @property
    def accepting(self) -> bool:
        """New requests may be sent there."""
        ready = self.welcome is not None and self.info.state is ReplicaState.READY
        return ready and not (self.departing or self._refuses_new or self._work.hung_s is not None)

    @property
    def departing(self) -> bool:
        """On purpose: what it loses now is no death."""
        return self.leaving or self._drain is not None or self.info.state is ReplicaState.DRAINING

    @property
    def overdue(self) -> bool:
        """Its drain has lasted longer than it was given."""
        return self._drain is not None and self._drain.overdue

    @property
    def life(self) -> Death:
        """What has died if it is lost now."""
        return self.replica_id, self._life

    def met(self, incarnation: int) -> str | None:
        """See `Router.met`."""
        if incarnation < self.incarnation:
            return f"incarnation {self.incarnation} has taken its place"
        if incarnation > self.incarnation:
            return None
        return "" if self.accepting else self._refusal or None

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
        if info.state is ReplicaState.READY and (
            old.state is not ReplicaState.READY or info.incarnation > old.incarnation
        ):
            self._stop_draining()
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
        self._stop_draining()

    async def drain(self, deadline_s: float) -> bool:
        """No new requests from now on. True: nothing is live here; False: the controller called it off."""
        if self._drain is None:
            self._drain = ReplicaDrain(lambda: self._owner.drain_overdue(self))
        if not self.live:
            self._drain.finish()
        return await self._drain.wait(deadline_s)

    def _stop_draining(self) -> None:
        drain, self._drain = self._drain, None
        if drain is not None:
            drain.call_off()

    def _connect(self) -> None:
        host, port = self.info.host, self.info.port
        if self._link is None and host is not None and port is not None:
            self._link = ReplicaLink(host, port, self._config, self._deployment, listener=self)
            self._link.start()

    async def _disconnect(self) -> None:
        link, self._link = self._link, None
        self._refusal = ""
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

    def refused(self, reason: str) -> None:
        self._refusal = reason
        self._changed()

    def connected(self, welcome: Welcome) -> None:
        self.welcome, self.incarnation, self._life = welcome, welcome.incarnation, welcome.incarnation
        self._refusal = ""
        self._index.connect(self.replica_id)
        self._feed = IndexFeed(self._index, self.replica_id)
        self._rows = TokenRows()
        self._work.connected()
        self._owner.replica_back(self)
        self._changed()

    def received(self, message: ToListener) -> None:
        assert self._feed is not None, "messages come over a connection"
        if isinstance(message, StepFrame) and self._work.stepped():
            self._owner.replica_back(self)
            self._changed()
        if isinstance(message, SnapshotChunk):
            self._feed.chunk(message)
        elif isinstance(message, StepFrame):
            self._feed.frame(message)  # before the outputs: they belong to blocks that the events announce
            for output in self._rows.expand(
                message.outputs, unpack_tokens(message.rows), unpack_tokens(message.tokens)
            ):
                self._owner.deliver(self, output)
            # After the first tokens: the load does not contain their prefills any more.
            self._work.report(message.load, message.num_submits)
        else:
            self._owner.reject(self, message)

    def lost(self, reason: str) -> None:
        self.welcome = self._feed = None
        self._index.disconnect(self.replica_id)
        self._work.lost()
        self._owner.replica_lost(self, reason)

    # What the dispatcher does with it

    def submit(self, generation: Generation, placement: Placement) -> None:
        assert self._link is not None, "a candidate is connected"
        message = generation.submit(placement.wire_id, self._clock())
        self._work.begin(generation, message, placement.decision.matched_tokens)
        self._link.send(message)

    def drop(self, wire_id: str, *, cancel: bool) -> None:
        """The request is no longer live here; `cancel`: the replica does not know that yet."""
        self._work.end(wire_id)
        if self._drain is not None and not self.live:
            self._drain.finish()
        if cancel and self._link is not None:
            self._link.send(Cancel(wire_id))

    def stop_sequence(self, wire_id: str, index: int) -> None:
        if self._link is not None:
            self._link.send(Cancel(wire_id, index))

    def settle(self, wire_id: str) -> None:
        """Its first token has come: its prefill is over."""
        self._work.prefilled(wire_id)

    def _hangs(self, idle_s: float) -> None:
        self._owner.replica_hung(self, f"no step for {idle_s:.0f} s")

    def refuse_new(self) -> None:
        self._refuses_new = True

    def check_prediction(self, predicted: int, actual: int, digests: Sequence[bytes]) -> bool:
        """Compare what the index said of a prompt with what the replica did, having read the step's events.

        True: it had drifted; a snapshot is on its way.
        """
        if self._index.state(self.replica_id) is not IndexState.SYNCED:
            return False
        if self._feed is None or self._link is None:
            return False
        hasher = self._deployment.hasher
        cached = digests[: actual // hasher.block_size] if hasher is not None else ()
        unknown = bool(cached) and not self._index.holds(self.replica_id, cached[-1])
        impossible = unknown or self._feed.contradicted
        if not self._agreement.drifted(predicted, actual, impossible, self._clock()):
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
            prefill_tokens=0 if self.welcome is None else self._work.waiting_prefill_tokens,
            load=self._work.reported,
            workers=self.info.workers,
            detail=self._detail,
            accepting=self.accepting,
        )

    @property
    def _detail(self) -> str:
        if self._work.hung_s is not None:
            return f"no step for {self._work.hung_s:.0f} s"
        return self.info.detail or ("" if self._link is None else self._link.detail)
