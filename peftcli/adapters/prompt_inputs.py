"""Prompts that are rows in front of the embedded input: `extend` before the backbone runs, `strip` after it.

    input_ids   [        a b c]        placeholders in front, overwritten in the output of the embedding
    mask        [1 1 1 | 1 1 0]        ones in front, in the mask's own type
    positions   [0 1 2 | 3 4 .]        sums of the lengthened mask, so that padding on either side changes nothing
    hidden      [. . . | x y z]        the last three go on to the head: logits and labels never see the prompt

While generating, the rows enter with the first call; later calls find them in the cache, and only mask and positions
are shifted. In encoder-decoder models the prompt stands before the encoder's input.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftcli.adapters.prompt_config import PromptConfig
from peftcli.adapters.prompt_sites import Positions, PromptSites
from peftcli.adapters.prompts import PromptAdapter
from peftcli.errors import AdapterError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional arguments of a forward call under their names, beside the named ones."""
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(module.forward).parameters)
    return dict(zip(names, args, strict=False)) | kwargs


def entering(inputs: dict[str, Any]) -> Tensor:
    """The tokens of a call, as ids (batch, length) or embedded (batch, length, width)."""
    tokens: Tensor = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    return tokens


def cached_length(cache: Any) -> int:
    """Tokens that a cache holds; 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())


def ones_in_front(mask: Tensor, n: int) -> Tensor:
    """(batch, length) -> (batch, n + length)."""
    if mask.dim() != 2:
        raise AdapterError(
            f"prompt methods need a mask of (batch, length), got {list(mask.shape)}",
            fix="pass the plain attention mask, and generate with the default (dynamic) cache",
        )
    return torch.cat([mask.new_ones(mask.shape[0], n), mask], dim=1)


def beside_padding(mask: Tensor, n: int) -> Tensor | None:
    """For rows padded on the left: where each column of [prompt; tokens] comes from when the padding stays outermost.

    (batch, n + length), or None where no row begins with padding. Relative positions (T5) then are those of an unpadded
    row.
    """
    padding = (mask.long().cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
    if not bool(padding.any()):
        return None
    column = torch.arange(n + mask.shape[1], device=mask.device).expand(mask.shape[0], -1)
    inner = torch.where(column < padding + n, column - padding, column)
    return torch.where(column < padding, column + n, inner)


def in_order(joined: Tensor, order: Tensor | None) -> Tensor:
    """Columns of (batch, length, ...) as `beside_padding` says."""
    if order is None:
        return joined
    return joined.gather(1, order if joined.dim() == 2 else order[..., None].expand_as(joined))


def lengthen_mask(inputs: dict[str, Any], n: int) -> Tensor | None:
    """Puts ones before the mask of a call, where it has one, and gives it."""
    inputs.pop("cache_position", None)
    mask: Tensor | None = inputs.get("attention_mask")
    if mask is not None:
        inputs["attention_mask"] = mask = ones_in_front(mask, n)
    return mask


def shift_positions(inputs: dict[str, Any], mask: Tensor | None, n: int, positions: Positions) -> None:
    """Moves positions behind the prompt: those given by n, else those of the tokens that enter, by the lengthened mask."""
    given, ids = inputs.get("position_ids"), inputs.get("input_ids")
    if not positions.taken or (given is None and ids is not None and positions.from_ids):
        return
    if given is not None:
        inputs["position_ids"] = given + n
    elif mask is not None:
        inputs["position_ids"] = positions_of(mask)[:, -entering(inputs).shape[1] :] + positions.first


def positions_of(mask: Tensor) -> Tensor:
    """Position of each token in its row, padding left out: (batch, length)."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


