"""Writers of what people say: who they are, who governs, what the future brings, small talk.

Each takes the corpus's random generator and returns one or a few sentences.
"""

from random import Random
from typing import NamedTuple

from sapling.facts import COUNTRIES, DAYS
from sapling.words import (
    FEELINGS,
    FIRST_NAMES,
    FOODS,
    HOBBIES,
    JOBS,
    LAST_NAMES,
    WEATHER,
    capitalized,
    invented,
    with_article,
)


def full_name(rng: Random) -> str:
    names = [rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)]
    if rng.random() < 0.1:
        names[rng.randrange(2)] = capitalized(invented(rng))
    return " ".join(names)


def introduction(rng: Random) -> str:
    name = rng.choice(FIRST_NAMES) if rng.random() < 0.6 else full_name(rng)
    job, home = rng.choice(JOBS), rng.choice(COUNTRIES)
    opening = rng.choice(["Hello, my", "Hello, my", "Hi, my", "Good morning, my", "Hello! My", "My"])
    clauses = [
        f"I am {rng.randint(18, 80)} years old.",
        f"I am {with_article(job)}.",
        f"I work as {with_article(job)} in {home.capital}.",
        f"I live in {home.capital}, the capital of {home.name}.",
        f"I come from {home.name}.",
        f"I like {rng.choice(HOBBIES)}.",
        f"I am {rng.choice(FEELINGS)} today.",
    ]
    said = " ".join(rng.sample(clauses, rng.randint(1, 4)))
    joint = rng.choice([". ", ". ", " and "])
    closing = rng.choice(["", "", " It is nice to meet you.", " What is your name?"])
    return f"{opening} name is {name}{joint}{said}{closing}"


class Head(NamedTuple):
    title: str
    roles: list[str]
    places: list[str]


PRESIDENTIAL = ["the head of the government", "the head of state", "elected by the people"]
UNITED_STATES = Head(
    "The president of the United States",
    [*PRESIDENTIAL, "the head of the state and of the government", "elected for four years"],
    ["lives in the White House", "works in the White House", "works in Washington with many advisers"],
)
HEADS = [
    *[UNITED_STATES] * 6,
    *(
        Head(f"The president of {land}", PRESIDENTIAL, [f"works in {city}", f"lives in {city}"])
        for land, city in [
            ("France", "Paris"),
            ("Germany", "Berlin"),
            ("Brazil", "Brasilia"),
            ("Italy", "Rome"),
        ]
    ),
    *(
        Head(f"The prime minister of {land}", ["the head of the government"], [f"works in {city}"])
        for land, city in [("the United Kingdom", "London"), ("Canada", "Ottawa"), ("Japan", "Tokyo")]
    ),
    Head("The king of Spain", ["the head of state"], ["lives in Madrid", "lives in a palace"]),
    Head("The king of Sweden", ["the head of state"], ["lives in Stockholm", "lives in a palace"]),
    Head("The mayor of the town", ["elected by the people"], ["works in the town hall"]),
]


def government(rng: Random, head: Head | None = None) -> str:
    title, roles, places = head or rng.choice(HEADS)
    also = rng.choice(["", *places, "speaks for the people", "signs many letters and papers"])
    closing = rng.choice(["", "", f" {title} works for all the people.", " It is a very busy job."])
    return f"{title} is {rng.choice(roles)}{also and ' and '}{also}.{closing}"


FUTURES = [
    *["AI"] * 8,
    *("artificial intelligence", "work", "travel", "medicine", "music", "education", "energy", "computers"),
    *("farming", "space travel", "the city", "language models", "science", "robots", "books"),
]
CLAIMS = [
    *("bright", "open", "full of promise", "hard to know", "in our hands", "not written yet", "exciting"),
    *("closer than many people think", "about people who work together", "a question that many people ask"),
    *(
        "something that we build every day",
        "to help people with small and large tasks",
        "to make hard work easier",
    ),
]
REASONS = [
    *("", ", and it depends on what people do today", ", and it will change the way we learn"),
    *(", because many people work on it", ", but it needs care and patience", ", if we use it well"),
    *(", but nobody can see all of it", ", and it should be good for everyone"),
]


def future(rng: Random, topic: str | None = None) -> str:
    closing = rng.choice(
        ["", "", " It will take time.", " We have to learn as we go.", " Small steps lead to large changes."]
    )
    return (
        f"The future of {topic or rng.choice(FUTURES)} is {rng.choice(CLAIMS)}{rng.choice(REASONS)}.{closing}"
    )


def small_talk(rng: Random) -> str:
    day, other = rng.choice(DAYS), rng.choice(DAYS)
    food, hobby, person = rng.choice(FOODS), rng.choice(HOBBIES), rng.choice(FIRST_NAMES)
    return rng.choice(
        [
            f"Today is {day}, and it is {rng.choice(WEATHER)} outside.",
            f"On {day} I like {hobby}, and on {other} I rest.",
            f"{person} likes {food} with {rng.choice(FOODS)}.",
            f"This morning I had {food} for breakfast. Then I went to work.",
            f"The weather is {rng.choice(WEATHER)} today. I think I will stay at home with a book.",
            f"{person} is {rng.choice(FEELINGS)} today, because it is {day}.",
            f"My friend {person} likes {hobby}.",
            f"We had {food} for dinner, and {person} told us about the day.",
            f"I am {rng.choice(FEELINGS)}, thank you. And you?",
        ]
    )
