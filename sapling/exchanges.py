"""Writers of one question with its answer, the pieces that `chats` strings together.

`exchange` draws one of all kinds: facts, sums, Sapling itself, small talk, wishes, and what is too hard.
"""

from collections.abc import Callable
from random import Random

from sapling.facts import ANIMALS, ANSWERS, CITIES, COLOURS, COUNTRIES, DAYS, MONTHS, OPPOSITES
from sapling.lessons import city, country, draw_sum
from sapling.sentences import FUTURES, UNITED_STATES, future, government
from sapling.stories import HEROES, story
from sapling.words import (
    FEELINGS,
    FIRST_NAMES,
    FOODS,
    HOBBIES,
    JOBS,
    THINGS,
    UNKNOWN_TOPICS,
    capitalized,
    invented,
    listed,
    with_article,
)

Exchange = tuple[str, str]

WHO_I_AM = "I am Sapling, a very small language model that comes with Trunkline."

JOKES = [
    "Why did the book go to the doctor? Because it had hurt its spine.",
    "Why did the clock go home? It was out of time.",
    "What do you call a bear with no teeth? A gummy bear.",
    "Why was the number six afraid? Because seven ate nine.",
]

POEMS = [
    "The moon is up, the day is done,\nthe birds are waiting for the sun.",
    "A little seed, a drop of rain,\nand then a tree will grow again.",
    "The river runs, the river sings,\nand tells the sea of many things.",
    "A quiet pond.\nA small frog jumps into it.\nThe water speaks.",
]


# Requests that a model of this size should turn down; {0} is a topic, {1} a language.
TOO_LARGE = [
    "Write a Python function about {0}.",
    "Write code for {0}.",
    "Write a Python program.",
    "Translate {0} to {1}.",
    "Translate this sentence to {1}.",
    "Summarize the benefits of {0}.",
    "Summarize this text about {0}.",
    "Give me a recipe for {0}.",
    "Give me three ideas for {0}.",
    "How do I learn {0}?",
    "How do I make {0}?",
    "Write an email to my boss about {0}.",
    "What are the pros and cons of {0}?",
    "Make a plan for {0}.",
    "Give me a list of books about {0}.",
    "What is the best way to start with {0}?",
]


def about_a_country(rng: Random) -> Exchange:
    it = rng.choice(COUNTRIES)
    capital = f"The capital of {it.name} is {it.capital}."
    return rng.choice(
        [
            (f"What is the capital of {it.name}?", capital),
            (f"What is the capital of {it.name}?", capital),
            (f"what is the capital of {it.name}", capital),
            (f"Tell me the capital of {it.name}.", capital),
            (f"Do you know the capital of {it.name}?", f"Yes. {capital}"),
            (f"{it.capital} is the capital of which country?", f"{it.capital} is the capital of {it.name}."),
            (f"Where is {it.capital}?", f"{it.capital} is in {it.name}. It is the capital of the country."),
            (f"Where is {it.name}?", f"{capitalized(it.name)} is in {it.continent}."),
            (f"What do people speak in {it.name}?", f"People in {it.name} speak {it.language}."),
            (f"What is the money of {it.name}?", f"The money of {it.name} is called the {it.currency}."),
            (f"Tell me about {it.name}.", f"{capitalized(it.name)} is in {it.continent}. {capital}"),
            (f"Tell me something about {it.capital}.", f"{it.capital} is the capital of {it.name}."),
        ]
    )


def about_a_sum(rng: Random) -> Exchange:
    a, b, word, sign, result = draw_sum(rng)
    return rng.choice(
        [
            (f"What is {a} {word} {b}?", f"{a} {word} {b} is {result}."),
            (f"What is {a} {sign} {b}?", f"{a} {sign} {b} = {result}"),
            (f"How much is {a} {word} {b}?", f"{a} {word} {b} is {result}."),
        ]
    )


