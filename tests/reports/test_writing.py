"""Reports from a run folder and onto the disk; the Markdown, the card and the terminal in their own right."""

from __future__ import annotations

import html
import io
import json
import re
import subprocess
import sys
from functools import partial

import pytest
import yaml
from example_run import RECIPE, bare_run, example_run, failed_run, findings, sibling_runs

from peftcli.cli.output import show
from peftcli.errors import DataError
from peftcli.reports.card import is_hub_id, model_card
from peftcli.reports.compare import render_comparison_markdown
from peftcli.reports.folder import RunFacts, read_run
from peftcli.reports.html import render_html
from peftcli.reports.markdown import render_markdown
from peftcli.reports.tables import paint, text_table, wrapped
from peftcli.reports.terminal import run_summary, score_table
from peftcli.reports.writing import write_comparison, write_reports
from peftcli.streams import wants_colour

card_of = partial(model_card, auto_class="AutoModelForCausalLM", pipeline="text-generation")


def run_folder(path, run: RunFacts):
    path.mkdir(parents=True)
    (path / "run.json").write_text(run.record.to_json())
    with (path / "metrics.jsonl").open("w") as log:
        for step, values in run.series.train.items():
            log.write(json.dumps({"event": "train", "step": step, **values}) + "\n")
        for step, values in run.series.evaluations.items():
            log.write(json.dumps({"event": "eval", "step": step, **values}) + "\n")
    (path / "recipe.yaml").write_text(run.recipe)
    (path / "data").mkdir()
    (path / "data" / "findings.jsonl").write_text("".join(f.model_dump_json() + "\n" for f in run.findings))
    return path


def test_a_folder_gives_the_same_report_as_the_facts(tmp_path):
    folder = run_folder(tmp_path / "support-001", example_run())
    assert read_run(folder) == example_run()
    html_path, markdown_path = write_reports(folder)
    assert html_path.read_text() == render_html(example_run())
    assert markdown_path.read_text() == render_markdown(example_run())
    assert (html_path.name, markdown_path.name) == ("report.html", "report.md")


def test_rendering_twice_gives_the_same_bytes():
    assert render_html(example_run()) == render_html(example_run())


def test_a_failed_run_has_a_report(tmp_path):
    folder = run_folder(tmp_path / "support-002", failed_run())
    html_path, markdown_path = write_reports(folder)
    assert "the loss is not finite" in html_path.read_text()
    assert "the loss is not finite" in markdown_path.read_text()


def test_a_comparison_names_every_run_that_cannot_be_read(tmp_path):
    good = run_folder(tmp_path / "good", example_run())
    with pytest.raises(DataError) as caught:
        write_comparison([good, tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert len(caught.value.faults) == 2
    other = run_folder(tmp_path / "other", sibling_runs()[1])
    html_path, markdown_path = write_comparison([good, other], tmp_path / "out")
    assert "support-bottleneck" in html_path.read_text()
    assert "`support-bottleneck`" in markdown_path.read_text()


def test_a_damaged_finding_names_its_line(tmp_path):
    folder = run_folder(tmp_path / "run", example_run())
    (folder / "data" / "findings.jsonl").write_text(findings()[0].model_dump_json() + "\n{\n")
    with pytest.raises(DataError, match=r"findings\.jsonl:2"):
        read_run(folder)


def test_the_short_form_is_short_and_holds_the_numbers():
    text = render_markdown(example_run())
    assert text.startswith("## `support`: It learned.")
    assert "| `loss` | 3.099 (2.981 to 3.214) | 0.07342 (0.05810 to 0.09020) | −97.6 % (better) |" in text
    assert "147,456 (14.0 %)" in text
    assert len(text.splitlines()) < 120
    assert "**Why**" in render_markdown(failed_run())


def test_a_card_holds_measured_numbers_only():
    facts = yaml.safe_load(card_of(example_run(base="Qwen/Qwen3-0.6B")).split("---\n")[1])
    assert facts["base_model"] == "Qwen/Qwen3-0.6B"
    assert facts["library_name"] == "peft"
    assert facts["pipeline_tag"] == "text-generation"
    values = {metric["type"]: metric["value"] for metric in facts["model-index"][0]["results"][0]["metrics"]}
    assert values == {"loss": 0.07342, "exact_match": 0.9458, "token_accuracy": 0.9872}
    unmeasured = yaml.safe_load(card_of(bare_run()).split("---\n")[1])
    assert "metrics" not in unmeasured
    assert "model-index" not in unmeasured


def test_a_card_tells_no_paths_of_the_machine():
    card = card_of(example_run(base="/home/someone/models/base-7b/"), loads_with_peft=False)
    assert "/home" not in card
    assert "base_model" not in card
    assert "`base-7b`" in card
    assert "library_name: peftcli" in card


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("gpt2", True),
        ("a/b", True),
        ("/a/b", False),
        ("a/b/c", False),
        ("builtin:base", False),
        ("../a", False),
        ("", False),
    ],
)
def test_hub_ids(base, expected):
    assert is_hub_id(base) is expected


def test_a_comparison_in_markdown_marks_the_best():
    text = render_comparison_markdown(sibling_runs())
    assert "| `support` | It learned. | **0.07342** | **94.6 %** | 98.7 % |" in text


