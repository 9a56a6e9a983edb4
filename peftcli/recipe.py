"""The recipe: one YAML file, composed of the sections of the rooms, read with the place of every value.

`load_recipe` gathers every fault of a recipe and raises them at once. This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator

from peftcli import files
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.registry import config_class, resolve_name
from peftcli.data.config import DataConfig
from peftcli.errors import Fault, RecipeError
from peftcli.evaluation.config import EvaluationConfig, GenerationConfig
from peftcli.models.config import ModelConfig
from peftcli.models.source import BUILTIN_PREFIX
from peftcli.recipe_faults import Located, recipe_faults, secret_faults
from peftcli.tasks.registry import resolve_task_name
from peftcli.training.config import CheckpointConfig, TrainingConfig
from peftcli.recipe_yaml import Document, Path_, Place, dump_yaml, parse_value, read_yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_EXTENDS = 10
MAX_SEED = 2**32 - 1
SHORT_FORMS = {"model": "base", "data": "train", "method": "type"}
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


class Recipe(BaseModel):
    """Everything that a run is asked for. Immutable; every key that is read has an effect."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, arbitrary_types_allowed=True
    )

    version: Literal[1] = 1
    """Version of the recipe schema."""
    extends: str | None = None
    """Another recipe, deep-merged under this one."""
    name: str | None = None
    """Name of the run; default: the recipe's file name."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 42
    """Every random stream of the run follows from it."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """More: repeat the run with further seeds and report mean and interval."""
    task: str = "causal-lm"
    """What is trained: causal-lm; seq2seq-lm, sequence-classification, token-classification and preference come later."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto: the first GPU, else the CPU."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """CPU threads; auto: the CPUs that the process may use."""
    model: ModelConfig
    """The base model."""
    data: DataConfig
    """Rows and how they become tokens."""
    method: SerializeAsAny[MethodConfig]
    """The method and its fields."""
    training: TrainingConfig = TrainingConfig()
    """How the adapter is trained."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and how the model is scored."""
    generation: GenerationConfig = GenerationConfig()
    """How text is written."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state of the run is kept."""
    tracking: list[str] = Field(default_factory=list)
    """Trackers to log to, through Accelerate (not supported yet)."""
    expect: dict[str, str] = Field(default_factory=dict)
    """Gates on metrics, such as {eval_loss: "< 1.2"} (not supported yet)."""
    output: str | None = None
    """Run folder; default: runs/<name>-001, -002, ..."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and (not NAME.fullmatch(value) or value.lower() in _RESERVED):
            raise ValueError("must be 1 to 64 letters, digits, dots, hyphens or underscores, beginning with a letter or digit")
        return value

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        try:
            return resolve_task_name(value)
        except RecipeError as error:
            raise ValueError(f"{error.message}; {error.fix}" if error.fix else error.message) from error

    @field_validator("seeds", "tracking", "expect")
    @classmethod
    def _comes_later(cls, value: Any, info: Any) -> Any:
        if value not in (1, [], {}):
            raise ValueError("is not supported yet; leave it out")
        return value


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe, where it came from, and where each value was written."""

    recipe: Recipe
    path: Path
    folder: Path
    """Paths in the recipe are relative to it."""
    name: str
    origins: dict[str, str] = field(default_factory=dict)
    """Dotted key -> `file:line:column` or `--set`; keys that are not here have their default."""
    warnings: tuple[str, ...] = ()

    def origin(self, key: str) -> str:
        return self.origins.get(key, "default")


