"""What encoding needs of a tokenizer, taken from a transformers fast tokenizer once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from peftcli import files
from peftcli.data.asking import Allowance
from peftcli.errors import ModelError

# short strings that stand before a continuation, so that tokenizers which mark the start of a text do not mark it
_GUARDS = ("\n", "\x01", "¶")


_TYPING = ('"type_id":1', '"BertProcessing"')
"""What stands in the definition of a tokenizer that types the second of two texts."""


@dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer as plain data, so that worker processes can build it again without transformers.

    `definition` is the Rust tokenizer's own JSON; `specials` maps the text of special tokens to ids. `template`: the
    chat template, and `tool_template` the one for rows with tools where the tokenizer has several; `template_kwargs`:
    variables that the recipe gives them.
    """

    definition: str
    bos_id: int | None
    eos_id: int | None
    specials: dict[str, int]
    template: str | None
    template_variables: dict[str, str]
    tool_template: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    untyped: bool = False
    """Whether its own frame of two texts types them, and its class keeps that from models: all types are 0 then."""

    @staticmethod
    def of(tokenizer: Any) -> TokenizerFacts:
        """The facts of a transformers fast tokenizer; `ModelError` for a slow one."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{type(tokenizer).__name__} has no fast (Rust) tokenizer",
                fix="use a base that ships tokenizer.json, or convert its tokenizer with transformers",
            )
        variables = {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        specials = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        template, with_tools = (chat_template(tokenizer, tools=tools) for tools in (False, True))
        definition = backend.to_str()
        types = any(sign in definition for sign in _TYPING)
        return TokenizerFacts(
            definition,
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            specials,
            template,
            variables,
            with_tools if with_tools != template else None,
            template_kwargs(tokenizer),
            untyped=types and "token_type_ids" not in tokenizer.model_input_names,
        )

    @cached_property
    def sha256(self) -> str:
        """Of everything here but the chat template, which has its own."""
        facts = [self.definition, self.bos_id, self.eos_id, sorted(self.specials.items())]
        return files.sha256_bytes(files.to_json(facts).encode("utf-8", "surrogatepass"))

    @cached_property
    def template_sha256(self) -> str | None:
        """Of all that decides how a conversation is written; None without a chat template."""
        if self.template is None:
            return None
        facts: list[Any] = [self.template, sorted(self.template_variables.items())]
        if self.tool_template is not None:
            facts.append(self.tool_template)
        if self.template_kwargs:
            facts.append(sorted(self.template_kwargs.items()))
        return files.sha256_bytes(files.to_json(facts).encode("utf-8", "surrogatepass"))


KWARGS = "chat_template_kwargs"
"""Entry of a tokenizer's own settings (tokenizer_config.json) that holds `model.chat_template_kwargs`, so that the mode
of a chat goes wherever the tokenizer goes."""


def template_kwargs(tokenizer: Any) -> dict[str, Any]:
    """The variables that the recipe gives to the chat template of this tokenizer."""
    return dict(tokenizer.init_kwargs.get(KWARGS) or {})


def chat_template(tokenizer: Any, *, tools: bool) -> str | None:
    """The template for a row, chosen as transformers does: `tool_use` for a row with tools where there is one, else
    `default`. None without any. Raises `ModelError` where several are named and neither fits."""
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, dict):
        return template
    found = (template.get("tool_use") if tools else None) or template.get("default")
    if template and found is None:
        raise ModelError(
            f"the tokenizer has chat templates by name ({', '.join(map(str, template))}) and none is the default",
            fix="give the one to use as a file: `model.chat_template: FILE`",
        )
    return found


@dataclass(frozen=True)
class PairFrame:
    """What a tokenizer puts around two texts: ids and token types before, between and after them, and their types."""

    before: tuple[tuple[int, int], ...]
    between: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, int], ...]
    first_type: int
    second_type: int


class Codec:
    """Encodes and decodes with the Rust tokenizer, without the tokens that it adds around a text by itself.

    Raises `TokenizerLimit` for what does not come to an end; `allowance`: how long all calls of a thread may take.
    """

    def __init__(self, facts: TokenizerFacts) -> None:
        from tokenizers import Tokenizer

        self.facts = facts
        self.allowance = Allowance()
        self.bos_id, self.eos_id = facts.bos_id, facts.eos_id
        try:
            tokenizer = Tokenizer.from_str(facts.definition)
        except Exception as error:  # the library raises its base class alone
            raise ModelError(
                f"the tokenizer contradicts itself: {str(error)[:200]}",
                where="tokenizer.json",
                fix="put the base's own file back; one changed character is enough",
            ) from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.prefix, self.suffix = self.allowance.bounded(lambda: _surroundings(tokenizer), size=1)
        self.pair = self.allowance.bounded(lambda: _pair_frame(tokenizer, untyped=facts.untyped), size=1)
        # without post-processor: it would trim the spaces out of the offsets
        tokenizer.post_processor = None
        self._tokenizer = tokenizer
        self.guard, self._guard_ids = self._find_guard()
        self._guard_text = self._decode([self._guard_ids])[0]

    @cached_property
    def added(self) -> list[str]:
        """The texts of all tokens that stand for themselves, special or not: nothing is joined across them."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.content.strip()]

    @cached_property
    def end_text(self) -> str | None:
        """How the end token is spelled, where it is a token that stands for itself."""
        token = None if self.eos_id is None else self._tokenizer.get_added_tokens_decoder().get(self.eos_id)
        return None if token is None or not token.content.strip() else token.content

    @cached_property
    def stops(self) -> list[str]:
        """The texts of special tokens that may end an answer: any but one that only begins a text."""
        facts = self.facts
        texts = [text for text, number in facts.specials.items() if number != facts.bos_id or number == facts.eos_id]
        return [text for text in texts if text.strip()]

    @cached_property
    def added_pattern(self) -> re.Pattern[str] | None:
        """Matches the text of any added token; None when there is none."""
        texts = sorted(self.added, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as the start of a sequence, without special tokens around it."""
        encode = self._tokenizer.encode_batch_fast
        encodings = self.allowance.bounded(lambda: encode(texts, add_special_tokens=False), size=_size(texts))
        return [each.ids for each in encodings]

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as it goes on after other text: no mark of a beginning in front."""
        if not self.guard:
            return self.encode(texts)
        guard, count = self._guard_ids, len(self._guard_ids)
        encoded = self.encode([self.guard + text for text in texts])
        return [
            ids[count:] if ids[:count] == guard else self.encode([text])[0]
            for ids, text in zip(encoded, texts, strict=True)
        ]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Any]:
        """Rust encodings (`ids`, `offsets` in characters) of each text."""
        encode = self._tokenizer.encode_batch
        encodings: list[Any] = self.allowance.bounded(
            lambda: encode(texts, add_special_tokens=False), size=_size(texts)
        )
        return encodings

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of each run of ids as it stands inside a sequence, special tokens written out."""
        if not self.guard:
            return self._decode(rows)
        guarded = self._decode([[*self._guard_ids, *ids] for ids in rows])
        return [text[len(self._guard_text) :] for text in guarded]

    def _decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        decode = self._tokenizer.decode_batch
        texts: list[str] = self.allowance.bounded(lambda: decode(rows, skip_special_tokens=False), size=_size(rows))
        return texts

    def _find_guard(self) -> tuple[str, list[int]]:
        """A guard when this tokenizer marks beginnings (`▁`), else nothing."""
        words = ["there", "b", " go", "42"]
        plain = self.encode(words)
        for guard in _GUARDS:
            ids = self.encode([guard])[0]
            guarded = self.encode([guard + word for word in words])
            if not ids or any(row[: len(ids)] != ids for row in guarded):
                continue
            if all(row[len(ids) :] == alone for row, alone in zip(guarded, plain, strict=True)):
                return "", []
            return guard, ids
        return "", []


def _size(texts: Sequence[Sequence[Any]]) -> int:
    return sum(map(len, texts))


def _encoded(tokenizer: Any, *texts: str, special: bool) -> Any:
    # as a batch: for a single text the library would let no other thread run
    return tokenizer.encode_batch([texts if len(texts) > 1 else texts[0]], add_special_tokens=special)[0]


def _pair_frame(tokenizer: Any, *, untyped: bool) -> PairFrame | None:
    """None where the two texts cannot be found again in what the tokenizer makes of them."""
    first, second = (_encoded(tokenizer, text, special=False).ids for text in ("a", "b"))
    whole = _encoded(tokenizer, "a", "b", special=True)
    ids, kinds = whole.ids, [0 if untyped else min(kind, 3) for kind in whole.type_ids]
    framed = list(zip(ids, kinds, strict=True))
    starts = range(len(ids))
    start = next((at for at in starts if ids[at : at + len(first)] == first), None)
    if start is None:
        return None
    end = start + len(first)
    again = next((at for at in starts if at >= end and ids[at : at + len(second)] == second), None)
    if again is None:
        return None
    after = again + len(second)
    return PairFrame(tuple(framed[:start]), tuple(framed[end:again]), tuple(framed[after:]), kinds[start], kinds[again])


def _surroundings(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer itself puts before and after a text (BOS, CLS, SEP, ...)."""
    bare = _encoded(tokenizer, "a", special=False).ids
    full = _encoded(tokenizer, "a", special=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
