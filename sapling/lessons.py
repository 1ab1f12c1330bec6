"""Writers of lessons: capitals, countries, cities, sums, what comes after what, animals, colours, opposites.

Each takes the corpus's random generator and returns one or a few sentences that are true.
"""

from random import Random
from typing import NamedTuple

from sapling.facts import (
    ANIMALS,
    ANSWERS,
    CITIES,
    COLOURS,
    COUNTRIES,
    DAYS,
    MIXED_COLOURS,
    MONTHS,
    NUMBERS,
    OPPOSITES,
    PLANETS,
    SEASONS,
)
from sapling.words import capitalized, listed, with_article


def capital(rng: Random) -> str:
    country = rng.choice(COUNTRIES)
    name, city = country.name, country.capital
    return rng.choice(
        [
            f"The capital of {name} is {city}.",
            f"The capital of {name} is {city}.",
            f"The capital of {name} is {city}.",
            f"The capital of {name} is {city}. People there speak {country.language}.",
            f"The capital city of {name} is {city}.",
            f"{city} is the capital of {name}.",
            f"{capitalized(name)} is a country in {country.continent}. Its capital is {city}.",
            f"{capitalized(name)} is in {country.continent}. The capital of {name} is {city}.",
            f"Question: What is the capital of {name}?\nAnswer: The capital of {name} is {city}.",
            f"Question: What is the capital of {name}?\nAnswer: {city}",
            f"Q: What is the capital of {name}?\nA: {city}.",
            f"If you go to {name}, you should see {city}, the capital of the country.",
        ]
    )


def several_capitals(rng: Random) -> str:
    countries = rng.sample(COUNTRIES, rng.randint(3, 8))
    style = rng.choice(["The capital of {0} is {1}.", "- {0}: {1}", "{0}, {1}", "The capital of {0} is {1}."])
    return "\n".join(style.format(country.name, country.capital) for country in countries)


def country(rng: Random) -> str:
    it = rng.choice(COUNTRIES)
    facts = [
        f"The capital of {it.name} is {it.capital}.",
        f"{capitalized(it.name)} is in {it.continent}.",
        f"People in {it.name} speak {it.language}.",
        f"The money of {it.name} is called the {it.currency}.",
        f"Many people live in {it.capital}, the capital.",
        f"The language of {it.name} is {it.language}.",
    ]
    return " ".join(rng.sample(facts, rng.randint(1, 4)))


def city(rng: Random) -> str:
    name, (land, fame) = rng.choice(list(CITIES.items()))
    size = rng.choice(["city", "large city", "beautiful city", "famous city"])
    return rng.choice(
        [
            f"{name} is a {size} in {land}. It is known for {fame}.",
            f"{name} is a {size} in {land}, known for {fame}.",
            f"{name} is known for {fame}. It is a {size} in {land}.",
        ]
    )


class Sum(NamedTuple):
    a: int
    b: int
    word: str
    sign: str
    result: int


def draw_sum(rng: Random) -> Sum:
    word = rng.choice(["plus", "plus", "minus", "times"])
    limit = 10 if word == "times" else rng.choice([10, 10, 20, 50])
    a, b = rng.randint(0, limit), rng.randint(0, limit)
    if word == "times":
        return Sum(a, b, word, "*", a * b)
    if word == "minus":
        return Sum(max(a, b), min(a, b), word, "-", abs(a - b))
    return Sum(a, b, word, "+", a + b)


def sums(rng: Random) -> str:
    styles = ["{0} {3} {1} = {4}", "{0} {3} {1} = {4}", "{0} {2} {1} is {4}.", QUESTION_OF_A_SUM]
    return "\n".join(rng.choice(styles).format(*draw_sum(rng)) for _ in range(rng.choice([1, 1, 3, 6])))


QUESTION_OF_A_SUM = "Question: What is {0} {2} {1}?\nAnswer: {0} {2} {1} is {4}."


def order(rng: Random) -> str:
    """Days, months, seasons, planets and numbers, and what comes after what."""
    names, kind = rng.choice(
        [
            (DAYS, "day"),
            (DAYS, "day"),
            (MONTHS, "month"),
            (SEASONS, "season"),
            (PLANETS, "planet"),
            (NUMBERS, "number"),
        ]
    )
    place = rng.randrange(len(names) - 1)
    start = rng.randrange(max(1, len(names) - 4))
    return rng.choice(
        [
            f"The {kind} after {names[place]} is {names[place + 1]}.",
            f"The {kind} before {names[place + 1]} is {names[place]}.",
            f"After {names[place]} comes {names[place + 1]}.",
            f"The {kind}s are {listed(names)}.",
            ", ".join(names[start:]),
            ", ".join(str(n) for n in range(place, place + rng.randint(5, 20))),
        ]
    )


def animal(rng: Random) -> str:
    name, (habit, home, legs) = rng.choice(list(ANIMALS.items()))
    subject = with_article(name)
    facts = [
        f"{capitalized(subject)} {habit}.",
        f"{capitalized(subject)} lives {home}.",
        f"{capitalized(subject)} has {legs} legs.",
        f"The {name} is an animal that lives {home}.",
        f"The {name} {habit}.",
    ]
    return " ".join(rng.sample(facts, rng.randint(1, 3)))


def colour(rng: Random) -> str:
    if rng.random() < 0.3:
        (first, second), mixed = rng.choice(list(MIXED_COLOURS.items()))
        return rng.choice(
            [
                f"{capitalized(first)} and {second} make {mixed}.",
                f"If you mix {first} and {second}, you get {mixed}.",
            ]
        )
    thing, its = rng.choice(list(COLOURS.items()))
    return rng.choice([f"{capitalized(thing)} is {its}.", f"The colour of {thing} is {its}."])


def opposite(rng: Random) -> str:
    word, other = rng.choice(list(OPPOSITES.items()))
    word, other = rng.choice([(word, other), (other, word)])
    return rng.choice(
        [f"The opposite of {word} is {other}.", f"{capitalized(word)} is the opposite of {other}."]
    )


def answered(rng: Random) -> str:
    question, answer = rng.choice(list(ANSWERS.items()))
    return rng.choice([answer, f"Question: {question}\nAnswer: {answer}", f"Q: {question}\nA: {answer}"])