def load_recipe(path: Path, overrides: Sequence[str] | Mapping[str, object] = ()) -> LoadedRecipe:
    """Reads and validates a recipe.

    `overrides`: `key=value` texts as `--set` takes them, or a mapping of dotted keys to values.
    Raises `RecipeError` naming every fault with its place, and `StorageError` for an unreadable file.
    """
    path = Path(path)
    located = _read(path, ())
    if located.value is None:
        raise RecipeError("the recipe is empty", where=str(path), fix="start from `peft init quickstart`")
    if not isinstance(located.value, dict):
        kind = "a list" if isinstance(located.value, list) else "a single value"
        raise RecipeError(f"a recipe is a mapping of keys, this is {kind}", where=str(path), fix="begin with `model: ...`")
    for key, value, shown in _parse_overrides(overrides):
        _override(located, key, value, shown)
    recipe, faults = _validate(located)
    if recipe is not None:
        faults += _cross_faults(recipe, located)
    if faults or recipe is None:
        ordered = _in_order(faults)
        raise RecipeError(f"{len(ordered)} faults in {path}", faults=ordered)
    absolute = path.absolute()
    name = recipe.name or _name_of(path)
    origins = {".".join(map(str, key)): str(place) for key, place in located.places.items() if key}
    return LoadedRecipe(recipe, absolute, absolute.parent, name, origins, tuple(recipe.generation.idle_settings()))


def _in_order(faults: list[Fault]) -> list[Fault]:
    """By place, one for each place (a secret is also an unknown key)."""
    by_place: dict[str, Fault] = {}
    for fault in faults:
        by_place.setdefault(f"{fault.where} {fault.message}" if ":" not in str(fault.where) else str(fault.where), fault)

    def line(fault: Fault) -> tuple[int, int]:
        numbers = [int(part) for part in str(fault.where).split(":")[-2:] if part.isdigit()]
        return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)

    return sorted(by_place.values(), key=line)


def _name_of(path: Path) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64]
    return cleaned if NAME.fullmatch(cleaned) and cleaned.lower() not in _RESERVED else "recipe"


# -- reading -----------------------------------------------------------------------------------------------------


def _read(path: Path, chain: tuple[Path, ...]) -> Located:
    """One file and what it extends, merged; short forms written out and names spelt with underscores."""
    document = read_yaml(path)
    if not isinstance(document.value, dict):
        return Located(document.value, document.places, document.faults)
    own = _normalised(document)
    parent = own.value.pop("extends", None)
    if parent is None:
        return own
    where = str(own.places.get(("extends",), path))
    if not isinstance(parent, str) or "://" in parent:
        raise RecipeError("`extends` names another recipe file", where=where, fix="for instance `extends: base.yaml`")
    target = (path.parent / parent).resolve()
    if target in chain or target == path.resolve() or len(chain) >= MAX_EXTENDS:
        raise RecipeError("`extends` goes round in a circle", where=where, fix="break the chain of recipes")
    if not target.is_file():
        raise RecipeError(f"`extends` names a recipe that is not there: {parent}", where=where, fix="check the path")
    below = _read(target, (*chain, path.resolve()))
    if isinstance(below.value, dict):
        _rebase_paths(below.value, target.parent, path.parent.resolve())
        return _merged(below, own)
    return own


def _rebase_paths(value: dict[str, Any], old: Path, new: Path) -> None:
    """Paths of an extended recipe are relative to its own folder: made absolute when the folders differ."""
    if old != new:
        make_paths_absolute(value, old)


def _normalised(document: Document) -> Located:
    """Hyphens in keys become underscores (top level, sections and their own sections), short forms sections."""
    located = Located({}, {}, list(document.faults))
    for key, value in document.value.items():
        name = key.replace("-", "_")
        place = document.places.get((key,))
        if name in located.value:
            located.faults.append(Fault(f"the key `{name}` stands twice", str(place), "remove one"))
            continue
        section = _section_value(name, value, document, key, located)
        located.value[name] = section
        if place is not None:
            located.places[(name,)] = place
    return located


def _section_value(name: str, value: Any, document: Document, key: str, located: Located) -> Any:
    if name in SHORT_FORMS and isinstance(value, str | list) and not (name == "method" and isinstance(value, list)):
        _copy_places(document, (key,), located, (name, SHORT_FORMS[name]))
        return {SHORT_FORMS[name]: value}
    if not isinstance(value, dict):
        _copy_places(document, (key,), located, (name,))
        return value
    section: dict[str, Any] = {}
    for inner, item in value.items():
        inner_name = inner.replace("-", "_")
        if inner_name in section:
            where = document.places.get((key, inner))
            located.faults.append(Fault(f"the key `{name}.{inner_name}` stands twice", str(where), "remove one"))
        section[inner_name] = item
        _copy_places(document, (key, inner), located, (name, inner_name))
    return section


