"""The update of one linear layer (nn.Linear or Conv1D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import InitContext
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.low_rank_path import takes_low_rank, weight_of
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.methods.lora.dora import RowNorms, merged_rows
from peftcli.adapters.methods.lora.inits import pair_from_weight, start_pair
from peftcli.adapters.selection import bias_in_use
from peftcli.errors import AdapterError, MergeError
from peftcli.kernels.low_rank import low_rank_linear, paired
from peftcli.kernels.names import LOW_RANK
from peftcli.kernels.shadow import Shadows
from peftcli.models.storage import was_transposed
from peftcli.models.weights import weight_view

_LARGEST_SCALE = torch.finfo(torch.float32).max


class LoraLinear(AdapterLayer):
    """y = W x + s (B A x - B0 A0 x), rescaled row by row for DoRA; A0, B0 only where the start shifts the base."""

    lora_A: Tensor
    lora_B: Tensor

    def __init__(self, base_layer: nn.Module, r: int, scaling: float, config: LoraConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        out_features, in_features = view.shape
        self.r = r
        self.scaling = scaling
        self.config = config
        hold(self, "lora_A", torch.empty(r, in_features, device=view.device), trained=not config.freeze_a)
        self.lora_B = nn.Parameter(torch.empty(out_features, r, device=view.device))
        self.lora_B_bias = nn.Parameter(torch.empty(out_features, device=view.device)) if config.lora_bias else None
        self.magnitude = nn.Parameter(torch.empty(out_features, device=view.device)) if config.use_dora else None
        self.row_norms = RowNorms() if config.use_dora else None
        shifted = config.shifts_base
        self.register_buffer("start_A", torch.empty(r, in_features, device=view.device) if shifted else None)
        self.register_buffer("start_B", torch.empty(out_features, r, device=view.device) if shifted else None)
        self._shadows = Shadows()
        self.dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()

    start_A: Tensor | None
    start_B: Tensor | None

    def kernels(self) -> frozenset[str]:
        # a start that is taken off makes the update a difference of large products, which must not round before it is
        # taken; a scale beyond float32 is for the guards of training to tell, not for a product to refuse
        plain = self.config.shifts_base or self.config.lora_dropout or not abs(self.scaling) <= _LARGEST_SCALE
        return frozenset() if plain else frozenset({LOW_RANK})

    def adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.kernels() and takes_low_rank(self.base_layer, x, args, kwargs):
            return self._fast(x)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        exact = x.to(self.lora_A.dtype)
        dropped = self.dropout(exact)
        update = F.linear(F.linear(dropped, self.lora_A), self.lora_B, self.lora_B_bias)
        if self.start_A is not None and self.start_B is not None:
            update = update - F.linear(F.linear(exact, self.start_A), self.start_B)
        # the sum is taken in the adapter's type and rounded once
        if self.magnitude is None:
            return (result + update * self.scaling).to(result.dtype)
        plain = result
        if dropped is not exact:
            # the direction sees the dropped input, the base's own answer the whole one (as in the reference)
            plain = self.base_layer(dropped.to(x.dtype), *args, **kwargs)
        bias = bias_in_use(self.base_layer)
        plain = plain if bias is None else plain - bias
        ratio = self.magnitude / self.norms()
        return (result + (ratio - 1.0) * plain + ratio * (update * self.scaling)).to(result.dtype)

    def _fast(self, x: Tensor) -> Tensor:
        pair = paired(self.lora_A, self.lora_B, self.scaling, x.dtype, self._shadows)
        bias = bias_in_use(self.base_layer)
        plain = low_rank_linear(x, weight_of(self.base_layer), bias if self.magnitude is None else None, pair)
        if self.lora_B_bias is not None:
            plain = plain + (self.lora_B_bias * self.scaling).to(plain.dtype)
        if self.magnitude is None:
            return plain
        scaled = plain * (self.magnitude / self.norms())
        return (scaled if bias is None else scaled + bias).to(x.dtype)

    def norms(self) -> Tensor:
        """||W + s (B A - B0 A0)|| of each row, (out_features,) float32, without gradient."""
        assert self.row_norms is not None
        view = weight_view(unwrapped(self.base_layer))
        lora_a, lora_b = self.whole_pair()
        norms: Tensor = self.row_norms(view.dense(view.dtype), lora_a, lora_b, self.scaling)
        return norms

    def whole_pair(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole update, detached: of rank 2r where the start is subtracted."""
        lora_a, lora_b = self.lora_A.detach(), self.lora_B.detach()
        if self.start_A is None or self.start_B is None:
            return lora_a, lora_b
        return torch.cat([lora_a, self.start_A]), torch.cat([lora_b, -self.start_B], dim=1)

    def tensors(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}
        if self.lora_B_bias is not None:
            named["lora_B.bias"] = self.lora_B_bias
        if self.magnitude is not None:
            named["lora_magnitude_vector"] = self.magnitude
        return named

    def frozen_start(self) -> dict[str, Tensor]:
        """A0 and B0, which no file of the reference has a place for."""
        if self.start_A is None or self.start_B is None:
            return {}
        return {"lora_A0": self.start_A, "lora_B0": self.start_B}

    def plain_tensors(self) -> dict[str, Tensor]:
        """The tensors of the plain LoRA of rank 2r that equals this layer."""
        lora_a, lora_b = self.whole_pair()
        return {**self.tensors(), "lora_A.weight": lora_a, "lora_B.weight": lora_b}

    def half_names(self) -> dict[str, str]:
        """Tensor name -> which half of the pair it belongs to, for parameter groups."""
        return {"lora_A.weight": "A", "lora_B.weight": "B", "lora_B.bias": "B"}

    # -- start -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        how = self.config.init_lora_weights
        if self.config.shifts_base and how != "lora_ga":
            self.start_from_weight(context.generator)
        elif how == "loftq":
            self.start_from_loss(context)
        else:
            start_pair(self.lora_A, self.lora_B, how in (True, "eva", "lora_ga") or how, self.r, context.generator)
        self.finish_start()

    @torch.no_grad()
    def finish_start(self) -> None:
        """What follows from the pair: the bias of B is zero, magnitudes are the row norms."""
        if self.lora_B_bias is not None:
            self.lora_B_bias.zero_()
        if self.magnitude is not None:
            self.magnitude.copy_(self.norms())

    @torch.no_grad()
    def start_from_weight(self, generator: torch.Generator | None) -> None:
        """A part of the weight as the start, the same subtracted; exact without a generator (when loading)."""
        how = str(self.config.init_lora_weights)
        dense = weight_view(unwrapped(self.base_layer)).dense()
        self.start_from_pair(*pair_from_weight(dense, self.r, self.scaling, how, generator))

    @torch.no_grad()
    def start_from_loss(self, context: InitContext) -> None:
        """s B A is the best of its rank for W - Q, what quantizing lost: the model starts nearer to the plain base.

        One step of LoftQ (arXiv:2310.08659); further steps would change the quantized base, which no file of an adapter
        could hold.
        """
        if context.original is None:
            raise AdapterError(
                "init_lora_weights: loftq starts from the weights before they were quantized, which are not at hand",
                fix="train from a recipe with model.quantization, or pass `context=InitContext(generator, original=...)`",
            )
        base = unwrapped(self.base_layer)
        dense = weight_view(base).dense()
        lost = context.original(self.path, was_transposed(base)).to(dense.device) - dense
        lora_a, lora_b = pair_from_weight(lost, self.r, self.scaling, "pissa", None)
        self.lora_A.copy_(lora_a)
        self.lora_B.copy_(lora_b)

    @torch.no_grad()
    def start_from_pair(self, lora_a: Tensor, lora_b: Tensor) -> None:
        """A and B start at this pair, which is subtracted."""
        assert self.start_A is not None
        assert self.start_B is not None
        for live, frozen, value in ((self.lora_A, self.start_A, lora_a), (self.lora_B, self.start_B, lora_b)):
            live.copy_(value)
            frozen.copy_(value)

    def resize(self, r: int, scaling: float) -> None:
        """Another rank, before training: the pair is allocated anew, without values."""
        rows, columns = self.lora_B.shape[0], self.lora_A.shape[1]
        self.r, self.scaling = r, scaling
        hold(self, "lora_A", self.lora_A.new_empty(r, columns), trained=not self.config.freeze_a)
        self.lora_B = nn.Parameter(self.lora_B.detach().new_empty(rows, r))

    # -- merging ---------------------------------------------------------------------------------------------------

    def delta_weight(self) -> Tensor:
        """s (B A - B0 A0), float32, (out_features, in_features)."""
        lora_a, lora_b = self.whole_pair()
        return (lora_b.float() @ lora_a.float()) * self.scaling

    def low_rank_update(self) -> tuple[Tensor, Tensor] | None:
        if self.magnitude is not None or self.lora_B_bias is not None:
            return None
        lora_a, lora_b = self.whole_pair()
        return lora_b.float() * self.scaling, lora_a.float()

    def update_scale(self) -> float:
        return self.scaling

    def merged(self) -> dict[str, Tensor]:
        view = weight_view(unwrapped(self.base_layer))
        combined = view.dense() + self.delta_weight()
        if self.magnitude is not None:
            combined = merged_rows(combined, self.magnitude, self.norms())
        new = {"weight": view.stored(combined)}
        if self.lora_B_bias is not None:
            if view.bias is None:
                raise MergeError(
                    "`lora_bias` cannot be merged: the base's layers have no bias to hold it",
                    fix="serve the adapter with its base, or train without lora_bias",
                )
            new["bias"] = view.bias.detach().float() + self.lora_B_bias.detach().float() * self.scaling
        return new


def hold(layer: nn.Module, name: str, value: Tensor, *, trained: bool) -> None:
    """Keeps a tensor on a module as a parameter, or as a buffer when it is not trained."""
    if trained:
        layer.register_parameter(name, nn.Parameter(value))
    else:
        layer.register_buffer(name, value)


def cannot_rebuild(how: str) -> AdapterError:
    """The error for a file whose frozen start cannot be computed again from the base."""
    return AdapterError(
        f"the file needs the start of `init_lora_weights: {how}`, drawn at random or from data, and does not hold it",
        fix="write it again in the reference with path_initial_model_for_weight_conversion, as plain LoRA",
    )
