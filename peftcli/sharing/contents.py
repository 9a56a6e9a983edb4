"""What of a run or an adapter folder is sent: a list of names that we write, never a folder as it lies there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftcli import files
from peftcli.errors import AdapterError
from peftcli.lock.document import LOCK_NAME
from peftcli.models.companions import files_beside_weights, is_tokenizer_name
from peftcli.models.own_files import is_own_file
from peftcli.runs.locating import Location
from peftcli.runs.own_files import RECIPE_NAME, written_adapter
from peftcli.sharing.places import Places

CARD_NAME = "README.md"
"""The model card."""
REPORT_NAMES = ("report.html", "report.md")
"""The renderings of a run's record."""
_LIMIT_BYTES = 256 << 20
_OF_AN_ADAPTER = (
    "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "peftcli.json",
    "peftcli_encoder.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """One file as it will lie in the repository."""

    name: str
    place: str
    """Where it is from, for messages."""
    source: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def read(self, limit: int = _LIMIT_BYTES) -> bytes:
        """Its first bytes, all of them up to a limit that no text has."""
        if isinstance(self.source, bytes):
            return self.source[:limit]
        with files.reading_errors(self.source), files.open_regular(self.source) as file:
            return file.read(limit)


def adapter_pieces(location: Location) -> list[Piece]:
    """The adapter and the tokenizer beside it, without the card. Of a run what the run wrote, by its own record."""
    folder = location.adapter
    if location.run is not None and folder == location.run / "adapter":
        names = written_adapter(location.run) - {CARD_NAME}
    else:
        names = {name for name in files_beside_weights(folder) if is_tokenizer_name(name)} | set(_OF_AN_ADAPTER)
    found = [Piece(name, str(folder / name), folder / name) for name in sorted(names) if _is_file(folder, name)]
    if not any(piece.name == "adapter_model.safetensors" for piece in found):
        raise AdapterError("the adapter has no tensors", where=str(folder), fix="name a run or adapter folder")
    return found


def _is_file(folder: Path, name: str) -> bool:
    return (folder / name).is_file() and is_own_file(folder / name, folder)


def run_pieces(run: Path, places: Places) -> list[Piece]:
    """Recipe, lock and report of a run, without the folders of this machine."""
    pieces = []
    for name in (RECIPE_NAME, LOCK_NAME, *REPORT_NAMES):
        path = run / name
        if not path.is_file() or path.is_symlink():
            continue
        if name == LOCK_NAME:
            # its paths are relative by themselves, and it is sealed
            pieces.append(Piece(name, str(path), path))
            continue
        text = files.read_bounded(path, limit_bytes=_LIMIT_BYTES).decode("utf-8", errors="replace")
        pieces.append(Piece(name, str(path), places.hidden(text).encode("utf-8")))
    return pieces
