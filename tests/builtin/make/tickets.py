"""One support request: the facts of a ticket, and the English in which a customer tells them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from values import chance, code, person, pick, product, shuffled

PROBLEMS: dict[str, tuple[str, ...]] = {
    "billing": (
        "I was charged twice for my {p}",
        "the bill for my {p} is too large",
        "I paid for my {p} but the invoice says that I did not",
        "my card was charged although I had cancelled the {p}",
        "the invoice for the {p} shows a wrong sum",
        "I see two payments for one {p}",
        "you took too much money for the {p}",
        "the discount on my {p} is missing from the bill",
        "the price on the invoice for my {p} is not what we agreed",
    ),
    "delivery": (
        "my {p} has not arrived yet",
        "the parcel with my {p} is lost",
        "the driver left my {p} at the wrong house",
        "I am still waiting for my {p}",
        "my {p} was sent to an old address",
        "the tracking page has not moved since my {p} was sent",
        "the {p} should have been here last week",
        "the box with the {p} never came",
        "nobody rang the bell when the {p} was brought",
    ),
    "repair": (
        "my {p} stopped working",
        "the {p} makes a loud noise",
        "my {p} does not turn on any more",
        "a part of my {p} is broken",
        "my {p} gets far too hot",
        "the button on my {p} is stuck",
        "my {p} smells of smoke",
        "the {p} switches itself off",
        "there is a crack in my {p}",
    ),
    "account": (
        "I cannot log in to register my {p}",
        "my password is refused when I open the page of my {p}",
        "I need a new email address on the profile of my {p}",
        "the app says that my {p} belongs to another user",
        "I am locked out and cannot see my {p} in the app",
        "the login page does not know my {p}",
        "please change the phone number on the profile of my {p}",
        "I forgot the password for my {p}",
        "my user name for the {p} is spelled wrong",
    ),
    "return": (
        "I want to send my {p} back",
        "the {p} is the wrong colour and I would like another one",
        "I changed my mind about the {p}",
        "I got the {p} as a gift and want to swap it",
        "my {p} is too small, so I am sending it back",
        "I ordered one {p} too many and do not want to keep it",
        "how do I give back the {p}",
        "I would like to exchange my {p} for a bigger one",
        "the {p} is not what I expected and I do not want it",
    ),
}
CATEGORIES = tuple(PROBLEMS)

PACE: dict[str, tuple[str, ...]] = {
    "high": (
        "I need an answer today.",
        "This cannot wait.",
        "Please hurry, we are stuck.",
        "It is urgent.",
        "My shop stands still until then.",
        "We have guests tonight, so be quick.",
        "Call me at once.",
    ),
    "normal": (
        "",
        "",
        "",
        "Please let me know.",
        "I hope that you can help.",
        "Tell me what to do next.",
        "What can we do?",
        "I look forward to your answer.",
    ),
    "low": (
        "There is no rush.",
        "Take your time.",
        "It can wait until next month.",
        "Whenever you find a moment is fine.",
        "It is only a small thing.",
        "I am in no hurry.",
        "Answer me some day.",
    ),
}
URGENCIES = tuple(PACE)

GREETINGS = (
    "Hello, this is {n}.",
    "Hi, I am {n}.",
    "My name is {n}.",
    "{n} here.",
    "Good morning, {n} writing.",
    "Dear team, I am {n}.",
    "Hello from {n}.",
    "It is {n} again.",
)
SIGN_OFFS = (
    "Thanks, {n}",
    "Kind regards, {n}",
    "Best wishes, {n}.",
    "Yours, {n}",
    "Thank you, {n}.",
    "Greetings from {n}.",
)
OPENINGS = ("", "", "Hello,", "Hi,", "Good morning,", "Dear team,", "Sorry to bother you, but")
CODE_SENTENCES = (
    "My order is {c}.",
    "The order code is {c}.",
    "It is order {c}.",
    "Order {c}.",
    "You find it under {c}.",
    "Reference: {c}.",
    "The box says {c}.",
    "I wrote down {c}.",
)
CODE_ASIDES = (" (order {c})", " ({c})", ", order {c}", ", code {c}")


@dataclass(frozen=True)
class Ticket:
    """What a request says."""

    name: str
    product: str
    code: str
    category: str
    urgency: str

    def fill(self, template: str) -> str:
        text = template.replace("{n}", self.name).replace("{p}", self.product).replace("{c}", self.code)
        return text.replace("{g}", self.category).replace("{u}", self.urgency)


def ticket(rng: random.Random, held_out: bool = False, code_words: int = 3) -> Ticket:
    """Facts drawn at random; category and urgency are uniform, and independent of the rest."""
    return Ticket(
        name=person(rng, held_out),
        product=product(rng, held_out),
        code=code(rng, held_out, code_words),
        category=pick(rng, CATEGORIES),
        urgency=pick(rng, URGENCIES),
    )


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def _problem(rng: random.Random, facts: Ticket, aside: str) -> str:
    clause = pick(rng, PROBLEMS[facts.category])
    end = "?" if clause.startswith("how ") else "."
    return clause + aside + end


def request(rng: random.Random, facts: Ticket) -> str:
    """The customer's text: name first or last, code in a sentence of its own or beside the product."""
    named_first = chance(rng, 0.5)
    aside = pick(rng, CODE_ASIDES) if chance(rng, 0.35) else ""
    problem = _problem(rng, facts, aside)
    middle = [] if aside else [pick(rng, CODE_SENTENCES)]
    pace = pick(rng, PACE[facts.urgency])
    middle += [pace] if pace else []
    middle = shuffled(rng, middle)
    # one sentence may stand before the problem
    before, after = (middle[:1], middle[1:]) if middle and chance(rng, 0.25) else ([], middle)
    if named_first:
        parts = [pick(rng, GREETINGS), *before, sentence_case(problem), *after]
    else:
        opening = "" if before else pick(rng, OPENINGS)
        lead = f"{opening} {problem}" if opening else sentence_case(problem)
        parts = [*before, lead, *after, pick(rng, SIGN_OFFS)]
    return facts.fill(" ".join(parts))
