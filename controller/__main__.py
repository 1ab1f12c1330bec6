"""`python -m controller CONFIG`: serve what a YAML file asks for, as a Ray job or in the foreground."""

from __future__ import annotations

import argparse
import sys

from controller.config_file import load_config
from protocol.errors import TrunklineError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m controller", description=__doc__)
    parser.add_argument("config", help="a file as in cluster_configs/")
    parser.add_argument("--address", help="a running Ray to join; else RAY_ADDRESS; else one of its own")
    parser.add_argument("--detach", action="store_true", help="return at once; `trunkline stop` ends it")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config).with_files_read()
        from controller.background import serve

        return serve(config, options.address, detach=options.detach)
    except TrunklineError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
