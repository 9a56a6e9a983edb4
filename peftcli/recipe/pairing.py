"""Whether the method of a recipe works on its base, told from the base's `config.json` alone where that is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli.adapters.compatibility import refusal, storage_refusal
from peftcli.errors import AdapterError, ModelError
from peftcli.models.source import CONFIG_NAME, read_config_file, resolve_base
from peftcli.models.storage_names import stored_as
from peftcli.recipe.loading import LoadedRecipe
from peftcli.recipe.paths import BUILTIN_PREFIX, is_path


def check_pairing(loaded: LoadedRecipe) -> None:
    """Refuses a pair outside the compatibility tables. Says nothing of a base that is not here: `plan` will.

    Raises `AdapterError` (exit 4), and `ModelError` for a `config.json` that is no good.
    """
    file = _config_file(loaded)
    _check_storage(loaded, {} if file is None else read_config_file(file))
    if file is None:
        return
    config, recipe = read_config_file(file), loaded.recipe
    family = str(config.get("model_type"))
    reason = refusal(recipe.method.name, family, config)
    if reason is not None:
        raise AdapterError(
            f"{reason} ({recipe.model.base} is of the family {family})",
            where=loaded.origins.get("method.type"),
            fix="`peft methods` shows what works together",
        )


def _check_storage(loaded: LoadedRecipe, config: Mapping[str, Any]) -> None:
    """The storage that the recipe asks for, or that the base's files have."""
    recipe = loaded.recipe
    stored = stored_as(config)
    asked = recipe.model.quantization
    if stored is not None and asked is not None:
        raise ModelError(
            f"the weights of {recipe.model.base} are stored as {stored} already: `quantization: {asked}` would round "
            "them twice",
            where=loaded.origin("model.quantization"),
            fix="leave model.quantization out",
        )
    storage = asked or stored
    reason = None if storage is None else storage_refusal(recipe.method.name, storage)
    if reason is not None:
        raise AdapterError(
            f"{recipe.method.name}: {reason}",
            where=loaded.origins.get("method.type"),
            fix="`peft methods NAME` shows which storages a method works on",
        )


def _config_file(loaded: LoadedRecipe) -> Path | None:
    model = loaded.recipe.model
    if not model.base.startswith(BUILTIN_PREFIX) and not is_path(model.base, loaded.folder):
        return _cached_config(loaded)
    # a missing base is told by whoever loads it, with more to say
    if is_path(model.base, loaded.folder) and not Path(model.base).exists():
        return None
    folder = resolve_base(model.base, folder=loaded.folder).folder
    return None if folder is None else folder / CONFIG_NAME


def _cached_config(loaded: LoadedRecipe) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    model = loaded.recipe.model
    try:
        cached = try_to_load_from_cache(model.base, CONFIG_NAME, revision=model.revision)
    except HFValidationError as error:
        raise ModelError(
            f"{model.base} is neither a path nor a Hub id",
            where=loaded.origins.get("model.base"),
            fix="a folder (./NAME), a Hub id (OWNER/NAME), or builtin:NAME",
        ) from error
    return Path(cached) if isinstance(cached, str) else None
