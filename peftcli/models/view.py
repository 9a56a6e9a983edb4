"""A model folder as transformers is shown it: a folder of links to exactly the files that were checked, and nothing else.

transformers opens what `config.json`, an index or a listing of the folder name; from the folder itself it would also
follow a link that leaves it, wait on a pipe, or put an adapter on the base that somebody left beside it. Here it finds
only what is regular, inside the folder and hashed into the lock (`snapshot`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.models.hub import cached_folder
from peftcli.models.snapshot import checked_files, small_names
from peftcli.models.source import CONFIG_NAME, BaseSource, read_model_config
from peftcli.models.weight_files import check_weight_files, weight_names


@dataclass(frozen=True)
class Shown:
    """`path`: the folder of links; `commit`: of the Hub, else None; `config`: what `config.json` holds, {} without one."""

    path: Path
    commit: str | None
    config: Mapping[str, Any]


@contextlib.contextmanager
def shown_folder(source: BaseSource, *, weights: bool) -> Iterator[Shown]:
    """The folder that transformers is given, for as long as the block lasts.

    `weights`: with them, else configuration, tokenizer and templates only. Raises `ModelError`, and for a base of the Hub
    what huggingface_hub raises.
    """
    # a base of the Hub is shown by links too, though its cache is links already: the same files, and no others
    folder = source.folder if source.folder is not None else cached_folder(source, weights=weights)
    names = small_names(folder)
    config = read_model_config(folder) if CONFIG_NAME in names else {}
    if weights:
        check_weight_files(folder, config)
        names += weight_names(folder, config)
    with _linked(checked_files(folder, names)) as path:
        yield Shown(path, None if source.is_local else folder.name, config)


@contextlib.contextmanager
def _linked(found: Mapping[str, Path]) -> Iterator[Path]:
    with files.storage_errors(Path(tempfile.gettempdir())):
        place = Path(tempfile.mkdtemp(prefix="peftcli-"))
    try:
        with files.storage_errors(place):
            for name, path in found.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                # resolved: a relative link would be read from the new folder
                _link(place / name, path.resolve(strict=True))
        yield place
    finally:
        # links only, so nothing of the base goes with it
        shutil.rmtree(place, ignore_errors=True)


def _link(name: Path, target: Path) -> None:
    try:
        name.symlink_to(target)
    except OSError:
        # a system whose users may not make links: a second name, else a copy
        try:
            os.link(target, name)
        except OSError:
            shutil.copyfile(target, name)
