"""Loads base models and tokenizers; the only place that knows what transformers and the Hub raise."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from peftcli.data.tokens import KWARGS, template_kwargs
from peftcli.errors import DeviceError, HubError, ModelError, PeftcliError
from peftcli.models.auto_class import purpose_named, purpose_of
from peftcli.models.building import LAYING_OUT, READING, bounded_building, quiet_about_nothing, require_values
from peftcli.models.config_faults import likely_fields, readable_config
from peftcli.models.conversions import conversion_faults
from peftcli.models.dequantized import is_quantized
from peftcli.models.device import is_out_of_memory, loading_options, says_out_of_memory
from peftcli.models.heads import LabelHead
from peftcli.models.hub import cached_folder, folder_with, hub_errors, offline
from peftcli.models.poolers import without_pooler
from peftcli.models.quantization import (
    import_library,
    plan_quantization,
    quantizing_options,
    require_unpacked,
    settle_quantized,
)
from peftcli.models.quantized import packed_type, quantized_base, require_readable
from peftcli.models.sentences import MODULES_NAME
from peftcli.models.source import (
    BUILTIN_PREFIX,
    CONFIG_NAME,
    BaseSource,
    code_places,
    code_refused,
    describes_sizes,
)
from peftcli.models.storage_names import quantization_of
from peftcli.models.tokenizer_trial import require_bounded_tokenizer
from peftcli.models.view import Shown, shown_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The name of a floating-point type in recipes and records -> torch's type."""

_NEW_HEADS = "_peftcli_new_heads"


@contextlib.contextmanager
def _loading(source: BaseSource, what: str) -> Iterator[None]:
    """Turns what transformers and huggingface_hub raise into our errors, each cause told apart."""
    try:
        with hub_errors(source.name, source.revision):
            yield
    except PeftcliError:
        raise
    except Exception as error:  # code of all families, on a configuration and files that may hold anything
        if is_out_of_memory(error):
            raise
        faults = conversion_faults(error)
        if any(says_out_of_memory(fault) for fault in faults):
            raise MemoryError(f"no room for {what} of {source.name}") from error
        raise _load_error(source, what, error, faults) from error


def _load_error(
    source: BaseSource, what: str, error: Exception, faults: Sequence[str]
) -> ModelError | HubError | DeviceError:
    # of a conversion the cause, and what was made: the last lines below its traceback
    text = " ".join(" ".join(faults[0].splitlines()[-2:] if faults else [str(error)]).split())
    if isinstance(error, ImportError):
        return DeviceError(f"{source.name} needs a package that is missing: {text[:200]}")
    if not source.is_local and ("offline" in text or "connect" in text.lower() or "couldn't" in text.lower()):
        return offline(source.name)
    where = source.location if source.is_local else None
    if "model type" in text or "model_type" in text:
        return ModelError(
            f"{source.name} is of a family that transformers {transformers.__version__} does not have",
            where=where,
            fix="a newer transformers may have it; `config.json` names the family under `model_type`",
        )
    if "size mismatch" in text or "ignore_mismatched_sizes" in text:
        return ModelError(f"{what} of {source.name} do not fit its config.json", where=where, fix="download it again")
    # a folder's whole path stands in `where`
    name = Path(source.name).name if source.is_local else source.name
    if fields := likely_fields(source, error):
        return ModelError(
            f"cannot load {what} of {name}: {text[:150]}; in config.json {'; '.join(fields[:3])}",
            where=where,
            fix="correct config.json, or download the model again",
        )
    sizes = describes_sizes(readable_config(source))
    fix = "check the files"
    if isinstance(error, AttributeError):
        # code of the family's reads what its own configuration lacks, which no change of a good file mends
        fix = (
            "check config.json; if it is as published, transformers cannot build it for this task: choose another base"
        )
    return ModelError(f"cannot load {what} of {name}: {text[:300]}{sizes}", where=where, fix=fix)


def load_config(source: BaseSource) -> PretrainedConfig:
    """The configuration of a base that peftcli can use, without its weights."""
    with _loading(source, "the configuration"), shown_folder(source, weights=False) as shown:
        return _config_of(source, shown)