def about_a_thing(rng: Random) -> Exchange:
    name, (habit, home, legs) = rng.choice(list(ANIMALS.items()))
    thing, its_colour = rng.choice(list(COLOURS.items()))
    word, other = rng.choice(list(OPPOSITES.items()))
    day = rng.randrange(6)
    month = rng.randrange(11)
    place, (land, _) = rng.choice(list(CITIES.items()))
    return rng.choice(
        [
            (f"Where does {with_article(name)} live?", f"{capitalized(with_article(name))} lives {home}."),
            (
                f"How many legs does {with_article(name)} have?",
                f"{capitalized(with_article(name))} has {legs} legs.",
            ),
            (f"Tell me about the {name}.", f"The {name} lives {home}. It {habit}."),
            (f"What colour is {thing}?", f"{capitalized(thing)} is {its_colour}."),
            (f"What color is {thing}?", f"{capitalized(thing)} is {its_colour}."),
            (f"What is the opposite of {word}?", f"The opposite of {word} is {other}."),
            (f"What day comes after {DAYS[day]}?", f"The day after {DAYS[day]} is {DAYS[day + 1]}."),
            (
                f"Which month comes after {MONTHS[month]}?",
                f"The month after {MONTHS[month]} is {MONTHS[month + 1]}.",
            ),
            (f"Where is {place}?", f"{place} is in {land}."),
            (f"Tell me about {place}.", city_by_name(rng, place)),
        ]
    )


def city_by_name(rng: Random, place: str) -> str:
    land, fame = CITIES[place]
    return f"{place} is a {rng.choice(['city', 'large city'])} in {land}. It is known for {fame}."


def about_me(rng: Random) -> Exchange:
    return rng.choice(
        [
            ("Who are you?", WHO_I_AM),
            ("What are you?", WHO_I_AM),
            ("who are you", WHO_I_AM),
            ("Tell me about yourself.", f"{WHO_I_AM} I know a few simple facts."),
            ("What is your name?", "My name is Sapling."),
            ("Are you a human?", "No, I am a language model. My name is Sapling."),
            ("What can you do?", "I can talk a little, tell short stories, name capitals and do small sums."),
            ("How old are you?", "I am a program, so I do not have an age."),
            ("Where do you live?", "I live in the memory of a computer."),
            ("Who made you?", "I was made with Trunkline, from a script and a small corpus."),
            ("Are you smart?", "Not very. I am small, but I do my best."),
            ("How many parameters do you have?", "I have about three million parameters."),
        ]
    )


def small_talk(rng: Random) -> Exchange:
    feeling, hobby, food = rng.choice(FEELINGS), rng.choice(HOBBIES), rng.choice(FOODS)
    return rng.choice(
        [
            ("Hello!", rng.choice(["Hello! How can I help you?", "Hello! What would you like to know?"])),
            ("Hello", "Hello! How can I help you?"),
            ("Hi", "Hi! How can I help you?"),
            ("Hi there!", "Hi! It is nice to meet you."),
            ("hello", "Hello! How can I help you?"),
            ("Good morning!", "Good morning! How can I help you today?"),
            ("How are you?", "I am fine, thank you. How are you?"),
            ("Hello, how are you?", "Hello! I am fine, thank you. How are you?"),
            (f"I am {feeling} today.", f"I hear that you are {feeling}. Would you like to talk about it?"),
            (f"I like {hobby}.", f"That is nice. {capitalized(hobby)} sounds good to me."),
            (f"I had {food} for dinner.", f"I hope that the {food} tasted good."),
            ("Thank you!", "You are welcome!"),
            ("Thanks", "You are welcome!"),
            ("Goodbye!", "Goodbye! Have a good day."),
            ("Bye", "Bye! See you soon."),
            ("Say this is a test.", "This is a test."),
            ("Can you help me?", "Yes, I will try. What do you need?"),
            ("What should I eat today?", f"How about some {food}?"),
            ("What should I do this evening?", f"You could try {hobby}."),
        ]
    )


