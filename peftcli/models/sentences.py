"""How a base makes one vector of a text, as sentence-transformers notes it beside a model: `modules.json`,
`1_Pooling/config.json`.

What is read is what is known: a module that these files name and that nobody here computes is refused, for vectors without
it would be others. Free of torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.errors import ModelError
from peftcli.models.own_files import is_own_file, is_there

MODULES_NAME = "modules.json"
"""Which modules follow each other."""
POOLING_FOLDER = "1_Pooling"
_CONFIG = "config.json"
_OTHERS = ("sentence_bert_config.json", "config_sentence_transformers.json")
"""Longest text, prompts, similarity: read by sentence-transformers alone."""
MEAN, CLS, LAST = "mean", "cls", "lasttoken"
POOLINGS = (MEAN, CLS, LAST)
"""Under the names of sentence-transformers."""
_MODES = {
    "pooling_mode_cls_token": CLS,
    "pooling_mode_mean_tokens": MEAN,
    "pooling_mode_lasttoken": LAST,
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
"""Switches of releases before 6; since then `pooling_mode` is the name."""
_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class SentenceShape:
    """`pooling`: one of `POOLINGS`. `normalize`: whether vectors are brought to length 1."""

    pooling: str
    normalize: bool


def read_shape(folder: Path) -> SentenceShape | None:
    """The shape that a model folder notes; None where it notes none. Raises `ModelError` for one that is not computed
    here, and for files that cannot be read."""
    if not is_there(folder / MODULES_NAME):
        return None
    modules = _read(folder, MODULES_NAME)
    entries = [each for each in modules if isinstance(each, dict)] if isinstance(modules, list) else []
    kinds = [str(each.get("type", "")).rpartition(".")[2] for each in entries]
    known = [kind for kind in kinds if kind != "Normalize"]
    if known != ["Transformer", "Pooling"] or len(entries) != len(modules):
        raise ModelError(
            f"the base makes its vectors by {', '.join(kinds) or 'nothing'}; computed here are a transformer, pooling and "
            "normalising",
            where=str(folder / MODULES_NAME),
            fix="choose another base, or name `embedding.pooling` and remove modules.json to go without",
        )
    pooling = str(entries[kinds.index("Pooling")].get("path", POOLING_FOLDER))
    return SentenceShape(_pooling(folder, pooling), "Normalize" in kinds)


def _pooling(folder: Path, name: str) -> str:
    place = f"{name}/{_CONFIG}"
    document = _read(folder, place)
    mode = document.get("pooling_mode") if isinstance(document, dict) else None
    found = [mode] if isinstance(mode, str) else list(mode or [])
    if isinstance(document, dict) and not found:
        found = [mode for key, mode in _MODES.items() if document.get(key)] or [MEAN]
    if len(found) != 1 or found[0] not in POOLINGS:
        raise ModelError(
            f"the base pools by {', '.join(map(str, found)) or 'nothing'}; computed here are {', '.join(POOLINGS)}",
            where=str(folder / place),
            fix="choose another base, or name another `embedding.pooling`",
        )
    return str(found[0])


def _read(folder: Path, name: str) -> Any:
    if not is_own_file(folder / name, folder):
        raise ModelError(f"{name} is missing, or no file of the folder", where=str(folder), fix="get the base again")
    try:
        return json.loads(files.read_bounded(folder / name, limit_bytes=_LIMIT_BYTES))
    except ValueError as error:
        raise ModelError(f"{name} is no JSON", where=str(folder / name), fix="get the base again") from error


def shape_files(shape: SentenceShape, width: int, base: Path) -> dict[str, bytes]:
    """The files by which sentence-transformers (2 and later) makes the same vectors. `width`: of a vector. `base`: the
    base's folder, whose own files of this kind are kept where they say nothing of the shape."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if shape.normalize else [])]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": "" if number == 0 else f"{number}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    switches = {key: mode == shape.pooling for key, mode in _MODES.items()}
    pooling = {"word_embedding_dimension": width, **switches, "include_prompt": True}
    found = {MODULES_NAME: modules, f"{POOLING_FOLDER}/{_CONFIG}": pooling}
    contents = {name: files.to_json(document).encode("utf-8") for name, document in found.items()}
    kept = {name: base / name for name in _OTHERS if is_own_file(base / name, base)}
    return contents | {name: files.read_bounded(path, limit_bytes=_LIMIT_BYTES) for name, path in kept.items()}


def files_of_shape(folder: Path) -> dict[str, Path]:
    """Name -> path of the files of this kind in a model or adapter folder; none where it notes no shape."""
    if not is_own_file(folder / MODULES_NAME, folder):
        return {}
    names = [MODULES_NAME, *_OTHERS]
    names += [f"{each.name}/{_CONFIG}" for each in sorted(folder.glob("[0-9]_*")) if each.is_dir()]
    return {name: folder / name for name in names if is_own_file(folder / name, folder)}
