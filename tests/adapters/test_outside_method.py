"""A method in another package, found by its entry point, passes the whole suite: 50 lines are enough for one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftcli.adapters import registry
from peftcli.testing import Case, run_contract

PACKAGE = "somebody_scales"
SOURCE = '''
"""Scales each output channel of chosen layers: y = s * (W x + b). Keys: `P.scale`."""

from typing import ClassVar

import torch
from torch import nn

from peftcli.adapters.layers import AdapterLayer
from peftcli.adapters.layers_method import LayersMethod
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.targets import find_targets
from peftcli.models.structure import structure
from peftcli.models.weights import weight_view


class ScaleConfig(MethodConfig):
    """One factor for each output channel."""

    name: ClassVar[str] = "channel_scale"
    summary: ClassVar[str] = "one factor for each output channel"
    kind: ClassVar[str] = "layers"
    peft_type: ClassVar[str] = "CHANNEL_SCALE"
    learning_rate: ClassVar[float] = 1e-2

    target_modules: str | list[str] = "all-linear"
    """Layers to scale."""


class ScaleLayer(AdapterLayer):
    def __init__(self, base_layer):
        super().__init__(base_layer)
        view = weight_view(base_layer)
        self.scale = nn.Parameter(torch.empty(view.shape[0], device=view.device))

    def adapted(self, x):
        y = self.base_layer(x)
        return (y * self.scale).to(y.dtype)

    def tensors(self):
        return {"scale": self.scale}

    def initialise(self, context):
        nn.init.ones_(self.scale)

    def merged(self):
        view, scale = weight_view(self.base_layer), self.scale.detach()
        bias = {} if view.bias is None else {"bias": view.bias.float() * scale}
        return {"weight": view.stored(view.dense() * scale[:, None])} | bias


class Scale(LayersMethod):
    config_class = ScaleConfig

    def sites(self, model, config, shapes):
        return find_targets(
            dict(named_base_modules(model)), config.target_modules, all_linear=structure(model).linears
        )

    def layer(self, config, path, module, shapes):
        return ScaleLayer(module)


METHOD = Scale()
'''
CACHES = (registry._outside_methods, registry.method_names, registry.config_class, registry.short_names)


def forget_methods() -> None:
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package as pip would leave it: a module, and its entry points beside it."""
    (tmp_path / f"{PACKAGE}.py").write_text(SOURCE)
    facts = tmp_path / f"{PACKAGE}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[peftcli.methods]\nchannel_scale = {PACKAGE}:METHOD\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    forget_methods()
    yield
    sys.modules.pop(PACKAGE, None)
    monkeypatch.undo()
    forget_methods()


def test_fifty_lines_are_enough() -> None:
    assert len([line for line in SOURCE.splitlines() if line.strip()]) <= 50


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_passes_the_suite(family: str) -> None:
    assert "channel_scale" in registry.method_names()
    outcomes = run_contract(Case({"type": "channel-scale"}, family))
    failed = [f"{outcome.check}: {outcome.error}" for outcome in outcomes if not outcome.passed]
    assert not failed, "\n".join(failed)
    skipped = [outcome.check for outcome in outcomes if outcome.skipped is not None]
    assert not skipped, "a plain weight-space method has no reason to skip anything"


@pytest.mark.usefixtures("installed")
def test_recipes_and_methods_know_it() -> None:
    from peftcli.recipe.telling_methods import method_text, methods_text

    assert "one factor for each output channel" in methods_text()
    assert "works with: not tried" in method_text("channel_scale")
    assert registry.parse_method({"type": "channel-scale", "target-modules": ["q_proj"]}).name == "channel_scale"
    assert registry.config_class_of_type("CHANNEL_SCALE", where="x").name == "channel_scale"


def test_without_the_package_it_is_gone() -> None:
    assert "channel_scale" not in registry.method_names()
