"""Loads the weights of base models; what transformers reports of it is checked here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from peftcli.errors import ModelError
from peftcli.models.architectures import auto_class_named, require_architecture
from peftcli.models.base_config import config_in
from peftcli.models.dequantized import is_quantized
from peftcli.models.device import loading_options
from peftcli.models.heads import LabelHead
from peftcli.models.hub import cached_folder
from peftcli.models.loading_errors import loading_errors
from peftcli.models.new_heads import note_new_heads
from peftcli.models.poolers import without_pooler
from peftcli.models.quantization import (
    quantizing_options,
    require_unpacked,
    settle_quantized,
)
from peftcli.models.quantized import packed_type, quantized_base
from peftcli.models.skeleton import meta_model
from peftcli.models.source import (
    BaseSource,
    code_places,
)
from peftcli.models.view import shown_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The name of a floating-point type in recipes and records -> torch's type."""


def fetch_weights(source: BaseSource) -> None:
    """Brings the weights of a Hub base into the local cache, where they are not there yet; reads none of them."""
    if not source.is_local:
        with loading_errors(source, "the weights"):
            cached_folder(source, weights=True)


def load_model(
    source: BaseSource,
    *,
    auto_class: str = "AutoModelForCausalLM",
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    device: torch.device | str = "cpu",
    head: LabelHead | None = None,
    quantization: str | None = None,
    pooler: bool = False,
) -> nn.Module:
    """The base with its weights in `dtype` on `device`, in evaluation mode, `use_cache` left to the caller.

    `head`: the labels of a model that gives labels, where they are not the base's own; its weights are drawn anew where
    the base has none of that size.
    `quantization`: packs the linear layers of the backbone as they are read, one after the other and on the device;
    `dtype` is then what they compute in, and that of everything else. A checkpoint that is packed already stays so.
    `pooler`: with the layer that states alone do not need (`poolers`).
    Raises `ModelError` (4), `HubError` (11) or `DeviceError` (5).
    """
    extra = loading_options(device) | ({} if attention is None else {"attn_implementation": attention})
    if quantization is not None:
        skeleton = meta_model(source, auto_class=auto_class)
        require_unpacked(skeleton, source.name, quantization)
        extra |= quantizing_options(quantization, skeleton, dtype)
    with loading_errors(source, "the weights"), shown_folder(source, weights=True) as shown, _quiet():
        config = config_in(source, shown)
        require_architecture(source, config, auto_class)
        if head is not None:
            head.write_to(config)
        extra |= without_pooler(auto_class, config, pooler=pooler)
        if (storage := packed_type(sorted(shown.path.rglob("*.safetensors")))) is not None:
            raise quantized_base(source.name, storage, source.location if source.is_local else None)
        with _drawing(head):
            model, report = auto_class_named(auto_class).from_pretrained(
                str(shown.path),
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=head is not None,
                **extra,
            )
    # it was read from a folder of links; whoever saves it is to name where it really lies
    model.name_or_path = source.location
    if (own := getattr(model, "config", None)) is not None:
        own._name_or_path, own._commit_hash = config._name_or_path, config._commit_hash
    _check_complete(source, model, report)
    if code_places(shown.config):
        _check_nothing_left(source, report)
    if is_quantized(model):
        settle_quantized(model, dtype)
    moved: nn.Module = model.to(device).eval()
    return moved


@contextlib.contextmanager
def _drawing(head: LabelHead | None) -> Iterator[None]:
    """Weights of a new head come from a stream of their own where it names one, so that they can be drawn again."""
    if head is None or head.seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(head.seed)
        yield


def _check_complete(source: BaseSource, model: nn.Module, report: dict[str, Any]) -> None:
    """transformers fills missing weights at random and only warns: for a base that is silent wrongness. Notes the
    weights of new task heads."""
    # (key, shape in the file, shape of the model), where another number of labels was asked for
    resized = {str(each[0]) for each in report.get("mismatched_keys", ())}
    missing = sorted({*report.get("missing_keys", ()), *resized})
    essential = note_new_heads(model, missing)
    if essential:
        shown = ", ".join(essential[:3]) + (" ..." if len(essential) > 3 else "")
        raise ModelError(
            f"{source.name} lacks {len(essential)} of its weights: {shown}",
            where=source.location if source.is_local else None,
            fix="download the model again",
        )


def _check_nothing_left(source: BaseSource, report: dict[str, Any]) -> None:
    """A checkpoint that came with code of its own is opened by the family's class: right only if that uses all of it."""
    left = sorted(report.get("unexpected_keys", ()))
    if left:
        raise ModelError(
            f"{source.name} has {len(left)} weights for code of its own, which transformers' class does not use: {left[0]}",
            where=source.location if source.is_local else None,
            fix="use a release of the model in transformers' own format",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports loading on stderr by tables and bars; we check its report ourselves."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