class InputPromptAdapter(PromptAdapter):
    """Rows in front of the embedded input."""

    def __init__(self, model: nn.Module, config: PromptConfig, sites: PromptSites, total_rows: int) -> None:
        super().__init__(model, config, total_rows)
        self.sites = sites
        self._rows_due = False
        self._extended = False
        self._order: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Rows that enter the sequence. An encoder-decoder prompt of the reference holds twice as many; only the first
        half, those of the encoder, is ever used there."""
        return self.config.num_virtual_tokens

    def added_positions(self) -> int:
        return self.num_rows

    def hook(self) -> Iterable[RemovableHandle]:
        sites = self.sites
        yield sites.backbone.register_forward_pre_hook(self.extend, with_kwargs=True)
        yield sites.embedding.register_forward_hook(self.write_rows)
        yield sites.backbone.register_forward_hook(self.strip)
        if sites.reader is not None:
            yield sites.reader.register_forward_pre_hook(self.extend_reader, with_kwargs=True)

    def rows(self, batch: int, like: Tensor) -> Tensor:
        """The prompt for a batch, (batch, n, width)."""
        return self.prompt()[: self.num_rows].to(device=like.device, dtype=like.dtype).expand(batch, -1, -1)

    def extend(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Forward pre-hook of the backbone: inputs with the prompt in front."""
        self._extended = self._rows_due = False
        self._order = None
        if not self.enabled:
            return None
        inputs = named_arguments(module, args, kwargs)
        cached = cached_length(inputs.get("past_key_values"))
        positions_given = inputs.get("position_ids") is not None
        mask = lengthen_mask(inputs, self.num_rows)
        if self.sites.reader is not None and mask is not None:
            self._order = beside_padding(mask[:, self.num_rows :], self.num_rows)
            inputs["attention_mask"] = in_order(mask, self._order)
        if cached == 0:
            self.sites.positions.check_room(self.num_rows, entering(inputs).shape[1])
            self._extend_tokens(inputs)
            self._extended = True
        shift_positions(inputs, mask, self.num_rows, self.sites.positions)
        if cached == 0 and positions_given:
            self._first_positions(inputs)
        return (), inputs

    def _extend_tokens(self, inputs: dict[str, Any]) -> None:
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        n = self.num_rows
        if embeds is not None:
            joined = torch.cat([self.rows(embeds.shape[0], embeds), embeds], dim=1)
            inputs["inputs_embeds"] = in_order(joined, self._order)
        elif ids is not None:
            inputs["input_ids"] = torch.cat([ids.new_full((ids.shape[0], n), self.sites.placeholder), ids], dim=1)
            self._rows_due = True
        types = inputs.get("token_type_ids")
        if types is not None:
            inputs["token_type_ids"] = torch.cat([types.new_zeros(types.shape[0], n), types], dim=1)

    def _first_positions(self, inputs: dict[str, Any]) -> None:
        """Positions of the prompt itself, before those that the caller gave."""
        given = inputs["position_ids"]
        first = torch.arange(self.num_rows, device=given.device, dtype=given.dtype) + self.sites.positions.first
        inputs["position_ids"] = torch.cat([first.expand(*given.shape[:-1], -1), given], dim=-1)

    def write_rows(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook of the embedding: the prompt in the place of the placeholders."""
        if not self._rows_due:
            return None
        self._rows_due = False
        joined = torch.cat([self.rows(output.shape[0], output), output[:, self.num_rows :]], dim=1)
        return in_order(joined, self._order)

    def strip(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of the backbone: hidden states of the real tokens only."""
        if not self._extended or not self.sites.strips:
            return None
        self._extended = False
        n = self.num_rows
        if isinstance(output, tuple):
            return (output[0][:, n:], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, n:]
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(state[:, n:] for state in output.hidden_states)
        return output

    def extend_reader(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Forward pre-hook of the decoder: its mask over an encoder output that the prompt lengthened."""
        inputs = named_arguments(module, args, kwargs)
        mask, states = inputs.get("encoder_attention_mask"), inputs.get("encoder_hidden_states")
        if mask is None or states is None or states.shape[1] != mask.shape[-1] + self.num_rows:
            return None
        n = self.num_rows
        inputs["encoder_attention_mask"] = in_order(ones_in_front(mask, n), beside_padding(mask, n))
        return (), inputs
