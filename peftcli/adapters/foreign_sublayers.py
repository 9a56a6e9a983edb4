"""AdapterHub's adapter layers in our terms: which sublayer a tensor belongs to, and what the fields mean."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import Tensor, nn

from peftcli.adapters.adapterhub_sites import sublayer_places
from peftcli.adapters.base import FILE_PREFIX, Adapter
from peftcli.adapters.config import MethodConfig, field_faults
from peftcli.adapters.foreign import ForeignFolder, head_modules, head_tensors
from peftcli.adapters.sublayer_config import SublayerConfig
from peftcli.errors import AdapterError, Fault
from peftcli.models.structure import structure
from peftcli.models.sublayers import Role, sublayers

ConfigT = TypeVar("ConfigT", bound=MethodConfig)

_KEY = re.compile(r"(?P<place>.+)\.adapters\.[^.]+\.(?P<rest>.+)")
_PLACE_NAMES: Mapping[str, Role] = {"attention_adapters": "attention", "output_adapters": "feed_forward"}
_ACTIVATIONS = {"leakyrelu": "leaky_relu"}


def is_sublayers(fields: Mapping[str, Any]) -> bool:
    """Whether a configuration describes adapter layers (it has no `architecture`)."""
    return fields.get("architecture") is None and "output_adapter" in fields


def shared_fields(model: nn.Module, foreign: ForeignFolder) -> dict[str, Any]:
    """Fields that all methods with adapter layers share. Raises `AdapterError` for what is not here."""
    fields = foreign.fields
    foreign.refuse(_unsupported(fields))
    left_out = fields.get("leave_out") or []
    numbers = range(len(structure(model).blocks))
    activation = str(fields.get("non_linearity", "")).lower()
    return {
        "placement": _placement(foreign),
        "reduction_factor": fields.get("reduction_factor"),
        "non_linearity": _ACTIVATIONS.get(activation, activation),
        "scaling": fields.get("scaling", 1.0),
        "dropout": fields.get("dropout", 0.0),
        "ln_before": fields.get("ln_before", False),
        "ln_after": fields.get("ln_after", False),
        # the order of sum and norm means something only where there is a norm after
        "adapter_residual_before_ln": bool(fields.get("ln_after") and fields.get("adapter_residual_before_ln")),
        # no list where nothing is left out: it reads as `all`, on any number of blocks
        "layers_to_transform": [number for number in numbers if number not in left_out] if left_out else None,
        "modules_to_save": head_modules(model, foreign),
    }


def _unsupported(fields: Mapping[str, Any]) -> list[str]:
    faults = []
    if fields.get("inv_adapter"):
        faults.append(f"invertible adapters (inv_adapter: {fields['inv_adapter']})")
    if fields.get("use_gating"):
        faults.append("gated adapters (use_gating)")
    if fields.get("cross_adapter"):
        faults.append("adapters after cross-attention (cross_adapter)")
    if fields.get("original_ln_after") is False:
        faults.append("blocks without their own residual sum (original_ln_after: false)")
    if fields.get("stochastic_depth"):
        faults.append("stochastic depth")
    if isinstance(fields.get("reduction_factor"), dict):
        faults.append("a reduction factor for each layer")
    return faults


def _placement(foreign: ForeignFolder) -> str:
    fields = foreign.fields
    attention, output = bool(fields.get("mh_adapter")), bool(fields.get("output_adapter"))
    before = bool(fields.get("original_ln_before"))
    if fields.get("is_parallel"):
        if output and not attention:
            return "parallel"
    elif attention and output and not before:
        return "houlsby"
    elif output and not attention and before and fields.get("residual_before_ln", True) is True:
        return "pfeiffer"
    names = ("mh_adapter", "output_adapter", "is_parallel", "original_ln_before", "residual_before_ln")
    found = ", ".join(f"{name}: {fields.get(name)}" for name in names)
    raise AdapterError(
        f"this arrangement of adapter layers is none of Houlsby, Pfeiffer, parallel ({found})", where=foreign.where
    )


def config_of(config_class: type[ConfigT], foreign: ForeignFolder, fields: Mapping[str, Any]) -> ConfigT:
    """A configuration of ours. Raises `AdapterError` for a value that has no counterpart."""
    try:
        return config_class.model_validate(fields)
    except ValidationError as error:
        raise AdapterError(
            f"the {foreign.library.name} adapter uses what peftcli does not have",
            faults=[Fault(fault, foreign.where) for fault in field_faults(error)],
        ) from error


def sublayer_tensors(
    model: nn.Module, foreign: ForeignFolder, *, norm_before: bool, beside: Collection[str] = ()
) -> dict[str, Tensor]:
    """Tensors of adapter layers, and the saved head, under our keys. `beside`: keys that the caller takes itself.

    `norm_before`: the down-projection's sequence starts with a layer norm, which is written twice.
    Raises `AdapterError` for any other tensor.
    """
    found: dict[str, Tensor] = {}
    places = _Places(model)
    foreign.refuse_strangers(key for key in foreign.tensors if not _KEY.fullmatch(key) and key not in beside)
    for key, tensor in foreign.tensors.items():
        matched = _KEY.fullmatch(key)
        if matched is None:
            continue
        name = _our_name(matched["rest"], norm_before=norm_before)
        if name is not None:
            found[f"{FILE_PREFIX}{places.output_path(matched['place'], foreign)}.{name}"] = tensor
    return found | head_tensors(foreign, FILE_PREFIX)


def _our_name(rest: str, *, norm_before: bool) -> str | None:
    first = 1 if norm_before else 0
    renamed = {
        f"adapter_down.{first}.": "adapter_down.",
        "adapter_up.": "adapter_up.",
        "adapter_norm_before.": "adapter_ln_before.",
        "adapter_norm_after.": "adapter_ln_after.",
    }
    if rest == "scaling":
        return "adapter_scaling"
    if norm_before and rest.startswith("adapter_down.0."):
        return None
    return next((new + rest.removeprefix(old) for old, new in renamed.items() if rest.startswith(old)), rest)


# -- the other way -------------------------------------------------------------------------------------------------


def expressed_fields(config: SublayerConfig, num_blocks: int) -> dict[str, Any]:
    """Fields that all methods with adapter layers share, in AdapterHub's terms."""
    chosen = config.layers_to_transform
    kept = {chosen} if isinstance(chosen, int) else set(range(num_blocks) if chosen is None else chosen)
    parallel, houlsby = config.placement == "parallel", config.placement == "houlsby"
    renamed = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    scaling = config.scaling
    return {
        "mh_adapter": houlsby,
        "output_adapter": True,
        "is_parallel": parallel,
        "original_ln_before": not (parallel or houlsby),
        "original_ln_after": True,
        "residual_before_ln": True,
        "adapter_residual_before_ln": config.adapter_residual_before_ln,
        "reduction_factor": config.reduction_factor,
        "non_linearity": renamed.get(config.non_linearity, config.non_linearity),
        "scaling": scaling if isinstance(scaling, str) else float(scaling),
        "dropout": config.dropout,
        "ln_before": config.ln_before,
        "ln_after": config.ln_after,
        "leave_out": [number for number in range(num_blocks) if number not in kept],
        "cross_adapter": False,
        "inv_adapter": None,
        "inv_adapter_reduction_factor": None,
        "use_gating": False,
        "stochastic_depth": 0.0,
        "init_weights": "bert",
        "init_weights_seed": None,
    }


