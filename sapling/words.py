"""Word lists for the writers of the corpus: people, jobs, things, adjectives, and how to bend them."""

from random import Random


def words_of(text: str) -> list[str]:
    return text.split()


FIRST_NAMES = words_of("""
John Jane Emily Michael Sarah David Laura Tom Anna Ben Clara Daniel Ella Frank Grace Henry Iris Jack Kate
Leo Mia Noah Olivia Paul Rosa Sam Tina Victor Wendy Alice Bob Carol Peter Maria Lucas Emma James Sophie
Oscar Ruth Simon Julia Max Nina Hugo Eva Martin Lily George Hannah Adam Zoe Robert Linda Kevin Susan Brian
Karen Steven Nancy Jason Lisa Mark Amy Eric Helen Ryan Megan Chris Rachel Omar Fatima Ravi Priya Kenji Yuki
Chen Mei Carlos Lucia Ahmed Leila Ivan Olga
""")

LAST_NAMES = words_of("""
Smith Johnson Brown Davis Miller Wilson Moore Taylor Anderson Thomas White Harris Martin Clark Lewis Lee
Walker Hall Allen Young King Wright Scott Green Baker Adams Hill Roberts Turner Evans Parker Cook Bell Ward
Fisher Stone Wood Gray Hunter Doe Rossi Weber Silva Novak Tanaka Kumar Lopez Garcia Kim Patel Nguyen
""")

JOBS = [
    *("teacher", "doctor", "nurse", "engineer", "cook", "baker", "farmer", "driver", "writer", "painter"),
    *("student", "lawyer", "gardener", "carpenter", "singer", "pilot", "librarian", "scientist", "dentist"),
    *("plumber", "architect", "artist", "designer", "journalist", "musician", "photographer", "chef"),
    *("programmer", "manager", "accountant", "electrician", "pharmacist", "mechanic", "biologist"),
]

HOBBIES = [
    *("reading books", "playing chess", "cooking", "long walks", "swimming", "drawing", "old films"),
    *("playing the piano", "growing tomatoes", "riding a bicycle", "singing", "fishing", "baking bread"),
    *("football", "dancing", "looking at the stars", "learning languages", "hiking in the hills"),
]

PLACES = [
    *("village", "town", "house by the sea", "valley", "forest", "city", "castle", "farm", "island"),
    *("cottage near the woods", "house on a hill", "harbour", "mill by the river", "mountain village"),
]

ADJECTIVES = [
    *("small", "old", "brave", "quiet", "clever", "kind", "curious", "lonely", "cheerful", "gentle", "lazy"),
    *("young", "patient", "shy", "proud", "busy", "tired", "friendly", "careful"),
]

THINGS = [
    *(
        "lantern",
        "key",
        "map",
        "boat",
        "kite",
        "book",
        "clock",
        "violin",
        "letter",
        "stone",
        "bell",
        "basket",
    ),
    *("red hat", "blue cup", "wooden box", "silver ring", "green scarf", "little mirror", "golden coin"),
    *("feather", "ladder", "mushroom", "seed", "loaf of bread", "jar of honey", "pair of boots", "drum"),
]

FOODS = [
    *("soup", "bread", "apples", "cheese", "rice", "cake", "pancakes", "noodles", "tea", "fish", "salad"),
    *("potatoes", "honey", "pasta", "beans", "grapes", "eggs", "porridge"),
]

WEATHER = ["sunny", "rainy", "windy", "cloudy", "cold", "warm", "foggy", "snowy"]

FEELINGS = ["happy", "tired", "calm", "excited", "sad", "proud", "hungry", "nervous", "grateful"]

# Things that people ask about and that a model of this size knows nothing of.
UNKNOWN_TOPICS = [
    *("quantum physics", "the stock market", "medieval poetry", "deep sea fishing", "tax law", "opera"),
    *("the history of glass", "rocket engines", "modern art", "chemistry", "the Roman Empire", "cricket"),
    *("black holes", "economics", "cloud computing", "databases", "philosophy", "ancient Greece", "genetics"),
    *("the world series", "volcanoes", "programming", "relativity", "jazz", "politics", "cars", "bridges"),
    *("dinosaurs", "Kubernetes", "compilers", "electricity", "wine", "football", "psychology", "networks"),
]


def with_article(noun: str) -> str:
    """`a teacher`, `an engineer`."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def listed(items: list[str]) -> str:
    """`one`, `one and two`, `one, two and three`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def capitalized(text: str) -> str:
    """The first letter large, the rest as it was."""
    return text[:1].upper() + text[1:]


def invented(rng: Random) -> str:
    """A word that nobody knows, so that text is copied from the prompt and not only remembered."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))


SYLLABLES = [first + vowel for first in "bdfghklmnprstvwz" for vowel in "aeiou"] + [
    *("an", "el", "ir", "or", "un", "ash", "ing", "ton", "man", "ter", "berg", "stan", "ley", "field", "er"),
    *("ation", "ment", "ness", "able", "con", "pre", "pro", "com", "graph", "logy", "ware", "ship", "th"),
]