def sentence_folder(source: BaseSource) -> Path:
    """The base's folder, with what sentence-transformers notes in folders below it."""
    with _loading(source, "the files beside the weights"):
        return source.folder or folder_with(source, [MODULES_NAME, f"[0-9]*_*/{CONFIG_NAME}"])


def _config_of(source: BaseSource, shown: Shown) -> PretrainedConfig:
    """Reads `config.json` of the shown folder; a base whose code or storage is not ours is refused here, once."""
    document = shown.config
    where = source.location if source.is_local else None
    if places := code_places(document, CONFIG_MAPPING_NAMES):
        raise code_refused(Path(source.location) / CONFIG_NAME, "auto_map", places[0])
    if (stored := quantization_of(document)) is not None:
        require_readable(stored, source.name, where)
        import_library()
    with bounded_building(source.name, where, READING):
        config = AutoConfig.from_pretrained(str(shown.path), trust_remote_code=False)
    _leave_attention_to_the_recipe(config)
    config._name_or_path, config._commit_hash = source.location, shown.commit
    return config


def _leave_attention_to_the_recipe(config: PretrainedConfig) -> None:
    """A base may prefer one of the kinds of attention that a recipe may name; any other, such as one that starts a
    compiler, is for transformers to choose."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None and part._attn_implementation not in (None, "sdpa", "eager"):
            part._attn_implementation = None


def load_tokenizer(
    source: BaseSource,
    *,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a base; `chat_template` (Jinja text) replaces its own, and `chat_template_kwargs` are variables
    of it that go with the tokenizer, into its saved folder too.

    A tokenizer without a pad token pads with its end token: padding is masked by position, so nothing is lost.
    """
    with _loading(source, "the tokenizer"), shown_folder(source, weights=False) as shown:
        if (fast := shown.path / "tokenizer.json").exists() and not source.name.startswith(BUILTIN_PREFIX):
            require_bounded_tokenizer(fast, source.name)
        tokenizer = AutoTokenizer.from_pretrained(str(shown.path), trust_remote_code=False, use_fast=True)
    tokenizer.name_or_path = source.location
    if not tokenizer.is_fast:
        raise ModelError(f"{source.name} has no fast tokenizer", where=source.location, fix="it needs a tokenizer.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if chat_template_kwargs:
        tokenizer.init_kwargs[KWARGS] = {**template_kwargs(tokenizer), **chat_template_kwargs}
    return tokenizer


def trained_head(source: BaseSource, auto_class: str) -> LabelHead | None:
    """The labels of a base that gives labels of this kind already; None for any other base."""
    config = load_config(source)
    purposes = [purpose_named(name) for name in config.architectures or ()]
    if not any(purpose is not None and purpose.auto_class == auto_class for purpose in purposes):
        return None
    return LabelHead.of_config(config)


def fetch_weights(source: BaseSource) -> None:
    """Brings the weights of a Hub base into the local cache, where they are not there yet; reads none of them."""
    if not source.is_local:
        with _loading(source, "the weights"):
            cached_folder(source, weights=True)


def _auto_class(name: str) -> Any:
    return getattr(transformers, name)


def _check_architecture(source: BaseSource, config: PretrainedConfig, auto_class: str) -> None:
    if type(config) in _auto_class(auto_class)._model_mapping:
        return
    where = source.location if source.is_local else None
    others = _auto_classes_of(config)
    text = config.get_text_config()
    if text is not config and others:
        raise ModelError(
            f"{source.name} ({config.model_type}) is a model for text with images or sound, which transformers loads "
            f"with {others[0]} and not with {auto_class}",
            where=where,
            fix=f"use a text model; the text part of this one is of the family {text.model_type}",
        )
    known = sorted({key.model_type for key in _auto_class(auto_class)._model_mapping})
    near = difflib.get_close_matches(str(config.model_type), known, n=3)
    loads = f" (transformers loads it with {', '.join(others[:3])})" if others else ""
    raise ModelError(
        f"{source.name} ({config.model_type}) cannot be loaded with {auto_class}{loads}",
        where=where,
        fix="choose a model for this task" + (f"; near families: {', '.join(near)}" if near else ""),
    )


def _auto_classes_of(config: PretrainedConfig) -> list[str]:
    """Auto classes for a purpose that load a configuration: those for text with images first, then those that write."""
    names = [name for name in dir(transformers) if name.startswith("AutoModelFor")]
    mapped = [name for name in names if type(config) in getattr(_auto_class(name), "_model_mapping", ())]
    return sorted(mapped, key=lambda name: ("ToText" not in name, not name.endswith("LM"), name))


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
    with _loading(source, "the weights"), shown_folder(source, weights=True) as shown, _quiet():
        config = _config_of(source, shown)
        _check_architecture(source, config, auto_class)
        if head is not None:
            head.write_to(config)
        extra |= without_pooler(auto_class, config, pooler=pooler)
        if (storage := packed_type(sorted(shown.path.rglob("*.safetensors")))) is not None:
            raise quantized_base(source.name, storage, source.location if source.is_local else None)
        with _drawing(head):
            model, report = _auto_class(auto_class).from_pretrained(
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


def new_head_keys(model: nn.Module) -> tuple[str, ...]:
    """Weights of a task head that the base did not hold: they were drawn at random when it was loaded."""
    found: tuple[str, ...] = model.__dict__.get(_NEW_HEADS, ())
    return found


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


def note_new_heads(model: nn.Module, missing: Sequence[str]) -> list[str]:
    """Notes weights of new task heads among those that no file has; returns the others, which a base must have."""
    prefix = getattr(model, "base_model_prefix", "")
    drawn = [key for key in missing if _is_new_head(key, prefix, model)]
    model.__dict__[_NEW_HEADS] = tuple(sorted(drawn))
    return [key for key in missing if key not in drawn]


def _is_new_head(key: str, backbone_prefix: str, model: nn.Module) -> bool:
    """Task heads (`score`, `classifier`) of a base that never had one are new on purpose; a language head never is."""
    name = key.split(".")[0]
    labels = purpose_of(model)
    heads = ("qa_outputs",) if labels is None or not labels.labels else (name,)
    return name != backbone_prefix and name in heads and hasattr(model, name)


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


def meta_model(
    source: BaseSource,
    *,
    auto_class: str = "AutoModelForCausalLM",
    quantization: str | None = None,
    head: LabelHead | None = None,
    pooler: bool = False,
) -> nn.Module:
    """The model without weights (every tensor on the meta device): structure and exact parameter counts. Layers that
    will be packed, as asked or since the checkpoint is, are marked as such.

    `head`: its labels, where they are not the base's own. `pooler`: as for `load_model`.
    """
    model = laid_out(source, torch.device("meta"), auto_class=auto_class, head=head, pooler=pooler)
    stored = quantization_of(model.config.to_dict())  # type: ignore[union-attr, operator]
    if stored is not None:
        plan_quantization(model, stored.storage, stored.kept)
    if quantization is not None:
        require_unpacked(model, source.name, quantization)
        plan_quantization(model, quantization)
    return model


def laid_out(
    source: BaseSource,
    placing: contextlib.AbstractContextManager[Any],
    *,
    auto_class: str,
    head: LabelHead | None = None,
    pooler: bool = False,
    **settings: Any,
) -> nn.Module:
    """The modules of a base, no value of its files read; `placing` says where tensors are made, `settings` go to
    transformers."""
    config = load_config(source)
    if head is not None:
        head.write_to(config)
    _check_architecture(source, config, auto_class)
    where = source.location if source.is_local else None
    with (
        _loading(source, "the structure"),
        bounded_building(source.name, where, LAYING_OUT),
        quiet_about_nothing(),
        placing,
    ):
        left_out = without_pooler(auto_class, config, pooler=pooler)
        model: nn.Module = _auto_class(auto_class).from_config(config, **settings, **left_out)
    require_values(model, source.name, where, config.to_dict())
    model.tie_weights()  # type: ignore[operator]
    return model
