"""The record of a run in the making: filled from left to right as the run goes, written whenever it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peftcli
from peftcli import files
from peftcli.adapters.base import Summary
from peftcli.errors import PeftcliError
from peftcli.kernels.names import OFF
from peftcli.lock.document import LOCK_NAME, Lock
from peftcli.lock.lock_file import write_lock
from peftcli.lock.trace import run_trace, steps_taken
from peftcli.models.snapshot import snapshot
from peftcli.models.structure import structure
from peftcli.planning.plan import Prepared
from peftcli.recipe import LoadedRecipe, flat_recipe
from peftcli.redaction import redacted_name
from peftcli.reports.folder import RunFacts
from peftcli.reports.record import (
    EvaluationRecord,
    Event,
    LayerUpdate,
    Parameters,
    RunRecord,
    Seconds,
    StartRecord,
    Status,
)
from peftcli.reports.seal import hashes_beside, sealed
from peftcli.reports.series import read_metrics
from peftcli.reports.writing import write_reports
from peftcli.runs.adapter_folder import write_adapter_folder
from peftcli.runs.as_written import adapter_hashes
from peftcli.runs.assembly import Assembly
from peftcli.runs.cards import run_card
from peftcli.runs.folder import resolved_values
from peftcli.runs.gates import gate_results
from peftcli.runs.locking import as_first_written, inputs_of, with_results, with_weights
from peftcli.runs.place import RunPlace
from peftcli.runs.predictions import write_predictions
from peftcli.runs.record_facts import failure_of, machine_facts, measured, planned_facts, spread_facts
from peftcli.runs.scoring import RunScores, score_facts, warnings_of
from peftcli.runs.writing_notes import notes_of
from peftcli.training.setup import FitResult
from peftcli.training.world import ALONE, World


@dataclass
class Draft:
    """What is known of a run so far. Every later field is None until the run gets there."""

    folder: Path
    loaded: LoadedRecipe
    started: float
    """`time.monotonic()` when the command began."""
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    place: RunPlace | None = None
    """Of a new run: an older one may still hold it."""
    prepared: Prepared | None = None
    assembly: Assembly | None = None
    attached: Summary | None = None
    result: FitResult | None = None
    scores: RunScores | None = None
    updates: list[LayerUpdate] = field(default_factory=list)
    adapter_bytes: int = 0
    adapter_files: dict[str, str] = field(default_factory=dict)
    startup_seconds: float = 0.0
    inputs: Lock | None = None
    late_signal: int | None = None
    """A stopping signal that came while the finished run was written."""
    world: World = ALONE
    """The processes of the run, of which this one leads."""
    lock: Lock | None = None
    """What the run may start under, with `--locked`."""

    def training_begins(self) -> None:
        """Notes that all before the first step is done."""
        self.startup_seconds = time.monotonic() - self.started

    def has_begun_well(self) -> None:
        """The first checkpoint is on disk: the run takes its place, and an older run that held it goes."""
        if self.place is not None:
            self.place.take_over(self._move)
        self.world.told_by_leader("folder", str(self.folder))

    def _move(self, old: Path, new: Path) -> None:
        assert self.place is not None, "called for a place"
        assert self.assembly is not None, "called by the fit"
        self.folder = new / self.folder.relative_to(old)
        self.assembly.move(self.folder)
        if not self.place.waits:
            # they keep paths, so only here; one that does not start leaves the older run in its place
            self.assembly.start_trackers()

    @property
    def final_folder(self) -> Path:
        """Where the run will lie, once it has begun well."""
        return self.folder if self.place is None else self.place.final / self.folder.relative_to(self.place.folder)

    # -- what is written ---------------------------------------------------------------------------------------

    def write_adapter(self) -> None:
        """`adapter/`: the chosen adapter with tokenizer, template, generation config and model card."""
        assert self.assembly is not None, "called after the fit"
        # written as completed: the card describes the run as it will be, in the same folder
        recipe = self.loaded.recipe
        record = self.record("completed")
        self.adapter_bytes = write_adapter_folder(
            self.folder / "adapter",
            self.assembly.model,
            self.assembly.tokenizer,
            source=self.assembly.prepared.source,
            tokenizer_source=self.assembly.prepared.tokenizer_source,
            base_name=self.assembly.prepared.source.name
            if not self.assembly.prepared.source.is_local or recipe.model.base.startswith("builtin:")
            else self.assembly.prepared.source.location,
            revision=recipe.model.revision,
            notes=notes_of(self.assembly.prepared),
            beside=self._files_of_the_task(),
            card=run_card(RunFacts(record.masked(), label=redacted_name(self.folder.name)), recipe),
        )
        self.adapter_files = adapter_hashes(self.folder / "adapter")

    def _files_of_the_task(self) -> dict[str, bytes]:
        assert self.assembly is not None, "called after the fit"
        folder = snapshot(self.assembly.prepared.source).folder
        return self.assembly.task.files_beside(folder, structure(self.assembly.model).hidden_size)

    def write_predictions(self) -> None:
        """`predictions.jsonl`, where the task has labels."""
        assert self.assembly is not None, "called after the fit"
        store = self.assembly.validation
        if self.scores is not None and self.scores.tuned is not None and store is not None:
            write_predictions(self.folder, self.assembly.task, self.scores.tuned, store)

    def write_first_lock(self) -> None:
        """`recipe.lock` before any weight is loaded: a run that is killed now is still known by its own recipe."""
        assert self.prepared is not None, "called after planning"
        self.inputs = inputs_of(self.prepared, self.folder)
        write_lock(self.folder / LOCK_NAME, self.inputs)

    def write_lock(self) -> None:
        """`recipe.lock`: the inputs, and once there is an adapter also the results to expect."""
        assert self.prepared is not None, "called after planning"
        if self.inputs is None:
            self.inputs = as_first_written(inputs_of(self.prepared, self.folder), self.folder)
        lock = self.inputs if self.assembly is None else with_weights(self.inputs, self.assembly)
        if self.result is not None and self.scores is not None:
            logged = self.folder / "metrics.jsonl"
            trace = run_trace(
                self.folder,
                steps_taken(self.result.losses, self.result.lines, logged),
                seed=self.loaded.recipe.seed,
                steps=self.result.steps,
                adapter_step=self.result.chosen_step,
            )
            lock = with_results(lock, [trace], measured(self.scores.base), measured(self.scores.tuned))
        write_lock(self.folder / LOCK_NAME, lock)

    def write_record(self, status: Status, error: PeftcliError | None = None) -> RunRecord:
        """`run.json`, then the report made from it."""
        record = self.record(status, error)
        # `run.json` cannot hold its own hash among those: it has a seal of its own
        if status == "completed":
            record = record.model_copy(update={"run_files": hashes_beside(self.folder)})
        files.write_text(self.folder / "run.json", sealed(record.to_json()))
        write_reports(self.folder)
        return record

    # -- the record --------------------------------------------------------------------------------------------

    def record(self, status: Status, error: PeftcliError | None = None) -> RunRecord:
        """The record from what is known."""
        recipe = self.loaded.recipe
        facts: dict[str, Any] = {
            "status": status,
            "method": recipe.method.name,
            "task": recipe.task,
            "base": recipe.model.base,
            "seed": recipe.seed,
            "name": self.loaded.name,
            "version": peftcli.__version__,
            "started": self.started_at,
            "seconds": self._seconds(),
            "adapter_bytes": self.adapter_bytes,
            "adapter_files": self.adapter_files,
            "recipe": flat_recipe(recipe),
        }
        if self.prepared is not None:
            facts |= planned_facts(self.prepared)
            facts["recipe"] |= resolved_values(self.prepared.plan.resolved)
        if self.attached is not None:
            facts["parameters"] = Parameters(trainable=self.attached.trainable, total=self.attached.total)
        if self.assembly is not None:
            facts |= machine_facts(self.assembly)
            facts["settings"] |= spread_facts(self.assembly)
        if self.result is not None:
            facts["settings"] |= {"kernels": self.result.kernels or OFF}
            if self.result.compiled is not None:
                facts["settings"] |= {"compiled": self.result.compiled}
        facts |= self._training_facts()
        facts |= self._start_facts() | self._score_facts()
        if error is not None:
            facts["failure"] = failure_of(error)
        facts["warnings"] = self._warnings(facts.get("evaluation"))
        return RunRecord(**facts)

    def _seconds(self) -> Seconds:
        total = time.monotonic() - self.started
        training = self.result.seconds if self.result else self._logged_seconds()
        startup = self.startup_seconds or total
        # after a resume `training` counts every attempt, this process's clock only the last
        return Seconds(startup=startup, training=training, total=max(total, startup + training))

    def _logged_seconds(self) -> float:
        """Seconds of training up to the last step that was logged, of a run that did not come to its end."""
        train = read_metrics(self.folder / "metrics.jsonl").train
        return float(train[max(train)].get("seconds", 0.0)) if train else 0.0

    def _training_facts(self) -> dict[str, Any]:
        """From the result of the fit; from what it logged when it did not come to its end."""
        series = read_metrics(self.folder / "metrics.jsonl")
        events = [
            Event(event=line["event"], step=line["step"], message=str(line.get("message", "")))
            for line in series.events
            if line["event"] != "checkpoint"
        ]
        if self.result is not None:
            result = self.result
            return {
                "steps": result.steps,
                "epochs": result.epochs,
                "tokens": result.tokens,
                "trained_tokens": result.trained_tokens,
                "tokens_per_second": result.tokens_per_second,
                "adapter": "adapter",
                "adapter_step": result.chosen_step,
                "updates": self.updates,
                "events": events,
            }
        last = max(series.train, default=0)
        line = series.train.get(last, {})
        return {
            "steps": last,
            "tokens": int(line.get("tokens", 0)),
            "trained_tokens": int(line.get("trained_tokens", 0)),
            "events": events,
        }

    def _start_facts(self) -> dict[str, Any]:
        """The adapter that training went on from, with its own score, which stands at step 0."""
        if self.prepared is None or (start := self.prepared.start) is None:
            return {}
        scored = {} if self.result is None else self.result.evaluations.get(0, {})
        return {
            "start": StartRecord(
                name=start.source.name, commit=start.source.commit, files=start.hashes, evaluation=scored
            )
        }

    def _score_facts(self) -> dict[str, Any]:
        """Scores of base and tuned model, and the gates that compare them."""
        if self.scores is None or self.assembly is None:
            return {}
        facts = score_facts(self.scores, self.assembly.prepared)
        base, tuned = self.scores.base, self.scores.tuned
        if base is not None and tuned is not None:
            facts |= {"expect": gate_results(self.loaded.recipe.expect, base.metrics, tuned.metrics)}
        return facts

    def _warnings(self, evaluation: EvaluationRecord | None) -> list[str]:
        found: list[str] = []
        if self.prepared is not None:
            found += self.prepared.plan.warnings
            found += [f.message for f in self.prepared.data.findings if f.severity == "warn"]
        if self.result is not None:
            found += self.result.warnings
        if evaluation is not None:
            found += warnings_of(evaluation)
        if self.scores is not None and self.scores.base is not None and self.scores.base.unanswered:
            found.append(f"samples are left out: {self.scores.base.unanswered}")
        if self.assembly is not None and self.assembly.trackers is not None and self.assembly.trackers.failure:
            found.append(f"tracking stopped at {self.assembly.trackers.failure}; metrics.jsonl has everything")
        return list(dict.fromkeys(found))
