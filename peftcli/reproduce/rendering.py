"""A reproduction as a table for the terminal, and as Markdown for a pull request."""

from __future__ import annotations

from peftcli.lock.differences import Difference
from peftcli.ownership import MARKDOWN_MARK
from peftcli.reports.markdown import code, table
from peftcli.reports.tables import text_table
from peftcli.reproduce.result import LEVEL_TEXTS, ComparedPart, Reproduction, SeedResult

_NAMED = 4
"""Inputs that a verdict names."""


def reproduction_text(result: Reproduction) -> str:
    """What `peft reproduce` prints."""
    lines = [
        f"{result.recipe} against {result.lock}" + (", its first steps only" if result.prefix else ""),
        *_differences("inputs", result.inputs),
        *_differences("environment", result.environment),
    ]
    for seed in result.seeds:
        rows = [[finding.name, _mark(finding), finding.detail] for finding in seed.findings]
        lines += ["", f"seed {seed.seed}, {seed.steps} steps", text_table(["compared", "", "found"], rows, width=110)]
    lines += ["", verdict(result)]
    if result.folder is not None:
        lines.append(f"the new run is kept in {result.folder}")
    return "\n".join(lines)


def verdict(result: Reproduction) -> str:
    """One or two sentences: which inputs differ, whether it reproduced, at which level, and where it first differs."""
    outcome = _outcome(result)
    if not result.inputs:
        return outcome
    named = ", ".join(item.item for item in result.inputs[:_NAMED])
    more = f" and {len(result.inputs) - _NAMED} more" if len(result.inputs) > _NAMED else ""
    return f"other inputs than the lock's ({named}{more}); {outcome}"


def _outcome(result: Reproduction) -> str:
    if result.held:
        assert result.level is not None, "held"
        text = f"reproduced: {LEVEL_TEXTS[result.level]} ({result.level})"
        wanted = {seed.wanted for seed in result.seeds}
        if result.level != "bytes" and result.parting is not None:
            text += f"; equal within tolerance up to step {result.parting.step - 1}"
        return text if wanted == {"bytes"} or result.level == "bytes" else f"{text}; {_why_not_bytes(result)}"
    if result.level is not None:
        return f"NOT reproduced strictly: {LEVEL_TEXTS[result.level]}, but {_strict_reason(result)}"
    parting = result.parting
    if parting is None:
        failed = [item.name for seed in result.seeds for item in seed.findings if item.passed is False]
        return f"NOT reproduced: no step differs, but {', '.join(failed)} does"
    return f"NOT reproduced: first differing step {parting.step}, {parting.what} differed there: {parting.detail}"


def _why_not_bytes(result: Reproduction) -> str:
    packages = [item.item for item in result.inputs if item.kind == "package"]
    if packages:
        return f"bytes need the locked versions: {', '.join(packages)}"
    machine = [item.item for item in result.environment if item.item != "python"]
    return f"bytes need the locked machine: {', '.join(machine)}" if machine else "bytes need the locked threads"


def _strict_reason(result: Reproduction) -> str:
    differing = [item.item for item in (*result.inputs, *result.environment)]
    return f"these differ: {', '.join(differing)}" if differing else "not bit for bit"


def _differences(name: str, differences: tuple[Difference, ...]) -> list[str]:
    if not differences:
        return [f"{name}: as locked"]
    return [f"{name}: {len(differences)} differ", *(f"  {_located(item)}" for item in differences)]


def _located(item: Difference) -> str:
    return item.text + (f" ({item.where})" if item.where else "")


def _mark(finding: ComparedPart) -> str:
    return {True: "ok", False: "DIFFERS", None: "differs"}[finding.passed]


def reproduction_markdown(result: Reproduction) -> str:
    """The result for a pull request."""
    mark = "✅" if result.held else "❌"
    # the verdict quotes names of files and keys: as code, so that Markdown reads nothing into them
    parts = [f"## {mark} {code(result.recipe)}", code(verdict(result), 600)]
    differing = [*result.inputs, *result.environment]
    if differing:
        rows = [[code(item.item), item.kind, code(item.locked), code(item.found)] for item in differing]
        parts.append(table(["Differs", "", "Locked", "Here"], rows))
    parts += [_seed_markdown(seed) for seed in result.seeds]
    return "\n\n".join([*parts, MARKDOWN_MARK]) + "\n"


def _seed_markdown(seed: SeedResult) -> str:
    rows = [[code(item.name), _mark(item), code(item.detail, 300)] for item in seed.findings]
    return f"Seed {seed.seed}, {seed.steps} steps\n\n{table(['Compared', '', 'Found'], rows)}"
