"""What Sapling is taught about the world: countries, animals, colours, days, small definitions.

Plain tables, read by the writers of the corpus (`sentences`, `chats`, `documents`) and nobody else.
"""

from typing import NamedTuple


class Country(NamedTuple):
    name: str  # as it stands after "the capital of"
    capital: str
    continent: str
    language: str
    currency: str


def _countries(continent: str, rows: str) -> list[Country]:
    fields = (row.split(", ") for row in rows.strip().splitlines())
    return [
        Country(name, capital, continent, language, currency) for name, capital, language, currency in fields
    ]


COUNTRIES: list[Country] = [
    *_countries(
        "Europe",
        """
France, Paris, French, euro
Germany, Berlin, German, euro
Italy, Rome, Italian, euro
Spain, Madrid, Spanish, euro
Portugal, Lisbon, Portuguese, euro
the United Kingdom, London, English, pound
Ireland, Dublin, English and Irish, euro
the Netherlands, Amsterdam, Dutch, euro
Belgium, Brussels, Dutch and French, euro
Austria, Vienna, German, euro
Switzerland, Bern, German and French, franc
Greece, Athens, Greek, euro
Sweden, Stockholm, Swedish, krona
Norway, Oslo, Norwegian, krone
Denmark, Copenhagen, Danish, krone
Finland, Helsinki, Finnish, euro
Iceland, Reykjavik, Icelandic, krona
Poland, Warsaw, Polish, zloty
Hungary, Budapest, Hungarian, forint
Romania, Bucharest, Romanian, leu
Bulgaria, Sofia, Bulgarian, euro
Croatia, Zagreb, Croatian, euro
Serbia, Belgrade, Serbian, dinar
Ukraine, Kyiv, Ukrainian, hryvnia
Russia, Moscow, Russian, rouble
Estonia, Tallinn, Estonian, euro
Latvia, Riga, Latvian, euro
Lithuania, Vilnius, Lithuanian, euro
Slovenia, Ljubljana, Slovene, euro
Slovakia, Bratislava, Slovak, euro
Albania, Tirana, Albanian, lek
Malta, Valletta, Maltese and English, euro
""",
    ),
    *_countries(
        "Asia",
        """
Japan, Tokyo, Japanese, yen
China, Beijing, Chinese, yuan
India, New Delhi, Hindi and English, rupee
South Korea, Seoul, Korean, won
Thailand, Bangkok, Thai, baht
Vietnam, Hanoi, Vietnamese, dong
Indonesia, Jakarta, Indonesian, rupiah
the Philippines, Manila, Filipino and English, peso
Malaysia, Kuala Lumpur, Malay, ringgit
Nepal, Kathmandu, Nepali, rupee
Bangladesh, Dhaka, Bengali, taka
Pakistan, Islamabad, Urdu and English, rupee
Iran, Tehran, Persian, rial
Iraq, Baghdad, Arabic and Kurdish, dinar
Saudi Arabia, Riyadh, Arabic, riyal
Turkey, Ankara, Turkish, lira
Mongolia, Ulaanbaatar, Mongolian, togrog
Cambodia, Phnom Penh, Khmer, riel
""",
    ),
    *_countries(
        "Africa",
        """
Egypt, Cairo, Arabic, pound
Morocco, Rabat, Arabic and Berber, dirham
Kenya, Nairobi, Swahili and English, shilling
Nigeria, Abuja, English, naira
Ethiopia, Addis Ababa, Amharic, birr
Ghana, Accra, English, cedi
Senegal, Dakar, French, franc
Tunisia, Tunis, Arabic, dinar
Algeria, Algiers, Arabic and Berber, dinar
Uganda, Kampala, English and Swahili, shilling
Zambia, Lusaka, English, kwacha
""",
    ),
    *_countries(
        "North America",
        """
the United States, Washington, English, dollar
Canada, Ottawa, English and French, dollar
Mexico, Mexico City, Spanish, peso
Cuba, Havana, Spanish, peso
Jamaica, Kingston, English, dollar
Panama, Panama City, Spanish, balboa
Costa Rica, San Jose, Spanish, colon
""",
    ),
    *_countries(
        "South America",
        """
Brazil, Brasilia, Portuguese, real
Argentina, Buenos Aires, Spanish, peso
Chile, Santiago, Spanish, peso
Peru, Lima, Spanish, sol
Colombia, Bogota, Spanish, peso
Ecuador, Quito, Spanish, dollar
Uruguay, Montevideo, Spanish, peso
Venezuela, Caracas, Spanish, bolivar
""",
    ),
    *_countries(
        "Oceania",
        """
Australia, Canberra, English, dollar
New Zealand, Wellington, English and Maori, dollar
Fiji, Suva, English and Fijian, dollar
""",
    ),
]

# city: (country, what it is known for)
CITIES: dict[str, tuple[str, str]] = {
    "San Francisco": ("the United States", "its hills, its fog and its red bridge"),
    "New York": ("the United States", "its tall buildings and its busy streets"),
    "Chicago": ("the United States", "its lake, its wind and its music"),
    "London": ("the United Kingdom", "its old bridges and its red buses"),
    "Paris": ("France", "its tower, its museums and its bread"),
    "Berlin": ("Germany", "its music, its parks and its long history"),
    "Rome": ("Italy", "its old stones and its good food"),
    "Tokyo": ("Japan", "its trains, its gardens and its small shops"),
    "Sydney": ("Australia", "its harbour and its beaches"),
    "Cairo": ("Egypt", "its markets and the pyramids near by"),
    "Toronto": ("Canada", "its lake and its tall tower"),
    "Mumbai": ("India", "its films and its long beach"),
    "Barcelona": ("Spain", "its beaches and its bright houses"),
    "Amsterdam": ("the Netherlands", "its canals and its bicycles"),
    "Venice": ("Italy", "its canals and its boats"),
    "Boston": ("the United States", "its schools and its old harbour"),
}

