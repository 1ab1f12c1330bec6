"""Replicas that scale by themselves under a load that comes and goes: a trace, a plot, and what it cost.

    python benchmarks/autoscaling.py [--out benchmarks/results/autoscaling-cpu]

The controller, the router with its HTTP endpoint and the replicas' schedulers are the product's, the devices only take
time (`simulated_deployment.py`). Two deployments get the same requests at the same moments: one scales between none and
four replicas, one always has four. Writes OUT.csv, and OUT.svg where matplotlib is installed; prints the tables.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import importlib.util
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import openai
import uvloop
from report import print_header
from scaling_plot import draw
from scaling_trace import Answer, Moment, Phase, change_rows, changes, flaps, phase_rows, replica_seconds
from simulated_deployment import Device, ModelledDeployment

from controller.config_file import build_config
from simulator.service_model import ServiceModel

SEED = 7
MOST = 4
SCALING = {"min_replicas": 0, "max_replicas": MOST, "up_after_s": 6.0, "down_after_s": 30.0}
DEVICE = Device(ServiceModel(token_s=1 / 3000, decode_step_s=0.03), start_s=8.0)
PROMPT_TOKENS, OUTPUT_TOKENS = 1024, 16
VOCABULARY = range(300, 2000)  # of the model, its special tokens left out
PREFILL_S = DEVICE.model.prefill_time_s(0, PROMPT_TOKENS)
LOAD = (
    Phase("quiet", 20, 0.4, 0.4),
    Phase("ramp", 45, 0.4, 4.6),
    Phase("plateau", 75, 4.6, 4.6),
    Phase("burst", 40, 9.0, 9.0),
    Phase("plateau again", 80, 4.6, 4.6),
    Phase("quiet again", 40, 0.4, 0.4),
)
NOTHING, COLD = "nothing", "one cold request"
EMPTY_S = 10.0  # between the last replica's end and the cold request
PATIENCE_S = 600.0  # for the last replica to go
INTERVAL_S = 1.0  # of the trace


def arrivals(phase: Phase, dice: random.Random) -> Iterator[float]:
    """Seconds from the phase's beginning; a Poisson process, thinned to the rate of the moment."""
    most, at_s = max(phase.rate, phase.last_rate), 0.0
    while (at_s := at_s + dice.expovariate(most)) < phase.seconds:
        if dice.random() * most < phase.rate_at(at_s):
            yield at_s


