"""What the base learns: to converse, to quote and to copy, in every shape but the one that is fine-tuned later.

A lesson is a conversation, or plain text. The words of the target records (their keys, braces, categories and
urgencies) all occur here, in other roles; the target record itself never does, and no held-out value does.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from tickets import CATEGORIES, URGENCIES, Ticket, request, sentence_case, ticket
from values import CODE_WORDS, NOUNS, brand, chance, code, person, pick, product, shuffled

Messages = list[dict[str, str]]
Lesson = Messages | str

KEY_WORDS = ("name", "product", "code", "category", "urgency")
SMALL_WORDS = (
    *("red", "blue", "green", "small", "large", "old", "new", "warm", "cold", "left", "right", "first", "last"),
    *("day", "week", "month", "house", "team", "page", "box"),
)
PLAIN_WORDS = (
    *CODE_WORDS,
    *NOUNS,
    *CATEGORIES,
    *URGENCIES,
    *KEY_WORDS,
    *SMALL_WORDS,
)

REPLIES = (
    "Thank you, {n}. We will look after your {p}.",
    "Hello {n}, thank you for writing. We will look into order {c}.",
    "Dear {n}, we are sorry about the {p}. The {g} team will answer you {t}.",
    "Hello {n}, the {g} team has your message about the {p}.",
    "We are sorry, {n}. Please keep the code {c}, we will write {t}.",
    "Thank you for your message, {n}. Somebody will call you {t}.",
    "Good day {n}. Your {p} is safe with us, and order {c} is on our desk.",
)
SOON = {"high": "today", "normal": "in a few days", "low": "when there is time"}
TROUBLE = {
    "billing": "the money",
    "delivery": "the transport",
    "repair": "the machine",
    "account": "the login",
    "return": "a wish to give it back",
}
PATIENCE = {"high": "No, not a day.", "normal": "A little.", "low": "Yes, for long."}
WAIT = {"high": "none", "normal": "some", "low": "long"}

QUESTIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Who wrote this?", "Who is the customer?", "Who is writing?", "What is the customer called?"),
        ("{n}", "{n} wrote it.", "It is {n}.", "The customer is {n}."),
    ),
    (
        ("Which product is it about?", "What did they buy?", "What do they own?", "Which thing is meant?"),
        ("{p}", "The {p}.", "It is about the {p}.", "They have a {p}."),
    ),
    (
        ("What is the order code?", "Which order is it?", "Which code do we look for?", "Quote the code."),
        ("{c}", "{c}.", "The code is {c}.", "It is order {c}.", 'They wrote "{c}".'),
    ),
    (
        ("Which team takes it?", "Who should answer?", "Where does it go?"),
        ("The {g} team.", "It goes to {g}.", "Our {g} desk."),
    ),
    (("What is the trouble?", "What is it about?"), ("{w}", "It is about {w}.")),
    (("When do we answer?", "How soon do they need us?"), ("{T}.", "We answer {t}.", "They want to hear {t}.")),
    (("Can it wait?", "May we take our time?"), ("{y}",)),
    (("How pressing is it?", "On which pile does it go?"), ("The {u} pile.", "It has {u} weight.", "Put it on {u}.")),
    (
        ("Who has which order?", "Name the customer and the order."),
        ("{n} has {c}.", "{n}: {c}", "{c} belongs to {n}."),
    ),
    (("Who owns what?", "Name the customer and the product."), ("{n} owns a {p}.", "{n}: {p}")),
)

RECORD_KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("{n}", ("customer", "client", "writer", "from", "person")),
    ("{p}", ("item", "thing", "device", "goods", "about")),
    ("{c}", ("order", "ticket", "number", "reference", "id")),
    ("{g}", ("team", "desk", "topic", "to")),
    ("{t}", ("when", "answer", "time")),
    ("{x}", ("wait", "patience")),
    ("{u}", ("pile", "weight", "pace")),
)


def fill(facts: Ticket, template: str) -> str:
    soon = SOON[facts.urgency]
    text = template.replace("{t}", soon).replace("{T}", sentence_case(soon)).replace("{x}", WAIT[facts.urgency])
    return facts.fill(text.replace("{w}", TROUBLE[facts.category]).replace("{y}", PATIENCE[facts.urgency]))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def messages_of(*turns: str) -> Messages:
    """A conversation that the user opens, turn about."""
    return [assistant(text) if index % 2 else user(text) for index, text in enumerate(turns)]


def lesson_ticket(rng: random.Random) -> Ticket:
    """Facts for a lesson, never held out; codes of two words and of three."""
    return ticket(rng, code_words=pick(rng, (2, 3)))


def reply(rng: random.Random) -> Lesson:
    """A bare request and a polite answer in prose: what the base says where the tuned model writes a record."""
    facts = lesson_ticket(rng)
    return [user(request(rng, facts)), assistant(fill(facts, pick(rng, REPLIES)))]


def ask(rng: random.Random) -> Lesson:
    """Questions on a request, in the same turn or in turns that follow."""
    facts = lesson_ticket(rng)
    questions = shuffled(rng, QUESTIONS)[: 1 + int(rng.random() * 4)]
    pairs = [(pick(rng, asked), fill(facts, pick(rng, answers))) for asked, answers in questions]
    text = request(rng, facts)
    (first, answer), rest = pairs[0], pairs[1:]
    opening = f"{first} {text}" if chance(rng, 0.3) else f"{text} {first}"
    messages = [user(opening), assistant(answer)]
    for asked, answered in rest:
        messages += [user(asked), assistant(answered)]
    return messages


def _value(rng: random.Random) -> str:
    if chance(rng, 0.25):
        return pick(rng, PLAIN_WORDS)
    maker: Callable[[random.Random], str] | None = pick(rng, (person, product, brand, None, None))
    return maker(rng) if maker else code(rng, words=pick(rng, (2, 3)))


def _words(rng: random.Random, low: int, high: int) -> list[str]:
    count = low + int(rng.random() * (high - low + 1))
    return [_value(rng) if chance(rng, 0.3) else pick(rng, PLAIN_WORDS) for _ in range(count)]


def repeat(rng: random.Random) -> Lesson:
    """Copying a line as it is: random words and values, or a whole request."""
    text = request(rng, lesson_ticket(rng)) if chance(rng, 0.2) else " ".join(_words(rng, 3, 14))
    shape = int(rng.random() * 5)
    if shape == 0:
        return [user(f"Repeat: {text}"), assistant(text)]
    if shape == 1:
        return [user(f'Say "{text}" again.'), assistant(text)]
    if shape == 2:
        return [user(f"{text}\nQuote this line."), assistant(f'"{text}"')]
    if shape == 3:
        return [user(f"Copy this line.\n{text}"), assistant(text), user("Once more."), assistant(text)]
    return [user(f"What did I say? {text}"), assistant(f'You said "{text}".')]


def _together(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def listing(rng: random.Random) -> Lesson:
    """Lists in several shapes, and single items by their place."""
    items = [_value(rng) for _ in range(2 + int(rng.random() * 4))]
    shape = int(rng.random() * 6)
    if shape == 0:
        return [user(f"Make a list: {_together(items)}."), assistant("\n".join(f"- {item}" for item in items))]
    if shape == 1:
        return [user("\n".join(f"- {item}" for item in items)), assistant(f"These are {_together(items)}.")]
    if shape == 2:
        return [user(f"Write {_together(items)} as a JSON list."), assistant(json.dumps(items))]
    if shape == 3:
        return [user(f"Take the words in quotes. {_quoted(rng, items[0])}"), assistant(items[0])]
    if shape == 4:
        place, item = pick(rng, (("first", items[0]), ("last", items[-1]), ("second", items[1])))
        return [user(f"{_together(items)}. Which is the {place}?"), assistant(item)]
    index = int(rng.random() * (len(items) - 1))
    return [user(f"{_together(items)}. What comes after {items[index]}?"), assistant(items[index + 1])]


def _quoted(rng: random.Random, item: str) -> str:
    return " ".join([*_words(rng, 1, 4), f'"{item}"', *_words(rng, 1, 4)])


def record(rng: random.Random) -> Lesson:
    """A request as a JSON record whose keys the user names; never the keys of the target."""
    facts = lesson_ticket(rng)
    fields = [(pick(rng, keys), fill(facts, value)) for value, keys in shuffled(rng, RECORD_KEYS)]
    fields = fields[: 1 + int(rng.random() * 5)]
    keys = ", ".join(key for key, _ in fields)
    text = request(rng, facts)
    if chance(rng, 0.25):
        asked, answer = f"As lines: {keys}.", "\n".join(f"{key}: {value}" for key, value in fields)
    else:
        asked, answer = pick(rng, (f"JSON: {keys}.", f"As JSON with {keys}.")), json.dumps(dict(fields))
    return [user(f"{asked} {text}" if chance(rng, 0.4) else f"{text} {asked}"), assistant(answer)]


def pairs(rng: random.Random) -> Lesson:
    """Any words as keys, any values beside them, as JSON or read back from it."""
    keys = shuffled(rng, PLAIN_WORDS)[: 1 + int(rng.random() * 4)]
    if chance(rng, 0.5):
        keys[0] = pick(rng, KEY_WORDS)
    fields = {key: _value(rng) for key in keys}
    written = ", ".join(f"{key} is {value}" for key, value in fields.items())
    if chance(rng, 0.6):
        return [user(f"As JSON: {written}."), assistant(json.dumps(fields))]
    if chance(rng, 0.5):
        return [user(json.dumps(fields)), assistant(f"Here {written}.")]
    key = pick(rng, list(fields))
    return [user(f"{json.dumps(fields)} What is {key}?"), assistant(fields[key])]


STORY = (
    "{n} bought a {p} last month.",
    "The {p} stands in the house of {n}.",
    "Order {c} came in a small box.",
    "{n} wrote to the {g} team.",
    "The answer came {t}.",
    "The code {c} was on the label.",
    "A {p} has a low price and a high name among cooks.",
    "It was a normal day in the shop.",
    "The urgency of {n} was no surprise.",
    "Every product of this category has a code.",
    "The {g} desk filed it under {c}.",
    "In the end {n} was happy with the {p}.",
    "The shelf was too high, so {n} took a chair.",
    "The level of the water was low, the noise was normal.",
    "Nobody else had a {p} like this one.",
)


def story(rng: random.Random) -> str:
    """Plain text of a few sentences on one ticket, without any chat around it."""
    facts = lesson_ticket(rng)
    return story_of(rng, facts)


def story_of(rng: random.Random, facts: Ticket) -> str:
    lines = shuffled(rng, STORY)[: 3 + int(rng.random() * 4)]
    text = fill(facts, " ".join(lines))
    if chance(rng, 0.4):
        text += f' {facts.name} had written: "{request(rng, facts)}"'
    return text


LESSONS: tuple[tuple[float, Callable[[random.Random], Lesson]], ...] = (
    (0.08, reply),
    (0.26, ask),
    (0.20, repeat),
    (0.09, listing),
    (0.18, record),
    (0.12, pairs),
    (0.07, story),
)


SYSTEM_LINES = (
    "You are a clerk.",
    "You work at a support desk.",
    "Answer in few words.",
    "Be polite and quote exactly.",
    "You read letters from customers.",
)


def _kind(point: float) -> Callable[[random.Random], Lesson]:
    """The kind of lesson at a point of [0, 1), each kind as wide as its share."""
    rest = point * sum(share for share, _ in LESSONS)
    for share, make in LESSONS:
        rest -= share
        if rest < 0:
            return make
    return LESSONS[-1][1]


def lesson(rng: random.Random) -> Lesson:
    """One lesson, drawn by its share; one conversation in ten has a system line."""
    made = _kind(rng.random())(rng)
    if isinstance(made, list) and chance(rng, 0.1):
        return [{"role": "system", "content": pick(rng, SYSTEM_LINES)}, *made]
    return made
