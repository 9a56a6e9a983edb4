"""`peft report` for people who were not there: a page for the model's users, and figures as files for slides."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from peftcli.cli.entry import run as peft
from peftcli.reports.failures import ClassScore, class_scores
from peftcli.runs.own_files import strangers

SVG = "{http://www.w3.org/2000/svg}"


def page(folder: Path) -> str:
    return (folder / "report-users.html").read_text(encoding="utf-8")


def test_the_page_of_a_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peft(["report", "run", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert "run/report-users.html" in written
    assert strangers(work / "run") == []
    text = page(work / "run")
    for title in ("Trained on", "Base and tuned", "How it fails", "How to run it"):
        assert f">{title}</h2>" in text
    scores = load_file(work / "run" / "data" / "scores.safetensors")
    losses = scores["tuned/eval_loss"][:, 0] / scores["tuned/eval_loss"][:, 1]
    shown = [float(value) for value in re.findall(r"<td>([\d.]+)</td><td>[\d.]+</td><td>", text)]
    wanted = sorted(losses.tolist(), reverse=True)
    assert shown == pytest.approx(wanted[:10], rel=1e-3)
    # the first of the rows' texts is the one of the worst row
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text().splitlines()]
    places = [int(number) for number in re.findall(r"rows\.jsonl:(\d+)</th>", text)]
    assert len(places) == len(shown)
    answer = rows[places[0] - 1]["messages"][-1]["content"]
    assert answer.split('"')[3] in text


def test_without_the_rows_the_numbers_stay(work: Path) -> None:
    recipe = json.loads((work / "run" / "run.json").read_text())["recipe"]
    rows = Path(recipe["data.train"])
    kept = rows.rename(rows.with_suffix(".away"))
    try:
        assert peft(["report", "run"]) == 0
    finally:
        kept.rename(rows)
    text = page(work / "run")
    assert "the texts of the rows are not shown" in text
    assert "held-out row " in text


def test_figures_stand_alone(work: Path) -> None:
    assert peft(["report", "run"]) == 0
    found = sorted((work / "run" / "figures").glob("*.svg"))
    assert {"training-loss.svg", "loss-base-and-tuned.svg"} <= {path.name for path in found}
    for path in found:
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg"
        assert int(root.get("width", "0")) == 960
        assert int(root.get("height", "0")) > 100
        assert not re.search(r"var\(|class=|style=|url\(|href|<script", text), path.name
        drawn = [
            element
            for element in root.iter()
            if element.tag in {f"{SVG}{name}" for name in ("path", "line", "circle", "rect")}
        ]
        assert drawn
        assert all(element.get("stroke") or element.get("fill") for element in drawn), path.name
        assert all(element.get("fill", "").startswith("#") for element in root.iter(f"{SVG}text")), path.name


def test_nobody_elses_page_is_written_over(work: Path) -> None:
    (work / "run" / "report-users.html").write_text("mine")
    assert peft(["report", "run"]) == 6
    assert page(work / "run") == "mine"


def test_labels_worst_first() -> None:
    pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("c", "a"), ("c", "b"), ("c", "b")]
    assert class_scores(pairs) == [
        ClassScore("c", 3, 0, "b"),
        ClassScore("a", 2, 1, "b"),
        ClassScore("b", 1, 1, None),
    ]
