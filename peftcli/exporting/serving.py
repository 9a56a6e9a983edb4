"""The command by which a server of many adapters serves runs, after looking whether it can.

transformers' own server loads models by name and takes no adapters beside a base, so the command is vLLM's. It is written,
not run: the server is another package, on another machine more often than not.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftcli.adapters.documents import TENSORS_NAME, read_config
from peftcli.adapters.registry import config_class_of_type
from peftcli.errors import AdapterError, Fault, RecipeError
from peftcli.exporting.hugging_face import serving_notes
from peftcli.jobs.side_by_side import one_base
from peftcli.models.companions import TEMPLATE_NAME
from peftcli.models.tensor_header import tensor_header
from peftcli.runs.as_written import require_as_written
from peftcli.runs.locating import Location, locate

_PORT = 8000


@dataclass(frozen=True)
class ServeCommand:
    """`words`: the command; `adapters`: name -> folder."""

    words: tuple[str, ...]
    base: str
    adapters: dict[str, str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints, as plain data."""
        return {**asdict(self), "words": list(self.words), "notes": list(self.notes), "command": shlex.join(self.words)}


def serve_command(paths: Sequence[str | Path], *, base: str | None = None) -> ServeCommand:
    """vLLM's command for the adapters of some runs on their one base, each by its run's name.

    Raises `AdapterError` naming every adapter that the server cannot serve and the nearest way, `RecipeError` for adapters
    of different bases or of one name.
    """
    located = {_name(Path(path)): locate(path, base=base) for path in paths}
    if len(located) != len(paths):
        raise RecipeError(
            "two of the runs have one name, and a server asks for adapters by name", fix="rename a folder"
        )
    for location in located.values():
        require_as_written(location)
    _require_servable(located)
    source = one_base(located)
    folders = {name: str(location.adapter.absolute()) for name, location in located.items()}
    template, notes = _template(located)
    revision = [] if source.revision is None else ["--revision", source.revision]
    words = [
        "vllm", "serve", source.location, *revision, "--enable-lora", "--max-loras", str(len(folders)),
        *_flags(located), *template, "--port", str(_PORT), "--lora-modules",
        *(f"{name}={folder}" for name, folder in folders.items()),
    ]  # fmt: skip
    return ServeCommand(tuple(words), source.name, folders, tuple(notes))


def _name(path: Path) -> str:
    """Of the run, or of the adapter folder that lies alone."""
    path = path.expanduser().resolve()
    return path.parent.name if path.name == "adapter" else path.name


def _require_servable(located: dict[str, Location]) -> None:
    faults = []
    for location in located.values():
        document = read_config(location.adapter)
        shapes = {key: shape for key, (_, shape) in tensor_header(location.adapter / TENSORS_NAME).items()}
        method = config_class_of_type(document["peft_type"], where=str(location.adapter)).name
        told = [note for note in serving_notes(document, method, shapes) if note.refuses]
        faults += [Fault(note.message, str(location.adapter), note.fix) for note in told]
    if faults:
        raise AdapterError("some adapters cannot be served beside a base", faults=faults)


def _flags(located: dict[str, Location]) -> list[str]:
    """What the methods say of the server's limits."""
    documents = [read_config(location.adapter) for location in located.values()]
    names = {config_class_of_type(document["peft_type"], where="").name for document in documents}
    # of one method: others are refused before
    module = importlib.import_module(f"peftcli.adapters.methods.{names.pop()}.serving")
    found: list[str] = module.server_flags(documents)
    return found


def _template(located: dict[str, Location]) -> tuple[list[str], list[str]]:
    """The chat template that the adapters were trained with, where it lies beside them; a server has one for all."""
    files = {name: location.adapter / TEMPLATE_NAME for name, location in located.items()}
    texts = {name: path.read_bytes() if path.is_file() else None for name, path in files.items()}
    if len(set(texts.values())) > 1:
        return [], ["the adapters were trained with different chat templates, and a server has one for all of them"]
    first = next(iter(files))
    return ([] if texts[first] is None else ["--chat-template", str(files[first].absolute())]), []


def serve_text(command: ServeCommand) -> str:
    """What `peft serve` prints."""
    name = next(iter(command.adapters))
    asked = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "..."}}]}}'
    address = f"http://localhost:{_PORT}/v1/chat/completions"
    lines = [
        shlex.join(command.words),
        f"then: curl {address} -H 'Content-Type: application/json' -d '{asked}'",
        f"ask for {', '.join(command.adapters)}; under the base's own name the base answers",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in command.notes)])