def expressed_tensors(plain: nn.Module, adapter: Adapter, name: str) -> dict[str, Tensor]:
    """Tensors of adapter layers by AdapterHub's keys; those of other modules are left out."""
    places = sublayer_places(plain)
    found: dict[str, Tensor] = {}
    for entry in adapter.entries():
        path = next((path for path in places if entry.key.startswith(f"{FILE_PREFIX}{path}.")), None)
        rest = "" if path is None else entry.key.removeprefix(f"{FILE_PREFIX}{path}.")
        if path is not None and rest.startswith("adapter_"):
            for key in _their_names(rest, norm_before=adapter.config.ln_before):  # type: ignore[attr-defined]
                found[f"{places[path]}.adapters.{name}.{key}"] = entry.tensor.detach().clone()
    return found


def _their_names(rest: str, *, norm_before: bool) -> list[str]:
    first = 1 if norm_before else 0
    if rest == "adapter_scaling":
        return ["scaling"]
    if rest.startswith("adapter_down."):
        return [f"adapter_down.{first}.{rest.removeprefix('adapter_down.')}"]
    if rest.startswith("adapter_ln_before."):
        # the library holds the norm twice: by its name, and as the first of the layers below
        last = rest.removeprefix("adapter_ln_before.")
        return [f"adapter_norm_before.{last}", f"adapter_down.0.{last}"]
    return [rest.replace("adapter_ln_after.", "adapter_norm_after.")]


class _Places:
    """Finds the last linear layer of the sublayer that an AdapterHub module path stands for.

    That library hangs adapters on a block as `attention_adapters` and `output_adapters`, or on the module that holds
    the sublayer's last linear layer (BERT, T5).
    """

    def __init__(self, model: nn.Module) -> None:
        self.sites = sublayers(model)
        self.prefix = getattr(model, "base_model_prefix", "")

    def output_path(self, place: str, foreign: ForeignFolder) -> str:
        """Path of the linear layer. Raises `AdapterError` where the model has no such sublayer."""
        for path in (place, f"{self.prefix}.{place}"):
            for site in self.sites:
                leaf = path.removeprefix(site.block_path + ".")
                if leaf == path:
                    continue
                if _PLACE_NAMES.get(leaf) == site.role or site.output_path.startswith(path + "."):
                    return site.output_path
        raise AdapterError(f"`{place}` is not a sublayer of this model", where=str(foreign.path))