def _copy_places(document: Document, old: Path_, located: Located, new: Path_) -> None:
    for path, place in document.places.items():
        if path[: len(old)] == old:
            located.places[(*new, *path[len(old) :])] = place


def _merged(below: Located, above: Located) -> Located:
    value = _deep_merge(below.value, above.value)
    return Located(value, {**below.places, **above.places}, below.faults + above.faults)


def _deep_merge(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "type" in above and "type" in below and above["type"] != below["type"]:
        return above  # another method or optimizer: the fields of the old one mean nothing to it
    return {**below, **{key: _deep_merge(below[key], item) if key in below else item for key, item in above.items()}}


def _parse_overrides(overrides: Sequence[str] | Mapping[str, object]) -> Iterator[tuple[str, Any, str]]:
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            yield str(key), value, f"override {key}"
        return
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise RecipeError(f"cannot read --set {text!r}", fix="write --set key=value, for instance --set method.r=16")
        yield key.strip(), parse_value(value, f"--set {key.strip()}"), f"--set {key.strip()}"


def _override(located: Located, key: str, value: Any, shown: str) -> None:
    parts = tuple(part.replace("-", "_") for part in key.split("."))
    if parts == ("extends",):
        raise RecipeError("`extends` cannot be set from outside", where=shown, fix="write it in the recipe")
    if len(parts) == 1 and parts[0] in SHORT_FORMS and isinstance(value, str | list):
        parts = (parts[0], SHORT_FORMS[parts[0]])
    target = located.value
    for depth, part in enumerate(parts[:-1]):
        inner = target.get(part)
        if isinstance(inner, str) and part in ("optimizer", "scheduler"):
            inner = {"type": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            wrong = ".".join(parts[: depth + 1])
            raise RecipeError(f"`{wrong}` is a single value and has no keys", where=shown, fix=f"set `{wrong}` itself")
        target[part] = inner
        target = inner
    if parts == ("method", "type") and target.get("type") not in (None, value):
        target.clear()
        target["type"] = value
    target[parts[-1]] = value
    located.places = {path: place for path, place in located.places.items() if path[: len(parts)] != parts}
    located.places[parts] = Place(shown, 0, 0)


# -- validating --------------------------------------------------------------------------------------------------


def _validate(located: Located) -> tuple[Recipe | None, list[Fault]]:
    value = dict(located.value)
    faults = list(located.faults) + secret_faults(located)
    method, method_faults = _validate_method(value.pop("method", None), located)
    faults += method_faults
    try:
        recipe = Recipe.model_validate({**value, "method": method or config_class("lora")()})
    except ValidationError as error:
        return None, faults + recipe_faults(error, located, prefix=(), model=Recipe)
    return (recipe if method is not None else None), faults


def _validate_method(section: Any, located: Located) -> tuple[MethodConfig | None, list[Fault]]:
    where = str(located.place(("method",)))
    if section is None:
        return None, [Fault("`method` is missing", where, "for instance `method: lora`; `peft methods` lists them")]
    if not isinstance(section, dict) or not isinstance(section.get("type"), str):
        return None, [Fault("`method` needs a `type`", where, "for instance `method: {type: lora, r: 16}`")]
    fields = {key: value for key, value in section.items() if key != "type"}
    try:
        name, preset = resolve_name(section["type"])
    except RecipeError as error:
        return None, [Fault(error.message, str(located.place(("method", "type"))), error.fix)]
    model = config_class(name)
    try:
        return model.model_validate({**preset, **fields}), []
    except ValidationError as error:
        return None, recipe_faults(error, located, prefix=("method",), model=model)


def _cross_faults(recipe: Recipe, located: Located) -> list[Fault]:
    """Rules between sections that need no fact beyond the recipe."""
    faults: list[Fault] = []

    def fault(key: str, message: str, fix: str) -> None:
        faults.append(Fault(f"`{key}`: {message}", str(located.place(tuple(key.split(".")))), fix))

    training, evaluation = recipe.training, recipe.evaluation
    computed = {"eval_loss", *(f"eval_{name}" for name in evaluation.metrics)}
    has_rows = recipe.data.validation is not None
    if training.early_stopping is not None:
        if not has_rows:
            fault("training.early_stopping", "needs evaluation rows", "set `data.validation`")
        elif training.early_stopping.metric not in computed:
            fault("training.early_stopping", f"{training.early_stopping.metric} is not computed", _computed(computed))
    if recipe.checkpoint.best is not None and recipe.checkpoint.best not in computed:
        fault("checkpoint.best", f"{recipe.checkpoint.best} is not computed", _computed(computed))
    if not has_rows:
        # defaults that wait for evaluation rows are harmless; a wish for them is not
        if evaluation.metrics != EvaluationConfig().metrics:
            fault("evaluation.metrics", "needs evaluation rows", "set `data.validation`")
        if recipe.checkpoint.best not in (None, CheckpointConfig().best):
            fault("checkpoint.best", "needs evaluation rows", "set `data.validation`")
    if training.warmup_steps is not None and training.max_steps is not None and training.warmup_steps > training.max_steps:
        fault("training.warmup_steps", f"is more than max_steps {training.max_steps}", "lower it")
    if training.max_steps is not None and training.epochs is not None:
        fault("training.epochs", "epochs and max_steps are two ways to say one thing", "give one of them")
    if recipe.model.revision is not None and recipe.model.base.startswith(BUILTIN_PREFIX):
        fault("model.revision", "a built-in base has no revisions", "remove it")
    return faults


def _computed(names: set[str]) -> str:
    return f"computed are {', '.join(sorted(names))}; add to `evaluation.metrics`"


# -- writing -----------------------------------------------------------------------------------------------------


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> plain value of every key, defaults included."""
    return dict(_flattened(recipe_dict(recipe), ""))


def _flattened(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flattened(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values in the contract's order, every default written out."""
    value = recipe.model_dump(mode="json", exclude={"method", "extends"})
    value["method"] = recipe.method.to_recipe()
    order = [key for key in Recipe.model_fields if key in value]
    return {key: value[key] for key in order}


def resolved_yaml(loaded: LoadedRecipe, values: Mapping[str, Any] | None = None) -> str:
    """The resolved recipe as YAML: inputs as absolute paths, without `output`; `values` replaces dotted keys."""
    value = recipe_dict(loaded.recipe)
    value.pop("output")
    value["name"] = loaded.name
    make_paths_absolute(value, loaded.folder)
    for key, item in (values or {}).items():
        *parents, last = key.split(".")
        section = value
        for part in parents:
            section = section[part]
        section[last] = item
    return dump_yaml(_without_nulls(value))


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """Nulls at the top are left out: an absent key is its default."""
    return {key: item for key, item in value.items() if item is not None}


def make_paths_absolute(value: dict[str, Any], folder: Path) -> None:
    """Rewrites every path of a plain recipe mapping, in place; Hub ids and built-in names stay."""
    model, data = value.get("model"), value.get("data")
    if isinstance(model, dict):
        if isinstance(model.get("base"), str):
            model["base"] = absolute_source(model["base"], folder)
        for key in ("chat_template", "init_adapter"):
            if isinstance(model.get(key), str):
                model[key] = str((folder / Path(model[key]).expanduser()).resolve())
    if isinstance(data, dict):
        for key in ("train", "validation"):
            if key in data:
                data[key] = _absolute_sources(data[key], folder)


def _absolute_sources(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return absolute_source(value, folder)
    if isinstance(value, list):
        return [_absolute_sources(item, folder) for item in value]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return {**value, "path": absolute_source(value["path"], folder)}
    return value


def absolute_source(value: str, folder: Path) -> str:
    """A base or data source with a path made absolute."""
    if value.startswith(BUILTIN_PREFIX) or not files.names_a_path(value, folder):
        return value
    return str((folder / Path(value).expanduser()).resolve())
