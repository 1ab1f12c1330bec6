"""Writers of single sentences and short paragraphs: facts, introductions, the president, the future, sums.

Each takes the corpus's random generator and returns plain text. `corpus` mixes them; `chats` and
`documents` borrow them.
"""

from random import Random

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
from sapling.words import (
    FEELINGS,
    FIRST_NAMES,
    FOODS,
    HOBBIES,
    JOBS,
    LAST_NAMES,
    WEATHER,
    capitalized,
    listed,
    with_article,
)


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
            f"{capitalized(name)} is in {country.continent}. The capital of {name} is {city}, and people there "
            f"pay with the {country.currency}.",
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


def full_name(rng: Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def introduction(rng: Random) -> str:
    name = rng.choice(FIRST_NAMES) if rng.random() < 0.6 else full_name(rng)
    job, home = rng.choice(JOBS), rng.choice(COUNTRIES)
    opening = rng.choice(["Hello, my", "Hello, my", "Hi, my", "Good morning, my", "Hello! My", "My"])
    more = [
        f"I am {rng.randint(18, 80)} years old.",
        f"I am {with_article(job)}.",
        f"I work as {with_article(job)} in {home.capital}.",
        f"I live in {home.capital}, the capital of {home.name}.",
        f"I come from {home.name}.",
        f"I like {rng.choice(HOBBIES)}.",
        f"In my free time I like {rng.choice(HOBBIES)} and {rng.choice(HOBBIES)}.",
        f"Today I am {rng.choice(FEELINGS)}.",
        "It is nice to meet you.",
    ]
    joined = rng.choice([". ", ". ", " and "])
    sentences = rng.sample(more, rng.randint(1, 4))
    if joined == " and ":
        sentences = [sentences[0][0].replace("T", "t") + sentences[0][1:], *sentences[1:]]
        if sentences[0].startswith(("In my", "It is", "today")):
            joined = ". "
            sentences[0] = capitalized(sentences[0])
    return f"{opening} name is {name}{joined}{' '.join(sentences)}"


def government(rng: Random) -> str:
    head = rng.choice(
        [
            *["The president of the United States"] * 5,
            *("The president of France", "The president of Germany", "The president of Brazil"),
            *("The prime minister of the United Kingdom", "The prime minister of Canada"),
            *(
                "The prime minister of Japan",
                "The king of Spain",
                "The king of Sweden",
                "The mayor of the town",
            ),
        ]
    )
    place = "the White House" if "United States" in head else "the capital"
    term = "four years" if "United States" in head else "a few years"
    if "president" in head:
        role = rng.choice(
            ["head of the state and of the government", "head of the government", "head of state"]
        )
    elif "king" in head:
        role, term = "head of state", "many years"
    else:
        role = "head of the government" if "minister" in head else "head of the town"
    if "king" not in head:
        role = rng.choice([f"the {role}", f"the {role}", "elected by the people", f"elected for {term}"])
    else:
        role = f"the {role}"
    ending = rng.choice(
        [
            "",
            f" and lives in {place}",
            f" and works in {place}",
            f", and works in {place} with many advisers",
            " and speaks for the country" if "town" not in head else " and speaks for the town",
            " and signs the laws",
        ]
    )
    closing = rng.choice(["", f" {head} works for all the people.", " It is a very busy job."])
    return f"{head} is {role}{ending}.{closing}"


def future(rng: Random) -> str:
    topic = rng.choice(
        [
            *["AI"] * 6,
            *("artificial intelligence", "work", "travel", "medicine", "music", "education", "energy"),
            *("computers", "farming", "space travel", "the city", "language models", "science"),
        ]
    )
    claim = rng.choice(
        [
            "bright",
            "open",
            "full of promise",
            "hard to know",
            "in our hands",
            "not written yet",
            "closer than many people think",
            "about people who work together",
            "a question that many people ask",
            "something that we build every day",
            "to help people with small and large tasks",
            "to make hard work easier",
        ]
    )
    reason = rng.choice(
        [
            "",
            ", and it depends on what people do today",
            ", and it will change the way we learn",
            ", because many people work on it",
            ", but it needs care and patience",
            ", but nobody can see all of it",
            ", and it should be good for everyone",
            ", if we use it well",
        ]
    )
    closing = rng.choice(
        ["", "", " It will take time.", " We have to learn as we go.", " Small steps lead to large changes."]
    )
    return f"The future of {topic} is {claim}{reason}.{closing}"


def sums(rng: Random) -> str:
    lines = []
    for _ in range(rng.choice([1, 1, 3, 6])):
        kind = rng.choice(["plus", "plus", "minus", "times"])
        if kind == "times":
            a, b = rng.randint(0, 10), rng.randint(0, 10)
            sign, result = "*", a * b
        else:
            limit = rng.choice([10, 10, 20, 50])
            a, b = rng.randint(0, limit), rng.randint(0, limit)
            a, b = (max(a, b), min(a, b)) if kind == "minus" else (a, b)
            sign, result = ("+", a + b) if kind == "plus" else ("-", a - b)
        style = rng.choice(
            ["{a} {s} {b} = {r}", "{a} {s} {b} = {r}", "{a} {k} {b} is {r}.", QUESTION_OF_A_SUM]
        )
        lines.append(style.format(a=a, b=b, s=sign, k=kind, r=result))
    return "\n".join(lines)


QUESTION_OF_A_SUM = "Question: What is {a} {k} {b}?\nAnswer: {a} {k} {b} is {r}."


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
