"""ReFT (arXiv:2404.03592, eq. 2, LoReFT): edits the hidden state h after a block in an r-dimensional subspace.

    h' = h + R^T (W h + b - R h)        R with orthonormal rows

Shapes: R (r, hidden), W (r, hidden), b (r,). R is the orthonormal factor of the trained matrix (its QR decomposition
with a positive diagonal), recomputed at each use. Start: W = R, b = 0, the identity; the paper starts at random.
Keys: `P.reft_R` (the trained matrix), `P.reft_W`, `P.reft_b`, P the path of a block. Not in the reference library.

With `prefix_positions` and `suffix_positions` only the first and last tokens of a row are edited: positions are counted
on the mask, so padding on either side changes nothing, and on the cache, so generation equals a full pass. In an
encoder-decoder model these are rows of the encoder, whose blocks alone are then edited.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftcli.adapters.base import Entry, InitContext, Method, Shapes
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.layers import AdapterLayer
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.methods.reft.config import ReftConfig
from peftcli.adapters.prompt_sites import decoder_backbone, is_encoder_decoder
from peftcli.adapters.selection import SelectedParameters, selected_entries, train_named_modules
from peftcli.errors import AdapterError, MergeError
from peftcli.models.spelling import check_memory_is_known, goes_on, named_arguments, tokens_before
from peftcli.models.structure import hidden_size, structure


class Positions:
    """Which tokens of the running pass are edited; one for the whole model."""

    def __init__(self, config: ReftConfig) -> None:
        self.config = config
        self.edited: Tensor | None = None
        """(batch, length, 1) of booleans; None edits every token."""

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the module that is given ids and mask."""
        inputs = named_arguments(module, args, kwargs)
        tokens = next(inputs[name] for name in ("input_ids", "inputs_embeds") if inputs.get(name) is not None)
        mask, length = inputs.get("attention_mask"), tokens.shape[1]
        # without a mask all tokens are real, those in the cache as well
        if mask is None:
            mask = torch.ones(tokens.shape[0], tokens_before(inputs) + length, dtype=torch.long, device=tokens.device)
        if mask.dim() != 2:
            raise AdapterError(
                f"reft with positions needs a mask of (batch, length), got {list(mask.shape)}",
                fix="pass the plain attention mask, and generate with the default (dynamic) cache",
            )
        self.edited = self._edited(mask.long(), begins=not goes_on(inputs))[:, -length:, None]

    def _edited(self, mask: Tensor, *, begins: bool) -> Tensor:
        """(batch, all tokens so far): whether a token is one of the first or last real ones."""
        # the last columns: mask and cache reach back to the beginning of the row
        from_start, from_end = mask.cumsum(dim=1), mask.flip(1).cumsum(dim=1).flip(1)
        chosen = torch.zeros_like(mask, dtype=torch.bool)
        if self.config.prefix_positions is not None:
            chosen |= from_start <= self.config.prefix_positions
        # while generating the end of the prompt is past: nothing of it is edited again
        if self.config.suffix_positions is not None and begins:
            chosen |= from_end <= self.config.suffix_positions
        return chosen & mask.bool()


class ReftLayer(AdapterLayer):
    """A block whose output is edited."""

    def __init__(self, base_layer: nn.Module, config: ReftConfig, width: int, positions: Positions) -> None:
        super().__init__(base_layer)
        device = next(base_layer.parameters()).device
        self.positions = positions
        self.reft_R = nn.Parameter(torch.empty(config.r, width, device=device))
        self.reft_W = nn.Parameter(torch.empty(config.r, width, device=device))
        self.reft_b = nn.Parameter(torch.empty(config.r, device=device))
        self.dropout = nn.Dropout(config.reft_dropout)

    def rotation(self) -> Tensor:
        """R (r, hidden), orthonormal rows."""
        q, upper = torch.linalg.qr(self.reft_R.T)
        # the sign that makes the factorisation unique, and R a smooth function of the matrix
        rotation: Tensor = (q * upper.diagonal().detach().sign()).T
        return rotation

    def adapted(self, *args: Any, **kwargs: Any) -> Any:
        """h + R^T (W h + b - R h) of the edited tokens, (batch, seq, hidden)."""
        result = self.base_layer(*args, **kwargs)
        if isinstance(result, tuple):
            return (self._edited(result[0]), *result[1:])
        return self._edited(result)

    def _edited(self, hidden: Tensor) -> Tensor:
        rotation = self.rotation()
        # W h + b - R h, exactly zero at the start
        shift = nn.functional.linear(hidden.to(self.reft_W.dtype), self.reft_W - rotation, self.reft_b)
        edit: Tensor = self.dropout(shift @ rotation)
        edited = self.positions.edited
        if edited is not None:
            edit = torch.where(edited.to(edit.device), edit, 0.0)
        return (hidden + edit).to(hidden.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"reft_R": self.reft_R, "reft_W": self.reft_W, "reft_b": self.reft_b}

    def initialise(self, context: InitContext) -> None:
        """R orthonormal at random, W = R, b = 0: no edit."""
        with torch.no_grad():
            drawn = torch.empty(self.reft_R.shape).normal_(generator=context.generator)
            # orthonormal from the beginning, so that R is the trained matrix itself
            self.reft_R.copy_(torch.linalg.qr(drawn.T)[0].T)
            self.reft_W.copy_(self.rotation())
            self.reft_b.zero_()

    def merged(self) -> dict[str, Tensor]:
        """Raises `MergeError`."""
        raise MergeError(
            "reft cannot be merged: it edits hidden states after the residual sum, where no weight is",
            fix="serve the adapter with its base instead",
        )


