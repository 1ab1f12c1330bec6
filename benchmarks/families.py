"""Every model family and variant against transformers: runs the tests that hold it, and prints what they found.

    python benchmarks/families.py

One line a variant: the largest difference of any logit over 64 greedy tokens in fp32, as a share of the largest logit,
and whether the greedy tokens were equal: to those of transformers, divided among two ranks, with a cached prefix, and
with the prompt in chunks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from report import print_header

ROOT = Path(__file__).resolve().parent.parent
TESTS = [f"tests/workers/model/test_families_{part}.py" for part in ("against_transformers", "on_two_ranks")]
COLUMNS = {
    "test_logits_and_greedy_tokens_equal_those_of_transformers": "greedy equal",
    "test_two_ranks_draw_the_tokens_of_one": "tp=2",
    "test_a_cached_prompt_equals_a_computed_one": "cached",
    "test_a_prompt_in_chunks_equals_a_whole_one": "chunked",
}


def main() -> None:
    print_header(
        "Families", reference=f"transformers {version('transformers')}, fp32", weights="random, seed 0"
    )
    verdicts: dict[str, dict[str, bool]] = defaultdict(dict)
    errors: dict[str, float] = {}
    for case in run_tests():
        test, variant = parse(case.get("name", ""))
        passed = case.find("failure") is None and case.find("error") is None
        verdicts[variant][COLUMNS[test]] = verdicts[variant].get(COLUMNS[test], True) and passed
        for each in case.iter("property"):
            errors[variant] = float(each.get("value", "nan"))
    print(
        f"| variant | logits, largest error | {' | '.join(COLUMNS.values())} |\n|---|---|{'---|' * len(COLUMNS)}"
    )
    for variant, row in verdicts.items():
        cells = ("yes" if row.get(column) else "**no**" for column in COLUMNS.values())
        print(f"| {variant} | {errors[variant]:.1e} | {' | '.join(cells)} |")


def run_tests() -> list[ElementTree.Element]:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1"]
        command += [f"--junitxml={report}", *TESTS]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
        return list(ElementTree.parse(report).iter("testcase"))


def parse(name: str) -> tuple[str, str]:
    """`test_what_holds[7-variant]` or `test_what_holds[variant]`."""
    found = re.fullmatch(r"(\w+)\[(?:\d+-)?(\w+?)(?:-\d+)?\]", name)
    assert found is not None, f"a test of no variant: {name}"
    return found[1], found[2]


if __name__ == "__main__":
    main()
