"""AdapterHub's prefix tuning, with and without its network, in our terms: positions do not count the prefix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.adapterhub_sites import linear_sites
from peftcli.adapters.base import Adapter
from peftcli.adapters.foreign import Expression, ForeignFolder, Translation, head_modules, head_tensors
from peftcli.adapters.methods.prefix_tuning.config import PrefixTuningConfig
from peftcli.adapters.methods.prefix_tuning.method import PrefixTuningAdapter
from peftcli.adapters.prompts import HEAD_PREFIX, NAME, PROMPT_KEY, SLOT
from peftcli.errors import AdapterError
from peftcli.models.rotary import turned_back

_KEY = re.compile(r".*prefix_tunings\.[^.]+\.(?P<place>[^.]+)\.(?P<rest>.+)")
_FLAT = "control_trans"
_NETWORK = {
    "wte.weight": "embedding.weight",
    "control_trans.0.weight": "transform.0.weight",
    "control_trans.0.bias": "transform.0.bias",
    "control_trans.2.weight": "transform.2.weight",
    "control_trans.2.bias": "transform.2.bias",
}


def reads(fields: Mapping[str, Any]) -> bool:
    """Whether a configuration describes prefix tuning."""
    return fields.get("architecture") == PrefixTuningConfig.name


def translate(model: nn.Module, foreign: ForeignFolder) -> Translation:
    """The adapter in our terms. Raises `AdapterError` for what is not here."""
    foreign.refuse(_unsupported(foreign.fields))
    found = _tensors(foreign)
    head = head_modules(model, foreign)
    length = foreign.fields.get("prefix_length")
    if foreign.fields.get("flat"):
        table = found.get(_FLAT)
        if table is None or not isinstance(length, int) or length < 1 or table.numel() % length:
            raise _incomplete(foreign)
        config = PrefixTuningConfig(
            num_virtual_tokens=length, shift_positions=False, prefix_init="random", modules_to_save=head
        )
        return Translation(config, {PROMPT_KEY: table.reshape(length, -1)} | head_tensors(foreign, HEAD_PREFIX))
    if set(found) != set(_NETWORK) or any(found[name].dim() != (2 if "weight" in name else 1) for name in _NETWORK):
        raise _incomplete(foreign)
    rows, width = found["wte.weight"].shape
    config = PrefixTuningConfig(
        num_virtual_tokens=rows,
        prefix_projection=True,
        encoder_hidden_size=found["control_trans.0.bias"].shape[0],
        encoder_input_size=width,
        shift_positions=False,
        prefix_init="random",
        modules_to_save=head,
    )
    companions = {f"{SLOT}.{NAME}.{ours}": found[theirs] for theirs, ours in _NETWORK.items()}
    return Translation(config, {PROMPT_KEY: _made(found, foreign)} | head_tensors(foreign, HEAD_PREFIX), companions)


def _made(found: Mapping[str, Tensor], foreign: ForeignFolder) -> Tensor:
    """The prefix that the network makes, (n, width)."""
    try:
        hidden = F.linear(found["wte.weight"], found["control_trans.0.weight"], found["control_trans.0.bias"])
        return F.linear(hidden.tanh(), found["control_trans.2.weight"], found["control_trans.2.bias"])
    except RuntimeError as error:
        raise _incomplete(foreign) from error


def _unsupported(fields: Mapping[str, Any]) -> list[str]:
    faults = []
    if fields.get("use_gating"):
        faults.append("gated prefixes (use_gating)")
    if fields.get("leave_out"):
        faults.append("prefixes in some layers only (leave_out)")
    if fields.get("dropout"):
        faults.append("dropout on the prefix")
    if not fields.get("flat") and str(fields.get("non_linearity")).lower() != "tanh":
        faults.append(f"a prefix network with {fields.get('non_linearity')}")
    return faults


def _tensors(foreign: ForeignFolder) -> dict[str, Tensor]:
    """Tensors of the one prefix by the end of their names; each layer's entry in the file is a copy of the same."""
    foreign.refuse_strangers(key for key in foreign.tensors if not _KEY.fullmatch(key))
    matches = [(matched, tensor) for key, tensor in foreign.tensors.items() if (matched := _KEY.fullmatch(key))]
    places = {matched["place"] for matched, _ in matches}
    if len(places) > 1:
        foreign.refuse([f"prefixes of several kinds of attention ({', '.join(sorted(places))})"])
    found: dict[str, Tensor] = {}
    for matched, tensor in matches:
        if not torch.equal(found.setdefault(matched["rest"], tensor), tensor):
            raise AdapterError(
                f"the copies of `{matched['rest']}` differ",
                where=str(foreign.path / foreign.library.tensors_name),
                fix="get it again",
            )
    return found


def _incomplete(foreign: ForeignFolder) -> AdapterError:
    return AdapterError("the prefix is incomplete, or of odd shapes", where=str(foreign.path), fix="get it again")


def express(plain: nn.Module, adapter: Adapter, name: str, where: str) -> Expression:
    """The prefix in AdapterHub's terms: the table that a network makes, and positions that do not count it.

    Where ours does count it, every query and key of the input is turned further by its length: the same scores come of
    keys in the prefix that are turned back by as much. Raises `AdapterError` where positions are no such turn.
    """
    assert isinstance(adapter, PrefixTuningAdapter), "of this method"
    config, site = adapter.config, adapter.site
    rows = adapter.encoder.stored().detach()
    if config.shift_positions and site.positions.taken:
        slots = rows.reshape(rows.shape[0], site.num_layers, 2, site.num_heads, site.head_dim).clone()
        keys = turned_back(plain, slots[:, :, 0], rows.shape[0])
        if keys is None:
            raise AdapterError(
                "AdapterHub's library does not count the prefix as positions, and this adapter was trained so",
                where=where,
                fix="train with method.shift_positions=false",
            )
        slots[:, :, 0] = keys
        rows = slots.reshape(rows.shape)
    prefix = getattr(plain, "base_model_prefix", "")
    place = f"{prefix}." if prefix and hasattr(plain, prefix) else ""
    fields = {
        "architecture": PrefixTuningConfig.name, "flat": True, "prefix_length": rows.shape[0], "dropout": 0.0,
        "encoder_prefix": True, "cross_prefix": True, "leave_out": [], "non_linearity": "tanh", "bottleneck_size": 512,
        "use_gating": False, "shared_gating": True, "init_weights_seed": None,
    }  # fmt: skip
    # the one pool, as the library writes it: at the bare model, and again in each attention that reads it
    attentions = {site.path.rpartition(".")[0] for site in linear_sites(plain).values() if site.matrix == "k"}
    pools = [f"{place}prefix_tuning", *(f"{path}.prefix_tuning.pool" for path in sorted(attentions))]
    flat = rows.reshape(-1)
    return Expression(fields, {f"{pool}.prefix_tunings.{name}.self_prefix.{_FLAT}": flat.clone() for pool in pools})
