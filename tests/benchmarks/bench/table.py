"""README's table of speed, from the figures that `make bench` wrote: `python table.py RESULT.json [README.md]`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
COLUMNS = {
    "tokens_per_second": "tokens/s",
    "tokens_per_cpu_second": "tokens/CPU s",
    "peak_over_loaded_bytes": "memory over the model",
    "first_step_seconds": "time to first step",
}


def table(document: dict[str, Any]) -> str:
    """Ratios as median (least to largest), one line a protocol and peer, and where they were measured."""
    head = ["protocol", "peftcli over", *COLUMNS.values()]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *_rows(document)]
    where = document["machine"]
    versions = sorted(
        {figures["version"] for found in document["protocols"].values() for figures in found["rounds"][0].values()
         if "version" in figures}
    )  # fmt: skip
    rounds = min(len(found["rounds"]) for found in document["protocols"].values())
    told = f"{where['processor']}, {where['threads']} threads; median of {rounds} rounds (least to largest); "
    told += "tokens without padding; until its first step peftcli also reads and encodes the rows, which the peers are "
    told += "given as tokens. "
    return "\n".join([*rows, "", told + ", ".join(versions) + "."])


def _rows(document: dict[str, Any]) -> Iterator[str]:
    for found in document["protocols"].values():
        for arm, peers in found["ratios"].items():
            for peer, measures in peers.items():
                name = peer if arm == "peftcli" else f"{peer} ({arm})"
                cells = [_cell(measures[measure]) for measure in COLUMNS]
                yield f"| {found['about']}, {found['dtype']} | {name} | {' | '.join(cells)} |"


def _cell(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})"


def put_into(text: str, document: dict[str, Any]) -> str:
    """A README with the table between its two marks; raises `SystemExit` where it has none."""
    marks = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not marks.search(text):
        raise SystemExit(f"no {BEGIN} ... {END} to put the table between")
    return marks.sub(lambda _: f"{BEGIN}\n{table(document)}\n{END}", text)


if __name__ == "__main__":
    result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if len(sys.argv) == 2:
        print(table(result))
    else:
        readme = Path(sys.argv[2])
        readme.write_text(put_into(readme.read_text(encoding="utf-8"), result), encoding="utf-8")
