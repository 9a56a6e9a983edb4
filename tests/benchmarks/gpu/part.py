"""The process of one part: imports its file, runs it, and writes what it found, each figure as soon as it is known."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def load_part(path: Path) -> Any:
    """The module of a part's file."""
    spec = importlib.util.spec_from_file_location(f"gpu_part_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Result:
    """The file that the driver reads: rewritten at every figure, so that a part that dies has still told the earlier."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {"figures": {}}

    def tell(self, figures: dict[str, Any]) -> None:
        self.write(figures=figures)

    def write(self, **facts: Any) -> None:
        self.found |= facts
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.found, default=str), encoding="utf-8")
        temporary.replace(self.path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="tiny")
    options = parser.parse_args()
    result = Result(options.result)
    try:
        from setting import Setting

        folder = options.result.parent / "work"
        folder.mkdir(exist_ok=True)
        setting = Setting(device=options.device, tiny=options.size == "tiny", folder=folder, tell=result.tell)
        result.write(summary=load_part(options.part).run(setting), outcome="passed")
    except Exception as error:
        traceback.print_exc()
        said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        result.write(outcome="failed", error=said, traceback=traceback.format_exc()[-4000:])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
