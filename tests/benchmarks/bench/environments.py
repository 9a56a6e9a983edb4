"""Where the peers live: an environment of its own for each, with what `peers/<name>.txt` pins."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parent / "peers"


def interpreter(peer: str, place: Path) -> Path:
    """The Python of a peer's environment under `place`; it is made, or made again where its pins have changed.

    Raises `CalledProcessError` where pip cannot install.
    """
    pins = PEERS / f"{peer}.txt"
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    folder = place / peer
    python, mark = folder / "bin" / "python", folder / "pins"
    if mark.is_file() and mark.read_text(encoding="ascii") == digest:
        return python
    print(f"installing {peer}: {', '.join(pins.read_text(encoding='ascii').split())}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--requirement",
        str(pins),
    ]
    subprocess.run(command, check=True, env={**os.environ, "PIP_NO_INPUT": "1"})
    mark.write_text(digest, encoding="ascii")
    return python
