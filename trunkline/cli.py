"""The `trunkline` command and its subcommands. Options are named as in `vllm serve`, if there.

Only reads the command line; each subcommand's module is imported when it is chosen, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from protocol.errors import TrunklineError
from trunkline import __version__
from trunkline.checks import check_kernels
from trunkline.model_options import add_model_options

DEFAULT_URL = "http://127.0.0.1:8000"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status. A user's mistake is one sentence on stderr and status 2."""
    options = build_parser().parse_args(arguments)
    try:
        if (warning := check_kernels()) is not None:
            print(f"warning: {warning}", file=sys.stderr)
        return _run(options)
    except TrunklineError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


def _run(options: argparse.Namespace) -> int:
    if options.command == "serve":
        from trunkline import serve

        return serve.run(options)
    if options.command == "generate":
        from trunkline import generate

        return generate.run(options)
    if options.command == "status":
        from trunkline import status

        return status.run(options)
    if options.command == "simulate":
        from trunkline import simulate

        return simulate.run(options)
    if options.command in ("scale", "drain", "upgrade"):
        from trunkline import change

        command: Callable[[argparse.Namespace], int] = getattr(change, options.command)
        return command(options)
    from trunkline import stop

    return stop.run(options)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trunkline", description="Serve large language models from many GPUs on Ray."
    )
    parser.add_argument("--version", action="version", version=f"trunkline {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="start an OpenAI-compatible endpoint"))
    _add_generate(commands.add_parser("generate", help="complete prompts without a server"))
    _add_status(commands.add_parser("status", help="show a running deployment"))
    _add_scale(commands.add_parser("scale", help="change a running deployment's number of replicas"))
    _add_drain(commands.add_parser("drain", help="end one replica gently; another takes its place"))
    _add_upgrade(commands.add_parser("upgrade", help="bring a running deployment to another configuration"))
    _add_stop(commands.add_parser("stop", help="drain a running deployment and stop it"))
    _add_simulate(
        commands.add_parser("simulate", help="compare routing policies, or plan capacity, on a trace")
    )
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Start replicas of a model and an OpenAI-compatible endpoint in front of them. Without --address a Ray is "
        "started on this machine and ends with the command. Ctrl-C drains and stops everything."
    )
    deployment = parser.add_argument_group("deployment")
    deployment.add_argument(
        "--config", metavar="FILE", help="YAML as in cluster_configs/; options here go first"
    )
    deployment.add_argument("--replicas", "--data-parallel-size", type=int, metavar="N", help="default: 2")
    deployment.add_argument("--num-cpus", type=float, metavar="N", help="CPUs and threads of each worker")
    deployment.add_argument("--num-gpus", type=float, metavar="N", help="GPUs of each worker (default: 0)")
    deployment.add_argument(
        "--address", help="a running Ray to join (default: RAY_ADDRESS, else one of its own)"
    )
    deployment.add_argument("--detach", action="store_true", help="return at once; `trunkline stop` ends it")
    deployment.add_argument("--drain-timeout", type=float, metavar="SECONDS", help="default: 30")
    endpoint = parser.add_argument_group("endpoint")
    endpoint.add_argument("--host", help="address to listen at (default: 127.0.0.1; others need an API key)")
    endpoint.add_argument("--port", type=int, help="default: 8000; 0 takes a free one")
    endpoint.add_argument(
        "--routers", type=int, metavar="N", help="number of routers, on ports from --port on"
    )
    endpoint.add_argument("--api-key", action="append", metavar="KEY", help="may be given several times")
    endpoint.add_argument("--api-key-file", metavar="FILE", help="one key a line")
    endpoint.add_argument(
        "--no-api-key", action="store_true", default=None, help="whoever reaches the endpoint may ask"
    )
    endpoint.add_argument("--served-model-name", metavar="NAME", help="what clients ask for (default: MODEL)")
    add_model_options(parser)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.description = "Complete prompts in this process, without Ray and without a server."
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="several times; default: stdin's lines"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--max-tokens", type=int, default=16, metavar="N")
    sampling.add_argument("--temperature", type=float, default=1.0)
    sampling.add_argument("--top-p", type=float, default=1.0)
    sampling.add_argument("--top-k", type=int, default=0)
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="may be given several times")
    sampling.add_argument("--sampling-seed", type=int, metavar="N", help="of each request (default: none)")
    sampling.add_argument("--n", type=int, default=1, help="completions of each prompt")
    parser.add_argument("--json", action="store_true", help="one JSON object a prompt")
    add_model_options(parser)


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of a router (default: {DEFAULT_URL})")
    parser.add_argument("--api-key", metavar="KEY", help="default: the environment's TRUNKLINE_API_KEY")
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("num_replicas", type=int, metavar="N")
    parser.add_argument("--model", metavar="NAME", help="whose, where several are served")
    _add_address(parser)
    parser.add_argument("--no-wait", action="store_true", help="return at once")


