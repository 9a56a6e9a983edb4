"""Hostile text through every renderer: it is shown, and it adds nothing."""

from __future__ import annotations

import json
import re
import unicodedata
from functools import partial
from importlib import resources
from pathlib import Path

import html5lib
import pytest
import yaml
from example_run import example_record, planted
from hostile import HOSTILE
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from markupsafe import Markup

from peftcli.reports.card import model_card
from peftcli.reports.compare import render_comparison_markdown
from peftcli.reports.compare_html import render_comparison_html
from peftcli.reports.folder import RunFacts
from peftcli.reports.html import render_html
from peftcli.reports.markdown import render_markdown
from peftcli.reports.plots.elements import tag
from peftcli.reports.record import Sample
from peftcli.reports.tables import text_table
from peftcli.reports.templating import _environment
from peftcli.reports.terminal import run_ending, run_summary
from peftcli.visible import reveal

card_of = partial(model_card, auto_class="AutoModelForCausalLM", pipeline=None)

TEMPLATES = Path(str(resources.files("peftcli.reports").joinpath("templates")))
BENIGN = "plain words"
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
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


def columns(line: str) -> int:
    """Columns of a line: wide characters take two, combining marks none, nor what a joiner joins to the one before."""
    line = re.sub("\u200d.", "", line)
    seen = (char for char in line if not unicodedata.combining(char) and char not in "\u200c\u200d\ufe0f")
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in seen)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_terminal_gets_no_control_characters_and_80_columns(text):
    summary = run_summary(planted(text))
    written = "\n".join([summary, text_table([text, "b"], [[text, text]]), text_table(["a"], [[text * 9]])])
    assert {char for char in written if unicodedata.category(char) in HIDDEN} <= set("\n\u200c\u200d")
    assert max(columns(line) for line in written.split("\n")) <= 80
    if len(shown := reveal(text, one_line=True)) < 36:
        assert shown in written


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_colours_are_all_that_a_painted_ending_adds(text):
    """What is painted goes to a terminal as it is: folder, name and every text in it are to be harmless already."""
    run = planted(text)
    plain, painted = run_ending(run, text), run_ending(run, text, colour=True)
    assert painted != plain
    bare = re.sub(r"\x1b\[[0-9;]*m", "", painted)
    assert [line.rstrip() for line in bare.split("\n")] == plain.split("\n")
    assert {char for char in plain if unicodedata.category(char) in HIDDEN} <= set("\n\u200c\u200d")


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
        ("a", {"href": "#here"}),
        ("image", {"x": "0"}),
        ("script", {}),
        ("foreignObject", {}),
        ("line><script", {}),
        ("rect", {"href": "https://evil.example"}),
        ("rect", {"xlink_href": "javascript:alert(1)"}),
        ("rect", {"src": "x"}),
        ("rect", {"onclick": "x"}),
        ("rect", {"style": "fill:red"}),
        ("rect", {"a b": "x"}),
    ],
)
def test_a_picture_refuses_what_a_report_never_has(element, attributes):
    with pytest.raises(ValueError, match=r"^not an"):
        tag(element, **attributes)


def test_a_picture_escapes_text_and_attributes():
    drawn = tag("text", "<b>\x1b", Markup("<title></title>"), ["&", None], id='"', x=None)
    assert drawn == '<text id="&#34;">&lt;b&gt;⟨U+001B⟩<title></title>&amp;</text>'


@pytest.mark.parametrize(
    "path", sorted(TEMPLATES.rglob("*.jinja")), ids=lambda path: path.relative_to(TEMPLATES).as_posix()
)
def test_no_template_lets_text_pass_or_writes_where_escaping_does_not_help(path):
    """Escaped text is safe between tags and in quoted attributes; not in a script, a handler, a style or an address."""
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe\b|\bautoescape\b|Markup", source)
    assert not re.search(r"<script|javascript:|\son[a-z]+\s*=|\sstyle\s*=|\ssrc\s*=|<link", source)
    assert re.findall(r"<style>(.*?)</style>", source) in ([], ["{{ style_sheet() }}"])
    assert all(target.startswith("#") for target in re.findall(r"href\s*=\s*\"?([^\s>]*)", source))
    assert not re.search(r"=\s*\{\{", source), "an attribute without quotes"


def written(source: str, **facts: object) -> str:
    return _environment().from_string(source).render(facts)


def test_what_a_template_writes_is_text_and_can_be_seen():
    assert written('<p title="{{ a }}">{{ a }}</p>', a='<i>\x1b"\u202e') == (
        '<p title="&lt;i&gt;⟨U+001B⟩&#34;⟨U+202E⟩">&lt;i&gt;⟨U+001B⟩&#34;⟨U+202E⟩</p>'
    )
    assert written("{{ a }}{{ n }}", a=Markup("<svg></svg>"), n=3) == "<svg></svg>3"


def test_a_template_that_asks_for_what_is_not_there_fails():
    with pytest.raises(UndefinedError, match="nothing"):
        written("{{ a.nothing }}", a={})
    with pytest.raises(ValueError, match="not there"):
        written("{{ a }}", a=None)
