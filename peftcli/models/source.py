"""Where a base model comes from: built in, a folder, or the Hub; and the checks on a folder before anything is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.errors import ModelError
from peftcli.models.builtin import builtin_base
from peftcli.models.own_files import file_fault, is_there

BUILTIN_PREFIX = "builtin:"
"""In front of the name of a base that ships with peftcli."""
CONFIG_NAME = "config.json"
"""The configuration of a model folder."""
_CONFIG_LIMIT_BYTES = 4 << 20
_NOT_TRUSTED = "do not trust this model; get it from its own page"
# about four times the layers of the deepest published models
MAX_LAYERS = 500
# of each label transformers makes an entry in two dictionaries while it reads the configuration
MAX_LABELS = 1_000_000
_COUNTS_LAYERS = re.compile(r".*layers|n_layer|num_layer")
_SIZE = re.compile(
    r"(n|num)_\w*(heads?|layers?|embd|labels)|vocab_size|hidden_size|intermediate_size|d_model|\w*head_dim"
)


@dataclass(frozen=True)
class BaseSource:
    """`location` is what transformers is given: a folder, or a Hub id with `revision`."""

    name: str
    location: str
    revision: str | None
    folder: Path | None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder, built in or the user's own, and not of the Hub."""
        return self.folder is not None


def resolve_base(base: str, *, folder: Path, revision: str | None = None) -> BaseSource:
    """Resolves the recipe's `model.base` relative to the recipe's `folder`.

    Raises `ModelError` (exit 4) when a path does not hold a model; never talks of repository ids for a path.
    """
    if base.startswith(BUILTIN_PREFIX):
        path = builtin_base(base.removeprefix(BUILTIN_PREFIX))
        return BaseSource(base, str(path), None, path)
    if not files.names_a_path(base, folder):
        return BaseSource(base, base, revision, None)
    path = (folder / Path(base).expanduser()).resolve()
    _check_folder(path, base)
    return BaseSource(base, str(path), None, path)


def _check_folder(path: Path, base: str) -> None:
    if not path.exists():
        raise ModelError(f"no such model folder: {base}", where=str(path), fix="give the folder that holds config.json")
    if not path.is_dir():
        raise ModelError(f"{base} is a file, not a model folder", where=str(path), fix="give the folder that holds it")
    # whether anything has the name; `read_config_file` says what is wrong with it
    if not is_there(path / CONFIG_NAME):
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"{base} is an adapter, not a base model",
                where=str(path),
                fix="name the base under `model.base` and the adapter under `model.init_adapter`",
            )
        raise ModelError(f"{base} has no config.json", where=str(path), fix="give the folder that holds config.json")
    read_model_config(path)


def read_model_config(path: Path) -> dict[str, Any]:
    """`config.json` of a model folder, bounded, refused when it gives leave to run code."""
    return read_config_file(path / CONFIG_NAME)


def read_config_file(file: Path) -> dict[str, Any]:
    """The same by the file's own path."""
    fault = file_fault(file, file.parent)
    if fault is not None:
        raise ModelError(f"config.json {fault}", where=str(file), fix="give the folder that holds config.json")
    try:
        config = json.loads(files.read_bounded(file, limit_bytes=_CONFIG_LIMIT_BYTES))
    except (ValueError, RecursionError) as error:
        raise ModelError("config.json is not valid JSON", where=str(file), fix="download the model again") from error
    if not isinstance(config, dict):
        raise ModelError("config.json is not a JSON object", where=str(file), fix="download the model again")
    # transformers would read the file for its release from that table, past every check here
    if "configuration_files" in config:
        raise ModelError(
            "config.json names other configuration files (`configuration_files`), which is not supported",
            where=str(file),
            fix="put the configuration itself into config.json",
        )
    for where, section in _sections(config, "config.json"):
        for key, value in section.items():
            if _asks_for_code(key, value):
                raise code_refused(file, key, where)
            if (many := _too_many(key, value)) is not None:
                raise ModelError(
                    f"`{key}` is {value:,} in {where}; no model has so many {many}", where=str(file), fix=_NOT_TRUSTED
                )
    return config


def _too_many(key: str, value: Any) -> str | None:
    """What a number is too large a count of, if it is one."""
    if isinstance(value, int) and value > MAX_LAYERS and _COUNTS_LAYERS.fullmatch(key):
        return "layers"
    return "labels" if isinstance(value, int) and value > MAX_LABELS and key == "num_labels" else None


def describes_sizes(config: Mapping[str, Any]) -> str:
    """A configuration's sizes that are not above zero, as the end of a sentence; empty where all are."""
    odd = [
        f"`{key}` is {value}"
        for _, section in _sections(config, "")
        for key, value in section.items()
        if type(value) is int and value <= 0 and _SIZE.fullmatch(key)
    ]
    return f" ({', '.join(odd[:3])})" if odd else ""


def code_places(config: Mapping[str, Any], families: Container[str] = ()) -> list[str]:
    """Where a configuration names classes of the model's own (`auto_map`) for a family that is not among `families`:
    transformers never looks at them for one that it has itself."""
    return [
        where
        for where, section in _sections(config, "config.json")
        if "auto_map" in section and section.get("model_type") not in families
    ]


def code_refused(file: Path, key: str, where: str) -> ModelError:
    """The error for a model that asks to run its own code."""
    return ModelError(
        f"the model asks to run its own code (`{key}` in {where})",
        where=str(file),
        fix="use a model of a family that transformers has built in",
    )


def _asks_for_code(key: str, value: Any) -> bool:
    """Leave to run code, and kernels by the name of a repository."""
    # keys such as `_attn_implementation_internal` set what the public field would check
    if key == "trust_remote_code" or key.endswith("_internal"):
        return True
    # what is built in has a name of letters, digits and underscores; `org/kernel` is somebody's code
    return key.endswith("_implementation") and isinstance(value, str) and not value.replace("_", "").isalnum()


def _sections(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object in a document and where it stands."""
    # a list of what waits instead of recursion: a document may be nested as deep as the reader of JSON allows
    waiting = [(where, value)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, Mapping):
            yield where, value
            # bounded, for keys are text of a stranger's and end up in a message
            waiting += [(f"{where}: {key}"[:200], child) for key, child in value.items()]
        elif isinstance(value, list):
            waiting += [(where, child) for child in value]
