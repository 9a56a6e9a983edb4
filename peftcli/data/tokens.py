"""What encoding needs of a tokenizer, taken from a transformers fast tokenizer once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from peftcli import files
from peftcli.errors import ModelError

# short strings that stand before a continuation, so that tokenizers which mark the start of a text do not mark it
_GUARDS = ("\n", "\x01", "¶")


@dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer as plain data, so that worker processes can build it again without transformers.

    `definition` is the Rust tokenizer's own JSON; `specials` maps the text of special tokens to ids.
    """

    definition: str
    bos_id: int | None
    eos_id: int | None
    specials: dict[str, int]
    template: str | None
    template_variables: dict[str, str]

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
        return TokenizerFacts(
            backend.to_str(), tokenizer.bos_token_id, tokenizer.eos_token_id, specials, _template(tokenizer), variables
        )

    @cached_property
    def sha256(self) -> str:
        """Of everything here but the chat template, which has its own."""
        facts = [self.definition, self.bos_id, self.eos_id, sorted(self.specials.items())]
        return files.sha256_bytes(files.to_json(facts).encode("utf-8", "surrogatepass"))

    @cached_property
    def template_sha256(self) -> str | None:
        if self.template is None:
            return None
        facts = [self.template, sorted(self.template_variables.items())]
        return files.sha256_bytes(files.to_json(facts).encode("utf-8", "surrogatepass"))


def _template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        return template.get("default") or next(iter(template.values()), None)
    return template


class Codec:
    """Encodes and decodes with the Rust tokenizer, without the tokens that it adds around a text by itself."""

    def __init__(self, facts: TokenizerFacts) -> None:
        from tokenizers import Tokenizer

        self.facts = facts
        self.bos_id, self.eos_id = facts.bos_id, facts.eos_id
        tokenizer = Tokenizer.from_str(facts.definition)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.prefix, self.suffix = _surroundings(tokenizer)
        # without post-processor: it would trim the spaces out of the offsets
        tokenizer.post_processor = None
        self._tokenizer = tokenizer
        self.special_ids = frozenset(facts.specials.values())
        self.guard, self._guard_ids = self._find_guard()
        self._guard_text = self._tokenizer.decode(self._guard_ids, skip_special_tokens=False)

    @cached_property
    def special_pattern(self) -> re.Pattern[str] | None:
        """Matches the text of any special token; None when there is none."""
        texts = sorted((text for text in self.facts.specials if text.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    @cached_property
    def stop_pattern(self) -> re.Pattern[str] | None:
        """Matches the text of a special token that may end an answer: any but one that only begins a text."""
        facts = self.facts
        texts = [text for text, number in facts.specials.items() if number != facts.bos_id or number == facts.eos_id]
        texts = sorted((text for text in texts if text.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as the start of a sequence, without special tokens around it."""
        return [each.ids for each in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

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
        encodings: list[Any] = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return encodings

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of each run of ids as it stands inside a sequence, special tokens written out."""
        if not self.guard:
            decoded: list[str] = self._tokenizer.decode_batch(rows, skip_special_tokens=False)
            return decoded
        guarded = self._tokenizer.decode_batch([[*self._guard_ids, *ids] for ids in rows], skip_special_tokens=False)
        return [text[len(self._guard_text) :] for text in guarded]

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


def _surroundings(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer itself puts before and after a text (BOS, CLS, SEP, ...)."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
