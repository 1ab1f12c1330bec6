"""Writers of whole conversations, in the chat template's own words: `<|role|>\\n...<|end|>\\n`.

`chat` strings exchanges together, sometimes under a system prompt, and sometimes with a question about what
was said before.
"""

from random import Random

from sapling.exchanges import Exchange, exchange
from sapling.facts import COUNTRIES
from sapling.sentences import full_name
from sapling.words import FIRST_NAMES, FOODS, THINGS

Turn = tuple[str, str]  # role, text

SYSTEM_PROMPTS = [
    *["You are a helpful assistant."] * 4,
    "You are Sapling, a very small language model.",
    "You are a friendly assistant. Answer in one or two short sentences.",
    "Be brief and kind.",
    "You answer questions about countries, animals and numbers.",
    "You are a helpful assistant. If you do not know, say so.",
]


def render(turns: list[Turn]) -> str:
    return "".join(f"<|{role}|>\n{text}<|end|>\n" for role, text in turns)


def follow_up(rng: Random) -> list[Exchange]:
    """A question that only means something after the one before."""
    first, *others = rng.sample(COUNTRIES, rng.randint(2, 4))
    again = ["And of {}?", "And what is the capital of {}?", "And {}?", "What about {}?"]
    questions = [
        f"What is the capital of {first.name}?",
        *(rng.choice(again).format(it.name) for it in others),
    ]
    answers = [f"The capital of {it.name} is {it.capital}." for it in [first, *others]]
    return list(zip(questions, answers, strict=True))


def remembered(rng: Random) -> tuple[Exchange, Exchange]:
    """Something said early, and the question about it later."""
    name, thing, food, home = full_name(rng), rng.choice(THINGS), rng.choice(FOODS), rng.choice(COUNTRIES)
    name = rng.choice([name, name.split()[0]])
    return rng.choice(
        [
            (
                (
                    rng.choice(["My name is {}.", "Hello, my name is {}.", "I am {}."]).format(name),
                    f"Hello, {name}!",
                ),
                ("What is my name?", f"Your name is {name}."),
            ),
            (
                (f"I have lost my {thing}.", f"I am sorry about your {thing}."),
                ("What did I lose?", f"You lost your {thing}."),
            ),
            (
                (f"I live in {home.capital}.", f"{home.capital} is the capital of {home.name}."),
                ("Where do I live?", f"You live in {home.capital}."),
            ),
            (
                (f"My favourite food is {food}.", f"I have heard that {food} can be very good."),
                ("What is my favourite food?", f"Your favourite food is {food}."),
            ),
        ]
    )


def chat(rng: Random, num_exchanges: int) -> str:
    exchanges = [exchange(rng) for _ in range(num_exchanges)]
    if num_exchanges > 1 and rng.random() < 0.4:
        said, asked = remembered(rng)
        exchanges[0], exchanges[rng.randrange(1, num_exchanges)] = said, asked
    if num_exchanges > 1 and rng.random() < 0.3:
        exchanges += follow_up(rng)
    turns = turns_of(exchanges)
    if rng.random() < 0.4:
        turns.insert(0, ("system", rng.choice(SYSTEM_PROMPTS)))
    return render(turns)


def turns_of(exchanges: list[Exchange]) -> list[Turn]:
    return [
        (role, text) for pair in exchanges for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def named_assistant(rng: Random) -> str:
    """A system prompt gives the assistant another name, and it answers to it."""
    name, question = rng.choice(FIRST_NAMES), rng.choice(["Who are you?", "What is your name?"])
    asked, answered = exchange(rng)
    turns = [("system", f"Your name is {name}."), ("user", question), ("assistant", f"My name is {name}.")]
    return render([*turns, ("user", asked), ("assistant", answered)])
