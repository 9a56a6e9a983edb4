"""`python process.py KIND POINT ARGUMENTS...`: the command line on a disk that fails at a point."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from faulty_disk import FaultyDisk

from peftcli import files
from peftcli.cli.entry import main

if __name__ == "__main__":
    kind, point, *arguments = sys.argv[1:]
    files.disk = FaultyDisk(kind, int(point))
    main(arguments)
