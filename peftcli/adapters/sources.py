"""Where an adapter that training starts from lies: in a folder, in a run, or on the Hub; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftcli import files
from peftcli.adapters.documents import COMPANIONS_NAME, CONFIG_NAME, OWN_NAME, TENSORS_NAME
from peftcli.errors import AdapterError, HubError
from peftcli.models.own_files import file_fault, is_there

KEY = "model.init_adapter"
"""The recipe key that names one."""
READ = (CONFIG_NAME, TENSORS_NAME, OWN_NAME, COMPANIONS_NAME)
"""The files that are read of an adapter."""


@dataclass(frozen=True)
class AdapterSource:
    """`folder` holds `adapter_config.json`; `commit` is that of an adapter from the Hub."""

    name: str
    """As the recipe names it."""
    folder: Path
    commit: str | None = None

    def files(self) -> dict[str, str]:
        """Name -> SHA-256 of every file that is read. Raises `AdapterError` for one that is not to be read."""
        found = [self.folder / name for name in READ if is_there(self.folder / name)]
        for path in found:
            if (fault := file_fault(path, self.folder)) is not None:
                raise AdapterError(f"{path.name} {fault}", where=str(path), fix="copy the file itself")
        return {path.name: files.sha256_file(path) for path in found}


def split_revision(name: str) -> tuple[str, str | None]:
    """`owner/name@revision` in its parts."""
    identifier, _, revision = name.partition("@")
    return identifier, revision or None


def resolve_adapter(name: str, *, fetch: bool = True) -> AdapterSource:
    """Finds the adapter that a recipe names: an adapter folder or run by its absolute path, or `owner/name[@revision]`.

    `fetch`: ask the Hub for one of the Hub; else only the local cache is looked at. Raises `AdapterError` where a folder
    holds none, `HubError` where the Hub has none.
    """
    if Path(name).is_absolute():
        return AdapterSource(name, _folder_of(Path(name), name))
    identifier, revision = split_revision(name)
    # imported here: a recipe that names none needs no library of the Hub
    from peftcli.models.hub import adapter_folder, hub_errors

    try:
        with hub_errors(identifier, revision, key=KEY):
            found = adapter_folder(identifier, revision, fetch=fetch)
    # the library's own check of names
    except ValueError as error:
        raise AdapterError(
            f"{name[:100]!r} is neither a folder nor a name of the Hub", fix=f"{KEY}: ./FOLDER or owner/name@revision"
        ) from error
    except HubError as error:
        fix = f"{error.faults[0].fix}; a folder begins with ./ and is relative to the recipe"
        raise HubError(error.message, where=KEY, fix=fix) from error
    return AdapterSource(name, _folder_of(found, name), found.name)


def _folder_of(path: Path, name: str) -> Path:
    for found in (path, path / "adapter"):
        if is_there(found / CONFIG_NAME):
            return found
    raise AdapterError(f"{name} holds no adapter: {_what_there_is(path)}", where=str(path), fix=_fix(path))


def _what_there_is(path: Path) -> str:
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file"
    if list(path.glob(f"seed-*/adapter/{CONFIG_NAME}")):
        return "it is a run of several seeds, with an adapter each"
    if (path / "config.json").is_file():
        return "it is a whole model"
    return f"it has no {CONFIG_NAME}"


def _fix(path: Path) -> str:
    if seeds := sorted(path.glob(f"seed-*/adapter/{CONFIG_NAME}")):
        return f"name one of them, for instance {seeds[0].parents[1]}"
    if (path / "config.json").is_file():
        return "name it under `model.base`"
    return "name an adapter folder or a finished run; a path is relative to the recipe"
