"""Where one answer stands in a rendered conversation, by construction: nothing is found by looking for its text.

It begins where the prompt of inference ends: the rendering of the messages before it with the generation prompt. Where the
rendering does not begin with that prompt, marks around the texts show where the answer's turn opens. It ends where its
turn does: after its last text follows what the template writes there both when the conversation ends and when it goes on.
An empty thought that the template puts in front of an answer without one is context.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from peftcli.data.chat.borders import Borders
from peftcli.data.chat.conversation import Conversation
from peftcli.data.chat.marks import Places
from peftcli.data.chat.thoughts import after_lines
from peftcli.data.faults import RowFault
from peftcli.data.rows import Message

Hit = tuple[str, str]
"""A check, and what is wrong."""

_NO_PLACE = "the chat template does not render the answer where it can be found"


@dataclass(frozen=True, slots=True)
class AnswerPlace:
    """Characters `start` to `end` are the answer with its stop token. `prompt`: length of the prompt of inference where
    the text begins with it, else -1. `thought`: where the thought ends that the row gives apart from the answer's text
    and the template writes at its beginning; 0 where it writes none, -1 where it does not show its end."""

    start: int
    end: int
    prompt: int
    hits: tuple[Hit, ...]
    thought: int = 0


@dataclass(frozen=True, slots=True)
class _Opening:
    start: int
    prompt: int
    hits: tuple[Hit, ...]


def locate(conversation: Conversation, number: int, borders: Borders) -> AnswerPlace:
    """The answer at message `number`. `RowFault` where the template does not show where it is."""
    found = conversation.places_of(number)
    if found is None or found.last(number) is None:
        raise RowFault(f"message {number + 1}: {_NO_PLACE}", "render the row yourself and use the format `segments`")
    opening = _opening(conversation, number, borders, found)
    last = found.last(number)
    assert last is not None
    # white space at the end of a turn is the template's layout, not part of the answer
    end = last + len(_closing(conversation, number, borders, found, last).rstrip())
    other = found.inside(number, opening.start, end)
    if other is not None:
        raise RowFault(f"message {number + 1}: the chat template writes message {other + 1} inside this answer")
    hits = list(opening.hits)
    if not borders.ends_with_stop(conversation.text[opening.start : end]):
        hits.append(("stop-token", "no stop token follows the answer"))
    # an answer whose turn does not end is at least its own text
    end = max(end, last)
    return AnswerPlace(
        opening.start, end, opening.prompt, tuple(hits), _thought_end(conversation, number, borders, found)
    )


# -- where it begins ---------------------------------------------------------------------------------------------


def _opening(conversation: Conversation, number: int, borders: Borders, found: Places) -> _Opening:
    text, first = conversation.text, _first(conversation, number, borders, found)
    if number == 0:
        # nothing was asked before: no template renders a prompt of no messages
        return _Opening(first, -1, ())
    prompt = conversation.prompt(number)
    fits = text.startswith(prompt)
    # the prompt of inference reaches at least to the first text: the usual case
    if fits and len(prompt) >= first:
        return _Opening(len(prompt), len(prompt), ())
    after = _last_before(found, number)
    gap = text[after:first]
    header = len(prompt) if fits else after + _shared_header(conversation, number, borders, gap)
    thinks = any(found.shown(leaf) for leaf in found.of(number, "thought"))
    # a thought that is given is not empty, whatever stands around it
    block = None if thinks else _empty_thought(conversation, number, borders, gap)
    start = max(header, after + block.length if block else 0)
    if fits and block and after + len(gap[: block.length].rstrip()) <= len(prompt):
        # the prompt holds it already, but for white space that the model has to write
        start = len(prompt)
    if fits:
        return _Opening(start, len(prompt), (("empty-thought", _ADDED),) if start > len(prompt) else ())
    if block is not None and block.in_prompt:
        return _Opening(start, -1, (("empty-thought", _LEFT_OUT),))
    # how far both agree tells the user where to look in the template
    parted = len(borders.shared(text, prompt))
    why = (
        f"the prompt at inference is not the text before the answer in training (they differ after {parted} characters)"
    )
    return _Opening(start, -1, (("prompt-mismatch", why),))


_ADDED = (
    "the template writes an empty thought in front of the answer, which is not trained; "
    "at inference the model would begin with a thought of its own"
)
_LEFT_OUT = (
    "the prompt at inference ends with an empty thought, which the template leaves out in front of earlier answers; "
    "`data.train_on: last-turn` trains only what inference sees"
)


def _first(conversation: Conversation, number: int, borders: Borders, found: Places) -> int:
    """Where the answer's first text begins; where the template cuts the mark off, found from its end."""
    first = found.first(number)
    if first is not None:
        return first
    text = conversation.text
    starts = []
    for leaf in found.of(number):
        if leaf in found.ends:
            end, core = found.ends[leaf], found.leaves[leaf].text.strip()
            shared = 0
            while shared < min(len(core), end) and core[-1 - shared] == text[end - 1 - shared]:
                shared += 1
            starts.append(end - shared)
    # of several texts of an answer the one that is written first
    return borders.behind(text, min(starts))