class ReftAdapter(LayersAdapter):
    """Owns the hook that tells positions."""

    config: ReftConfig

    def __init__(self, model: nn.Module, config: ReftConfig) -> None:
        super().__init__(model, config)
        self.positions = Positions(config)
        self.handle: RemovableHandle | None = None

    def packing_fault(self) -> str | None:
        return None if self.config.everywhere else "it edits the first and last tokens of a sequence, not of each row"

    def remove(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None
        super().remove()

    def entries(self) -> list[Entry]:
        saved = [pair for pair in self.layers if isinstance(pair[1], SelectedParameters)]
        edits = [entry for entry in super().entries() if ".reft_" in entry.key]
        return edits + selected_entries(saved)


class Reft(Method):
    """Wraps the chosen blocks."""

    config_class = ReftConfig

    def build(self, model: nn.Module, config: ReftConfig, shapes: Shapes | None) -> ReftAdapter:
        blocks = dict(_chosen(model, config))
        width = hidden_size(model)
        if config.r > width:
            raise AdapterError(f"r = {config.r} is larger than the hidden size {width}", fix=f"use r <= {width}")
        adapter = ReftAdapter(model, config)
        try:
            if not config.everywhere:
                backbone = _reader(model)
                check_memory_is_known(backbone)
                adapter.handle = backbone.register_forward_pre_hook(adapter.positions.see, with_kwargs=True)
            for path, block in blocks.items():
                adapter.wrap(path, ReftLayer(block, config, width, adapter.positions))
            train_named_modules(adapter, config.modules_to_save or [])
        # Ctrl-C too: hook and wrappers go again, and the exception goes on
        except BaseException:
            adapter.remove()
            raise
        return adapter


def _reader(model: nn.Module) -> nn.Module:
    """The module that is given the ids and the mask of the rows that are edited."""
    reader: nn.Module = model.get_encoder() if is_encoder_decoder(model) else decoder_backbone(model)  # type: ignore[operator]
    return reader


def _continues(model: nn.Module) -> bool:
    """Whether a model generates by continuing the rows that it reads."""
    generates = getattr(model, "can_generate", None)
    return not is_encoder_decoder(model) and callable(generates) and bool(generates())


def _chosen(model: nn.Module, config: ReftConfig) -> Iterator[tuple[str, nn.Module]]:
    blocks = structure(model).blocks
    if not blocks:
        raise AdapterError("no block is found in this model", fix="use lora, which needs none")
    if config.suffix_positions is not None and _continues(model):
        raise AdapterError(
            "suffix_positions: in a model that continues its input the end of the prompt is not known while training",
            fix="use prefix_positions, or neither (every token is edited)",
        )
    readable = blocks
    if not config.everywhere and is_encoder_decoder(model):
        inside = {id(module) for module in _reader(model).modules()}
        readable = {path: block for path, block in blocks.items() if id(block) in inside}
    wanted = config.layers_to_transform
    numbers = range(len(readable)) if wanted is None else [wanted] if isinstance(wanted, int) else sorted(set(wanted))
    beyond = [number for number in numbers if number not in range(len(readable))]
    if beyond:
        raise AdapterError(
            f"layers_to_transform names blocks that this model does not have: {beyond}",
            fix=f"blocks 0 to {len(readable) - 1} can be edited",
        )
    paths = list(readable)
    modules = dict(named_base_modules(model))
    yield from ((paths[number], modules[paths[number]]) for number in numbers)


METHOD = Reft()
