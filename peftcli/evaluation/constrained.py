"""Answers that are JSON of a schema: at each step only those tokens that some valid answer goes on with (llguidance)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from peftcli.errors import DeviceError, ModelError, RecipeError
from peftcli.evaluation.config import JSON_EXTRA, JSON_PACKAGE

_WHITESPACE = {"whitespace_pattern": r"[ \n\t]{0,8}"}
"""Bounded: a weak model would write spaces for ever."""


class JsonGrammar:
    """A schema in terms of a tokenizer; makes the constraint of each batch.

    Raises `RecipeError` for a schema that is none, `DeviceError` where the package is missing, `ModelError` for a
    tokenizer whose bytes are not known.
    """

    def __init__(self, schema: Mapping[str, Any], tokenizer: Any, stops: Sequence[int]) -> None:
        if importlib.util.find_spec(JSON_PACKAGE) is None:
            raise DeviceError(f"generation.json_schema needs the package {JSON_PACKAGE}", fix=JSON_EXTRA)
        if not stops:
            raise ModelError("no token ends an answer of this model, and JSON has an end", fix="use another base")
        from llguidance import LLMatcher

        self._matcher = LLMatcher
        self.tokenizer, self.stops = tokenizer, list(stops)
        self.grammar = LLMatcher.grammar_from_json_schema(dict(schema), defaults=_WHITESPACE)
        fault = LLMatcher.validate_grammar(self.grammar)
        if fault:
            raise RecipeError(f"generation.json_schema: {' '.join(fault.split())[:300]}", fix="correct the schema")
        self._words: tuple[int, Any] | None = None

    def processor(self) -> LogitsProcessor:
        """The constraint of one batch; a new one for each."""
        return _JsonProcessor(self)

    def matcher(self, width: int) -> Any:
        """The state of one answer, for a model of `width` scores."""
        if self._words is None or self._words[0] != width:
            self._words = (width, self._tokens(width))
        return self._matcher(self._words[1], self.grammar)

    def _tokens(self, width: int) -> Any:
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(self.tokenizer, n_vocab=width, eos_token=self.stops)
        except Exception as error:  # of a library in another language, on any tokenizer
            text = " ".join(str(error).split())[:200]
            raise ModelError(f"generation.json_schema: the bytes of this tokenizer are not known: {text}") from error


class _JsonProcessor(LogitsProcessor):  # type: ignore[misc]
    """Follows the answers of one batch. After its stop token an answer is over, whatever it is padded with."""

    def __init__(self, grammar: JsonGrammar) -> None:
        self.grammar = grammar
        self.matchers: list[Any] | None = None
        self.ended: list[bool] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows, width = scores.shape
        if self.matchers is None:
            self.matchers = [self.grammar.matcher(width) for _ in range(rows)]
            self.ended = [False] * rows
        else:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                self._follow(row, token)
        allowed = torch.stack([self._allowed(row, width) for row in range(rows)])
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))

    def _follow(self, row: int, token: int) -> None:
        assert self.matchers is not None
        if self.ended[row]:
            return
        if token in self.grammar.stops:
            self.ended[row] = True
        elif not self.matchers[row].consume_token(token):
            raise ModelError(f"generation.json_schema: {' '.join(self.matchers[row].get_error().split())[:200]}")

    def _allowed(self, row: int, width: int) -> Tensor:
        """(width,): which tokens may come next."""
        assert self.matchers is not None
        if self.ended[row]:
            return torch.ones(width, dtype=torch.bool)
        matcher = self.matchers[row]
        if matcher.is_stopped():
            # the JSON is whole and nothing can follow
            allowed = torch.zeros(width, dtype=torch.bool)
            allowed[self.grammar.stops] = True
            return allowed
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")[:width]
        found = torch.from_numpy(bits.astype(bool))
        return torch.nn.functional.pad(found, (0, width - len(found)))