def _last_before(found: Places, number: int) -> int:
    ends = [end for leaf, end in found.ends.items() if found.leaves[leaf].message < number]
    return max(ends, default=0)


def _shared_header(conversation: Conversation, number: int, borders: Borders, gap: str) -> int:
    """How much of the text between the message before and the answer is also the opening of the answer in the prompt."""
    asked = _behind_question(conversation, number)
    # without a place for the question's text the gap may hold words of it, which are no opening
    if asked is None or not _anchored(conversation, number):
        return len(gap)
    alike = len(borders.shared(gap, asked))
    ours, theirs = gap[alike:], asked[alike:]
    # what is left of the prompt's opening stands further on in the text: it is passed over whole
    if theirs.strip() and theirs in ours:
        return alike + ours.index(theirs) + len(theirs)
    common = {hit[0] for hit in borders.tokens_in(ours)} & {hit[0] for hit in borders.tokens_in(theirs)}
    # tokens of the turn's opening still to come on both sides: the two go different ways before it
    return len(gap) if common else alike


def _behind_question(conversation: Conversation, number: int) -> str | None:
    """What the prompt writes after the last text of the messages before the answer."""
    asked = conversation.prompt_places(number)
    last = None if asked is None else max(asked.ends.values(), default=None)
    return None if asked is None or last is None else asked.text[last:]


def _anchored(conversation: Conversation, number: int) -> bool:
    """Whether the text of the message right before stands in the rendering, so that the gap holds no words of it."""
    found = conversation.places_of(number)
    return found is not None and found.last(number - 1) is not None


@dataclass(frozen=True, slots=True)
class _Block:
    """An empty thought in front of an answer. `length`: of the opening that ends with it, 0 where the text has none;
    `in_prompt`: whether the prompt ends with one."""

    length: int
    in_prompt: bool


def _empty_thought(conversation: Conversation, number: int, borders: Borders, gap: str) -> _Block | None:
    """What the template would write around a thought of this answer, with nothing in between: is it there?

    The mark that ends a thought alone counts too, since it says that there is none.
    """
    asked = _behind_question(conversation, number)
    around = _around_thought(conversation, number)
    if around is None:
        # under some templates only a call keeps its thought
        around = _of(conversation, _CALLING)
    if around is None:
        pair = _EMPTY_PAIR.search(gap)
        # a pair of tags with nothing between them, whatever their name
        return _Block(len(gap), in_prompt=False) if pair else None
    closings = _closings(around, _of(conversation, _ANSWERING if around.calls else _CALLING), borders)
    length = _block_end(borders, gap, around.before, closings)
    in_prompt = asked is not None and _block_end(borders, asked, around.before, closings) == len(asked)
    return _Block(length, in_prompt) if length or in_prompt else None


# where no rendering shows a thought, two tags that belong together with nothing in between
_EMPTY_PAIR = re.compile(r"<([\w:]+)>\s*</\1>\s*\Z")


def _block_end(borders: Borders, opening: str, before: str, closings: Sequence[str]) -> int:
    """Where an empty thought ends in an opening, 0 where it holds none."""
    alike = len(borders.shared(opening, before))
    rest = opening[alike:]
    for closing in closings:
        # a closing of white space alone would end anywhere
        if closing.strip() and (end := _spelt(closing, rest)):
            return alike + end
    return 0


