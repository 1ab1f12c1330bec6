"""Writers of long documents that end in questions about them: tables, notes about people, handbooks.

They teach the model to look something up far back in its context, which is what the prompts of the
prefix-cache benchmarks ask for. `BREAK` marks where a prompt ends and its answer begins.
"""

from random import Random
from typing import NamedTuple

from sapling.chats import render, turns_of
from sapling.facts import COUNTRIES
from sapling.lessons import animal, city, colour, country
from sapling.sentences import full_name, future, government
from sapling.words import (
    FEELINGS,
    FIRST_NAMES,
    FOODS,
    HOBBIES,
    JOBS,
    THINGS,
    capitalized,
    invented,
    with_article,
)

BREAK = "\x1f"  # the tokenizer never joins what stands left and right of it

STREETS = ["Elm", "Oak", "Pine", "Maple", "Cedar", "Birch", "Walnut", "Willow", "Ash", "Main", "Park", "Hill"]
NATIONS = [country.name for country in COUNTRIES] + ["USA", "UK"] * 4


class Person(NamedTuple):
    name: str
    age: int
    job: str
    nation: str


def people(rng: Random, count: int) -> list[Person]:
    names: list[str] = []
    while len(names) < count:
        name = full_name(rng)
        if name not in names:
            names.append(name)
    return [Person(name, rng.randint(18, 79), rng.choice(JOBS), rng.choice(NATIONS)) for name in names]


def address(rng: Random) -> str:
    return f"{rng.randint(100, 999)} {rng.choice(STREETS)} St, {rng.choice(COUNTRIES).capital}"


def table(rng: Random, rows: list[Person]) -> str:
    """A markdown table; sometimes with the columns that only fill space, sometimes padded."""
    wide, padded = rng.random() < 0.5, rng.random() < 0.5
    header = ["ID", "Name", "Age", "Occupation", "Country"]
    cells = [
        [str(number), p.name, str(p.age), capitalized(p.job), p.nation] for number, p in enumerate(rows, 1)
    ]
    if wide:
        header += ["Email", "Phone Number", "Address"]
        for row in cells:
            mail = row[1].replace(" ", ".").lower() + "@example.com"
            row += [mail, f"555-{rng.randint(1000, 9999)}", address(rng)]
    widths = [max(len(row[i]) for row in [header, *cells]) if padded else 0 for i in range(len(header))]
    rule = [("-" * (width + 2) if padded else "---") for width in widths]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, *cells]
    ]
    lines.insert(1, "|" + "|".join(rule) + "|")
    return "\n".join(lines)


def question(rng: Random, person: Person) -> tuple[str, str, str]:
    """The question, the start of the answer, the answer's last word."""
    column, value = rng.choice(
        [
            ("age", str(person.age)),
            ("age", str(person.age)),
            ("occupation", capitalized(person.job)),
            ("country", person.nation),
        ]
    )
    return f"what is the {column} of {person.name}?", f"The {column} of {person.name} is ", value


def asked(rng: Random, rows: list[Person]) -> str:
    text, start, value = question(rng, rng.choice(rows))
    label = rng.choice(["Your answer: ", "Your answer: ", "Answer: "])
    gap = rng.choice([" ", "\n"])
    return f"Question: {text}{gap}{label}{start}{BREAK}{value}."


def table_document(rng: Random, num_rows: int) -> str:
    rows = people(rng, num_rows)
    heading = rng.choice(
        [
            "You are a helpful assistant in recognizes the content of tables in markdown format. "
            "Here is a table as follows.\n# Table\n",
            "Here is a table of people.\n\n",
            "# Table\n",
            "",
        ]
    )
    questions = [asked(rng, rows) for _ in range(rng.randint(2, 8))]
    return heading + table(rng, rows) + "\n\n" + "\n".join(questions)


def table_chat(rng: Random, num_rows: int) -> str:
    """The same as a chat: the table in the system prompt or in the first question."""
    rows = people(rng, num_rows)
    questions = (question(rng, rng.choice(rows)) for _ in range(rng.randint(1, 5)))
    turns = turns_of([(capitalized(text), f"{start}{value}.") for text, start, value in questions])
    content = table(rng, rows)
    if rng.random() < 0.5:
        turns.insert(0, ("system", f"Answer questions about this table.\n\n{content}"))
    else:
        turns[0] = ("user", f"{content}\n\n{turns[0][1]}")
    return render(turns)