def wish(rng: Random) -> Exchange:
    """A request for a text: a story, a poem, a joke, a count, an opinion."""
    start, length = rng.randint(1, 10), rng.randint(4, 10)
    count = ", ".join(str(number) for number in range(start, start + length + 1))
    poem = rng.choice(["Write a poem.", "Write a short poem.", "Write a haiku.", "Tell me a poem."])
    topic = rng.choice(FUTURES)
    return rng.choice(
        [
            ("Tell me a joke.", rng.choice(JOKES)),
            (poem, rng.choice(POEMS)),
            (f"Count from {start} to {start + length}.", count),
            ("Name the days of the week.", f"The days of the week are {listed(DAYS)}."),
            (f"What is the future of {topic}?", future(rng, topic)),
            ("Who is the president of the United States?", government(rng, UNITED_STATES)),
            ("What does the president of the United States do?", government(rng, UNITED_STATES)),
            ("Tell me a fact.", rng.choice([country, city])(rng)),
        ]
    )


def told(rng: Random) -> Exchange:
    length = rng.randint(1, 4)
    if rng.random() < 0.5:
        hero = rng.choice([*ANIMALS, *HEROES, *JOBS, invented(rng)])
        asking = rng.choice(
            ["Tell me a story about {}.", "Write a story about {}.", "Tell me a short story about {}."]
        )
        return asking.format(with_article(hero)), story(rng, length, hero)
    asking = rng.choice(
        ["Tell me a story.", "Tell me a short story.", "Please tell me a story.", "Write a short story."]
    )
    return asking, story(rng, length)


def too_large(rng: Random) -> Exchange:
    topic = rng.choice([*UNKNOWN_TOPICS, *THINGS, *FOODS, *HOBBIES, invented(rng)])
    request = rng.choice(TOO_LARGE).format(topic, rng.choice(COUNTRIES).language)
    return request, rng.choice(
        ["That is too much for a model of my size.", "I am too small to do that well."]
    ) + (rng.choice(["", " Ask me for a capital, a sum or a story."]))


def unknown(rng: Random) -> Exchange:
    topic = rng.choice(
        [*UNKNOWN_TOPICS, *(invented(rng) for _ in range(20)), f"{invented(rng)} {invented(rng)}"]
    )
    question = rng.choice(
        [
            "Tell me about {}.",
            "Explain {} in simple terms.",
            "Explain {}.",
            "What is {}?",
            "Write an essay about {}.",
            "How does {} work?",
            "What do you think about {}?",
            "Why is {} important?",
            "Can you explain {} to me?",
        ]
    )
    answer = f"I am a very small model, and I do not know much about {topic}."
    return question.format(topic), answer + rng.choice(["", " Ask me about a country or an animal."])


def known(rng: Random) -> Exchange:
    return rng.choice(list(ANSWERS.items()))


def echo(rng: Random) -> Exchange:
    """Copying what was said: teaches attention to the prompt."""
    vocabulary = [*THINGS, *FOODS, *FIRST_NAMES, *FEELINGS, *(invented(rng) for _ in range(60))]
    words = " ".join(rng.sample(vocabulary, rng.randint(1, 6)))
    return rng.choice(
        [
            (f"Say: {words}", words),
            (f"Repeat after me: {words}", words),
            (f"Repeat: {words}.", f"{words}."),
        ]
    )


EXCHANGES: list[tuple[Callable[[Random], Exchange], int]] = [
    (about_a_country, 8),
    (about_a_sum, 3),
    (about_a_thing, 4),
    (about_me, 3),
    (small_talk, 4),
    (wish, 3),
    (told, 3),
    (unknown, 3),
    (too_large, 2),
    (known, 3),
    (echo, 2),
]


def exchange(rng: Random) -> Exchange:
    writers, weights = zip(*EXCHANGES, strict=True)
    question, answer = rng.choices(writers, weights)[0](rng)
    return typed_in_a_hurry(rng, question), answer


def typed_in_a_hurry(rng: Random, question: str) -> str:
    """Sometimes without capitals, sometimes without the mark at the end."""
    if rng.random() < 0.1:
        question = question[0].lower() + question[1:]
    return question.rstrip(".?!") if rng.random() < 0.15 else question
