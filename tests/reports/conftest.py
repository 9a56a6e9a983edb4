"""Lets the tests of this folder share `example_run` and `hostile`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