def _spelt(wanted: str, text: str) -> int:
    """Where a text ends that stands at the front of another, whatever white space there is in it; 0 where it does not."""
    found = re.match(r"\s*" + r"\s+".join(map(re.escape, wanted.split())), text)
    if found is None:
        return 0
    space = wanted[len(wanted.rstrip()) :]
    end = found.end()
    # the white space that the template writes after it belongs to it; any other is the answer's own
    return end + len(space) if text.startswith(space, end) else end + len(text[end:]) - len(text[end:].lstrip())


@dataclass(frozen=True, slots=True)
class _Around:
    """What a template writes before a thought and after it. `calls`: what comes after it leads to a tool call."""

    before: str
    behind: str
    calls: bool


def _of(conversation: Conversation, answer: Message) -> _Around | None:
    simple = conversation.of([_ASKING, answer])
    return None if simple is None else _around_thought(simple, 1)


def _around_thought(conversation: Conversation, number: int) -> _Around | None:
    thinking = conversation.with_thought(number)
    places = None if thinking is None else thinking.places
    if thinking is None or places is None:
        return None
    thoughts = [leaf for leaf in places.of(number, "thought") if leaf in places.ends and leaf in places.begins]
    others = [
        (places.begins[leaf], leaf) for leaf in places.of(number) if leaf in places.begins and leaf not in thoughts
    ]
    # a thought after the answer's text is none in front of it
    if not thoughts or not others or places.ends[thoughts[0]] > min(others)[0]:
        return None
    begin, leaf = min(others)
    before = thinking.text[_last_before(places, number) : places.begins[thoughts[0]]]
    behind = thinking.text[places.ends[thoughts[0]] : begin]
    text = places.leaves[leaf].text
    # without the white space that the text itself begins with
    return _Around(before, behind.removesuffix(text[: len(text) - len(text.lstrip())]), places.leaves[leaf].call > 0)


def _thought_end(conversation: Conversation, number: int, borders: Borders, found: Places) -> int:
    """Where the answer's thought ends with what the template writes after every thought: see `AnswerPlace`."""
    thoughts = [leaf for leaf in found.of(number, "thought") if found.shown(leaf)]
    if not thoughts:
        return 0
    end, others = found.ends.get(thoughts[0]), [leaf for leaf in found.of(number) if leaf not in thoughts]
    begins = [(at, leaf) for leaf in others if found.shown(leaf) and (at := _begin(found, leaf)) is not None]
    if end is None or not begins or min(begins)[0] < end:
        return -1
    begin, leaf = min(begins)
    around = _Around("", found.text[end:begin], found.leaves[leaf].call > 0)
    other = _of(conversation, _ANSWERING if around.calls else _CALLING)
    closing = next((each for each in _closings(around, other, borders) if each.strip()), None)
    # the answer's first word may follow on the same line
    return -1 if closing is None else after_lines(found.text, end + len(closing.rstrip()))


def _begin(found: Places, leaf: int) -> int | None:
    """Where a text begins, also where only its end was marked."""
    core = found.leaves[leaf].text.strip()
    begin = found.begins.get(leaf, found.ends.get(leaf, 0) - len(core))
    return begin if begin >= 0 and found.text.startswith(core, begin) else None


def _closings(one: _Around, other: _Around | None, borders: Borders) -> list[str]:
    """As what a template may write the end of a thought: what an answer in words and a call have in common after it."""
    # a call and an answer in words share the token that ends a thought, though not what follows
    first = _first_token(one.behind, borders)
    if other is None:
        return [first if one.calls else one.behind, first]
    common = borders.shared(one.behind, other.behind)
    rests = (one.behind[len(common) :], other.behind[len(common) :])
    tokens = borders.tokens_in(common)
    if tokens and tokens[-1].end() == len(common) and all(rest[:1].isalpha() for rest in rests):
        # a token and the word after it are one: they open what comes next
        common = common[: tokens[-1].start()]
    return [common, first]


def _first_token(text: str, borders: Borders) -> str:
    """The token that a text begins with, and the white space around it; nothing where it begins otherwise."""
    first = next(iter(borders.tokens_in(text)), None)
    if first is None or text[: first.start()].strip():
        return ""
    rest = text[first.end() :]
    return text[: len(text) - len(rest.lstrip())]


