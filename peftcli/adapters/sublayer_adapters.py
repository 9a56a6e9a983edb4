"""Adapter layers at the sublayers of each block, found by structure; subclasses say how the projections are made.

With h the output of a sublayer, x the residual stream, f the small network  f(z) = up(act(down(z))):

    houlsby     h + s f(h)                 after attention and after the feed-forward sublayer   (arXiv:1902.00751)
    pfeiffer    h + s f(x + h)             after the feed-forward sublayer; f(norm(x + h)) in post-norm models
                                                                                                 (arXiv:2005.00247)
    parallel    h + s f(x)                 beside the feed-forward sublayer                      (arXiv:2110.04366)

Shapes: down (hidden -> bottleneck), up (bottleneck -> hidden); bottleneck = hidden / reduction_factor.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import Entry, InitContext, Method, Shapes
from peftcli.adapters.layers import AdapterLayer
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.selection import SelectedParameters, selected_entries, train_named_modules
from peftcli.adapters.sublayer_config import SublayerConfig
from peftcli.errors import AdapterError, MergeError
from peftcli.models.structure import hidden_size, structure
from peftcli.models.sublayers import ResidualTap, Sublayer, sublayers

ConfigT = TypeVar("ConfigT", bound=SublayerConfig)

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
}


class SublayerLayer(AdapterLayer):
    """The adapter at one sublayer, wrapped around the sublayer's last layer."""

    def __init__(
        self,
        base_layer: nn.Module,
        config: SublayerConfig,
        width: int,
        tap: ResidualTap | None,
        norm: nn.Module | None,
        projections: tuple[nn.Module, nn.Module],
    ) -> None:
        super().__init__(base_layer)
        self.config = config
        # neither the tap nor the base's norm is a part of this module
        object.__setattr__(self, "_tap", tap)
        object.__setattr__(self, "_norm", norm)
        # the layer's own parameters say where it lies; the model may be spread over devices
        device = next(base_layer.parameters()).device
        self.adapter_down, self.adapter_up = projections
        # `learned` and `channel` differ in the length of the vector only; a number needs no parameter
        scales = {"learned": 1, "channel": width}.get(str(config.scaling))
        self.adapter_scaling = nn.Parameter(torch.empty(scales, device=device)) if scales else None
        self.adapter_ln_before = nn.LayerNorm(width, device=device) if config.ln_before else None
        self.adapter_ln_after = nn.LayerNorm(width, device=device) if config.ln_after else None
        self.dropout = nn.Dropout(config.dropout)

    def adapted(self, *args: Any, **kwargs: Any) -> Any:
        """The sublayer's output with the small network's update: the equations above, (batch, seq, hidden)."""
        result = self.base_layer(*args, **kwargs)
        # attention answers with its weights and its cache beside the states; those are passed on untouched
        if isinstance(result, tuple):
            return (self._changed(result[0]), *result[1:])
        return self._changed(result)

    def _changed(self, hidden: Tensor) -> Tensor:
        # the adapter's tensors are float32 whatever the base is
        precise = next(self.adapter_up.parameters()).dtype
        update = self._update(self._input(hidden).to(precise))
        if self.adapter_ln_after is None:
            total = hidden + update
        elif self.config.adapter_residual_before_ln:
            total = self.adapter_ln_after(hidden + update)
        else:
            total = hidden + self.adapter_ln_after(update)
        # a float32 sum would change the dtype of everything after this layer
        return total.to(hidden.dtype)

    def _input(self, hidden: Tensor) -> Tensor:
        """What the small network reads, (batch, seq, hidden)."""
        tap: ResidualTap | None = self._tap
        if tap is None:
            return hidden
        # some layers run on flattened tokens (mixtures of experts, OPT): the stream is brought into their shape
        residual = tap.residual.reshape(hidden.shape)
        if self.config.placement == "parallel":
            return residual
        total = residual + hidden
        # no norm follows in the last block of some post-norm models: the plain sum stands for its input there
        if not tap.post_norm or self._norm is None:
            return total
        normed: Tensor = self._norm(total)
        return normed

    def _update(self, z: Tensor) -> Tensor:
        if self.adapter_ln_before is not None:
            z = self.adapter_ln_before(z)
        z = ACTIVATIONS[self.config.non_linearity](self.adapter_down(z))
        scaling = self.adapter_scaling if self.adapter_scaling is not None else self.config.scaling
        update: Tensor = self.dropout(self.adapter_up(z) * scaling)
        return update

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.named_parameters() if name.startswith("adapter_")}

    def initialise(self, context: InitContext) -> None:
        self.start_projections(context.generator)
        with torch.no_grad():
            if self.adapter_scaling is not None:
                # scales start at one and the norms as the identity of their input's shape: only the projections draw
                self.adapter_scaling.fill_(1.0)
            for norm in (self.adapter_ln_before, self.adapter_ln_after):
                if norm is not None:
                    norm.weight.fill_(1.0)
                    norm.bias.zero_()

    @abstractmethod
    def start_projections(self, generator: torch.Generator) -> None:
        """Start values of the two projections."""

    def merged(self) -> dict[str, Tensor]:
        """Raises `MergeError`."""
        raise MergeError(
            "adapter layers cannot be merged: their non-linearity has no weight-space form",
            fix="serve the adapter with its base instead",
        )