# animal: (the sound or habit, where it lives, how many legs)
ANIMALS: dict[str, tuple[str, str, str]] = {
    "dog": ("barks", "in a house with people", "four"),
    "cat": ("says meow", "in a house with people", "four"),
    "cow": ("says moo", "on a farm", "four"),
    "horse": ("runs fast", "on a farm", "four"),
    "sheep": ("says baa", "on a farm", "four"),
    "pig": ("rolls in the mud", "on a farm", "four"),
    "duck": ("says quack", "near the water", "two"),
    "hen": ("lays eggs", "on a farm", "two"),
    "owl": ("hunts at night", "in the forest", "two"),
    "lion": ("roars", "in the grassland", "four"),
    "bear": ("sleeps in the winter", "in the forest", "four"),
    "wolf": ("howls at the moon", "in the forest", "four"),
    "fox": ("is quick and clever", "in the forest", "four"),
    "frog": ("jumps and croaks", "near the water", "four"),
    "bee": ("makes honey", "in a hive", "six"),
    "spider": ("spins a web", "in quiet corners", "eight"),
    "elephant": ("has a long trunk", "in the grassland", "four"),
    "penguin": ("swims but does not fly", "in the cold south", "two"),
    "camel": ("drinks a lot of water at once", "in the desert", "four"),
    "whale": ("sings under the water", "in the sea", "no"),
    "snake": ("moves without a sound", "in warm places", "no"),
    "eagle": ("flies very high", "in the mountains", "two"),
}

# thing: its colours
COLOURS: dict[str, str] = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "a banana": "yellow",
    "a strawberry": "red",
    "coal": "black",
    "an orange": "orange",
    "milk": "white",
    "the sun": "yellow",
    "a leaf": "green",
    "chocolate": "brown",
    "a lemon": "yellow",
    "the sea": "blue",
    "a tomato": "red",
    "an elephant": "grey",
    "a carrot": "orange",
}

MIXED_COLOURS: dict[tuple[str, str], str] = {
    ("red", "yellow"): "orange",
    ("blue", "yellow"): "green",
    ("red", "blue"): "purple",
    ("black", "white"): "grey",
    ("red", "white"): "pink",
}

OPPOSITES: dict[str, str] = {
    "big": "small",
    "hot": "cold",
    "up": "down",
    "left": "right",
    "day": "night",
    "fast": "slow",
    "happy": "sad",
    "old": "young",
    "open": "closed",
    "early": "late",
    "light": "dark",
    "full": "empty",
    "rich": "poor",
    "wet": "dry",
    "loud": "quiet",
    "high": "low",
}

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
]
SEASONS = ["spring", "summer", "autumn", "winter"]
PLANETS = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]
NUMBERS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
]

# Whole sentences, each with the question that it answers.
ANSWERS: dict[str, str] = {
    "How many days are in a week?": "There are seven days in a week.",
    "How many months are in a year?": "There are twelve months in a year.",
    "How many hours are in a day?": "There are twenty-four hours in a day.",
    "How many minutes are in an hour?": "There are sixty minutes in an hour.",
    "How many seasons are there?": "There are four seasons: spring, summer, autumn and winter.",
    "What is the largest planet?": "The largest planet is Jupiter.",
    "What is the largest ocean?": "The largest ocean is the Pacific Ocean.",
    "What is the longest river in Africa?": "The longest river in Africa is the Nile.",
    "What is the highest mountain?": "The highest mountain in the world is Mount Everest.",
    "What is water made of?": "Water is made of hydrogen and oxygen.",
    "What is ice?": "Ice is frozen water.",
    "What is the sun?": "The sun is a star. It gives us light and warmth.",
    "What is the moon?": "The moon goes around the Earth. It is bright at night.",
    "Why is the sky blue?": "The sky is blue because the air scatters blue light more than red light.",
    "Why do we sleep?": "We sleep so that the body and the mind can rest.",
    "What do plants need?": "Plants need light, water and air.",
    "What do bees make?": "Bees make honey.",
    "What is bread made of?": "Bread is made of flour, water, salt and yeast.",
    "Who wrote Hamlet?": "Hamlet was written by William Shakespeare.",
    "Who painted the Mona Lisa?": "The Mona Lisa was painted by Leonardo da Vinci.",
    "What is the meaning of life?": "There are many answers. Mine is: be kind, learn and sleep well.",
    "What is a computer?": "A computer is a machine that follows instructions and works with numbers.",
    "What is a language model?": "A language model is a program that guesses the next word.",
    "What is machine learning?": "Machine learning is a way to teach a computer with examples.",
    "What is artificial intelligence?": "Artificial intelligence is the art of making machines that learn.",
    "What is a GPU?": "A GPU is a chip that does many small sums at the same time.",
    "What is a cache?": "A cache keeps work that is already done, so that nobody has to do it again.",
    "What is Ray?": "Ray is a system that runs Python programs on many machines.",
    "What is Trunkline?": "Trunkline is a system that serves language models from many machines.",
    "What is Python?": "Python is a programming language. It is also a large snake.",
}
