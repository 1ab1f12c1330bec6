"""Decides what each step computes: decodes first, then chunks of prefill, within a budget of tokens.

Called by the engine's step loop: `schedule` makes a plan, the runner executes it, `complete` takes the drawn tokens.
Pure: no torch, no Ray, no clock. It knows rows and block ids, not where KV lies, and no text.

    add -> waiting -> begun (has a row, prefills) -> decoding -> ended
              ^                 |                       |
              +--------- preempted: frees its blocks ---+
"""

from __future__ import annotations

from protocol.block_hash import BlockHasher
from protocol.errors import InvalidRequest
from protocol.events import KvEvent
from protocol.messages import FinishReason, Load, SequenceOutput, TokenLogprob
from workers.kv.kv_cache import KvCache
from workers.runner import RunnerFacts
from workers.scheduling.admission import AdmissionOrder, FirstComeFirstServed
from workers.scheduling.arrivals import Arrivals
from workers.scheduling.live_request import LiveRequest
from workers.scheduling.load_meter import LoadMeter
from workers.scheduling.plan_draft import PlanDraft
from workers.scheduling.prefill import Prefill
from workers.scheduling.prompt_holds import PromptHolds
from workers.scheduling.request import Request
from workers.scheduling.running import Running
from workers.scheduling.scheduler_config import SchedulerConfig
from workers.scheduling.sequence import Ending, Sequence
from workers.step_plan import RowStep, SampledTokens, StepPlan

__all__ = ["Scheduler", "SchedulerConfig"]


