"""Held-out prompts answered by base and tuned model, beside the reference, departures marked."""

from __future__ import annotations

from peftcli.reports.difference import Piece, redline
from peftcli.reports.folder import RunFacts
from peftcli.reports.markup import Markup, tag
from peftcli.reports.record import Sample
from peftcli.reports.sections.parts import details, quoted, section
from peftcli.reports.visible import clipped, short_path
from peftcli.visible import reveal

MAX_SAMPLES = 16
MAX_CHARACTERS = 2500
_LONG_PROMPT = 600


def samples_section(run: RunFacts) -> Markup | None:
    """None when the run generated nothing."""
    samples = run.record.samples
    if not samples:
        return None
    shown = [_sample(number, sample) for number, sample in enumerate(samples[:MAX_SAMPLES], start=1)]
    more = f"{len(samples) - MAX_SAMPLES} more are in run.json." if len(samples) > MAX_SAMPLES else None
    return section(
        "samples",
        "Samples",
        _legend() if any(sample.reference is not None for sample in samples) else None,
        shown,
        tag("p", more, class_="note") if more else None,
        lead=_lead(samples),
    )


def _lead(samples: list[Sample]) -> str:
    compared = [sample for sample in samples if sample.reference is not None]
    if not compared:
        return f"{len(samples)} prompts that were not trained on."
    tuned = sum(is_match(sample.reference, sample.tuned) for sample in compared)
    base = sum(is_match(sample.reference, sample.base) for sample in compared)
    text = f"Of {len(compared)} held-out prompts the tuned model answers {tuned} exactly as the reference"
    return f"{text}, the base {base}." if any(sample.base is not None for sample in compared) else f"{text}."


def is_match(reference: str | None, answer: str | None) -> bool:
    """Whether an answer is its reference, white space at the ends aside."""
    return reference is not None and answer is not None and reference.strip() == answer.strip()


def _legend() -> Markup:
    extra = tag("ins", "not in the reference")
    missing = tag("del", "missing from the answer")
    return tag("p", "Marked: ", extra, " ", missing, class_="note marks")


def _sample(number: int, sample: Sample) -> Markup:
    columns = []
    if sample.reference is not None:
        columns.append(_column("Reference", "reference", quoted(sample.reference, MAX_CHARACTERS), None))
    if sample.tuned is not None:
        columns.append(_answer("Tuned", "tuned", sample.reference, sample.tuned))
    if sample.base is not None:
        columns.append(_answer("Base", "base", sample.reference, sample.base))
    origin = tag("span", clipped(short_path(sample.origin), 200), class_="note") if sample.origin else None
    return tag(
        "article",
        tag("h3", f"Sample {number}", origin),
        _prompt(sample.prompt),
        tag("div", columns, class_="answers"),
        class_="sample",
    )


def _prompt(prompt: str) -> Markup:
    body = quoted(prompt, MAX_CHARACTERS)
    if len(prompt) <= _LONG_PROMPT:
        return tag("div", tag("h4", "Prompt"), body, class_="prompt")
    return details(f"Prompt, {len(prompt):,} characters", body)


def _column(title: str, style: str, body: Markup, badge: Markup | None) -> Markup:
    return tag("div", tag("h4", title, badge), body, class_=f"answer {style}")


def _answer(title: str, style: str, reference: str | None, answer: str) -> Markup:
    if reference is None:
        return _column(title, style, quoted(answer, MAX_CHARACTERS), None)
    match = is_match(reference, answer)
    badge = tag("span", "same" if match else "differs", class_="badge " + ("good" if match else "off"))
    return _column(title, style, _marked(reference, answer), badge)


def _marked(reference: str, answer: str) -> Markup:
    wanted, found = reveal(reference[: MAX_CHARACTERS + 1]).strip(), reveal(answer[: MAX_CHARACTERS + 1]).strip()
    fits = max(len(wanted), len(found)) <= MAX_CHARACTERS
    pieces = redline(wanted, found) if fits else None
    if pieces is None:
        return quoted(answer or " ", MAX_CHARACTERS)
    return tag("div", map(_piece, pieces), class_="quoted", dir="auto")


def _piece(piece: Piece) -> Markup | str:
    if piece.kind == "same":
        return piece.text
    return tag("ins" if piece.kind == "extra" else "del", piece.text)
