"""Unpacks the chat templates of real models out of Python packages into a folder: `python fetch.py FOLDER`.

From PyPI: the source package of llama_cpp_python (llama.cpp's own collection) and trl; and what the installed transformers
holds. Nothing of it is kept in this repository.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGES = ("llama_cpp_python==0.3.36", "trl==1.16.0")
INSIDE = {"llama_cpp_python": "/vendor/llama.cpp/models/templates/", "trl": "trl/chat_templates/"}


def fetch(folder: Path) -> int:
    """Fills the folder with `<package>--<name>.jinja`; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        for package in PACKAGES:
            plain = package.partition("==")[0]
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name]
            subprocess.run([*command, "--no-binary", "llama_cpp_python", package], check=True)
            (archive,) = Path(name).glob(f"{plain}*")
            for path, data in _members(archive, INSIDE[plain]):
                (folder / f"{plain}--{path}").write_bytes(data)
            archive.unlink()
    for label, source in _of_transformers():
        (folder / f"transformers--{label}.jinja").write_text(source, encoding="utf-8")
    return len(list(folder.glob("*.jinja")))


def _members(archive: Path, inside: str) -> list[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = [name for name in wheel.namelist() if inside in name and name.endswith(".jinja")]
            return [(Path(name).name, wheel.read(name)) for name in names]
    found = []
    with tarfile.open(archive) as sources:
        for member in sources:
            if inside in member.name and member.name.endswith(".jinja") and member.isfile():
                stream = sources.extractfile(member)
                assert stream is not None
                found.append((Path(member.name).name, stream.read()))
    return found


def _of_transformers() -> list[tuple[str, str]]:
    """Strings of transformers that are chat templates, by module."""
    import transformers

    found = []
    for module in pkgutil.walk_packages(transformers.__path__, "transformers."):
        path = Path(transformers.__path__[0], *module.name.split(".")[1:]).with_suffix(".py")
        if not path.is_file() or not any(mark in path.read_text(encoding="utf-8") for mark in ("{% for", "{%- for")):
            continue
        try:
            names = vars(importlib.import_module(module.name))
        except Exception as error:  # a module that needs packages which are not here
            print(f"left out: {module.name}: {type(error).__name__}")
            continue
        for name, value in names.items():
            if isinstance(value, str) and "{%" in value and "messages" in value and "add_generation_prompt" in value:
                found.append((f"{module.name.rpartition('.')[2]}-{name.strip('_').lower()}", value))
        for owner in [each for each in names.values() if isinstance(each, type) and each.__module__ == module.name]:
            source = vars(owner).get("default_chat_template")
            if isinstance(source, property):
                found.append((f"{module.name.rpartition('.')[2]}-default", source.fget(None)))
    return found


if __name__ == "__main__":
    print(f"{fetch(Path(sys.argv[1]))} chat templates in {sys.argv[1]}")
