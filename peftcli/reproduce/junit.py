"""A reproduction as JUnit XML: one suite, one case an item, in the order and with the attributes of the common schema.

Every element of a suite that a strict reader asks for is written: properties, cases, system-out, system-err.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from peftcli.errors import RecipeError
from peftcli.ownership import JUNIT_MARK, MARKDOWN_MARK, require_writable
from peftcli.reproduce.rendering import reproduction_text, verdict
from peftcli.reproduce.result import ComparedPart, Reproduction

_HOST = "localhost"
"""The schema asks for a host; none is named."""


def result_paths(junit: Path) -> Path:
    """The Markdown file beside a JUnit file, before anything is run.

    Raises `RecipeError` where both would be one file, `StorageError` where either is somebody's own.
    """
    markdown = junit.with_suffix(".md")
    if markdown == junit:
        raise RecipeError("--junit names a Markdown file, which is written beside it", fix="--junit result.xml")
    require_writable(junit, JUNIT_MARK)
    require_writable(markdown, MARKDOWN_MARK)
    return markdown


def junit_xml(result: Reproduction) -> str:
    """The document. A case for the inputs, one for the environment, one for each finding of each seed, and the verdict."""
    cases = _cases(result)
    failures = sum(message is not None for _, _, message in cases)
    root = Element("testsuites")
    suite = SubElement(
        root,
        "testsuite",
        {
            "package": "peftcli",
            "id": "0",
            "name": _clean(f"reproduce {result.recipe}"),
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
            "hostname": _HOST,
            "tests": str(len(cases)),
            "failures": str(failures),
            "errors": "0",
            "time": f"{result.seconds:.3f}",
        },
    )
    properties = SubElement(suite, "properties")
    for name, value in (
        ("level", result.level or "none"),
        ("lock", result.lock),
        ("strict", str(result.strict).lower()),
    ):
        SubElement(properties, "property", {"name": name, "value": _clean(value)})
    for number, (group, name, message) in enumerate(cases):
        # the whole time stands at the verdict: cases are findings about one run, not work of their own
        seconds = result.seconds if number == len(cases) - 1 else 0.0
        case = SubElement(
            suite, "testcase", {"name": _clean(name), "classname": _clean(group), "time": f"{seconds:.3f}"}
        )
        if message is not None:
            # readers show the attribute on one line; the text below it is whole
            failure = SubElement(case, "failure", {"message": _clean(message)[:500], "type": "difference"})
            failure.text = _clean(message)
    SubElement(suite, "system-out").text = _clean(reproduction_text(result))
    SubElement(suite, "system-err").text = ""
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _cases(result: Reproduction) -> list[tuple[str, str, str | None]]:
    """(group, name, message of the failure or None). Inputs and environment fail only where they are asked for."""
    group = f"peftcli.reproduce.{result.recipe.replace('.', '_').replace('/', '.').strip('.')}"
    found: list[tuple[str, str, str | None]] = []
    for name, differences in (("inputs", result.inputs), ("environment", result.environment)):
        text = "; ".join(item.text for item in differences)
        found.append(
            # inputs that differ and yet reproduced are no failure
            (group, name, text if differences and not result.held and (result.strict or name == "inputs") else None)
        )
    for seed in result.seeds:
        for finding in seed.findings:
            found.append((f"{group}.seed-{seed.seed}", finding.name, _message(finding, held=result.held)))
    found.append((group, "reproduced", None if result.held else verdict(result)))
    return found


def _message(finding: ComparedPart, *, held: bool) -> str | None:
    return None if held or finding.passed is not False else finding.detail


def _clean(text: str) -> str:
    """Text without the characters that XML 1.0 cannot hold."""
    return "".join(
        char if char in "\t\n\r" or 0x20 <= ord(char) <= 0xD7FF or 0xE000 <= ord(char) <= 0xFFFD or ord(char) > 0xFFFF
        else "?"
        for char in text
    )  # fmt: skip
