"""Writers of stories: a hero, a place, a thing, a trouble, a helper, an end.

`story` takes the corpus's random generator and the number of scenes, so that the same pieces make a
story of eighty tokens or of two thousand.
"""

from random import Random

from sapling.facts import ANIMALS
from sapling.words import (
    ADJECTIVES,
    FIRST_NAMES,
    FOODS,
    JOBS,
    PLACES,
    THINGS,
    WEATHER,
    capitalized,
    with_article,
)

SEARCHES = [
    *(
        "under the bed",
        "behind the old door",
        "in the garden",
        "near the river",
        "on the roof",
        "in the kitchen",
    ),
    *(
        "between the trees",
        "at the market",
        "in the barn",
        "on the beach",
        "under the bridge",
        "in the tower",
    ),
]

LESSONS = [
    "From that day on they were friends.",
    "And they all lived happily ever after.",
    "It was a good day after all.",
    "After that, nobody in the place was lonely again.",
    "Sometimes a small kindness is enough.",
    "And if you listen at night, you can still hear them laugh.",
    "Then everyone went home and slept well.",
    "That is how the story ends.",
]


HEROES = [
    *(
        "dragon",
        "robot",
        "princess",
        "king",
        "queen",
        "wizard",
        "pirate",
        "knight",
        "ghost",
        "giant",
        "mouse",
    ),
    *(
        "rabbit",
        "cloud",
        "tree",
        "train",
        "computer",
        "star",
        "tiger",
        "monkey",
        "turtle",
        "snowman",
        "witch",
    ),
]


class Cast:
    """Who and what one story is about; drawn once, so that every scene speaks of the same."""

    def __init__(self, rng: Random, hero: str | None = None) -> None:
        if hero or rng.random() < 0.5:
            self.kind = hero or rng.choice([*ANIMALS, *HEROES])
            self.name = f"the {self.kind}"
        else:
            self.name = rng.choice(FIRST_NAMES)
            self.kind = rng.choice(["girl", "boy", *JOBS])
        helpers = FIRST_NAMES if rng.random() < 0.6 else [f"the {animal}" for animal in ANIMALS]
        self.helper = rng.choice([helper for helper in helpers if helper != self.name])
        self.nature = rng.choice(ADJECTIVES)
        self.place = rng.choice(PLACES)
        self.thing = rng.choice(THINGS)


def opening(rng: Random, cast: Cast) -> str:
    hero = f"{with_article(cast.nature)} {cast.kind}"
    named = "" if cast.name.startswith("the ") else f" named {cast.name}"
    place = with_article(cast.place)
    return rng.choice(
        [
            f"Once upon a time, there was {hero}{named} who lived in {place}.",
            f"Once upon a time, {hero}{named} lived in {place}.",
            f"Long ago, in {place}, there lived {hero}{named}.",
            f"There was once {hero}{named}, and home was {place}.",
        ]
    )


def trouble(rng: Random, cast: Cast) -> str:
    start = rng.choice(
        ["One day", "One morning", "One evening", f"One {rng.choice(WEATHER)} day", "Then one night"]
    )
    return rng.choice(
        [
            f"{start}, {cast.name} lost a {cast.thing} and did not know where to look.",
            f"{start}, {cast.name} found a {cast.thing} {rng.choice(SEARCHES)}.",
            f"{start}, {cast.name} wanted to give a {cast.thing} to a friend, but it was gone.",
            f"{start}, a letter came. It said: bring the {cast.thing} before the sun goes down.",
        ]
    )


def scene(rng: Random, cast: Cast) -> str:
    name, helper, thing = cast.name, cast.helper, cast.thing
    food = rng.choice(FOODS)
    return rng.choice(
        [
            f"{capitalized(name)} looked {rng.choice(SEARCHES)}, but there was nothing.",
            f"{capitalized(name)} looked {rng.choice(SEARCHES)} and then {rng.choice(SEARCHES)}.",
            f'"Have you seen my {thing}?" asked {name}. "No," said {helper}, "but I will help you."',
            f'"Do not be sad," said {helper}. "We will find a way."',
            f"They walked for a long time, and the day was {rng.choice(WEATHER)}.",
            f"{capitalized(helper)} shared some {food}, and they talked until the moon came up.",
            f"The wind was loud, and {name} was a little afraid, but {helper} was not.",
            f'"I have an idea," said {name}, and {helper} smiled.',
            f"At night they slept {rng.choice(SEARCHES)}, and the stars were bright.",
            f"Then they met {with_article(rng.choice(ADJECTIVES))} {rng.choice(JOBS)} who gave them {food}.",
            f"{capitalized(name)} thought about the {thing} and walked on.",
            f"In the morning it was {rng.choice(WEATHER)}, and {helper} made some {food}.",
        ]
    )


def ending(rng: Random, cast: Cast) -> str:
    found = rng.choice(
        [
            f"At last {cast.name} found the {cast.thing} {rng.choice(SEARCHES)}.",
            f"In the end, {cast.helper} gave the {cast.thing} to {cast.name}.",
            f"In the end, {cast.name} kept the {cast.thing} and thanked {cast.helper}.",
            f"At last {cast.name} came home with the {cast.thing}.",
        ]
    )
    return f"{found} {rng.choice(LESSONS)}"


def story(rng: Random, num_scenes: int, hero: str | None = None) -> str:
    cast = Cast(rng, hero)
    parts = [opening(rng, cast), trouble(rng, cast)]
    previous = ""
    for number in range(num_scenes):
        part = scene(rng, cast)
        if part != previous:
            parts.append(("\n\n" if number % 5 == 3 else "") + part)
        previous = part
    return " ".join([*parts, ending(rng, cast)]).replace(" \n\n", "\n\n")
