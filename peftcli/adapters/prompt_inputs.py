"""Prompts that are rows in front of the embedded input: `extend` before the backbone runs, `strip` after it.

    input_ids   [        a b c]        placeholders in front, overwritten in the output of the embedding
    mask        [1 1 1 | 1 1 0]        ones in front, in the mask's own type
    positions   [0 1 2 | 3 4 .]        sums of the lengthened mask, so that padding on either side changes nothing
    hidden      [. . . | x y z]        the last three go on to the head: logits and labels never see the prompt

In rows padded on the left, the prompt stands after the padding (`adapters.prompt_placement`).
While generating, the rows enter with the first call; later calls find them in the cache, and only mask and positions
are shifted. In encoder-decoder models the prompt stands before the encoder's input.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftcli.adapters.prompt_config import PromptConfig
from peftcli.adapters.prompt_placement import Placement, placement
from peftcli.adapters.prompt_sites import Positions, PromptSites
from peftcli.adapters.prompts import PromptAdapter
from peftcli.errors import AdapterError
from peftcli.models.spelling import goes_on, named_arguments, shift_cache_position

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a module's forward."""


def entering(inputs: dict[str, Any]) -> Tensor:
    """The tokens of a call, as ids (batch, length) or embedded (batch, length, width)."""
    tokens: Tensor = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    return tokens


def lengthen_mask(inputs: dict[str, Any], place: Placement) -> Tensor | None:
    """Puts ones for the prompt into the mask of a call, where it has one, and gives it."""
    mask: Tensor | None = inputs.get("attention_mask")
    if mask is not None:
        inputs["attention_mask"] = mask = place.mask(mask)
    return mask


def shift_positions(inputs: dict[str, Any], mask: Tensor | None, n: int, positions: Positions) -> None:
    """Moves positions after the prompt: those given by n, else those of the tokens that enter, by the lengthened mask."""
    given, ids = inputs.get("position_ids"), inputs.get("input_ids")
    # RoBERTa counts by its padding id, and finds the placeholders by it
    if not positions.taken or (given is None and ids is not None and positions.from_ids):
        return
    if given is not None:
        inputs["position_ids"] = given + n
    elif mask is not None:
        inputs["position_ids"] = positions_of(mask)[:, -entering(inputs).shape[1] :] + positions.first


def positions_of(mask: Tensor) -> Tensor:
    """Position of each token in its row, padding left out: (batch, length)."""
    # padding in front would count down below zero
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


class InputPromptAdapter(PromptAdapter):
    """Rows in front of the embedded input."""

    def __init__(self, model: nn.Module, config: PromptConfig, sites: PromptSites, total_rows: int) -> None:
        super().__init__(model, config, total_rows)
        self.sites = sites
        self._rows_due = False
        self._entered = torch.Size()
        self._extended = False
        self._place = Placement(config.num_virtual_tokens)

    @property
    def num_rows(self) -> int:
        """Rows that enter the sequence. An encoder-decoder prompt of the reference holds twice as many; only the first
        half, those of the encoder, is ever used there."""
        return self.config.num_virtual_tokens

    def added_positions(self) -> int:
        """How many positions the prompt takes from the model's own."""
        return self.num_rows

    def hook(self) -> Iterable[RemovableHandle]:
        # in the order in which a call meets them: before the backbone, inside, and after
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
        """Forward pre-hook of the backbone: inputs with the prompt in them."""
        self._extended = self._rows_due = False
        if not self.enabled:
            return None
        inputs = named_arguments(module, args, kwargs)
        begins = not goes_on(inputs)
        positions_given = inputs.get("position_ids") is not None
        self._place = self._placement(inputs)
        mask = lengthen_mask(inputs, self._place)
        shift_cache_position(inputs, self.num_rows, entering=begins)
        if begins:
            self.sites.positions.check_room(self.num_rows, entering(inputs).shape[1])
            self._extend_tokens(inputs)
            self._extended = True
        shift_positions(inputs, mask, self.num_rows, self.sites.positions)
        if begins and positions_given:
            self._first_positions(inputs)
        return (), inputs

    def _placement(self, inputs: dict[str, Any]) -> Placement:
        place = placement(inputs.get("attention_mask"), self.num_rows)
        # a model that judges a row by its first token is to find the prompt there
        return place if self.sites.strips or self.sites.reader is not None else Placement(self.num_rows)

    def _extend_tokens(self, inputs: dict[str, Any]) -> None:
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        n = self.num_rows
        if embeds is not None:
            inputs["inputs_embeds"] = self._joined(embeds)
        elif ids is not None:
            joined = torch.cat([ids.new_full((ids.shape[0], n), self.sites.placeholder), ids], dim=1)
            inputs["input_ids"] = self._place.placed(joined)
            self._rows_due, self._entered = True, joined.shape
        types = inputs.get("token_type_ids")
        if types is not None:
            joined = torch.cat([types.new_zeros(types.shape[0], n), types], dim=1)
            inputs["token_type_ids"] = self._place.placed(joined)

    def _joined(self, embedded: Tensor) -> Tensor:
        """(batch, length, width) -> (batch, n + length, width)."""
        return self._place.placed(torch.cat([self.rows(embedded.shape[0], embedded), embedded], dim=1))

    def _first_positions(self, inputs: dict[str, Any]) -> None:
        """Positions of the prompt itself, before those that the caller gave."""
        given = inputs["position_ids"]
        first = torch.arange(self.num_rows, device=given.device, dtype=given.dtype) + self.sites.positions.first
        joined = torch.cat([first.expand(*given.shape[:-1], -1), given], dim=-1)
        inputs["position_ids"] = self._place.placed(joined, dim=-1)

    def write_rows(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook of the embedding: the prompt in the place of the placeholders."""
        if not self._rows_due:
            return None
        self._rows_due = False
        # what the embedding is asked for must be what was lengthened, or rows would be written over tokens
        if output.shape[:2] != self._entered:
            raise AdapterError(
                f"the embedding of this model is asked for {list(output.shape[:2])}, a prompt needs (batch, length)",
                fix="use lora, or prefix_tuning where the model has a cache",
            )
        return self._joined(self._place.rows(output))

    def strip(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of the backbone: hidden states of the real tokens only."""
        if self._rows_due:
            raise AdapterError(
                f"{type(module).__name__} does not embed its input with {type(self.sites.embedding).__name__}: "
                "the prompt would not be read",
                fix="use lora, or prefix_tuning where the model has a cache",
            )
        if not self._extended or not self.sites.strips:
            return None
        self._extended = False
        if isinstance(output, tuple):
            return (self._place.rows(output[0]), *output[1:])
        output.last_hidden_state = self._place.rows(output.last_hidden_state)
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(self._place.rows(state) for state in output.hidden_states)
        return output

    def extend_reader(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Forward pre-hook of the decoder: its mask over an encoder output that the prompt lengthened."""
        inputs = named_arguments(module, args, kwargs)
        mask, states = inputs.get("encoder_attention_mask"), inputs.get("encoder_hidden_states")
        # only where the encoder's output was lengthened: cross-attention may be given other states
        if mask is None or states is None or states.shape[1] != mask.shape[-1] + self.num_rows:
            return None
        inputs["encoder_attention_mask"] = placement(mask, self.num_rows).mask(mask)
        return (), inputs
