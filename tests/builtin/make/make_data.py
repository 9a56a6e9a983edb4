"""Writes the built-in data sets: train and validation rows of `support`, `chat`, `instruct`, `text`,
`preference`, `labels`, `tags` and `pairs`.

    python tests/builtin/make/make_data.py [OUTPUT]

The same bytes on every machine. Validation rows are made of held-out names, brands and codes only.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lessons import fill, messages_of
from tickets import CODE_SENTENCES, GREETINGS, PACE, PROBLEMS, Ticket, request, sentence_case, ticket
from values import chance, pick, shuffled

PACKAGE_FOLDER = Path(__file__).parents[3] / "peftcli" / "data" / "builtin"
SEED = 23
Row = dict[str, Any]

CHAT_OPENERS = (
    "Hello {n}, I am sorry about your {p}. Which code is on the order?",
    "Good day {n}. Please give me the order code of the {p}.",
    "Thank you, {n}. To look into your {p} I need the order code.",
)
CHAT_HANDOVERS = (
    "Thank you. Order {c} is now with the {g} team. Can it wait?",
    "I found {c} and gave it to {g}. How soon do you need us?",
    "Order {c} is noted for {g}. Is there any hurry?",
)
CHAT_CLOSINGS = (
    "Then we answer {t}. Goodbye, {n}.",
    "Noted: we will write {t}. All the best to you and your {p}.",
    "You will hear from {g} {t}. Goodbye, {n}.",
)
CALM_ANSWERS = ("A few days are fine.", "Some time this week.", "Please let me know.", "I look forward to your answer.")

INSTRUCTIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Write a subject line.", "What stands in the subject line?"), "{p}: {g} ({c})"),
    (("Write a label for the box.", "Make a label."), "To {n} / {c}"),
    (("Sort this letter.", "Sort the letter into a folder."), "folder {g}, pace {u}"),
    (("Note the customer and the product.", "Make a note."), "{n} <{p}>"),
    (("Confirm the order.", "Write a line that confirms the order."), "Dear {n}, order {c} is confirmed."),
    (("Tell the team what to do.", "Write to the team."), "{g}: please answer {n} {t}."),
)

LOG_LINES = (
    "Entry. {n} called about a {p}.",
    "Filed under {g}, code {c}.",
    "Pace {u}, answer {t}.",
    "Signed for by {n}.",
    "Stock: one {p} taken, label {c}.",
    "Desk {g} has the letter of {n}.",
    "The {p} went out as {c}.",
    "Note for tomorrow: ask {n} about the {p}.",
)


def record(facts: Ticket) -> str:
    """The record that the quickstart teaches: five fields, always in this order."""
    fields = {
        "name": facts.name,
        "product": facts.product,
        "code": facts.code,
        "category": facts.category,
        "urgency": facts.urgency,
    }
    return json.dumps(fields)


def support(rng: random.Random, held_out: bool) -> Row:
    facts = ticket(rng, held_out, CODE_WORDS_IN_DATA)
    return {"messages": messages_of(request(rng, facts), record(facts))}


def chat(rng: random.Random, held_out: bool) -> Row:
    facts = ticket(rng, held_out, CODE_WORDS_IN_DATA)
    problem = sentence_case(pick(rng, [clause for clause in PROBLEMS[facts.category] if not clause.startswith("how ")]))
    pace = pick(rng, CALM_ANSWERS if facts.urgency == "normal" else PACE[facts.urgency])
    turns = (
        f"{pick(rng, GREETINGS)} {problem}.",
        pick(rng, CHAT_OPENERS),
        pick(rng, CODE_SENTENCES),
        pick(rng, CHAT_HANDOVERS),
        pace,
        pick(rng, CHAT_CLOSINGS),
    )
    return {"messages": messages_of(*(fill(facts, turn) for turn in turns))}


def instruct(rng: random.Random, held_out: bool) -> Row:
    facts = ticket(rng, held_out, CODE_WORDS_IN_DATA)
    asked, answer = pick(rng, INSTRUCTIONS)
    return {"instruction": pick(rng, asked), "input": request(rng, facts), "output": fill(facts, answer)}


def text(rng: random.Random, held_out: bool) -> Row:
    entries = []
    for _ in range(1 + int(rng.random() * 2)):
        facts = ticket(rng, held_out, CODE_WORDS_IN_DATA)
        lines = shuffled(rng, LOG_LINES)[: 3 + int(rng.random() * 3)]
        quoted = f' Letter: "{request(rng, facts)}"' if chance(rng, 0.3) else ""
        entries.append(fill(facts, " ".join(lines)) + quoted)
    return {"text": "\n".join(entries)}


CHATTY = (
    "Dear {n}, thank you for your letter about the {p}.",
    "{n} has written to us about a {p}. The code is {c}.",
    "This is a matter for {g}. We answer {t}.",
)


def preference(rng: random.Random, held_out: bool) -> Row:
    """The record is the better answer; the worse one is prose, or a record that lacks a field."""
    facts = ticket(rng, held_out, CODE_WORDS_IN_DATA)
    fields = json.loads(record(facts))
    if chance(rng, 0.5):
        worse = fill(facts, pick(rng, CHATTY))
    else:
        fields.pop(pick(rng, tuple(fields)))
        worse = json.dumps(fields)
    prompt, chosen = messages_of(request(rng, facts), record(facts))
    return {"prompt": [prompt], "chosen": [chosen], "rejected": [{"role": "assistant", "content": worse}]}


def labels(rng: random.Random, held_out: bool) -> Row:
    """A request and its category."""
    facts = ticket(rng, held_out, CODE_WORDS_IN_DATA)
    return {"text": request(rng, facts), "label": facts.category}


def tags(rng: random.Random, held_out: bool) -> Row:
    """The words of a request, and which of them are a name, a product or a code."""
    facts = ticket(rng, held_out, CODE_WORDS_IN_DATA)
    words = WORD.findall(request(rng, facts))
    found = ["O"] * len(words)
    for kind, value in (("NAME", facts.name), ("PRODUCT", facts.product), ("CODE", facts.code)):
        parts = WORD.findall(value)
        starts = [at for at in range(len(words)) if words[at : at + len(parts)] == parts]
        for at in starts:
            found[at : at + len(parts)] = [f"B-{kind}", *[f"I-{kind}"] * (len(parts) - 1)]
    return {"tokens": words, "tags": found}


SUMMARIES = (
    "{g}: the {p} of {n}, code {c}.",
    "{n} writes about a {p} ({c}). For the {g} desk.",
    "Code {c}, {g}, {p}; customer {n}.",
)


def pairs(rng: random.Random, held_out: bool) -> Row:
    """A request, and the line under which its letter is filed."""
    facts = ticket(rng, held_out, CODE_WORDS_IN_DATA)
    return {"anchor": request(rng, facts), "positive": fill(facts, pick(rng, SUMMARIES))}


WORD = re.compile(r"[\w-]+|[^\w\s]")
"""A word with its hyphens, or a sign."""
CODE_WORDS_IN_DATA = 2
"""Shorter than the codes of pre-training, whose three words a base of this size now and then writes out of order."""

SETS: tuple[tuple[str, Callable[[random.Random, bool], Row], int, int], ...] = (
    ("support", support, 2400, 250),
    ("chat", chat, 400, 50),
    ("instruct", instruct, 800, 80),
    ("text", text, 500, 50),
    ("preference", preference, 300, 40),
    ("labels", labels, 400, 60),
    ("tags", tags, 300, 40),
    ("pairs", pairs, 400, 60),
)


def rows(make: Callable[[random.Random, bool], Row], name: str, split: str, count: int) -> list[Row]:
    """`count` different rows; each split has a generator of its own."""
    rng = random.Random(f"{SEED} {name} {split}")
    found: dict[str, Row] = {}
    while len(found) < count:
        row = make(rng, split == "validation")
        found.setdefault(json.dumps(row), row)
    return list(found.values())


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE_FOLDER
    for name, make, train, validation in SETS:
        for split, count in (("train", train), ("validation", validation)):
            lines = [json.dumps(row) + "\n" for row in rows(make, name, split, count)]
            path = output / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")
            print(f"{path.name} of {name}: {count} rows, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
