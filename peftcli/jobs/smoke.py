"""`peft train --smoke`: every stage of a recipe in under a minute, on a tiny random model of the same architecture."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.adapters.config import MethodConfig
from peftcli.data.config import DataConfig, SourceConfig
from peftcli.errors import CheckFailed, DataError, MergeError
from peftcli.jobs.merge import PROMPTS, merge_adapter
from peftcli.jobs.merge_answers import logits_of, max_difference
from peftcli.jobs.merge_prompts import encode_prompts
from peftcli.jobs.opening import open_adapter
from peftcli.models.config import ModelConfig
from peftcli.models.source import resolve_base
from peftcli.models.tiny_base import LAYERS, WIDTH, write_tiny_base
from peftcli.planning.plan import Prepared, prepare_run
from peftcli.recipe import LoadedRecipe, Recipe, load_recipe
from peftcli.run import run_draft
from peftcli.runs.draft import Draft
from peftcli.runs.locking import Overrides
from peftcli.streams import Say
from peftcli.training.config import TrainingConfig

# three steps: the first with an optimizer that knows nothing, one more, and one after the checkpoint and the evaluation
STEPS = 3
ROWS = 200
VALIDATION_ROWS = 8
SCORED_ROWS = 4
MAX_LENGTH = 256
# float32 on one machine: reading back what was written changes nothing but the order of some sums
RELOAD_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Stage:
    """One stage that passed."""

    name: str
    seconds: float | None
    """None where another stage's time holds it."""
    note: str = ""


@dataclass
class SmokeReport:
    """The stages that passed; one that fails raises its own error."""

    recipe: str
    stages: list[Stage] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        return {
            "recipe": self.recipe,
            "passed": [stage.name for stage in self.stages],
            "stages": [vars(stage) for stage in self.stages],
            "seconds": round(self.seconds, 3),
        }


def smoke_train(path: str | Path, overrides: Overrides = (), *, say: Say = lambda line: None) -> SmokeReport:
    """Trains a few rows for three steps, evaluates, saves, reloads and merges; nothing is left on disk.

    On the CPU in float32, whatever the recipe says. `say` gets a line for each stage that passes. Raises the error of the
    stage that fails.
    """
    loaded = load_recipe(Path(path), overrides)
    report = SmokeReport(str(path))
    # named as a temporary of ours, so that what a kill leaves is recognised
    with tempfile.TemporaryDirectory(prefix=f"{files.TEMPORARY_PREFIX}smoke-") as scratch:
        folder = Path(scratch)
        with _stage(report, say, "tiny base") as note:
            note(_write_base(loaded, folder / "base"))
        draft = _trained(loaded, folder, report, say)
        with _stage(report, say, "reload"):
            _require_same_after_reload(draft)
        with _stage(report, say, "merge") as note:
            note(_merge(draft, folder / "merged"))
    return report


def smoke_text(report: SmokeReport) -> str:
    """What `peft train --smoke` prints."""
    passed = ", ".join(stage.name for stage in report.stages)
    return f"{report.recipe}: every stage passed in {report.seconds:.1f} s ({passed})"


@contextmanager
def _stage(report: SmokeReport, say: Say, name: str) -> Iterator[Callable[[str], None]]:
    started = time.monotonic()
    notes: list[str] = []
    yield notes.append
    _passed(report, say, name, time.monotonic() - started, " ".join(notes))


def _passed(report: SmokeReport, say: Say, name: str, seconds: float | None, note: str = "") -> None:
    report.stages.append(Stage(name, None if seconds is None else round(seconds, 3), note))
    shown = " " * 7 if seconds is None else f"{seconds:5.1f} s"
    say(f"ok  {name:<10} {shown}  {note}".rstrip())


# -- the tiny run ------------------------------------------------------------------------------------------------


def _write_base(loaded: LoadedRecipe, folder: Path) -> str:
    recipe = loaded.recipe
    source = resolve_base(recipe.model.base, folder=loaded.folder, revision=recipe.model.revision)
    layers = None if _names_layers(recipe) else LAYERS
    auto_class = recipe.learns().auto_class
    write_tiny_base(source, folder, auto_class=auto_class, seed=recipe.seed, layers=layers, width=_width(recipe.method))
    # an adapter of the base fits no other
    return f"of {source.name}" + (", where model.init_adapter is left out" if recipe.model.init_adapter else "")


def _width(method: MethodConfig) -> int:
    """Wide enough for the largest rank or block that the method asks for."""
    fields = method.model_dump()
    sizes = [fields[name] for name in method.size_fields]
    largest = max((size for size in sizes if isinstance(size, int)), default=0)
    width = WIDTH
    # twice the largest rank, so that a rank is a restriction and no error; doubled, so that heads still divide it
    while width < 2 * largest:
        width *= 2
    return width


def _names_layers(recipe: Recipe) -> bool:
    """Whether the method speaks of layers by number, so that there must be as many."""

    def numbered(value: Any) -> bool:
        if isinstance(value, dict):
            return any(numbered(item) for pair in value.items() for item in pair)
        if isinstance(value, list):
            return any(isinstance(item, int) or numbered(item) for item in value)
        # numbers between dots, also as a regular expression writes them: `layers.3.`, `\.(0|1)\.`, `[0-9]`
        return isinstance(value, str) and re.search(r"(^|\.)\\?\d+(\\?\.|$)|\[[\d|-]+\]", value) is not None

    fields = recipe.method.model_dump(mode="json")
    counted = recipe.method.block_fields
    return any(numbered(value) or (key in counted and isinstance(value, int)) for key, value in fields.items())


