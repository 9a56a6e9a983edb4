"""Pins the shipped files: writes `hashes.json` beside the built-in bases and beside the built-in data.

python tests/builtin/make/pin.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "peftcli"


def pin(folder: Path) -> None:
    """Writes the SHA-256 of every file in the sub-folders of `folder`."""
    found = sorted(path for path in folder.glob("*/*") if path.is_file() and path.parent.name != "__pycache__")
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
    (folder / "hashes.json").write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
    print(f"{folder.name} of {folder.parent.name}: {len(hashes)} files, {sum(p.stat().st_size for p in found)} bytes")


def main() -> None:
    for room in ("models", "data"):
        pin(PACKAGE / room / "builtin")


if __name__ == "__main__":
    main()
