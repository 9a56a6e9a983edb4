"""What a recipe needs of this machine: files, the base, packages, a device; looked up without importing torch.

`validate` reports all of it at once; a Hub id is not asked for, since that would need the network.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peftcli.data.config import SourceConfig
from peftcli.data.first_row import first_row
from peftcli.data.names import format_names, own_format_names
from peftcli.data.sources import is_local, resolve
from peftcli.errors import DataError, DeviceError, Fault, ModelError, PeftcliError, RecipeError
from peftcli.evaluation.config import JSON_EXTRA, JSON_PACKAGE
from peftcli.evaluation.registry import packages_of
from peftcli.models.source import BUILTIN_PREFIX, resolve_base
from peftcli.models.storage_names import PACKAGES
from peftcli.recipe.loading import LoadedRecipe
from peftcli.recipe.paths import is_path
from peftcli.tasks.registry import task as find_task
from peftcli.training.tracker_names import TRACKER_MODULES, TRACKER_PACKAGES

Lacking = tuple[type[PeftcliError], Fault]


def require_surroundings(loaded: LoadedRecipe) -> None:
    """Raises one error with everything that is missing, of the class of the first: data, model, environment."""
    _require(loaded, (_data, _files, _base, _packages, _device))


def require_packages(loaded: LoadedRecipe, *, planning: bool = False) -> tuple[str, ...]:
    """The same for what is installed alone: asked before a base is looked at, not when the package is first used.

    `planning`: what only training needs is returned as warnings instead.
    """
    _require(loaded, (partial(_packages, trains=False if planning else None),))
    return tuple(f"{fault.message}: {fault.fix}" for _, fault in _packages(loaded, trains=True)) if planning else ()


def _require(loaded: LoadedRecipe, looks: Sequence[Callable[[LoadedRecipe], Iterator[Lacking]]]) -> None:
    lacking = [found for look in looks for found in look(loaded)]
    if lacking:
        kind = lacking[0][0]
        count = f"{len(lacking)} things that are" if len(lacking) > 1 else "something that is"
        raise kind(
            f"{loaded.path.name} needs {count} not available on this machine", faults=[fault for _, fault in lacking]
        )


def _told(loaded: LoadedRecipe, key: str, look: Callable[[], object]) -> Iterator[Lacking]:
    """What `look` raises, at the place of the recipe that asks for it."""
    try:
        look()
    except PeftcliError as error:
        for fault in error.faults:
            at = f" ({fault.where})" if fault.where and fault.where not in fault.message else ""
            yield type(error), Fault(f"{fault.message}{at}", loaded.origin(key), fault.fix)


def _data(loaded: LoadedRecipe) -> Iterator[Lacking]:
    data = loaded.recipe.data
    for key, sources in (("data.train", data.train_sources), ("data.validation", data.validation_sources)):
        for source in sources:
            # sources of the Hub are not looked up: that needs the network
            if is_local(source.path, loaded.folder) or source.path.startswith(BUILTIN_PREFIX):
                yield from _told(loaded, key, partial(_require_rows, loaded, source))


def _require_rows(loaded: LoadedRecipe, source: SourceConfig) -> None:
    """Files that are there, and first rows of a format that the task trains on."""
    found = resolve(source, loaded.folder)
    for path in getattr(found, "paths", ()):
        if not path.is_file():
            raise DataError("no such data file", where=str(path), fix="check the path; it is relative to the recipe")
    data, task = loaded.recipe.data, find_task(loaded.recipe.task)
    columns = data.columns if source.columns is None else source.columns
    row = first_row(found, source, source.format or data.format, columns)
    # what a package's own format makes of its rows is known to nobody before they are encoded
    if row is None or row.detected.format.name in {*task.formats, *set(format_names()) - set(own_format_names())}:
        return
    raise RecipeError(
        f"task {task.name} cannot train on rows of the format {row.detected.format.name} ({row.detected.why})",
        where=row.where,
        fix=f"it trains on {', '.join(task.formats)}: name the one that a part of them has (`format`, with `columns`)",
    )


def _files(loaded: LoadedRecipe) -> Iterator[Lacking]:
    template = loaded.recipe.model.chat_template
    if template is not None and not Path(template).is_file():
        yield (
            ModelError,
            Fault(f"no such chat template: {template}", loaded.origin("model.chat_template"), "check the path"),
        )


def _base(loaded: LoadedRecipe) -> Iterator[Lacking]:
    base = loaded.recipe.model.base
    if base.startswith(BUILTIN_PREFIX) or is_path(base, loaded.folder):
        yield from _told(loaded, "model.base", lambda: resolve_base(base, folder=loaded.folder))


@dataclass(frozen=True)
class _Need:
    """A package that a key of the recipe asks for; of several modules any one will do."""

    key: str
    what: str
    modules: tuple[str, ...]
    fix: str
    trains: bool = False
    """Whether only training needs it, and a plan does not."""


def _needs(loaded: LoadedRecipe) -> Iterator[_Need]:
    recipe = loaded.recipe
    optimizer = recipe.training.optimizer
    if (package := optimizer.package) is not None:
        yield _Need("training.optimizer.type", f"optimizer {optimizer.type}", (package,), f"pip install {package}")
    if (storage := recipe.model.quantization) is not None:
        yield _Need(
            "model.quantization", f"quantization: {storage}", (PACKAGES[storage],), "pip install 'peftcli[quant]'", True
        )
    for name in recipe.evaluation.metrics:
        for package in packages_of(name):
            yield _Need("evaluation.metrics", f"metric {name}", (package,), "pip install 'peftcli[metrics]'")
    if recipe.generation.json_schema is not None:
        yield _Need("generation.json_schema", "generation.json_schema", (JSON_PACKAGE,), JSON_EXTRA)
    for name in recipe.tracking:
        modules = TRACKER_MODULES.get(name, (name,))
        yield _Need("tracking", f"tracking by {name}", modules, f"pip install {TRACKER_PACKAGES[name]}")


def _packages(loaded: LoadedRecipe, *, trains: bool | None = None) -> Iterator[Lacking]:
    """`trains`: of those alone that only training needs, or of the others."""
    for need in _needs(loaded):
        # `find_spec` imports nothing: some of these packages take seconds
        if trains in (None, need.trains) and not any(importlib.util.find_spec(module) for module in need.modules):
            message = f"{need.what} needs the package {need.modules[0]}"
            yield DeviceError, Fault(message, loaded.origin(need.key), need.fix)


def _device(loaded: LoadedRecipe) -> Iterator[Lacking]:
    if loaded.recipe.device == "cuda" and not _may_have_cuda():
        fix = "use `device: auto`; `peft doctor` shows what this machine has"
        yield DeviceError, Fault("device cuda: this machine has no NVIDIA driver", loaded.origin("device"), fix)


def _may_have_cuda() -> bool:
    """Whether a driver is installed at all; only torch itself can say whether it works."""
    # NVIDIA on Linux, WSL, a container without /dev, AMD's ROCm (which torch calls cuda too), Windows
    places = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version", "/dev/kfd", "C:/Windows/System32/nvcuda.dll")
    return any(Path(place).exists() for place in places)
