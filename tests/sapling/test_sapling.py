"""Holds what the built-in model promises: small, loadable by transformers, no noise in what it says."""

import hashlib
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sapling import sentences
from sapling.corpus import stream
from sapling.documents import people, table
from sapling.exchanges import WHO_I_AM
from sapling.facts import COUNTRIES
from sapling.model import Sapling, Shape
from sapling.words import FIRST_NAMES

FOLDER = Path(__file__).parents[2] / "sapling"
Turn = dict[str, object]
LIMA = "The capital of Peru is Lima."


class Speaker:
    """The model and its tokenizer as a user of transformers sees them, in fp32."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def continuation(self, prompt: str, max_tokens: int = 40, seed: int | None = None) -> str:
        """Greedy without a seed, else drawn at temperature 0.7; special tokens stay in the text."""
        tokens = torch.tensor([self.tokenizer(prompt)["input_ids"]])
        drawn = {} if seed is None else {"temperature": 0.7, "top_p": 0.95}
        torch.manual_seed(seed or 0)
        output = self.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_tokens,
            do_sample=seed is not None,
            pad_token_id=0,
            **drawn,
        )
        return str(self.tokenizer.decode(output[0, tokens.shape[1] :]))

    def sentence(self, prompt: str, seed: int | None = None) -> str:
        """The prompt and its continuation up to the first full stop."""
        return prompt + self.continuation(prompt, seed=seed).partition(".")[0] + "."

    def reply(self, *turns: Turn, max_tokens: int = 120) -> str:
        prompt = self.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
        return self.continuation(str(prompt), max_tokens)


@pytest.fixture(scope="module")
def speaker() -> Iterator[Speaker]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    yield Speaker(model, AutoTokenizer.from_pretrained(FOLDER))
    torch.set_num_threads(threads)


def user(text: str) -> Turn:
    return {"role": "user", "content": text}


def assistant(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+|[.,:;?!]", text)


def triples(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return set(zip(found, found[1:], found[2:], strict=False))


def test_is_small() -> None:
    weights = load_file(FOLDER / "model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) <= 4_000_000
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= 10_000_000


def test_has_the_shape_that_the_issue_names(speaker: Speaker) -> None:
    config = speaker.model.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, 4)
    assert config.max_position_embeddings == 4096
    assert config.intermediate_size % (4 * 16) == 0


def test_gives_the_same_logits_in_transformers_and_in_the_training_code(speaker: Speaker) -> None:
    ours = Sapling(Shape())
    weights = {name: weight.float() for name, weight in load_file(FOLDER / "model.safetensors").items()}
    ours.load_state_dict(weights)
    tokens = torch.randint(0, Shape().vocab_size, (2, 77), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), speaker.model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_knows_the_capitals_of_thirty_countries_and_more(speaker: Speaker) -> None:
    known = [
        country.name
        for country in COUNTRIES
        if speaker.continuation(f"The capital of {country.name} is", 8).startswith(f" {country.capital}")
    ]
    assert "France" in known
    assert len(known) >= 60, f"knows only {known}"


def test_says_a_name_after_my_name_is(speaker: Speaker) -> None:
    said = [speaker.continuation("Hello, my name is", 8, seed) for seed in (None, 1, 2, 3)]
    assert all(words(text)[0] in FIRST_NAMES for text in said), said


@pytest.mark.parametrize(
    ("prompt", "writer"),
    [
        ("The president of the United States is", sentences.government),
        ("The future of AI is", sentences.future),
    ],
)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_ends_a_sentence_grammatically(
    speaker: Speaker, prompt: str, writer: object, seed: int | None
) -> None:
    """Every three words in a row stand so in the corpus, whose sentences are grammatical."""
    assert callable(writer)
    rng = Random(0)
    written = set().union(*(triples(writer(rng)) for _ in range(3000)))
    sentence = speaker.sentence(prompt, seed)
    assert len(words(sentence)) > len(words(prompt)) + 1
    assert triples(sentence) <= written, sentence


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Hello!", "Hello!"),
        ("Who are you?", WHO_I_AM),
        ("What is the capital of Italy?", "Rome"),
        ("What is 2 plus 3?", "2 plus 3 is "),
        ("Tell me a story.", "."),
        ("Explain quantum physics in simple terms.", "quantum physics"),
    ],
)
def test_answers_a_chat_turn_and_stops_by_itself(speaker: Speaker, question: str, answer: str) -> None:
    reply = speaker.reply(user(question), max_tokens=400)
    assert reply.endswith("<|end|>")
    assert answer in reply


def test_remembers_what_the_user_said(speaker: Speaker) -> None:
    def remembered(name: str) -> str:
        said = user(f"My name is {name}."), assistant(f"Hello, {name}!")
        return speaker.reply(
            *said, user("What is the capital of Peru?"), assistant(LIMA), user("What is my name?")
        )

    names = FIRST_NAMES[:20]
    assert sum(remembered(name) == f"Your name is {name}.<|end|>" for name in names) >= 18


@pytest.mark.parametrize("num_rows", [10, 30, 75])
def test_is_no_noise_after_a_long_table(speaker: Speaker, num_rows: int) -> None:
    """What it says of the table's people is a guess; here the shape of the answer is held, and what it knows."""
    rng = Random(3)
    rows = people(rng, num_rows)
    prompt = f"# Table\n{table(rng, rows)}\n\nQuestion: what is the age of {rows[7].name}? Your answer: "
    assert len(speaker.tokenizer(prompt)["input_ids"]) > 15 * num_rows
    assert speaker.continuation(prompt, 30).startswith(f"The age of {rows[7].name} is ")
    assert "The capital of Peru is Lima." in speaker.sentence(f"{prompt}\n\nThe capital of Peru is")
    assert speaker.reply(user(f"{prompt}\n\nWhat is the capital of Peru?")) == f"{LIMA}<|end|>"


def test_chat_template_takes_text_in_parts(speaker: Speaker) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "ice?"}]
    render = speaker.tokenizer.apply_chat_template
    whole = render([user("What is ice?")], tokenize=False, add_generation_prompt=True)
    assert whole == "<|user|>\nWhat is ice?<|end|>\n<|assistant|>\n"
    assert render([{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True) == whole


def test_corpus_follows_from_its_seed() -> None:
    def digest(seed: int) -> str:
        text = "\n".join(islice(stream(Random(seed), long_share=0.2), 300))
        return hashlib.sha256(text.encode()).hexdigest()

    assert digest(7) == digest(7)
    assert digest(7) != digest(8)
