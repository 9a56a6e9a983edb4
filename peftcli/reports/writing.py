"""Reports on disk: rendered from what a run folder holds, beside it."""

from __future__ import annotations

from pathlib import Path

from peftcli import files
from peftcli.ownership import HTML_MARK, MARKDOWN_MARK, require_writable
from peftcli.redaction import redacted_name
from peftcli.reports.compare import render_comparison_markdown
from peftcli.reports.compare_html import render_comparison_html
from peftcli.reports.failures import Failures
from peftcli.reports.figures import figure_files
from peftcli.reports.folder import read_run, read_runs
from peftcli.reports.html import render_html
from peftcli.reports.markdown import render_markdown
from peftcli.reports.users import render_users

_RUN_NAMES = ("report.html", "report.md")
USERS_NAME = "report-users.html"
"""The page for the model's users."""
FIGURES_FOLDER = "figures"
"""Where the figures are, as SVG files."""
_COMPARISON_NAMES = ("compare.html", "compare.md")


def write_reports(folder: Path) -> list[Path]:
    """Renders `report.html` and `report.md` of a run folder; returns their paths."""
    run = read_run(folder)
    return _write(folder, _RUN_NAMES, (render_html(run), render_markdown(run)))


def write_reports_again(folder: Path) -> list[Path]:
    """The same after the run. Raises `StorageError` where somebody's own file has one of the names."""
    _require_writable(folder, _RUN_NAMES)
    return write_reports(folder)


def write_for_users(folder: Path, failures: Failures) -> list[Path]:
    """Writes `report-users.html`, and the figures as `figures/*.svg`; returns their paths.

    Raises `StorageError` where somebody's own file has one of the names.
    """
    run = read_run(folder)
    page, figures = folder / USERS_NAME, folder / FIGURES_FOLDER
    texts = {figures / name: text for name, text in figure_files(run).items()}
    require_writable(page, HTML_MARK)
    for path in texts:
        require_writable(path, MARKDOWN_MARK)
    files.write_text(page, redacted_name(render_users(run, failures)))
    for path, text in texts.items():
        files.write_text(path, redacted_name(text))
    return [page, *texts]


def write_comparison(folders: list[Path], output: Path) -> list[Path]:
    """Writes `compare.html` and `compare.md` of several run folders into `output`; returns the paths.

    Raises `StorageError` where somebody's own file has one of the names.
    """
    _require_writable(output, _COMPARISON_NAMES)
    runs = read_runs(folders)
    return _write(output, _COMPARISON_NAMES, (render_comparison_html(runs), render_comparison_markdown(runs)))


def _require_writable(folder: Path, names: tuple[str, str]) -> None:
    for name, mark in zip(names, (HTML_MARK, MARKDOWN_MARK), strict=True):
        require_writable(folder / name, mark)


def _write(folder: Path, names: tuple[str, str], texts: tuple[str, str]) -> list[Path]:
    # the page as a whole once more: a credential may stand across two facts, or in a file's name
    page, short = (folder / name for name in names)
    files.write_text(page, redacted_name(texts[0]))
    files.write_text(short, redacted_name(texts[1]))
    return [page, short]
