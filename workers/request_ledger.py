"""Which router owns which request, and who hears of each step. Lives on the step thread, beside the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from protocol.errors import Draining, TrunklineError
from protocol.messages import Rejected, SequenceOutput, SnapshotChunk, StepFrame, Submit
from protocol.tokens import pack_tokens
from workers.engine import Engine, StepReport
from workers.router_connection import RouterConnection

SNAPSHOT_CHUNK_BYTES = 256 * 1024


class RequestLedger:
    """Which router owns which request, and who listens. Lives on the step thread."""

    def __init__(self) -> None:
        self._owners: dict[str, RouterConnection] = {}
        self._unfinished: dict[str, int] = {}
        self._row_owners: dict[
            int, RouterConnection
        ] = {}  # of the sequence that each row was last announced for
        self._listeners: list[RouterConnection] = []
        self._on_idle: Callable[[], object] | None = None  # set while draining

    def attach(self, connection: RouterConnection, engine: Engine) -> None:
        """Send what the cache holds now; from here on the connection hears every step."""
        # Events from before the snapshot go to those who were here; the newcomer's snapshot contains them.
        self.deliver(engine.idle_report())
        self.send_snapshot(connection, engine)
        if connection not in self._listeners:
            self._listeners.append(connection)
        frame = StepFrame(engine.num_steps, (), (), engine.load(), num_submits=connection.num_submits)
        connection.post(frame)

    def send_snapshot(self, connection: RouterConnection, engine: Engine) -> None:
        step, digests = engine.num_steps, engine.snapshot()
        connection.allow(len(digests))
        starts = range(0, max(len(digests), 1), SNAPSHOT_CHUNK_BYTES)
        for start in starts:
            chunk = digests[start : start + SNAPSHOT_CHUNK_BYTES]
            connection.post(SnapshotChunk(step, chunk, last=start == starts[-1]))

    def detach(self, connection: RouterConnection, engine: Engine) -> None:
        """The router is gone: so are its requests."""
        if connection in self._listeners:
            self._listeners.remove(connection)
        for request_id in [each for each, owner in self._owners.items() if owner is connection]:
            self.cancel(request_id, None, engine)

    def drain(self, on_idle: Callable[[], object], engine: Engine) -> None:
        """Take no new requests; `on_idle` is called once none runs any more."""
        self._on_idle = on_idle
        self._tell_if_idle()

    def submit(self, connection: RouterConnection, submit: Submit, engine: Engine) -> None:
        connection.num_submits += 1
        try:
            if self._on_idle is not None:
                raise Draining("this replica is draining: another one must take the request")
            engine.submit(submit)
        except TrunklineError as error:
            connection.post(Rejected(submit.request_id, error.code, error.message, error.param))
            return
        self._owners[submit.request_id] = connection
        self._unfinished[submit.request_id] = submit.num_live_sequences

    def cancel(self, request_id: str, index: int | None, engine: Engine) -> None:
        for output in engine.cancel(request_id, index):
            self._count_down(output)

    def deliver(self, report: StepReport) -> None:
        """One frame per router: its own outputs, everybody's events, the load."""
        outputs: dict[RouterConnection, list[SequenceOutput]] = {each: [] for each in self._listeners}
        for output in report.outputs:
            owner = self._owners.get(output.request_id)
            if owner is not None:
                outputs[owner].append(output)
                if output.row is not None:
                    self._row_owners[output.row] = owner
                self._count_down(output)
        for connection, own in outputs.items():
            rows, tokens = self._columns_of(connection, report)
            connection.post(
                StepFrame(
                    report.step,
                    tuple(own),
                    report.events,
                    report.load,
                    pack_tokens(rows),
                    pack_tokens(tokens),
                    connection.num_submits,
                )
            )

    def _columns_of(
        self, connection: RouterConnection, report: StepReport
    ) -> tuple[Sequence[int], Sequence[int]]:
        if len(self._listeners) == 1:  # whoever listens alone owns all that runs
            return report.rows, report.tokens
        owners = self._row_owners
        own = [place for place, row in enumerate(report.rows) if owners.get(row) is connection]
        return [report.rows[at] for at in own], [report.tokens[at] for at in own]

    def _count_down(self, output: SequenceOutput) -> None:
        if output.finish_reason is None:
            return
        self._unfinished[output.request_id] -= 1
        if not self._unfinished[output.request_id]:
            del self._owners[output.request_id], self._unfinished[output.request_id]
            self._tell_if_idle()

    def _tell_if_idle(self) -> None:
        if self._on_idle is not None and not self._owners:
            self._on_idle()
