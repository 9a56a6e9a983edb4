"""Configurations of bases: what is read of them, and what is refused before a weight is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from peftcli.models.auto_class import purpose_named
from peftcli.models.building import READING, bounded_building
from peftcli.models.heads import LabelHead
from peftcli.models.hub import folder_with
from peftcli.models.loading_errors import loading_errors
from peftcli.models.quantization import (
    import_library,
)
from peftcli.models.quantized import require_readable
from peftcli.models.sentences import MODULES_NAME
from peftcli.models.source import (
    CONFIG_NAME,
    BaseSource,
    code_places,
    code_refused,
)
from peftcli.models.storage_names import quantization_of
from peftcli.models.view import Shown, shown_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def load_config(source: BaseSource) -> PretrainedConfig:
    """The configuration of a base that peftcli can use, without its weights."""
    with loading_errors(source, "the configuration"), shown_folder(source, weights=False) as shown:
        return config_in(source, shown)


def sentence_folder(source: BaseSource) -> Path:
    """The base's folder, with what sentence-transformers notes in folders below it."""
    with loading_errors(source, "the files beside the weights"):
        return source.folder or folder_with(source, [MODULES_NAME, f"[0-9]*_*/{CONFIG_NAME}"])


def config_in(source: BaseSource, shown: Shown) -> PretrainedConfig:
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


def trained_head(source: BaseSource, auto_class: str) -> LabelHead | None:
    """The labels of a base that gives labels of this kind already; None for any other base."""
    config = load_config(source)
    purposes = [purpose_named(name) for name in config.architectures or ()]
    if not any(purpose is not None and purpose.auto_class == auto_class for purpose in purposes):
        return None
    return LabelHead.of_config(config)
