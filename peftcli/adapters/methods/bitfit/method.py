"""BitFit (arXiv:2106.10199): trains bias vectors only.

    y = W x + (b + delta)        stored as the full new b

Shapes: as the base's biases. Keys: `base_model.model.<path>.bias`. Not in the reference library.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from peftcli.adapters.base import FILE_PREFIX, Shapes
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.layers import AdapterLayer
from peftcli.adapters.layers_method import LayersAdapter, LayersMethod
from peftcli.adapters.methods.bitfit.config import BitfitConfig
from peftcli.adapters.selection import SelectedParameters, SelectionAdapter, idle_modules, train_named_modules
from peftcli.adapters.targets import find_targets, names_path
from peftcli.errors import AdapterError


class Bitfit(LayersMethod[BitfitConfig]):
    """Wraps every module that owns a bias."""

    config_class = BitfitConfig

    def new_adapter(self, model: nn.Module, config: BitfitConfig) -> SelectionAdapter:
        return SelectionAdapter(model, config)

    def sites(self, model: nn.Module, config: BitfitConfig, shapes: Shapes | None) -> Mapping[str, nn.Module]:
        asked = _asked(model, config)
        idle = idle_modules(model, {path: ["bias"] for path in asked})
        held = shapes or {}
        # a file's biases are put in though they are idle: it was saved with them
        kept = {path: m for path, m in asked.items() if path not in idle or f"{FILE_PREFIX}{path}.bias" in held}
        if not kept:
            raise AdapterError(
                f"bitfit trains biases, and each that it could train is of a layer {min(idle.values())}",
                where=", ".join(list(idle)[:3]),
                fix="use lora, ln_tuning or ia3",
            )
        return kept

    def finish(self, adapter: LayersAdapter, config: BitfitConfig, shapes: Shapes | None) -> None:
        train_named_modules(adapter, config.modules_to_save or [])

    def left_out(self, model: nn.Module, config: BitfitConfig) -> dict[str, str]:
        return idle_modules(model, {path: ["bias"] for path in _asked(model, config)})

    def layer(self, config: BitfitConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        return SelectedParameters(module, ["bias"])


def _asked(model: nn.Module, config: BitfitConfig) -> dict[str, nn.Module]:
    modules = dict(named_base_modules(model))
    whole = [path for path in modules if any(names_path(name, path) for name in config.modules_to_save or [])]
    biased = {
        path: module
        for path, module in modules.items()
        if isinstance(module._parameters.get("bias"), nn.Parameter)
        and not any(path == outer or path.startswith(f"{outer}.") for outer in whole)
    }
    if not biased:
        raise AdapterError(
            "bitfit trains biases, and this model has none",
            fix="models of the Llama family have none; use lora, ln_tuning or ia3",
        )
    if config.target_modules is None:
        return biased
    return find_targets(modules, config.target_modules, all_linear=(), supported=biased)


METHOD = Bitfit()
