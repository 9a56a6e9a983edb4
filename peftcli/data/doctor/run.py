"""Runs the checks and turns what they saw into findings; a `fail` stops the run with the rows named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from peftcli.data.config import Severity
from peftcli.data.doctor.base import Check, Finding, Review, RowBatch, Tallies, Tally, all_checks
from peftcli.data.rows import Row
from peftcli.errors import DataError, Fault


class Scanner:
    """Runs the checks that look at rows while a source is read; `tallies` is what they have seen."""

    def __init__(self, specials: Sequence[str] = ()) -> None:
        # a special token of white space would be found in every row
        self._specials = [text for text in specials if text.strip()]
        self._scans = {name: check.scan for name, check in all_checks().items() if check.scan is not None}
        self._collectors = {name: check.collect() for name, check in all_checks().items() if check.collect is not None}
        self.tallies: Tallies = {}

    def scan(self, rows: Sequence[Row], file: str, lines: Sequence[int]) -> None:
        """Looks at some rows. Raises `UnicodeEncodeError` for text that is not Unicode (half a surrogate pair)."""
        batch = RowBatch(rows, self._specials)
        for name, scan in self._scans.items():
            for position, message in scan(batch):
                self.add(name, file, lines[position], message)
        for collector in self._collectors.values():
            collector.add(batch, file, lines)

    def finish(self) -> None:
        """Asks those that gather over a source for what they have found."""
        for name, collector in self._collectors.items():
            for file, line, message in collector.hits():
                self.add(name, file, line, message)

    def add(self, check: str, file: str, line: int, message: str) -> None:
        """Counts a row on which a check fired."""
        self.tallies.setdefault((check, file), Tally()).add(line, message)


def review(data: Review, severities: Mapping[str, Severity]) -> Tallies:
    """Runs every check that compares rows, but those that are off."""
    tallies: Tallies = {}
    for name, check in all_checks().items():
        if check.review is not None and severity_of(name, check, severities) != "off":
            for file, line, message in check.review(data):
                tallies.setdefault((name, file), Tally()).add(line, message)
    return tallies


def grave_severities(data: Review) -> dict[str, Severity]:
    """`fail` for each check whose findings are too grave for its usual severity."""
    return {name: "fail" for name, check in all_checks().items() if check.grave is not None and check.grave(data)}


def severity_of(name: str, check: Check, severities: Mapping[str, Severity]) -> Severity:
    """What the recipe says of a check, else what the check says of itself."""
    return severities.get(name, check.default)


def findings_of(tallies: Iterable[Tallies], severities: Mapping[str, Severity]) -> list[Finding]:
    """One finding a check and file, without those that are off; failures first."""
    checks = all_checks()
    merged: Tallies = {}
    for part in tallies:
        for key, tally in part.items():
            # the message of the first part stands for all: they are of one check and file
            whole = merged.setdefault(key, Tally(message=tally.message))
            whole.count += tally.count
            # `[:5]` after sorting, so that the rows named are the first of all parts
            whole.rows = sorted({*whole.rows, *tally.rows})[:5]
    found = [
        Finding(name, severity, _message(tally), file, tally.rows[0] if tally.rows else 0, tally.count)
        for (name, file), tally in merged.items()
        if (severity := severity_of(name, checks[name], severities)) != "off" and tally.count
    ]
    # failures first, then by name, so that the order does not depend on which source was read first
    return sorted(found, key=lambda each: (each.severity != "fail", each.check, each.file))


def _message(tally: Tally) -> str:
    if tally.count == 1:
        return tally.message
    named = ", ".join(map(str, tally.rows))
    more = ", ..." if tally.count > len(tally.rows) else ""
    return f"{tally.message} ({tally.count:,} rows: {named}{more})"


def raise_failures(findings: Sequence[Finding]) -> None:
    """Raises one `DataError` when a check that is set to fail has found something."""
    failed = [finding for finding in findings if finding.severity == "fail"]
    if failed:
        faults = [
            Fault(
                f"{finding.check}: {finding.message}",
                f"{finding.file}:{finding.row}",
                f"correct the rows, or `data.checks: {{{finding.check}: warn}}` to go on",
            )
            for finding in failed
        ]
        raise DataError(f"the data doctor stops the run: {len(failed)} checks failed", faults=faults)


def findings_lines(findings: Sequence[Finding]) -> list[str]:
    """Findings as JSON Lines, for `RUN/data/findings.jsonl`."""
    return [json.dumps(finding.to_dict(), ensure_ascii=False) for finding in findings]
