"""A run folder, read for its report: the record, what it logged, the doctor's findings, the recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from peftcli import files
from peftcli.errors import DataError, Fault, StorageError
from peftcli.reports.record import FindingRecord, RunRecord, load_record
from peftcli.reports.seal import changed_beside
from peftcli.reports.series import Series, read_metrics

# of a recipe or findings: a report shows far less
_MAX_TEXT_BYTES = 16 << 20


@dataclass(frozen=True)
class RunFacts:
    """All that a report is made from. `label` names the run among others."""

    record: RunRecord
    series: Series = field(default_factory=Series)
    findings: list[FindingRecord] = field(default_factory=list)
    recipe: str = ""
    label: str = ""

    @property
    def name(self) -> str:
        """What the run is called, with the method as the last resort."""
        return self.record.name or self.label or self.record.method


def read_run(folder: Path) -> RunFacts:
    """Reads a run folder. Raises `DataError` when it has no readable `run.json`; the other files may be missing."""
    record = load_record(folder)
    # a report must not be made from files that are no longer those of the run
    changed = changed_beside(folder, record.run_files)
    if changed is not None:
        raise DataError(
            f"{changed} is not what the run wrote: its SHA-256 differs from the one in the run's record",
            where=str(folder / changed),
            fix="put the file back, or run the recipe again",
        )
    recipe_path = folder / "recipe.yaml"
    recipe = ""
    if recipe_path.is_file():
        recipe = files.read_bounded(recipe_path, limit_bytes=_MAX_TEXT_BYTES).decode("utf-8", errors="replace")
    return RunFacts(
        record=record,
        series=read_metrics(folder / "metrics.jsonl"),
        findings=_read_findings(folder / "data" / "findings.jsonl"),
        recipe=recipe,
        # `resolve`, for a folder given as `.` has no name
        label=folder.resolve().name,
    )


def _read_findings(path: Path) -> list[FindingRecord]:
    if not path.is_file():
        return []
    text = files.read_bounded(path, limit_bytes=_MAX_TEXT_BYTES).decode("utf-8", errors="replace")
    findings = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            findings.append(FindingRecord.model_validate(json.loads(line)))
        except (ValueError, RecursionError, ValidationError) as error:
            raise DataError("a finding cannot be read", where=f"{path}:{number}", fix="remove the file") from error
    return findings


def read_runs(folders: list[Path]) -> list[RunFacts]:
    """Several runs for a comparison; every folder that cannot be read is named at once."""
    runs: list[RunFacts] = []
    faults: list[Fault] = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except (DataError, StorageError) as error:
            faults.extend(error.faults)
    if faults:
        raise DataError(f"{len(faults)} of {len(folders)} runs cannot be read", faults=faults)
    return runs
