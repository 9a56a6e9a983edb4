"""Tokens that a base does not have: put into its tokenizer, given rows in its tables, and told apart from its own rows.

The rows of a new token start at the mean of those of the pieces that its text was cut into before. A table that has rows
to spare keeps its size. What the base is, its fingerprint and its configuration, stays what its own files say.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftcli.errors import ModelError
from peftcli.models.structure import input_embedding, output_embedding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OWN = "_peftcli_own_rows"
_CONFIG = "_peftcli_own_config"


@dataclass(frozen=True)
class AddedTokens:
    """Tokens that the base's tokenizer lacks."""

    ids: tuple[int, ...]
    pieces: tuple[tuple[int, ...], ...]
    """Of each, the base's tokens that its text is cut into without it."""
    started: frozenset[int]
    """Those whose rows start at the mean of their pieces even where the base has a row to spare for them."""

    def written(self, count: int) -> list[tuple[int, tuple[int, ...]]]:
        """Ids and pieces of the rows that are written into a table of so many rows."""
        pairs = zip(self.ids, self.pieces, strict=True)
        return [(number, pieces) for number, pieces in pairs if number >= count or number in self.started]

    @property
    def rows(self) -> int:
        """Rows that a table must have at least."""
        return max(self.ids) + 1


@dataclass(frozen=True)
class _OwnRows:
    """What a table was before it got rows for new tokens."""

    count: int
    ids: tuple[int, ...]
    values: Tensor

    def of(self, table: Tensor) -> Tensor:
        found = table.detach()[: self.count]
        if not self.ids:
            return found
        found = found.clone()
        found[list(self.ids)] = self.values.to(found.device, found.dtype)
        return found


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], *, where: str) -> None:
    """Adds tokens behind all that are there, as plain text that is never cut. Raises `ModelError` for one that it has."""
    vocabulary = tokenizer.get_vocab()
    if known := [token for token in tokens if token in vocabulary]:
        raise ModelError(
            f"`{known[0]}` is token {vocabulary[known[0]]} of the base already",
            where=where,
            fix="take it out of `model.add_tokens`",
        )
    before = len(tokenizer)
    tokenizer.add_tokens(list(tokens))
    found = tokenizer.convert_tokens_to_ids(list(tokens))
    if found != list(range(before, before + len(tokens))):
        raise ModelError(
            f"the tokenizer gives new tokens the ids {found[:3]}..., not those behind its {before} tokens",
            where=where,
            fix="add them to the base itself, and train on that",
        )


def added_tokens(
    base: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, started: Collection[str]
) -> AddedTokens | None:
    """The tokens that a tokenizer has under ids that are free in the base's; None where there are none.

    `started`: those that were added here. Others may have been trained on the rows that the base has to spare."""
    own = base.get_vocab()
    taken = set(own.values())
    ids = {token: number for token, number in tokenizer.get_vocab().items() if token not in own and number not in taken}
    if not ids:
        return None
    order = sorted(ids, key=lambda token: ids[token])
    pieces = [tuple(base(token, add_special_tokens=False).input_ids) for token in order]
    here = frozenset(ids[token] for token in order if token in started)
    return AddedTokens(tuple(ids[token] for token in order), tuple(pieces), here)


@torch.no_grad()
def give_rows(model: nn.Module, added: AddedTokens) -> None:
    """Rows for new tokens in every table of a model that has no adapter yet, on the meta device too."""
    config: Any = model.config
    before = copy.deepcopy(config.to_dict())
    tables = _tables(model)
    own = [_OwnRows(len(table.weight), *_spare(table.weight, added)) for table in tables]
    if all(not added.written(rows.count) for rows in own):
        return
    if any(len(table.weight) < added.rows for table in tables):
        # drawn anew by transformers, then written over below: the shared generator must not notice
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(added.rows, mean_resizing=False)  # type: ignore[operator]
        model.__dict__[_CONFIG] = before
    for table, rows in zip(_tables(model), own, strict=True):
        table.__dict__[_OWN] = rows
        weight = table.weight
        for number, pieces in added.written(rows.count):
            source = weight[list(pieces)] if pieces else weight[: rows.count]
            weight[number] = source.float().mean(0).to(weight.dtype)


def rows_given(table: nn.Module) -> int:
    """The number of rows that a table of the base has itself, where rows were added behind them; 0 elsewhere."""
    found: _OwnRows | None = table.__dict__.get(_OWN)
    weight = table._parameters.get("weight")
    return 0 if found is None or weight is None or len(weight) == found.count else found.count


def note_rows(model: nn.Module, count: int) -> None:
    """Rows behind the first `count` are none of the base's own: they were added for the tokens of an adapter."""
    for table in _tables(model):
        if _OWN not in table.__dict__ and len(table.weight) > count:
            table.__dict__[_OWN] = _OwnRows(count, (), table.weight.detach()[:0])


def own_rows(module: nn.Module, tensor: Tensor, leaf: str) -> Tensor:
    """A parameter of the base as its files have it, without the rows of new tokens."""
    rows: _OwnRows | None = module.__dict__.get(_OWN)
    if rows is None:
        return tensor
    return rows.of(tensor) if leaf == "weight" else tensor.detach()[: rows.count]


def own_config(model: nn.Module) -> dict[str, Any]:
    """The configuration of a base as its files have it."""
    found: dict[str, Any] = model.__dict__.get(_CONFIG) or model.config.to_dict()  # type: ignore[union-attr, operator]
    return found


def _spare(weight: Tensor, added: AddedTokens) -> tuple[tuple[int, ...], Tensor]:
    """Those of the ids that a table has rows for already, and what stands there."""
    ids = tuple(number for number, _ in added.written(len(weight)) if number < len(weight))
    return ids, weight.detach()[list(ids)].clone()


def _tables(model: nn.Module) -> list[Any]:
    """The modules of the input and the output embedding; one where both are the same tensor."""
    found = [module for module in (input_embedding(model), output_embedding(model)) if module is not None]
    if not found:
        raise ModelError("new tokens need a model with a token embedding", fix="leave `model.add_tokens` out")
    if len(found) > 1 and found[0].weight is found[1].weight:
        return found[:1]
    return found
