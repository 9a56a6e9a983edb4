"""Reports in a real browser: pictures to look at, no sideways scrolling, no element gained from hostile text.

`pytest -m browser tests/reports/screenshots.py` runs the checks (skipped, with the reason, where there is no Chromium);
`python tests/reports/screenshots.py FOLDER` writes the pictures into a folder.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from example_comparison import example_comparison
from example_run import bare_run, example_run, failed_run, interrupted_run, planted, sibling_runs
from hostile import HOSTILE

from peftcli.reports.compare_html import render_comparison_html
from peftcli.reports.html import render_html

WIDTHS = (390, 1280)
SCHEMES = {"light": 1, "dark": 0}
NARROWEST_WINDOW = 500  # Chromium makes no narrower one: a phone is a frame inside it
PAGES: dict[str, Callable[[], str]] = {
    "completed": lambda: render_html(example_run()),
    "failed": lambda: render_html(failed_run()),
    "interrupted": lambda: render_html(interrupted_run()),
    "bare": lambda: render_html(bare_run()),
    "comparison": lambda: render_comparison_html(sibling_runs()),
    "compare": example_comparison,
    "hostile": lambda: render_html(planted("\u202e<img src=x onerror=alert(1)> " + "unbroken" * 60)),
}
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

# The page stands in a frame of the wanted width; the harness around it, which may run a script, measures it.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<style>body{{margin:0;background:#8884}}iframe{{border:0;width:{width}px;height:{height}px;display:block}}</style>
<iframe srcdoc="{page}"></iframe>
<script>
window.onload = () => {{
  const inside = document.querySelector("iframe").contentDocument, root = inside.documentElement;
  const wide = [...inside.querySelectorAll("body *")].filter(e => !e.closest(".table,svg,pre,.unseen,.skip")
    && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.tagName + "." + e.className);
  document.body.dataset.facts = JSON.stringify({{height: root.scrollHeight, scroll: root.scrollWidth,
    client: root.clientWidth, elements: inside.querySelectorAll("*").length, wide: wide.slice(0, 5),
    fonts: [...inside.querySelectorAll("body *")].filter(e => e.textContent.trim() && !e.closest(".unseen")
      && parseFloat(getComputedStyle(e).fontSize) < 11.5).length}});
  document.querySelector("iframe").remove();
}};
</script>"""


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


def run_browser(*arguments: str) -> str:
    """Standard output of one headless run with an empty profile."""
    found = browser()
    assert found is not None, "callers check first"
    with tempfile.TemporaryDirectory() as profile:
        command = [found, *FLAGS, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def framed(page: str, width: int, height: int = 900, *, measuring: bool) -> str:
    whole = FRAME.format(page=html.escape(page), width=width, height=height)
    return whole if measuring else whole[: whole.index("<script>\nwindow.onload")]


def measure(page: str, width: int, folder: Path) -> dict[str, object]:
    """Facts of a page as laid out at a width: height, scrollWidth, elements, and what sticks out."""
    path = folder / "measured.html"
    path.write_text(framed(page, width, measuring=True), encoding="utf-8")
    size = f"--window-size={max(width, NARROWEST_WINDOW)},900"
    document = run_browser(size, "--dump-dom", path.as_uri())
    facts = re.search(r'data-facts="([^"]*)"', document)
    assert facts is not None, document[-400:]
    return dict(json.loads(html.unescape(facts[1])))


def shoot(name: str, page: str, width: int, scheme: str, folder: Path) -> Path:
    """A PNG of the whole page."""
    height = int(str(measure(page, width, folder)["height"]))
    path = folder / "shown.html"
    path.write_text(framed(page, width, height, measuring=False), encoding="utf-8")
    picture = folder / f"{name}-{width}-{scheme}.png"
    run_browser(
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        f"--window-size={max(width, NARROWEST_WINDOW)},{height}",
        f"--screenshot={picture}",
        path.as_uri(),
    )
    return picture


@pytest.fixture(autouse=True)
def _needs_a_browser() -> None:
    if browser() is None:
        reason = "no chromium or google-chrome on the PATH: the report is not looked at in a browser"
        print(reason)
        pytest.skip(reason)


pytestmark = pytest.mark.browser


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_width(name, width, tmp_path):
    facts = measure(PAGES[name](), width, tmp_path)
    assert facts["client"] == width
    assert facts["scroll"] == width, facts["wide"]
    assert facts["fonts"] == 0, "text below 11.5 px"
    assert facts["wide"] == []


def test_the_measure_sees_what_sticks_out(tmp_path):
    page = (
        "<!DOCTYPE html><body style='margin:0'><div style='width:2000px'>wide</div><p style='font-size:9px'>small</p>"
    )
    facts = measure(page, 390, tmp_path)
    assert (facts["client"], facts["scroll"], facts["wide"], facts["fonts"]) == (390, 2000, ["DIV."], 1)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pictures_are_made(width, scheme, tmp_path):
    picture = shoot("completed", PAGES["completed"](), width, scheme, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 50_000


def test_hostile_text_adds_no_element_in_a_browser(tmp_path):
    together = "".join(text.replace("\n", " ") for text in HOSTILE)[:580]
    wanted = measure(render_html(planted("plain words")), 1280, tmp_path)["elements"]
    for text in (*HOSTILE[:9], together):
        assert measure(render_html(planted(text)), 1280, tmp_path)["elements"] == wanted, text


def main(folder: Path) -> int:
    if browser() is None:
        print("skipped: no chromium or google-chrome on the PATH")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, render in PAGES.items():
        for width in WIDTHS:
            for scheme in SCHEMES:
                print(shoot(name, render(), width, scheme, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="reports-"))))
