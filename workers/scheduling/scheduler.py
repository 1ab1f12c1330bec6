"""Decides what each step computes: decodes first, then chunks of prefill, within a budget of tokens.

Called by the engine's step loop: `schedule` makes a plan, the runner executes it, `complete` takes the drawn tokens.
Pure: no torch, no Ray, no clock: the time is told. It knows rows and block ids, not where KV lies, and no text.

    add -> waiting -> begun (has a row, prefills) -> decoding -> ended
              ^                 |                       |
              +--------- preempted: frees its blocks ---+
"""

from __future__ import annotations

from collections import deque

from protocol.block_hash import BlockHasher
from protocol.errors import InvalidRequest
from protocol.events import KvEvent
from protocol.messages import FinishReason, Load, SequenceOutput, TokenLogprob
from workers.kv.kv_cache import KvCache
from workers.runner import RunnerFacts
from workers.scheduling.admission import ASSUMED_PREFILL_S_PER_TOKEN, AdmissionOrder, Moment
from workers.scheduling.admission_orders import ResponseRatio
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
from workers.scheduling.step_outputs import StepOutputs
from workers.step_plan import SampledTokens, StepPlan

__all__ = ["Scheduler", "SchedulerConfig"]


class Scheduler:
    """Owns the replica's requests and its KV blocks. Plans are completed in their order; several may be in flight."""

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
        self._order = ResponseRatio(config.priority_ageing_s) if order is None else order
        self._prefill = Prefill(config, self.kv, self._running, self._order, self._holds, self._meter)
        self.prefill_s_per_token = ASSUMED_PREFILL_S_PER_TOKEN
        self.prefill_s_per_pair = 0.0
        self._step = 0
        self._flights: deque[PlanDraft] = deque()  # scheduled, not completed, the oldest first

    def add(self, request: Request, now_s: float = 0.0) -> None:
        """Queue a request. Raises InvalidRequest or ContextLengthExceeded when it can never run.

        The cached blocks that it matches now are reused last, so that they do not go while it waits.
        """
        if request.request_id in self._requests:
            raise InvalidRequest(f"request {request.request_id!r} is running already", param="request_id")
        live = self._arrivals.open(request, now_s)
        self._requests[request.request_id] = live
        first = live.sequences[0]
        self._prefill.queue(first)
        self.kv.refresh(first.table, len(first.tokens) - first.backlog_tokens)

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

    def schedule(self, now_s: float = 0.0) -> StepPlan | None:
        """The next step's plan; None when nothing can run now.

        What is in flight counts as done, though its tokens are not known yet.
        """
        draft = PlanDraft()
        moment = Moment(
            now_s,
            self.prefill_s_per_token,
            self._prefill.matches.num_uncached,
            self.prefill_s_per_pair,
            self._running.decoding,
        )
        self._make_room()
        for sequence in self._prefill.to_displace(moment):
            self._preempt(sequence)
        self._plan_decodes(draft)
        self._prefill.plan(draft, moment)
        if draft.is_empty:
            assert self._flights or not self._requests, "requests are waiting and none of them can run"
            return None
        self._flights.append(draft)
        self._step += 1
        return draft.plan(self._step, self._running.rows.take_ends())

    def complete(self, sampled: SampledTokens) -> StepOutputs:
        """Take what the oldest plan's execution drew. A sequence ended or preempted meanwhile gets nothing."""
        assert self._flights, "no plan is in flight"
        flight = self._flights.popleft()
        step = StepOutputs()
        for index, scored in sampled.prompt_logprobs.items():
            if flight.prefilling[index] not in flight.lost:
                flight.prefilling[index].live.add_prompt_logprobs(flight.chunks[index].start, scored)
        for sequence in flight.prefilled:
            if sequence not in flight.lost:
                self._release_siblings(sequence)
                if not sequence.samples:
                    step.outputs.append(self._end(sequence, (), sequence.arrival_ending))
        self._take_drawn(flight, sampled, step)
        return step

    def _take_drawn(self, flight: PlanDraft, sampled: SampledTokens, step: StepOutputs) -> None:
        """Note every token. Most rows only gain it, and are told as columns; what is left has more to say."""
        lost, special = flight.lost, []
        for place, (sequence, token) in enumerate(zip(flight.drawing, sampled.token_ids, strict=True)):
            if lost and sequence in lost:
                special.append(place)
                continue
            tokens = sequence.tokens
            tokens.append(token)
            if token in sequence.stop_ids or len(tokens) >= sequence.most_tokens or not sequence.announced:
                special.append(place)
        step.rows, step.tokens = flight.plain(sampled.token_ids, special)
        for place in special:
            sequence, token = flight.drawing[place], sampled.token_ids[place]
            if sequence not in lost:
                step.outputs.append(self._tell(sequence, token, sampled.logprobs.get(place)))

    def _tell(self, sequence: Sequence, token: int, logprob: TokenLogprob | None) -> SequenceOutput:
        ending = sequence.ending()
        if ending is not None:
            return self._end(sequence, (token,), ending, logprob)
        return sequence.output((token,), None, logprob)

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
            cache=self.kv.counts,
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
        for sequence in [each for each in self._running.decoding if not each.num_computed % size]:
            if sequence.num_computed >= sequence.most_computed:
                continue  # its last token is being drawn
            while sequence.row is not None and not self.kv.grow(sequence.table):
                if not self._holds.close_all():
                    self._preempt(self._running.last())

    def _preempt(self, sequence: Sequence) -> None:
        """It computes prompt and generated tokens again, mostly from the cache."""
        self._stop(sequence)
        self._meter.num_preemptions += 1
        self._prefill.queue(sequence)

    def _stop(self, sequence: Sequence) -> None:
        """Give back row and blocks. What steps in flight draw for it is dropped."""
        for flight in self._flights:
            flight.lost.add(sequence)
        # A block whose last token became known only now can be hit; the newest token's KV is never counted.
        self.kv.fill(sequence.table, sequence.tokens, min(sequence.num_computed, len(sequence.tokens) - 1))
        self._running.stop(sequence)

    def _plan_decodes(self, draft: PlanDraft) -> None:
        size = self.kv.block_size
        add_row, add_start = draft.decode_rows.append, draft.decode_starts.append
        add_drawing = draft.drawing.append
        for sequence in self._running.decoding:
            start = sequence.num_computed
            if start >= sequence.most_computed:
                continue
            sequence.num_computed = start + 1
            if not start % size:
                draft.grown.append((sequence.row, sequence.table.take_new_blocks()))  # type: ignore[arg-type]
                if self._flights:  # the block before ends in a token that has become known only now
                    self.kv.fill(sequence.table, sequence.tokens, start)
            if not sequence.num_computed % size and not self._flights:
                self.kv.fill(sequence.table, sequence.tokens, sequence.num_computed)
            add_row(sequence.row)  # type: ignore[arg-type]  # what decodes has a row
            add_start(start)
            add_drawing(sequence)

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

    def _end(
        self,
        sequence: Sequence,
        token_ids: tuple[int, ...],
        ending: Ending | None,
        logprob: TokenLogprob | None = None,
    ) -> SequenceOutput:
        """Free all that a sequence holds, and its request with the last one."""
        live = sequence.live
        output = sequence.output(token_ids, ending, logprob)
        if sequence.row is not None:
            self._stop(sequence)
        if sequence in self._order:
            self._order.remove(sequence)
        self._order.charge(sequence)
        self._meter.set_backlog(sequence, 0)
        live.sequences.remove(sequence)
        self._holds.close_if_unneeded(live)
        if not live.sequences:
            del self._requests[live.request.request_id]
        return output

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
        assert len(queued) == len(self._order) and all(each in self._order for each in queued), (
            "the order is wrong"
        )
        self._order.check_integrity()
        assert sum(each.backlog_tokens for each in sequences) == self._meter.backlog_tokens, "a wrong backlog"
        num_active = sum(live.num_rows > 0 for live in self._requests.values())
        assert num_active == self._meter.num_running_requests, "a wrong count of running requests"
        for each in sequences:
            decodes = each in self._running.decoding
            in_flight = sum(flight.advances(each) for flight in self._flights) if decodes else None
            each.check_integrity(self.kv.block_size, self.kv.enabled, in_flight)


def _may_start(sequence: Sequence) -> bool:
    return sequence.index == sequence.live.leader or sequence.live.released
