"""Held-out prompts answered by base and tuned model, beside the reference, departures marked."""

from __future__ import annotations

from dataclasses import dataclass

from peftcli.reports.difference import DiffPiece, redline
from peftcli.reports.folder import RunFacts
from peftcli.reports.record import Sample
from peftcli.reports.sections.parts import Section
from peftcli.reports.visible import clipped, short_path
from peftcli.visible import reveal

MAX_SAMPLES = 16
MAX_CHARACTERS = 2500
_LONG_PROMPT = 600


@dataclass(frozen=True)
class ShownAnswer:
    """One answer to a prompt. `pieces`: how it differs from the reference, where that helps; else its `text` is shown."""

    title: str
    style: str
    text: str
    matches: bool | None = None
    pieces: list[DiffPiece] | None = None


@dataclass(frozen=True)
class ShownSample:
    """A prompt and its answers. `prompt_title`: the title of the fold that a long prompt stands in."""

    number: int
    origin: str
    prompt: str
    prompt_title: str | None
    answers: list[ShownAnswer]


@dataclass(frozen=True)
class Samples:
    """`compared`: whether any answer stands beside a reference. `more`: how many samples were left out."""

    samples: list[ShownSample]
    compared: bool
    more: int


def samples_section(run: RunFacts) -> Section | None:
    """None when the run generated nothing."""
    samples = run.record.samples
    if not samples:
        return None
    facts = Samples(
        [_sample(number, sample) for number, sample in enumerate(samples[:MAX_SAMPLES], start=1)],
        any(sample.reference is not None for sample in samples),
        max(0, len(samples) - MAX_SAMPLES),
    )
    return Section("samples", "Samples", "report/samples.jinja", facts, _lead(samples))


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


def _sample(number: int, sample: Sample) -> ShownSample:
    answers = []
    if sample.reference is not None:
        answers.append(ShownAnswer("Reference", "reference", clipped(sample.reference, MAX_CHARACTERS)))
    if sample.tuned is not None:
        answers.append(_answer("Tuned", "tuned", sample.reference, sample.tuned))
    if sample.base is not None:
        answers.append(_answer("Base", "base", sample.reference, sample.base))
    # by its whole length, for the text below is cut
    long = f"Prompt, {len(sample.prompt):,} characters" if len(sample.prompt) > _LONG_PROMPT else None
    origin = clipped(short_path(sample.origin), 200)
    return ShownSample(number, origin, clipped(sample.prompt, MAX_CHARACTERS), long, answers)


def _answer(title: str, style: str, reference: str | None, answer: str) -> ShownAnswer:
    if reference is None:
        return ShownAnswer(title, style, clipped(answer, MAX_CHARACTERS))
    # an empty answer still takes a line, so that the page shows that it was given
    text = clipped(answer or " ", MAX_CHARACTERS)
    return ShownAnswer(title, style, text, is_match(reference, answer), _pieces(reference, answer))


def _pieces(reference: str, answer: str) -> list[DiffPiece] | None:
    """How an answer differs from its reference; None where both are too long for the page, or too unlike."""
    # one character more than fits, to know whether it does
    wanted, given = reveal(reference[: MAX_CHARACTERS + 1]).strip(), reveal(answer[: MAX_CHARACTERS + 1]).strip()
    fits = max(len(wanted), len(given)) <= MAX_CHARACTERS
    return redline(wanted, given) if fits else None