_ASKING: Message = {"role": "user", "content": "A question."}
_ANSWERING: Message = {"role": "assistant", "content": "An answer."}
_CALLING: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {"at": "it"}}}],
}


# -- where it ends -----------------------------------------------------------------------------------------------


def _closing(conversation: Conversation, number: int, borders: Borders, found: Places, last: int) -> str:
    """What the template writes after the answer's last text as the end of its turn."""
    ending, going_on = _ending(conversation, number, last), _going_on(conversation, number, found)
    if ending is None and going_on is None:
        raise RowFault(f"message {number + 1}: the chat template does not show where this answer ends")
    if going_on is None:
        return _without_prompt(conversation, borders, ending or "")
    shared = borders.shared(ending or "", going_on)
    # the whole ending is shared: then nothing of the next turn can be in it
    if ending is None or shared.rstrip() != ending.rstrip():
        # the conversation goes on in both: what they share may reach into the opening of the next turn
        shared = _before(shared, _openers(conversation, borders), borders)
    if borders.stops_in(shared):
        return shared
    # in the middle of a conversation the turn's end may differ from the conversation's
    if number < len(conversation.messages) - 1 or ending is None:
        own = _before(going_on, _openers(conversation, borders, going_on), borders)
        return own if own != going_on and borders.stops_in(own) else shared
    return ending if borders.stops_in(ending) else shared


def _ending(conversation: Conversation, number: int, last: int) -> str | None:
    """What follows the answer where the conversation ends with it."""
    if number == len(conversation.messages) - 1:
        return conversation.text[last:]
    cut = conversation.cut_after(number)
    places = None if cut is None else cut.places_of(number)
    end = None if places is None else places.last(number)
    return None if cut is None or end is None else cut.text[end:]


def _going_on(conversation: Conversation, number: int, found: Places) -> str | None:
    """What stands between the answer and the next message."""
    last, begin = found.last(number), found.next_begin(number)
    if last is not None and begin is not None:
        return conversation.text[last:begin]
    longer = conversation.followed(number)
    places = None if longer is None else longer.places
    end = None if places is None else places.last(number)
    begin = None if places is None else places.next_begin(number)
    return None if longer is None or end is None or begin is None else longer.text[end:begin]


def _openers(conversation: Conversation, borders: Borders, going_on: str | None = None) -> set[str]:
    """Tokens that open the next turn, known from what stands in front of a first question too. `going_on`: what stands
    between an answer and the next message; None: between a plain answer and the next question."""
    first = conversation.of([_ASKING])
    begin = None if first is None or first.places is None else first.places.first(0)
    simple = None if going_on is not None else conversation.of([_ASKING, _ANSWERING, _ASKING])
    if simple is not None and simple.places is not None:
        going_on = _going_on(simple, 1, simple.places)
    if first is None or begin is None or going_on is None:
        return set()
    opening = borders.alike_at_end(first.text[:begin].rstrip(), going_on.rstrip())
    # a turn may stand in front of the first question too: what ends the question may end that turn, and the answer
    behind = _behind_question(first, 1) or ""
    return {hit[0] for hit in borders.tokens_in(opening)} - {hit[0] for hit in borders.tokens_in(behind)[:1]}


def _before(text: str, openers: set[str], borders: Borders) -> str:
    return text[: min((hit.start() for hit in borders.tokens_in(text) if hit[0] in openers), default=len(text))]


def _without_prompt(conversation: Conversation, borders: Borders, ending: str) -> str:
    """The end of a conversation, without the opening of an answer that the template may write there in any case."""
    simple = conversation.of([_ASKING, _ANSWERING, _ASKING])
    behind = None if simple is None else _behind_question(simple, 1)
    going_on = None if simple is None or simple.places is None else _going_on(simple, 1, simple.places)
    if simple is None or behind is None or going_on is None:
        return ending
    closing = _before(going_on, _openers(simple, borders), borders)
    openers = {hit[0] for hit in borders.tokens_in(behind)} - {hit[0] for hit in borders.tokens_in(closing)}
    return _before(ending, openers, borders)
