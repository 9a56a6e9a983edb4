"""The page: true to the record, self-contained, small, accessible."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import html5lib
import pytest
from example_comparison import example_comparison
from example_run import bare_run, example_run, failed_run, interrupted_run, planted, sibling_runs

from peftcli.reports import numbers
from peftcli.reports.compare import best_run, labels, unlike
from peftcli.reports.compare_html import render_comparison_html
from peftcli.reports.folder import RunFacts
from peftcli.reports.html import MAX_BYTES, render_html
from peftcli.reports.markdown import render_markdown
from peftcli.reports.record import DataRow, Event, FindingRecord, LayerUpdate, Sample, SourceScores, Span
from peftcli.reports.series import Series
from peftcli.reports.style import RUN_STYLES, run_style, style_sheet
from peftcli.reports.templating import CONTENT_SECURITY_POLICY

PAGES = {
    "completed": lambda: render_html(example_run()),
    "failed": lambda: render_html(failed_run()),
    "interrupted": lambda: render_html(interrupted_run()),
    "bare": lambda: render_html(bare_run()),
    "comparison": lambda: render_comparison_html(sibling_runs()),
    "compare": example_comparison,
}


def parsed(page: str):
    return html5lib.HTMLParser(strict=False, namespaceHTMLElements=False).parse(page)


def text_of(node) -> str:
    return " ".join("".join(node.itertext()).split())


@pytest.fixture(params=PAGES)
def page(request) -> str:
    return PAGES[request.param]()


def test_a_page_is_valid_html(page):
    parser = html5lib.HTMLParser(strict=True)
    parser.parse(page)


def test_a_page_stands_alone(page):
    head = parsed(page).find("head")
    policy = next(node for node in head.iter("meta") if node.get("http-equiv") == "Content-Security-Policy")
    assert (
        policy.get("content")
        == CONTENT_SECURITY_POLICY
        == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )
    assert not list(parsed(page).iter("link"))
    style = next(head.iter("style")).text
    assert "url(" not in style
    assert "@import" not in style
    assert len(page.encode()) < 200_000


def test_the_layout_of_a_template_is_no_text_of_the_page(page):
    """Line ends and indents of the templates would be spaces between words, and lines in what keeps its white space."""
    texts = [text for node in parsed(page).iter() for text in (node.text, node.tail) if text]
    blank = {text for text in texts if not text.strip()}
    assert blank <= {" ", "\n"}
    assert texts.count("\n") <= 1, "only after the whole page"


def test_a_page_can_be_read_without_eyes_or_pointer(page):
    tree = parsed(page)
    assert tree.get("lang") == "en"
    levels = [int(node.tag[1]) for node in tree.iter() if node.tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    identifiers = [node.get("id") for node in tree.iter() if node.get("id")]
    assert len(identifiers) == len(set(identifiers))
    assert all(table.find("caption") is not None for table in tree.iter("table"))
    for picture in (node for node in tree.iter("svg") if node.get("role") == "img"):
        assert text_of(picture.find("title"))
        assert text_of(picture.find("desc"))
        assert set(picture.get("aria-labelledby").split()) <= set(identifiers)
    links = [node.get("href") for node in tree.iter("a")]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(identifiers)
    assert all(section.get("aria-labelledby") in identifiers for section in tree.iter("section"))


def shown_numbers(page: str) -> dict[float, set[str]]:
    found: dict[float, set[str]] = {}
    for node in parsed(page).iter("data"):
        if node.get("value"):
            found.setdefault(float(node.get("value")), set()).add(text_of(node).replace("\xa0", " "))
    return found


def test_numbers_on_the_page_are_those_of_the_record():
    run = example_run()
    record = run.record
    found = shown_numbers(render_html(run))
    expected = {
        record.parameters.trainable: numbers.count(record.parameters.trainable),
        record.parameters.total: numbers.count(record.parameters.total),
        record.seconds.training: numbers.duration(record.seconds.training),
        record.seconds.startup: numbers.duration(record.seconds.startup),
        record.peak_memory_bytes: numbers.data_size(record.peak_memory_bytes),
        record.adapter_bytes: numbers.data_size(record.adapter_bytes),
        record.tokens_per_second: f"{numbers.count(record.tokens_per_second)} tokens/s",
    }
    for values in (record.evaluation.base, record.evaluation.tuned):
        expected |= {
            value: numbers.metric_value(record.evaluation.facts[name], value) for name, value in values.items()
        }
    for update in record.updates:
        expected[update.norm] = numbers.plain(update.norm)
    for value, text in expected.items():
        assert text in found[value], (value, text, found.get(value))


def test_every_shown_number_is_its_exact_value():
    for value, texts in shown_numbers(render_html(example_run())).items():
        for text in texts:
            plain = text.split(" ")[0].replace(",", "")
            units = {"k": 1e3, "M": 1e6, "KiB": 2**10, "MiB": 2**20, "%": 0.01, "min": 60}
            unit = units.get(text.split(" ")[1], 1) if " " in text else 1
            assert float(plain) * unit == pytest.approx(value, rel=0.02, abs=5e-4), text


def test_the_verdict_comes_first_and_failures_say_why():
    assert "It learned." in render_html(example_run())
    failed = render_html(failed_run())
    assert (
        failed.index("The run failed.")
        < failed.index("the loss is not finite at step 120")
        < failed.index('id="curves"')
    )
    assert "exit code 8" in failed
    assert "stopped by SIGINT" in render_html(interrupted_run())


def test_differences_and_trained_tokens_are_marked():
    tree = parsed(render_html(example_run()))
    assert [text_of(node) for node in tree.iter("ins")][1:] == ["oak", "false"]
    assert [text_of(node) for node in tree.iter("del")][1:] == ["oat", "true"]
    trained = [text_of(node) for node in tree.iter("span") if node.get("class") == "token trained"]
    assert '{"name": "Mira", "product": "router", "code": "amber-fig-moss"}' in trained


def huge_run() -> RunFacts:
    """Everything at once, as large and as wide (in escapes) as it comes."""
    text = "\x00<&\"'\u202e" * 4_000
    words = " ".join(f"w{i % 7}<{i}>" for i in range(4000))
    run = example_run(
        samples=[Sample(prompt=text, reference=words, base=words[::-1], tuned=words[3:], origin=text)] * 400,
        rows=[DataRow(spans=[Span(text="<a>&", kind="trained"), Span(text=text, kind="context")] * 5000)] * 100,
        warnings=[text] * 3000,
        events=[Event(event=text, step=1, message=text)] * 3000,
        updates=[LayerUpdate(name=f"model.layers.{i}.{text}", norm=1.0, relative=0.1) for i in range(3000)],
        environment={f"{text}{i}": text for i in range(3000)},
        settings={f"{text}{i}": text for i in range(3000)},
        data={f"{text}{i}": text for i in range(3000)},
    )
    train = {step: {"loss": 1 / (step + 1), "learning_rate": 1e-3, "grad_norm": 1.0} for step in range(200_000)}
    evaluations = {step: {f"eval_{i}": 1.0 * step for i in range(50)} for step in range(0, 20_000, 10)}
    findings = [FindingRecord(check=text, severity="warn", message=text, file=text, row=1)] * 3000
    return RunFacts(run.record, Series(train, evaluations), findings, text, text)


def test_a_page_stays_below_two_megabytes_whatever_the_run():
    assert len(render_html(huge_run()).encode()) < MAX_BYTES == 2_000_000


def test_a_comparison_of_many_runs_stays_small():
    runs = [planted(f"run {index} " + '"<&' * 2000) for index in range(40)]
    assert len(render_comparison_html(runs).encode()) < MAX_BYTES


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance with 5 % flare."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z0-9-]+):(#[0-9a-f]{6});", block))


LIGHT, DARK = map(colours, re.findall(r":root\{[^}]*--ink[^}]*\}", style_sheet()))


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_keep_the_contrast_of_wcag_aa(scheme):
    inks = ("ink", "soft", "tuned", "base", "good", "warn", "bad", "rate", "gradient")
    for ink, ground in itertools.product(inks, ("paper", "card", "faint")):
        assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)
    for name in ("good", "warn", "bad"):
        assert contrast(scheme[name], scheme[f"{name}-ground"]) >= 4.5, name
        assert contrast(scheme["ink"], scheme[f"{name}-ground"]) >= 4.5, name
    assert contrast(scheme["ink"], scheme["tuned-ground"]) >= 4.5
    assert contrast(scheme["soft"], scheme["tuned-ground"]) >= 4.5


def test_colours_of_runs_can_be_seen_in_both_schemes():
    lines = re.findall(r"\.(run-\d+)\{--colour:var\(--(run-\d+)\);--dash:([^}]+)\}", style_sheet())
    assert [name for name, _, _ in lines] == [colour for _, colour, _ in lines] == [run_style(i) for i in range(8)]
    assert len(lines) == RUN_STYLES == len({(dash, LIGHT[name], DARK[name]) for name, _, dash in lines})
    for name, _, _ in lines:
        assert contrast(LIGHT[name], LIGHT["paper"]) >= 4.5
        assert contrast(DARK[name], DARK["paper"]) >= 4.5


def test_every_colour_that_a_rule_uses_is_there_in_both_schemes():
    assert set(LIGHT) == set(DARK)
    set_by_rules = set(re.findall(r"--([a-z0-9-]+):", style_sheet()))
    assert set(re.findall(r"var\(--([a-z0-9-]+)", style_sheet())) <= set_by_rules


def test_a_comparison_names_the_best_and_what_is_unlike():
    runs = sibling_runs()
    assert labels(runs) == ["support", "support-bottleneck", "support-prompt_tuning"]
    assert best_run(runs, "eval_loss") == 0
    assert best_run(runs, "eval_exact_match") == 0
    assert best_run(runs, "eval_token_accuracy") is None
    assert unlike(runs) == []
    assert unlike([*runs, bare_run()]) == ["base model", "evaluation rows", "training data", "evaluation data"]
    assert "Not like with like" in render_comparison_html([*runs, bare_run()])


def test_runs_of_one_name_are_told_apart():
    assert labels([bare_run(), bare_run()]) == ["lora (1)", "lora (2)"]
    with pytest.raises(ValueError, match="at least one"):
        render_comparison_html([])


def test_each_of_several_sources_has_its_scores_in_every_rendering():
    run = example_run()
    parts = [
        SourceScores(name=f"data/{name}.jsonl", rows=rows, base={"eval_loss": 2.125}, tuned={"eval_loss": loss})
        for name, rows, loss in (("mails", 1200, 1.375), ("<b>calls", 40, 1.625))
    ]
    assert "Metrics by source" not in render_html(run)
    evaluation = run.record.evaluation.model_copy(update={"sources": parts})
    run = replace(run, record=run.record.model_copy(update={"evaluation": evaluation}))
    html, markdown = render_html(run), render_markdown(run)
    for text in ("mails.jsonl", "calls.jsonl", "1,200", "1.375", "1.625"):
        assert text in html
        assert text in markdown
    assert "<b>calls" not in html


def test_several_runs_begin_with_quality_against_cost():
    runs = sibling_runs()
    page = render_comparison_html(runs)
    assert page.index("Quality and cost") < page.index("Results")
    assert page.count('class="ring"') >= 3
    # a run that measured nothing has no place, and one alone no front
    assert "Quality and cost" not in render_comparison_html(runs[:1])
    assert "Quality and cost" not in render_comparison_html([bare_run(), bare_run()])
