"""Four prompts behind one long prefix: first with prefix caching off, then on after a warm-up.

Run it with `python examples/prefix_caching.py [MODEL]`; without a model it takes the built-in one.
"""

from __future__ import annotations

import sys
import time

from trunkline import LLM, SamplingParams

PEOPLE = [
    (name, age, job, country)
    for age, (name, job, country) in enumerate(
        zip(
            ["Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack"] * 6,
            ["teacher", "doctor", "farmer", "painter", "baker", "nurse"] * 10,
            ["France", "Spain", "Italy", "Japan", "Kenya", "Peru", "Norway", "Egypt", "Chile", "India"] * 6,
            strict=True,
        ),
        start=20,
    )
]
TABLE = "| Name | Age | Job | Country |\n|---|---|---|---|\n" + "".join(
    f"| {name} | {age} | {job} | {country} |\n" for name, age, job, country in PEOPLE
)
PREFIX = "Here is a table of people. Answer the question about it.\n" + TABLE
QUESTIONS = [
    "The capital of France is",
    "Hello, my name is",
    "The president of the United States is",
    "The future of AI is",
]
SAMPLING = SamplingParams(temperature=0.0, max_tokens=16)


def answers(llm: LLM, prompts: list[str]) -> tuple[list[str], int, float]:
    """The texts, the cached tokens and the seconds of one batch."""
    started = time.perf_counter()
    outputs = llm.generate(prompts, SAMPLING, use_tqdm=False)
    seconds = time.perf_counter() - started
    return [output.outputs[0].text for output in outputs], sum(o.num_cached_tokens for o in outputs), seconds


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "sapling"
    prompts = [f"{PREFIX}\n{question}" for question in QUESTIONS]

    with LLM(model, enable_prefix_caching=False) as llm:
        answers(llm, ["warm up"])
        without, _, seconds_without = answers(llm, prompts)
    print(f"Without prefix caching: {seconds_without:.3f} s")
    show(without)

    with LLM(model, enable_prefix_caching=True) as llm:
        answers(llm, [prompts[0]])  # the first request leaves the prefix in the cache
        cached, num_cached_tokens, seconds_cached = answers(llm, prompts)
        num_prompt_tokens = sum(len(llm.tokenizer.encode(prompt)) for prompt in prompts)
    print(f"\nWith prefix caching:    {seconds_cached:.3f} s")
    show(cached)

    print(f"\nCached tokens: {num_cached_tokens} of {num_prompt_tokens}")
    print(f"Speed-up: {seconds_without / seconds_cached:.1f}x")
    print(f"Generated answers are the same: {without == cached}")


def show(texts: list[str]) -> None:
    for question, text in zip(QUESTIONS, texts, strict=True):
        print(f"  {question!r} ->{text!r}")


if __name__ == "__main__":
    main()
