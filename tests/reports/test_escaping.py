"""Hostile text through every renderer: it is shown, and it adds nothing."""

from __future__ import annotations

import json
import re
import unicodedata
from functools import partial

import html5lib
import pytest
import yaml
from example_run import example_record, planted
from hostile import HOSTILE
from markdown_it import MarkdownIt

from peftcli.reports.card import model_card
from peftcli.reports.compare import render_comparison_html, render_comparison_markdown
from peftcli.reports.folder import RunFacts
from peftcli.reports.html import render_html
from peftcli.reports.markdown import render_markdown
from peftcli.reports.markup import Markup, tag
from peftcli.reports.record import Sample
from peftcli.reports.terminal import display_width, run_summary, text_table
from peftcli.visible import reveal

card_of = partial(model_card, auto_class="AutoModelForCausalLM", pipeline=None)

BENIGN = "plain words"
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
PAGES = {
    "report": lambda text: render_html(planted(text)),
    "comparison": lambda text: render_comparison_html([planted(text), planted(text)]),
}
MARKDOWNS = {
    "report": lambda text: render_markdown(planted(text)),
    "comparison": lambda text: render_comparison_markdown([planted(text), planted(text)]),
    "card": lambda text: card_of(planted(text)).split("---\n", 2)[2],
}

Shape = list[tuple[str, tuple[str, ...]]]


def parsed(page: str):
    return html5lib.parse(page.encode("utf-8"), treebuilder="etree", namespaceHTMLElements=False)


def shape(page: str) -> Shape:
    """Every element with the names of its attributes, in the order of the document."""
    return [(str(node.tag), tuple(sorted(map(str, node.attrib)))) for node in parsed(page).iter()]


@pytest.fixture(scope="module")
def benign() -> dict[str, Shape]:
    rendered = {f"page {name}": shape(render(BENIGN)) for name, render in PAGES.items()}
    rendered |= {f"markdown {name}": shape(MARKDOWN.render(render(BENIGN))) for name, render in MARKDOWNS.items()}
    return rendered


def test_the_corpus_is_large_enough():
    assert len(set(HOSTILE)) >= 25


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_page_gains_no_element_from_text(name, text, benign):
    page = PAGES[name](text)
    assert shape(page) == benign[f"page {name}"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_page_has_no_script_no_handler_and_no_link_outside(text):
    page = render_html(planted(text))
    assert "<script" not in page.lower()
    for node in parsed(page).iter():
        for name, value in node.attrib.items():
            assert not name.lower().startswith("on"), name
            assert name not in ("style", "srcset", "action", "formaction", "poster")
            assert name not in ("href", "src") or value.startswith("#"), value


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_page_shows_the_text_itself(text):
    shown = "".join(parsed(render_html(planted(text))).itertext())
    assert shown.count(reveal(text)) >= 10


@pytest.mark.parametrize("name", MARKDOWNS)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_markdown_gains_no_element_from_text(name, text, benign):
    assert shape(MARKDOWN.render(MARKDOWNS[name](text))) == benign[f"markdown {name}"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_markdown_leaves_nothing_for_github_to_link(text):
    rendered = MARKDOWN.render(render_markdown(planted(text)))
    outside_code = re.sub(r"<(code|pre)\b.*?</\1>", "", rendered, flags=re.DOTALL)
    source_outside = re.sub(r"(`+).*?(?<!`)\1(?!`)", "", render_markdown(planted(text)), flags=re.DOTALL)
    assert "@" not in outside_code
    assert not re.search(r"https?://|www\.\w", source_outside)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_front_matter_holds_the_text_as_values_only(text):
    _, front, _ = card_of(planted(text)).split("---\n", 2)
    facts = yaml.safe_load(front)
    assert set(facts) == {"library_name", "tags", "metrics", "model-index"}
    assert facts["tags"] == ["peftcli", reveal(text, one_line=True)]
    assert facts["model-index"][0]["name"] == reveal(text, one_line=True)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_terminal_gets_no_control_characters_and_80_columns(text):
    run = planted(text)
    written = "\n".join(
        [
            run_summary(run),
            text_table([text, "b"], [[text, text]]),
        ]
    )
    for char in written:
        assert char in "\n\u200c\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), hex(
            ord(char)
        )
    assert max(display_width(line) for line in written.split("\n")) <= 80


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_the_record_itself_keeps_the_text_unless_json_cannot(text):
    record = example_record(warnings=[text])
    assert json.loads(record.to_json())["warnings"] == [text]


def test_marked_differences_hold_only_text():
    sample = Sample(prompt="p", reference="a <b>bold</b> word here", tuned="a <i>bold</i> word <script>x</script> here")
    page = render_html(RunFacts(example_record(samples=[sample])))
    node = next(node for node in parsed(page).iter("div") if node.get("class") == "answer tuned")
    assert {child.tag for child in node.iter()} == {"div", "h4", "span", "ins", "del"}
    quoted = next(child for child in node.iter("div") if child.get("class") == "quoted")
    kept = "".join(quoted.itertext())
    assert "<script>" in kept


@pytest.mark.parametrize(
    ("element", "attributes"),
    [
        ("a", {"href": "https://evil.example"}),
        ("a", {"href": "javascript:alert(1)"}),
        ("img", {"src": "x"}),
        ("p", {"onclick": "x"}),
        ("p", {"a b": "x"}),
        ("p><script", {}),
    ],
)
def test_markup_refuses_what_a_report_never_has(element, attributes):
    with pytest.raises(ValueError, match=r"^not an|^a report"):
        tag(element, **attributes)


def test_markup_escapes_text_and_attributes():
    assert tag("p", "<b>", Markup("<i></i>"), ["&", None], title='"') == '<p title="&quot;">&lt;b&gt;<i></i>&amp;</p>'