def note(rng: Random, num_people: int) -> str:
    """Sentences about people, then questions: reading, at a length of a hundred tokens."""
    rows = people(rng, num_people)
    sentences, questions = [], []
    for person in rows:
        hobby = rng.choice(HOBBIES)
        sentences.append(
            f"{person.name} is {person.age} years old, comes from {person.nation} and works as "
            f"{with_article(person.job)}. {person.name.split()[0]} likes {hobby}."
        )
        questions += [
            (f"How old is {person.name}?", f"{person.name} is {person.age} years old."),
            (f"What does {person.name} do?", f"{person.name} is {with_article(person.job)}."),
            (f"Where does {person.name} come from?", f"{person.name} comes from {person.nation}."),
            (f"What does {person.name} like?", f"{person.name} likes {hobby}."),
        ]
    chosen = rng.sample(questions, min(len(questions), rng.randint(1, 6)))
    text = " ".join(sentences)
    if rng.random() < 0.4:
        turns = [
            (role, line) for pair in chosen for role, line in zip(("user", "assistant"), pair, strict=True)
        ]
        return render([("system", text), *turns])
    return "\n".join([text, *(f"Question: {q}\nAnswer: {a}" for q, a in chosen)])


def repetition(rng: Random) -> str:
    """Words in no order, and the same again."""
    vocabulary = [*THINGS, *FOODS, *JOBS, *FEELINGS, *FIRST_NAMES, *(invented(rng) for _ in range(60))]
    words = [rng.choice(vocabulary) for _ in range(rng.randint(3, 15))]
    line = rng.choice([" ", " ", ", ", "\n"]).join(words)
    return rng.choice(["\n", "\n\n"]).join([line] * rng.randint(2, 3))


# How a person is told of, and how one is asked for again.
RECALLS = [
    (
        ["{name}: {age}", "{name} is {age} years old.", "| {name} | {age} |", "{name}, {job}, {age}"],
        [
            "{name} is {age} years old.",
            "How old is {name}? {age}.",
            f"The age of {{name}} is {BREAK}{{age}}.",
        ],
    ),
    (
        ["{name}: {job}", "{name} works as {a_job}.", "| {name} | {age} | {job} |", "{name}, {age}, {job}"],
        ["{name} is {a_job}.", "What does {name} do? {job}.", f"The job of {{name}} is {BREAK}{{job}}."],
    ),
    (
        ["{name}: {nation}", "{name} comes from {nation}.", "| {name} | {age} | {nation} |"],
        ["{name} comes from {nation}.", f"The country of {{name}} is {BREAK}{{nation}}."],
    ),
]


def recall(rng: Random, num_people: int) -> str:
    """A short list of people, and all of it again in another order: lookups with little around them."""
    rows = people(rng, num_people)
    if rng.random() < 0.5:
        rows = list({row.name.split()[0]: row._replace(name=row.name.split()[0]) for row in rows}.values())
    told, again = (rng.choice(patterns) for patterns in rng.choice(RECALLS))
    fields = [{**row._asdict(), "a_job": with_article(row.job)} for row in rows]
    lines = [told.format(**row) for row in fields]
    rng.shuffle(fields)
    return "\n".join([*lines, "", *(again.format(**row) for row in fields)])


def handbook(rng: Random, num_sections: int) -> str:
    """A markdown document of plain facts under headings, as long as wanted."""
    topics = {
        "Countries": country,
        "Cities": city,
        "Animals": animal,
        "Colours": colour,
        "Government": government,
        "The future": future,
    }
    parts = [f"# {rng.choice(['Handbook', 'Notes', 'A small book of facts', 'Guide'])}"]
    for number in range(1, num_sections + 1):
        title, writer = rng.choice(list(topics.items()))
        body = " ".join(writer(rng) for _ in range(rng.randint(2, 6)))
        parts.append(f"## {number}. {title}\n\n{body}")
    return "\n\n".join(parts)