def _add_drain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("replica", metavar="REPLICA", help="as `trunkline status` names it")
    _add_address(parser)


def _add_upgrade(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Replace replicas and routers that were started otherwise than the file says, one at a time. If a new one "
        "cannot start, everything is taken back."
    )
    parser.add_argument("config", metavar="FILE", help="YAML as in cluster_configs/")
    _add_address(parser)
    parser.add_argument("--no-wait", action="store_true", help="return at once")


def _add_stop(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    parser.add_argument("--grace", type=float, metavar="SECONDS", help="for running requests (default: 30)")


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run a trace of requests against simulated replicas. A line of the trace is a JSON object with timestamp (ms), "
        "input_length, output_length, and hash_ids of the prompt's blocks of 512 tokens."
    )
    parser.add_argument("--trace", metavar="FILE", help="JSON lines, as Mooncake's public traces")
    parser.add_argument(
        "--fit",
        metavar="REPORT",
        help="instead of a trace: fit the model to what benchmarks/replay.py measured, and say how far off it is",
    )
    parser.add_argument(
        "--replicas",
        type=int,
        default=8,
        metavar="N",
        help="default: 8; with --slo-ttft-p99 the most allowed",
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="X", help="2: in half the time (default: 1)"
    )
    parser.add_argument(
        "--cache-tokens", type=int, default=512_000, metavar="N", help="of each replica (default: 512000)"
    )
    parser.add_argument(
        "--policy", default="all", metavar="NAME", help="default: all; a wrong one lists them"
    )
    parser.add_argument(
        "--order",
        default="response-ratio",
        metavar="NAME",
        help="of admission at the replicas, or all (default: ours)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random choices (default: 0)")
    parser.add_argument(
        "--fidelity",
        default="fluid",
        metavar="NAME",
        help="exact steps the product's scheduler, for a few replicas; fluid is fast (default)",
    )
    parser.add_argument(
        "--block-size", type=int, default=64, metavar="TOKENS", help="of exact replicas (default: 64)"
    )
    parser.add_argument(
        "--routers",
        type=int,
        default=1,
        metavar="N",
        help="that share nothing, each with its part of the requests",
    )
    parser.add_argument(
        "--event-lag",
        metavar="TIME",
        help="by which routers hear late of the replicas, as 50ms (default: none)",
    )
    parser.add_argument(
        "--slow",
        action="append",
        default=[],
        metavar="REPLICA:FACTOR[@TIME]",
        help="as 0:3@600s: the first takes three times as long from then on; may be given several times",
    )
    parser.add_argument(
        "--slo-ttft-p99", metavar="TIME", help="find the fewest replicas that keep to this, as 2s or 500ms"
    )
    parser.add_argument("--json", metavar="FILE", help="the rows, for programs")
    parser.add_argument("--plot", metavar="FILE.png", help="the rows as bars (needs matplotlib)")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", help="the deployment's Ray (default: RAY_ADDRESS, else this machine's)")