def test_colour_is_for_those_that_ask():
    assert paint("a", "red", enabled=False) == "a"
    assert "\x1b" not in run_summary(example_run())
    assert "\x1b[32mIt learned.\x1b[0m" in run_summary(example_run(), colour=True)


def test_tables_for_a_terminal():
    table = text_table(["name", "n"], [["a" * 200, "1"], ["你好", "22"]], numeric=[1], width=30)
    assert table.splitlines() == [
        "name                         n",
        "──────────────────────────  ──",
        "aaaaaaaaaaaaaaaaaaaaaaaaa…   1",
        "你好                        22",
    ]
    assert "94.6 %" in score_table(example_run().record.evaluation)


def test_a_table_takes_its_texts_as_they_are():
    rows = [["[red]a[/red] :smile: [link=x]", "https://x.example 0x1f 'q' None"], ["\x1b[31m\ttab", "🙂 ok"]]
    assert text_table(["a", "b"], rows).splitlines() == [
        "a                              b",
        "─────────────────────────────  ───────────────────────────────",
        "[red]a[/red] :smile: [link=x]  https://x.example 0x1f 'q' None",
        "⟨U+001B⟩[31m⟨U+0009⟩tab        🙂 ok",
    ]
    assert text_table(["a", "b"], []).splitlines() == ["a  b", "─  ─"]


@pytest.mark.parametrize("count", [2, 3, 7, 12])
def test_a_table_fits_its_width_however_many_columns_it_has(count):
    lines = text_table(["x" * 30] * count, [["y" * 99] * count]).splitlines()
    assert [len(line) for line in lines[1:]] == [80, 80]
    assert len(lines[0]) <= 80
    assert all(len(re.split(" {2,}", line)) == count for line in lines)


def test_running_text_keeps_every_character_within_its_width():
    lines = list(wrapped("some words " * 20 + "x" * 100, 40))
    assert max(map(len, lines)) <= 40
    assert "".join(lines).replace(" ", "") == "somewords" * 20 + "x" * 100
    assert list(wrapped("")) == list(wrapped("  ")) == []


def test_tables_ask_the_surroundings_for_nothing(monkeypatch):
    before = text_table(["a"], [["b" * 90]]), paint("a", "red", enabled=True), paint("a", "red", enabled=False)
    for name, value in {"COLUMNS": "20", "FORCE_COLOR": "1", "TERM": "dumb", "NO_COLOR": "1", "LINES": "1"}.items():
        monkeypatch.setenv(name, value)
    after = text_table(["a"], [["b" * 90]]), paint("a", "red", enabled=True), paint("a", "red", enabled=False)
    assert before == after
    assert after[1:] == ("\x1b[31ma\x1b[0m", "a")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "wanted"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": "0"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
        (io.StringIO(), {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(stream, environment, wanted, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    assert wants_colour(stream) is wanted


@pytest.mark.parametrize("colour", [True, False])
def test_a_credential_is_masked_right_behind_a_colour(colour, monkeypatch, capsys):
    token = "hf_" + "aB3dE5gH7jK9" * 3
    show({}, paint(token, "green", enabled=colour) + f" {token}", as_json=False, coloured=colour)
    assert capsys.readouterr().out == ("\x1b[32m***\x1b[0m ***\n" if colour else "*** ***\n")


def test_a_secret_of_the_environment_is_masked_as_a_page_writes_it(tmp_path, monkeypatch):
    secret = """pa"ss'w<o>rd&9f3kz"""
    monkeypatch.setenv("SOME_API_KEY", secret)
    folder = run_folder(tmp_path / "run", example_run(warnings=[f"it said {secret} and went on"]))
    text = html.unescape(write_reports(folder)[0].read_text())
    assert "it said *** and went on" in text
    assert secret not in text


def test_a_report_is_written_without_torch_or_rich_and_read_without_jinja():
    """A page needs no terminal; and what reads records only (comparing, validating) starts without templates."""
    code = (
        "import sys, peftcli.reports.html, peftcli.reports.writing, peftcli.reports.card;"
        "bad = {'torch', 'transformers', 'numpy', 'rich', 'jinja2', 'yaml'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_recipe_is_on_the_page():
    assert RECIPE.splitlines()[3] in render_html(example_run())


def test_a_card_holds_no_row_of_the_data():
    run = example_run(base="Qwen/Qwen3-0.6B")
    card = card_of(run)
    assert run.record.samples
    for sample in run.record.samples:
        for text in (sample.prompt, sample.reference, sample.base, sample.tuned):
            assert text is None or text not in card


def test_a_card_tells_how_to_use_the_adapter_in_three_tools():
    card = card_of(example_run(base="Qwen/Qwen3-0.6B"), served_as_lora=True)
    for line in (
        "PeftModel.from_pretrained",
        'load_adapter("ADAPTER_FOLDER")',
        "vllm serve Qwen/Qwen3-0.6B --enable-lora",
    ):
        assert line in card
    assert "vllm" not in card_of(example_run(base="Qwen/Qwen3-0.6B"))
    assert "vllm" not in card_of(example_run(base="/models/mine"), served_as_lora=True)
