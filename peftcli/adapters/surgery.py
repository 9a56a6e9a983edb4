"""Attaching a method to a model in place, switching it off, and taking it out again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.parameter import is_lazy

from peftcli.adapters.base import Adapter, InitContext, Summary, left_out_notes
from peftcli.adapters.base_modules import named_base_parameters
from peftcli.adapters.config import MethodConfig, field_faults
from peftcli.adapters.file_keys import COMPILED, WRAPPERS
from peftcli.adapters.layers import AdapterLayer
from peftcli.adapters.model_methods import override, restore
from peftcli.adapters.registry import method, parse_method
from peftcli.errors import AdapterError, Fault, RecipeError
from peftcli.models.plain_linear import quantized_layers
from peftcli.models.storage import keep_layouts, logical_numel

_SLOT = "_peftcli_adapter"
_REQUIRES_GRAD = "_peftcli_requires_grad"
_METHODS = "_peftcli_methods"


def layer_kernels(model: nn.Module) -> frozenset[str]:
    """Names of the fast paths that layers of the adapter on a model can take in training."""
    layers = [module for module in model.modules() if isinstance(module, AdapterLayer)]
    return frozenset().union(*(layer.kernels() for layer in layers))


def bare(model: nn.Module) -> nn.Module:
    """The model itself, under what `torch.compile` puts around it; compiled again by itself once it has changed."""
    while COMPILED in model._modules:
        inner = model._modules[COMPILED]
        assert inner is not None
        model = inner
    return model


def attached(model: nn.Module) -> Adapter | None:
    """The adapter on a model, None where there is none."""
    found = bare(model).__dict__.get(_SLOT)
    assert found is None or isinstance(found, Adapter)
    return found


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter on a model; `AdapterError` where there is none."""
    found = attached(model)
    if found is None:
        raise AdapterError("the model carries no adapter", fix="adapters.attach or adapters.load puts one on")
    return found


def parse_config(section: str | Mapping[str, Any] | MethodConfig) -> MethodConfig:
    """A method section from Python: wrong fields become one `RecipeError` that names them all."""
    if isinstance(section, MethodConfig):
        return section
    try:
        return parse_method(section)
    except ValidationError as error:
        raise RecipeError(
            "wrong method fields",
            faults=[Fault(f"method: {fault}") for fault in field_faults(error)],
        ) from error


def attach(
    model: nn.Module,
    section: str | Mapping[str, Any] | MethodConfig,
    *,
    seed: int = 0,
    context: InitContext | None = None,
) -> Summary:
    """Freezes the base and puts a method on it, in place.

    `section`: a method name, or a mapping as under `method:` in a recipe. `seed` draws the start values from a
    generator of the adapter's own; `context` replaces it where a start needs more (text, data, gradients).
    Raises `RecipeError` for wrong fields and `AdapterError` where the method does not fit the model; the model is then
    untouched.
    """
    config = parse_config(section)
    adapter = build(model, config)
    if context is None:
        context = InitContext(torch.Generator().manual_seed(seed))
    try:
        adapter.initialise(context)
    # Ctrl-C too: the model is the caller's, and is left as it was found
    except BaseException:
        detach(model)
        raise
    return summary(model)


def build(model: nn.Module, config: MethodConfig, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Adapter:
    """Freezes the base and builds the method on it without start values: the first phase of attach and load."""
    if attached(model) is not None:
        raise AdapterError("the model already carries an adapter", fix="adapters.detach or adapters.merge it first")
    model = bare(model)
    _refuse_packed(model)
    _refuse_wrapped(model)
    keep_layouts(model)
    grads = {parameter: parameter.requires_grad for _, parameter in named_base_parameters(model)}
    for parameter in grads:
        parameter.requires_grad_(False)
    try:
        adapter = method(config.name).build(model, config, shapes)
    # the builder has taken its own parts off; what is left to undo is which weights take gradients
    except BaseException:
        _restore_requires_grad(grads)
        raise
    adapter.set_trainable(True)
    # past `__setattr__`: an adapter registered as a module would change the names in the base's state dict
    model.__dict__[_SLOT] = adapter
    model.__dict__[_REQUIRES_GRAD] = grads
    model.__dict__[_METHODS] = override(model)
    return adapter


def _refuse_packed(model: nn.Module) -> None:
    """A base whose weights are packed, or not there yet, has nothing that a method could read, start from or merge into."""
    packed = list(quantized_layers(model))
    if packed:
        raise AdapterError(
            f"this base has layers quantized in a way that is not read here ({len(packed)}, the first is `{packed[0]}`)",
            fix="open it without quantization, or quantized by bitsandbytes (nf4, int8)",
        )
    unborn = [name for name, parameter in named_base_parameters(model) if is_lazy(parameter)]
    if unborn:
        raise AdapterError(
            f"parameters do not exist before the first forward pass ({len(unborn)}, the first is `{unborn[0]}`)",
            fix="run the model once, then attach",
        )


def _refuse_wrapped(model: nn.Module) -> None:
    """An adapter goes on the model, and what wraps it or its parts goes around both."""
    wrapped = [path for path, _ in model.named_modules() if not WRAPPERS.isdisjoint(path.split("."))]
    if wrapped or type(model).__module__.startswith("torch.nn.parallel."):
        what = f"`{wrapped[0]}` is compiled or wrapped" if wrapped else f"the model is a {type(model).__name__}"
        raise AdapterError(f"{what}: an adapter goes on the model itself", fix="attach or load it first, then wrap")


def _restore_requires_grad(grads: Mapping[nn.Parameter, bool]) -> None:
    for parameter, required in grads.items():
        parameter.requires_grad_(required)


def detach(model: nn.Module) -> None:
    """Takes the adapter out: the model is exactly what it was before `attach` or `load`."""
    adapter_of(model).remove()
    forget(model)


def forget(model: nn.Module) -> None:
    """Drops our book-keeping once an adapter is removed or merged."""
    model = bare(model)
    restore(model, model.__dict__.pop(_METHODS))
    del model.__dict__[_SLOT]
    _restore_requires_grad(model.__dict__.pop(_REQUIRES_GRAD))


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model answers as the base does, exactly."""
    adapter = adapter_of(model)
    before = adapter.enabled
    adapter.set_enabled(False)
    try:
        yield
    finally:
        adapter.set_enabled(before)


def summary(model: nn.Module) -> Summary:
    """Counts of the adapter on a model."""
    adapter = adapter_of(model)
    trainable = {id(p): p.numel() for p in adapter.trainable_parameters().values() if p.requires_grad}
    every = {
        id(parameter): logical_numel(module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    } | {id(p): p.numel() for p in adapter.trainable_parameters().values()}
    return Summary(
        method=adapter.config.name,
        targets=tuple(adapter.targets()),
        trainable=sum(trainable.values()),
        total=sum(every.values()),
        tensors=len(trainable),
        notes=left_out_notes(adapter.left_out),
    )
