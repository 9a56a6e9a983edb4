"""What has to be trained, found without our code: transformers renders, and a sentinel stands in the answer's place.

The sentinel replaces an answer's text (ours is put around it), the end of a turn is read off hand-written rules on the
names of tokens, and a thought is known by the names of its tags. Where the sentinel shows nothing, the oracle has no word.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from typing import Any

SENTINEL = "SENTINELxq"
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
# an empty thought, by the tags of all families
EMPTY = re.compile(
    r"\s*(?:<think>|<\|START_THINKING\|>|<seed:think>|\[THINK\]|<\|channel>thought|<\|inner_prefix\|>|<mm:think>|<\|think\|>)?\s*"
    r"(?:</think>|<\|close\|>think<\|sep\|>(?:<\|open\|>response<\|sep\|>)?|<\|END_THINKING\|>|</seed:think>|\[/THINK\]|<channel\|>|<\|inner_suffix\|>|</mm:think>)\s*"
)
# tokens that open a turn: what stands behind an answer from here on is not its own
OPENS = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<\|header_start\|>|<start_of_turn>|<\|turn>|<\|START_OF_TURN_TOKEN\|>|<\|start\|>"
    r"|<\|user\|>|<\|assistant\|>|<\|system\|>|<\|observation\|>|<\|User\|>|<\|Assistant\|>|<｜User｜>|<｜Assistant｜>|\[INST\]|<s>"
    r"|<\|begin_of_text\|>|<\|tool\|>|<｜tool|<\|start_of_role\|>|<\|im_user\|>|<\|im_system\|>|<\|im_assistant\|>|\]~b\]"
    r"|<\|open\|>|<\|begin\|>|<｜start▁of▁sentence｜>|<\|begin_user\|>|<\|user_start\|>|<\|assistant_start\|>|<role>|<seed:bos>"
)


@dataclass
class Truth:
    """`spans`: where each answer in `text` may start and end; None where the sentinel does not tell."""

    text: str
    spans: list[tuple[range, range] | None]


class Oracle:
    """A tokenizer of transformers, and how it renders."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def rendered(self, messages: list[Any], tools: Any, *, prompt: bool = False) -> str:
        text: str = self.tokenizer.apply_chat_template(
            copy.deepcopy(messages), tools=tools, tokenize=False, add_generation_prompt=prompt
        )
        return text

    def ids(self, messages: list[Any], tools: Any) -> list[int]:
        found: list[int] = self.tokenizer.apply_chat_template(
            copy.deepcopy(messages), tools=tools, tokenize=True, return_dict=False
        )
        return found

    def truth(self, messages: list[Any], tools: Any) -> Truth:
        text = self.rendered(messages, tools)
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        return Truth(text, [self._span(text, messages, tools, number) for number in answers])

    def _span(self, text: str, messages: list[Any], tools: Any, number: int) -> tuple[range, range] | None:
        if messages[number].get("tool_calls"):
            return self._call_span(text, messages, tools, number)
        found = self._inside(text, messages, tools, number)
        if found is None or text[slice(*found)].strip() not in _text(messages[number]["content"]):
            return None
        end = self._end(text, found[1])
        stop = self._cut_end(text, messages, tools, number, end)
        return self._start(text, messages, tools, number, found[0]), range(end.start, stop)

    def _inside(self, text: str, messages: list[Any], tools: Any, number: int) -> tuple[int, int] | None:
        """Where the answer's own text stands."""
        asked = copy.deepcopy(messages)
        _put(asked[number], SENTINEL)
        shown = self.rendered(asked, tools)
        if shown.count(SENTINEL) != 1:
            return None
        before, behind = shown.split(SENTINEL)
        if not text.startswith(before) or not text.endswith(behind):
            return None
        return len(before), len(text) - len(behind)

    def _start(self, text: str, messages: list[Any], tools: Any, number: int, first: int) -> range:
        prompt = self.rendered(messages[:number], tools, prompt=True)
        thinks = self._thinks(messages, tools, number)
        if not text.startswith(prompt):
            # what inference does not see may not be trained, but for a thought and what opens the answer
            lead = re.search(r"(?:<[^<>]{1,40}>|\[[A-Z_ ]{1,40}\]|\w|\s)*+\Z", text[max(first - 100, 0) : first])
            if thinks:
                first = text.rindex(_thought(messages[number]), 0, first)
                return range(max(first - 60, 0), first + 1)
            least = max(first - 100, 0) + lead.start() if lead else first
            return range(least, first + len(text[first:]) - len(text[first:].lstrip()) + 1)
        start = len(prompt)
        empty = EMPTY.match(text[start:first])
        if empty and not thinks:
            # the text's own white space may follow that of the template
            return range(start + len(text[start : start + empty.end()].rstrip()), start + empty.end() + 1)
        return range(start, start + 1)

    def _end(self, text: str, end: int) -> range:
        """Behind the answer's words: special tokens in a row, up to one that opens the next turn."""
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = sorted((token.content for token in added if token.special), key=len, reverse=True)
        special = re.compile("|".join([r"(?<=<\|close\|>)\w+", *map(re.escape, tokens)]))
        at = least = end
        while (found := special.match(text, at + len(text[at:]) - len(text[at:].lstrip()))) and not OPENS.match(
            found[0]
        ):
            if not (at > end and text[at : found.start()]):
                # behind a line break may stand the end of the document, which is no longer that of the turn
                least = found.end()
            at = found.end()
        return range(least, at + 1)

    def _call_span(self, text: str, messages: list[Any], tools: Any, number: int) -> tuple[range, range] | None:
        """A turn with calls: from the prompt to where the text goes on with the next message."""
        prompt = self.rendered(messages[:number], tools, prompt=True)
        asked = copy.deepcopy(messages)
        last = asked[number]["tool_calls"][-1]["function"]
        if not last["arguments"]:
            return None
        key = list(last["arguments"])[-1]
        value = last["arguments"][key]
        last["arguments"][key] = SENTINEL
        shown = self.rendered(asked, tools)
        if shown.count(SENTINEL) != 1 or not text.startswith(prompt):
            return None
        before, behind = shown.split(SENTINEL)
        if text != before + value + behind:
            return None
        start = len(prompt)
        first = self._call_start(text, messages, tools, number)
        empty = EMPTY.match(text[start:first]) if first is not None else None
        if empty and not self._thinks(messages, tools, number):
            start += empty.end()
        end = len(before) + len(value)
        opens = OPENS.search(text, end)
        ends = range(end, (opens.start() if opens else len(text)) + 1)
        return range(start, start + 1), range(end, self._cut_end(text, messages, tools, number, ends))

    def _cut_end(self, text: str, messages: list[Any], tools: Any, number: int, ends: range) -> int:
        """What the template writes also where the conversation ends here belongs to the turn, whatever it is."""
        cut = self.rendered(messages[: number + 1], tools)
        least = ends.start
        if cut.startswith(text[:least]):
            at = least
        else:
            at = cut.find(text[max(least - 6, 0) : least], max(least - 60, 0)) + min(6, least)
        tail = cut[at:].rstrip() if at >= 6 else ""
        return max(ends.stop, least + len(tail) + 1) if tail and text.startswith(tail, least) else ends.stop

    def _call_start(self, text: str, messages: list[Any], tools: Any, number: int) -> int | None:
        asked = copy.deepcopy(messages)
        asked[number]["tool_calls"][0]["function"]["name"] = SENTINEL
        shown = self.rendered(asked, tools)
        return shown.index(SENTINEL) if SENTINEL in shown else None

    def _thinks(self, messages: list[Any], tools: Any, number: int) -> bool:
        """Whether the answer has a thought that is written."""
        thought = _thought(messages[number])
        return bool(thought) and thought in self.rendered(messages, tools)


def _thought(message: Any) -> str:
    return str(message.get("reasoning_content") or "")


def _put(message: Any, text: str) -> None:
    if isinstance(message["content"], list):
        message["content"] = [{"type": "text", "text": text}]
    else:
        message["content"] = text


def _text(content: Any) -> str:
    return "".join(part["text"] for part in content) if isinstance(content, list) else content


def normalised(messages: list[Any], *, parts: bool) -> list[Any]:
    """What a row says, as transformers takes it: arguments as objects, no nulls, content as text or as parts."""
    out = []
    for message in copy.deepcopy(messages):
        kept = {key: value for key, value in message.items() if value is not None}
        kept.setdefault("content", "")
        for call in kept.get("tool_calls", ()):
            if isinstance(call["function"]["arguments"], str):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        thought = next((kept[name] for name in THOUGHTS if name in kept), None)
        if thought is not None:
            # one thing under all of its names; transformers fills two of the three
            kept |= dict.fromkeys(THOUGHTS, thought)
        if parts:
            kept["content"] = [{"type": "text", "text": kept["content"]}] if kept["content"] else []
        out.append(kept)
    return out