class Scheduler:
    """Owns the replica's requests and its KV blocks. Plan and completion alternate."""

    def __init__(
        self,
        config: SchedulerConfig,
        facts: RunnerFacts,
        hasher: BlockHasher,
        order: AdmissionOrder | None = None,
    ) -> None:
        assert hasher.block_size == facts.block_size, "hasher and runner differ in block size"
        self.kv = KvCache(facts.num_blocks, hasher, config.enable_prefix_caching)
        self._arrivals = Arrivals(facts, self.kv)
        self._requests: dict[str, LiveRequest] = {}
        self._meter = LoadMeter()
        self._running = Running(self.kv, self._meter, config.max_num_seqs)
        self._holds = PromptHolds(self.kv)
        self._order = FirstComeFirstServed() if order is None else order
        self._prefill = Prefill(config, self.kv, self._running, self._order, self._holds, self._meter)
        self._step = 0
        self._flight: PlanDraft | None = None  # scheduled, not completed

    def add(self, request: Request) -> None:
        """Queue a request. Raises InvalidRequest or ContextLengthExceeded when it can never run."""
        if request.request_id in self._requests:
            raise InvalidRequest(f"request {request.request_id!r} is running already", param="request_id")
        live = self._arrivals.open(request)
        self._requests[request.request_id] = live
        self._prefill.queue(live.sequences[0])

    def abort(self, request_id: str, index: int | None = None) -> list[SequenceOutput]:
        """End a request, or one sequence of it, now, and free all that it holds.

        Gives one output for each sequence that has ended by it. A single one does not end while it computes the
        prompt that the others wait for.
        """
        live = self._requests.get(request_id)
        if live is None or (index is not None and not live.released):
            return []
        sequences = [each for each in live.sequences if index is None or each.index == index]
        return [self._end(sequence, (), Ending(FinishReason.ABORT)) for sequence in sequences]

    def has_work(self) -> bool:
        return bool(self._requests)

    def schedule(self) -> StepPlan | None:
        """The next step's plan; None when there is nothing to do."""
        assert self._flight is None, "the previous plan has not been completed"
        draft = PlanDraft()
        self._make_room()
        self._plan_decodes(draft)
        self._prefill.plan(draft)
        if not draft.rows:
            assert not self._requests, "requests are waiting and none of them can run"
            return None
        self._flight = draft
        self._step += 1
        return draft.plan(self._step, self._running.rows.take_ends())

    def complete(self, plan: StepPlan, sampled: SampledTokens) -> list[SequenceOutput]:
        """Take what the plan's execution drew. A sequence aborted meanwhile gets nothing."""
        flight = self._flight
        assert flight is not None and plan.step == self._step, "only the plan just made can be completed"
        self._flight = None
        outputs = []
        for sequence in flight.prefilled:
            if sequence.row is not None:
                self._release_siblings(sequence)
                if not sequence.samples:
                    outputs.append(self._end(sequence, (), sequence.arrival_ending))
        for sequence, token, logprob in zip(flight.sampled, sampled.token_ids, sampled.logprobs, strict=True):
            if sequence.row is not None:
                outputs.append(self._advance(sequence, token, logprob))
        return outputs

    def load(self) -> Load:
        """Of now. The engine fills in the speeds."""
        pool = self.kv.pool
        return Load(
            num_running=len(self._running),
            num_waiting=len(self._requests) - self._meter.num_running_requests,
            num_blocks=pool.num_usable,
            num_used_blocks=pool.num_used,
            num_cached_blocks=pool.num_cached,
            waiting_prefill_tokens=self._meter.backlog_tokens,
            num_preemptions=self._meter.num_preemptions,
        )

    def take_events(self) -> tuple[KvEvent, ...]:
        """What the cache gained and lost since the last call."""
        return self.kv.prefixes.events.take()

    def snapshot(self) -> bytes:
        """Every cached digest, joined; it includes what the events not yet taken say."""
        return self.kv.prefixes.snapshot()

    def touch(self, digests: bytes) -> None:
        """These cached blocks will be hit soon: reuse them last."""
        self.kv.touch(digests)

    def reset_prefix_cache(self) -> int:
        """0 when every prefix is forgotten; else the blocks in use, which forbid it."""
        return self.kv.reset()

    def _make_room(self) -> None:
        """A block for each decoding sequence that needs one, by preemption if there is no other way."""
        size = self.kv.block_size
        for sequence in [each for each in self._running.decoding if each.num_computed % size == 0]:
            while sequence.row is not None and not self.kv.grow(sequence.table):
                if not self._holds.close_all():
                    self._preempt(self._running.last())

    def _preempt(self, sequence: Sequence) -> None:
        """It computes prompt and generated tokens again, mostly from the cache."""
        self._running.stop(sequence)
        self._meter.num_preemptions += 1
        self._prefill.queue(sequence)

    def _plan_decodes(self, draft: PlanDraft) -> None:
        size = self.kv.block_size
        add = draft.rows.append
        for sequence in self._running.decoding:
            start = sequence.num_computed
            end = sequence.num_computed = start + 1
            fresh = () if start % size else sequence.table.take_new_blocks()
            if end % size == 0:
                self.kv.fill(sequence.table, sequence.tokens, end)
            row = sequence.row
            assert row is not None, "a decoding sequence has no row"
            add(RowStep(row, start, (sequence.tokens[-1],), fresh, True))
        draft.sampled += self._running.decoding

    def _release_siblings(self, sequence: Sequence) -> None:
        """The prompt has been computed: the request's other sequences may start on it."""
        live = sequence.live
        if live.released:
            return
        live.released = True
        siblings = [each for each in live.sequences if not each.started]
        if siblings:
            self._holds.open(live, sequence)
        for sibling in siblings:
            self._prefill.queue(sibling)

    def _advance(self, sequence: Sequence, token: int, logprob: TokenLogprob | None) -> SequenceOutput:
        ending = sequence.append(token)
        if ending is None:
            return sequence.output((token,), None, logprob)
        return self._end(sequence, (token,), ending, logprob)

    def _end(
        self,
        sequence: Sequence,
        token_ids: tuple[int, ...],
        ending: Ending | None,
        logprob: TokenLogprob | None = None,
    ) -> SequenceOutput:
        """Free all that a sequence holds, and its request with the last one."""
        live = sequence.live
        if sequence.row is not None:
            self._running.stop(sequence)
        if sequence in self._order:
            self._order.remove(sequence)
        self._meter.set_backlog(sequence, 0)
        live.sequences.remove(sequence)
        self._holds.close_if_unneeded(live)
        if not live.sequences:
            del self._requests[live.request.request_id]
        return sequence.output(token_ids, ending, logprob)

    def check_integrity(self) -> None:
        """Everything is accounted for, once. Valid whenever no call is under way."""
        sequences = [each for live in self._requests.values() for each in live.sequences]
        self.kv.check_integrity([each.table for each in sequences], self._holds.blocks())
        self._running.check_integrity()
        running = [*self._running.begun, *self._running.decoding]
        assert {id(each) for each in running} == {id(each) for each in sequences if each.row is not None}, (
            "the running sequences are not those with a row"
        )
        queued = [each for each in sequences if each not in self._running.decoding and _may_start(each)]
        assert {id(each) for each in queued} == {id(each) for each in self._order}, "the order is wrong"
        assert sum(each.backlog_tokens for each in sequences) == self._meter.backlog_tokens, "a wrong backlog"
        num_active = sum(live.num_rows > 0 for live in self._requests.values())
        assert num_active == self._meter.num_running_requests, "a wrong count of running requests"
        for each in sequences:
            self._check_sequence(each)

    def _check_sequence(self, sequence: Sequence) -> None:
        table, computed = sequence.table, sequence.num_computed
        if sequence.row is None:
            assert computed == 0 and not table.blocks, "a waiting sequence holds blocks"
            return
        assert computed <= len(table.blocks) * self.kv.block_size, "KV without a block"
        if table.chained and self.kv.enabled:
            assert table.num_registered == computed // self.kv.block_size, "a full block is not registered"
        if sequence in self._running.decoding:
            in_flight = self._flight is not None
            assert computed == len(sequence.tokens) - (not in_flight), "not the n+m-1 rule"


def _may_start(sequence: Sequence) -> bool:
    return sequence.index == sequence.live.leader or sequence.live.released