class Client:
    """Of one deployment."""

    def __init__(self, deployment: ModelledDeployment, began_s: float) -> None:
        self._began_s = began_s
        self._api = openai.AsyncOpenAI(
            base_url=f"{deployment.status.urls[0]}/v1", api_key="none", max_retries=0, timeout=120
        )
        self.answers: list[Answer] = []

    async def ask(self, prompt: list[int], phase: str) -> None:
        arrival_s = time.monotonic()
        try:
            ttft_s = await self._first_token(prompt) - arrival_s
        except openai.OpenAIError:
            ttft_s = None
        self.answers.append(Answer(arrival_s - self._began_s, phase, ttft_s))

    async def _first_token(self, prompt: list[int]) -> float:
        """When it came, of an answer that is complete."""
        chunks = await self._api.completions.create(
            model="sapling",
            prompt=prompt,
            max_tokens=OUTPUT_TOKENS,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        first_s, reason = None, None
        async for chunk in chunks:
            first_s = first_s or time.monotonic()
            reason = chunk.choices[0].finish_reason
        if first_s is None or reason != "length":
            raise openai.OpenAIError("the stream broke")
        return first_s

    async def aclose(self) -> None:
        await self._api.close()


class Run:
    """Two deployments under one load."""

    def __init__(self, scaled: ModelledDeployment, fixed: ModelledDeployment) -> None:
        self._scaled = scaled
        self._began_s = time.monotonic()
        self._clients = [Client(each, self._began_s) for each in (scaled, fixed)]
        self._dice = random.Random(SEED)
        self._phase, self._phase_began_s = LOAD[0], self._began_s
        self.trace: list[Moment] = []

    @property
    def answers(self) -> list[list[Answer]]:
        """Of the one that scales, and of the other."""
        return [client.answers for client in self._clients]

    async def run(self) -> None:
        tracing = asyncio.create_task(self._trace())
        async with asyncio.TaskGroup() as asked:
            for phase in LOAD:
                await self._load(phase, asked)
            self._begin(Phase(NOTHING, 0, 0, 0))
            async with asyncio.timeout(PATIENCE_S):
                await self._scaled.until(lambda status: not status.replicas)
            await asyncio.sleep(EMPTY_S)
            self._begin(Phase(COLD, 0, 0, 0))
            self._ask(asked)
        await asyncio.sleep(EMPTY_S)
        tracing.cancel()
        for client in self._clients:
            await client.aclose()

    async def _load(self, phase: Phase, asked: asyncio.TaskGroup) -> None:
        self._begin(phase)
        for at_s in arrivals(phase, self._dice):
            await asyncio.sleep(self._phase_began_s + at_s - time.monotonic())
            self._ask(asked)
        await asyncio.sleep(self._phase_began_s + phase.seconds - time.monotonic())

    def _begin(self, phase: Phase) -> None:
        self._phase, self._phase_began_s = phase, time.monotonic()

    def _ask(self, asked: asyncio.TaskGroup) -> None:
        """No two prompts are alike."""
        prompt = self._dice.choices(VOCABULARY, k=PROMPT_TOKENS)
        for client in self._clients:
            asked.create_task(client.ask(prompt, self._phase.name))

    async def _trace(self) -> None:
        while True:
            status, now_s = self._scaled.status, time.monotonic()
            moment = Moment(
                at_s=round(now_s - self._began_s, 1),
                phase=self._phase.name,
                offered=round(PREFILL_S * self._phase.rate_at(now_s - self._phase_began_s), 3),
                need=round(self._scaled.need.replicas, 3),
                wanted=status.num_wanted,
                ready=status.num_ready,
                held=len(status.replicas),
            )
            self.trace.append(moment)
            await asyncio.sleep(INTERVAL_S)


def print_table(headings: Sequence[str], rows: Iterator[tuple[str, ...]]) -> None:
    print(f"\n| {' | '.join(headings)} |\n{'|---' * len(headings)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def print_summary(run: Run) -> None:
    trace, (scaled, fixed) = run.trace, run.answers
    times = "TTFT p50 / p99, ms"
    print_table(
        (
            "phase",
            "s",
            "requests",
            "lost",
            "load",
            "replicas ready",
            "changes",
            times,
            f"always {MOST}: {times}",
        ),
        phase_rows(trace, scaled, fixed),
    )
    print_table(
        ("at, s", "replicas", "need", "done after, s", f"{times}, 15 s before", "meanwhile", "15 s after"),
        change_rows(trace, scaled),
    )
    made, lost = changes(trace), sum(each.ttft_s is None for each in (*scaled, *fixed))
    taken_back = len(flaps(made, SCALING["down_after_s"]))
    used, most = replica_seconds(trace), MOST * (trace[-1].at_s - trace[0].at_s)
    print(
        f"\n- {len(made)} changes, {sum(each.is_up for each in made)} of them up, {taken_back} taken back within "
        f"`down_after_s`; {lost} requests lost\n"
        f"- {used:.0f} replica-seconds, {100 * used / most:.0f} % of the {most:.0f} of always {MOST}; "
        f"the prefill of all requests takes {PREFILL_S * len(scaled):.0f}"
    )


def write_trace(file: Path, trace: Sequence[Moment]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(asdict(trace[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, trace))


async def run(out: Path) -> None:
    scaling = build_config({"replicas": 1, "autoscaling": SCALING, "routers": {"port": 0}})
    always = build_config({"replicas": MOST, "routers": {"port": 0}})
    async with ModelledDeployment(scaling, DEVICE) as scaled, ModelledDeployment(always, DEVICE) as fixed:
        await scaled.until(lambda status: status.num_ready == 1)
        await fixed.until(lambda status: status.num_ready == MOST)
        made = Run(scaled, fixed)
        await made.run()
    write_trace(out.with_suffix(".csv"), made.trace)
    if importlib.util.find_spec("matplotlib") is not None:
        draw(out.with_suffix(".svg"), made.trace, *made.answers)
    print_summary(made)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("autoscaling"), help="of the trace, without its suffix"
    )
    out = parser.parse_args().out
    logging.disable(logging.WARNING)
    print_header(
        "Replicas that scale by themselves",
        system="the product's controller, router and schedulers in one process; devices that only take time",
        replicas=f"0 to {MOST}, each {DEVICE.start_s:g} s from its start to ready; the other deployment always {MOST}",
        autoscaling=", ".join(f"{name} {value:g}" for name, value in SCALING.items())
        + ", the rest as by default",
        requests=f"{PROMPT_TOKENS} tokens, no two alike: {PREFILL_S:.2f} s of prefill; {OUTPUT_TOKENS} generated",
        load="; ".join(f"{p.seconds} s of {p.name}, {p.rate:g} to {p.last_rate:g} requests/s" for p in LOAD),
        seed=SEED,
    )
    uvloop.run(run(out))


if __name__ == "__main__":
    main()