class SublayersAdapter(LayersAdapter):
    """Owns the taps on the blocks beside the wrappers."""

    config: SublayerConfig

    def __init__(self, model: nn.Module, config: SublayerConfig) -> None:
        # set before anything is wrapped, for `remove` runs on a half-built adapter too
        super().__init__(model, config)
        self.taps: dict[str, ResidualTap] = {}

    def tap(self, block_path: str) -> ResidualTap:
        """The tap on a block, one for all its sublayers."""
        # one hook for both sublayers of a block: two would each hold the same tensor
        if block_path not in self.taps:
            self.taps[block_path] = ResidualTap(self.model.get_submodule(block_path))
        return self.taps[block_path]

    def remove(self) -> None:
        """As in the base class, with the taps."""
        # taps go first: their hooks stand on blocks that the wrappers leave to the base
        for tap in self.taps.values():
            tap.remove()
        self.taps.clear()
        super().remove()

    def entries(self) -> list[Entry]:
        """Projections and norms, then modules that are saved whole."""
        saved = [pair for pair in self.layers if isinstance(pair[1], SelectedParameters)]
        # a saved copy is named by its module's own path, so its entry under the wrapper's name is dropped
        kept = {id(layer.copies[name]) for _, layer in saved for name in layer.copies}
        return [entry for entry in super().entries() if id(entry.tensor) not in kept] + selected_entries(saved)

    def start_differs(self) -> str | None:
        if self.config.ln_after and self.config.adapter_residual_before_ln:
            return "a fresh layer norm follows each sublayer"
        return None


class SublayersMethod(Method, Generic[ConfigT]):
    """Finds the sublayers by structure and wraps each one's last layer."""

    def build(self, model: nn.Module, config: ConfigT, shapes: Shapes | None) -> SublayersAdapter:
        chosen = list(_chosen(model, config))
        adapter = self.new_adapter(model, config)
        width = hidden_size(model)
        try:
            for sublayer in chosen:
                # houlsby reads the sublayer's output alone, so it needs no residual stream and no hook
                tap = None if config.placement == "houlsby" else adapter.tap(sublayer.block_path)
                adapter.wrap(sublayer.output_path, self.layer(adapter, config, width, tap, sublayer))
            train_named_modules(adapter, config.modules_to_save or [])
        # Ctrl-C too: the model is left as it was found, and the exception goes on
        except BaseException:
            adapter.remove()
            raise
        return adapter

    def new_adapter(self, model: nn.Module, config: ConfigT) -> SublayersAdapter:
        """An adapter without layers; a method with a state of its own overrides it."""
        return SublayersAdapter(model, config)

    @abstractmethod
    def layer(
        self, adapter: SublayersAdapter, config: ConfigT, width: int, tap: ResidualTap | None, sublayer: Sublayer
    ) -> SublayerLayer:
        """The wrapper for one sublayer."""


def _chosen(model: nn.Module, config: SublayerConfig) -> Iterator[Sublayer]:
    roles = ("attention", "feed_forward") if config.placement == "houlsby" else ("feed_forward",)
    found = [item for item in sublayers(model) if item.role in roles]
    if not found:
        raise AdapterError("no block with sublayers is found in this model", fix="use lora, which needs none")
    wanted = config.layers_to_transform
    if wanted is None:
        yield from found
        return
    numbers = {path: number for number, path in enumerate(structure(model).blocks)}
    named = {wanted} if isinstance(wanted, int) else set(wanted)
    # `not named`: an empty list names no block, which would train nothing without a word
    beyond = sorted(named - set(numbers.values()))
    if beyond or not named:
        raise AdapterError(
            f"layers_to_transform names blocks that this model does not have: {beyond}",
            fix=f"this model has blocks 0 to {len(numbers) - 1}",
        )
    yield from (item for item in found if numbers[item.block_path] in named)
