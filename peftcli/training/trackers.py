"""Experiment trackers through Accelerate: off unless a recipe names them, offline unless the user says otherwise."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, filter_trackers

from peftcli.errors import DeviceError, Fault
from peftcli.files import storage_errors
from peftcli.streams import tell
from peftcli.training.interfaces import Emit
from peftcli.training.tracker_names import TRACKER_MODULES, TRACKER_PACKAGES

_QUIET = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
}
"""Defaults of the trackers' own variables: nothing leaves this machine, and none reports on its user."""


def require_packages(names: Sequence[str]) -> None:
    """Raises `DeviceError` naming every package that a wanted tracker lacks."""
    faults = [
        Fault(f"tracking: {name} needs a package that is missing", fix=f"pip install {TRACKER_PACKAGES[name]}")
        for name in names
        if not any(importlib.util.find_spec(module) for module in TRACKER_MODULES.get(name, (name,)))
    ]
    if faults:
        raise DeviceError("packages of the recipe's trackers are missing", faults=faults)


class Trackers:
    """The trackers of one run. An `Emit`: measurements are logged by step, every other event is not theirs."""

    def __init__(
        self, accelerator: Accelerator, names: Sequence[str], *, run: str, folder: Path, recipe: Mapping[str, Any]
    ) -> None:
        require_packages(names)
        self._accelerator = accelerator
        self.failure: str | None = None
        """Why logging stopped before the end, if it did."""
        # local databases in the run's folder
        places = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "TRACKIO_DIR": str(folder / "trackio")}
        # where the user has set one, it stays; ours are of this run only
        self._ours = {name: value for name, value in {**_QUIET, **places}.items() if name not in os.environ}
        os.environ.update(self._ours)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        accelerator.log_with = filter_trackers(list(names), folder)
        accelerator.project_configuration.set_directories(str(folder))
        try:
            with _speaking_on_stderr():
                accelerator.init_trackers(run, config=_plain(recipe), init_kwargs={"wandb": {"dir": str(folder)}})
        except _tracker_errors() as error:
            self._forget()
            raise DeviceError(
                f"tracking by {', '.join(names)} does not start: {_one_line(error)}",
                fix="see the tracker's own documentation, or leave it out of `tracking`",
            ) from error
        # registered after theirs, so it runs before: some say goodbye when Python ends
        atexit.register(_end_of_results)

    @property
    def active(self) -> list[GeneralTracker]:
        """What Accelerate started."""
        found: list[GeneralTracker] = self._accelerator.trackers
        return found

    def __call__(self, event: str, step: int, **facts: Any) -> None:
        if event not in ("train", "eval") or self.failure is not None:
            return
        numbers = {
            f"{event}/{name.removeprefix('eval_')}": value
            for name, value in facts.items()
            # trackers refuse text and NaN in their numbers
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        try:
            with _speaking_on_stderr():
                self._accelerator.log(numbers, step=step)
        except _tracker_errors() as error:
            # a run is worth more than its log: metrics.jsonl has everything
            self.failure = f"step {step}: {_one_line(error)}"

    def close(self) -> None:
        """Writes out what is pending."""
        for tracker in self.active:
            try:
                with _speaking_on_stderr():
                    tracker.finish()
            except _tracker_errors() as error:
                tell(f"warning: {tracker.name} did not end well: {_one_line(error)}")
        self._forget()

    def _forget(self) -> None:
        self.active.clear()
        for name in self._ours:
            os.environ.pop(name, None)


def _tracker_errors() -> tuple[type[Exception], ...]:
    """What a tracker may raise: no connection, a full disk, a setting that it does not know, and its own tree."""
    found: list[type[Exception]] = [OSError, RuntimeError, ValueError, ImportError]
    # asked only of what is loaded: importing a tracker for its errors would take seconds
    for module, name in (("mlflow.exceptions", "MlflowException"), ("wandb.errors", "Error")):
        if module.split(".")[0] in sys.modules:
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _speaking_on_stderr() -> contextlib.redirect_stdout[Any]:
    """What a tracker prints is no result: stdout is for those."""
    return contextlib.redirect_stdout(sys.stderr)


def _end_of_results() -> None:
    sys.stdout.flush()
    sys.stdout = sys.stderr


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Values as every tracker takes them: numbers, truth values, and text for all else."""
    return {
        key: value if isinstance(value, (bool, int, float, str)) else str(value)
        for key, value in recipe.items()
        if value is not None
    }


def both(one: Emit, other: Emit) -> Emit:
    """Tells an event to both."""

    def emit(event: str, step: int, **facts: Any) -> None:
        one(event, step, **facts)
        other(event, step, **facts)

    return emit