def _trained(loaded: LoadedRecipe, folder: Path, report: SmokeReport, say: Say) -> Draft:
    """A run of the small recipe; whichever stage its error belongs to, the ones before are reported."""
    with _stage(report, say, "data") as note:
        prepared = _prepared(loaded, folder / "base")
        note(f"{prepared.data.facts.train.rows} rows")
    draft = Draft(folder / "run", prepared.loaded, time.monotonic(), prepared=prepared)
    started = time.monotonic()
    try:
        run_draft(draft, quiet=True)
    finally:
        _tell_run(draft, started, report, say)
    return draft


def _tell_run(draft: Draft, started: float, report: SmokeReport, say: Say) -> None:
    # attaching ends where training begins: the run itself does not time it
    begun = started + draft.startup_seconds
    if draft.attached is not None:
        _passed(report, say, "attach", max(0.0, begun - started), f"{draft.attached.trainable:,} trained parameters")
    if draft.result is None:
        return
    _passed(report, say, "train", draft.result.seconds, f"{draft.result.steps} steps")
    if draft.scores is not None and draft.scores.tuned is not None:
        _passed(report, say, "evaluate", None, f"{draft.scores.tuned.rows} rows, base and tuned")
    if draft.adapter_bytes:
        _passed(report, say, "save", max(0.0, time.monotonic() - begun - draft.result.seconds))


def _prepared(loaded: LoadedRecipe, base: Path) -> Prepared:
    small = small_recipe(loaded.recipe, base)
    try:
        return prepare_run(dataclasses.replace(loaded, recipe=small))
    except DataError:
        if small.data.truncation != "auto":
            raise
        # rows are cut short here, which says nothing about them
        data = small.data.model_copy(update={"truncation": "left"})
        return prepare_run(dataclasses.replace(loaded, recipe=small.model_copy(update={"data": data})))


def small_recipe(recipe: Recipe, base: Path) -> Recipe:
    """The recipe on a tiny base: the same method, data format and metrics, a few rows, three steps."""
    evaluation = recipe.evaluation.model_copy(
        # after the second step: training goes on after an evaluation
        update={"every": STEPS - 1, "rows": SCORED_ROWS, "samples": 1, "batch_size": 2}
    )
    changed = {
        "seeds": 1,
        "device": "cpu",
        # products this small gain nothing from a second thread, which on a busy machine only waits for its turn
        "threads": 1,
        "model": _small_model(recipe.model, base),
        # which labels there are is a matter of all rows
        "data": recipe.data if recipe.learns().learns_labels else _small_data(recipe.data),
        "training": _small_training(recipe.training),
        "evaluation": evaluation,
        "generation": recipe.generation.model_copy(update={"max_new_tokens": 8}),
        # written once before the end, so that a checkpoint is made and left behind
        "checkpoint": recipe.checkpoint.model_copy(update={"every": STEPS - 1, "best": None}),
        "tracking": [],
        "expect": {},
        "output": None,
    }
    return recipe.model_copy(update=changed)


def _small_model(model: ModelConfig, base: Path) -> ModelConfig:
    # `init_adapter` is left out, as the first stage tells: the method starts anew
    update = {"base": str(base), "revision": None, "dtype": "float32", "quantization": None, "init_adapter": None}
    return model.model_copy(update=update)


def _small_training(training: TrainingConfig) -> TrainingConfig:
    return training.model_copy(
        update={
            "epochs": None,
            "max_steps": STEPS,
            # one row for each pass, so that accumulation over a batch is tried as well
            "batch_size": min(2, training.batch_size),
            "micro_batch_size": 1,
            # a warm-up or a patience made for thousands of steps does not fit into three
            "warmup_ratio": None,
            "warmup_steps": None,
            "early_stopping": None,
            "processes": 1,
            "sharding": "none",
            "precision": "fp32",
        }
    )


def _small_data(data: DataConfig) -> DataConfig:
    validation: Any = VALIDATION_ROWS
    if data.validation_sources:
        validation = [_first_rows(source, VALIDATION_ROWS) for source in data.validation_sources]
    train = [_first_rows(source, ROWS) for source in data.train_sources]
    return data.model_copy(
        update={"train": train, "validation": validation, "max_length": min(data.max_length, MAX_LENGTH)}
    )


def _first_rows(source: SourceConfig, rows: int) -> SourceConfig:
    # `repeat` would make an epoch of the same few rows
    return source.model_copy(update={"rows": min(rows, source.rows or rows), "repeat": 1})


# -- after the run -----------------------------------------------------------------------------------------------


def _require_same_after_reload(draft: Draft) -> None:
    """The adapter read back from disk answers as the one that was trained."""
    assert draft.assembly is not None, "it was trained"
    opened = open_adapter(draft.folder, base=str(draft.loaded.recipe.model.base), device="cpu")
    inputs = encode_prompts(opened.tokenizer, PROMPTS[:2], "cpu")
    # dropout off, as in the model that was read back
    draft.assembly.model.eval()
    difference = max_difference(logits_of(draft.assembly.model, inputs), logits_of(opened.model, inputs))
    # `not <=`: a NaN fails too
    if not difference <= RELOAD_TOLERANCE:
        raise CheckFailed(
            f"the reloaded adapter answers differently: logits differ by {difference:.3g}",
            where=str(draft.loaded.path),
            fix="please report this",
        )


def _merge(draft: Draft, output: Path) -> str:
    try:
        merged = merge_adapter(draft.folder, output=output, base=str(draft.loaded.recipe.model.base))
    except MergeError as error:
        return f"refused, as it should be: {error.message}"
    return f"logits within {merged.max_difference:.1g}"
