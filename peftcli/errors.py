"""The exception tree. Every failure that a user can cause or meet is one of these.

    PeftcliError                 1   a bug in peftcli
    ├── RecipeError              2   usage or recipe
    ├── DataError                3   data
    ├── ModelError               4   model, tokenizer or adapter
    │   ├── AdapterError         4   adapter: damaged, of another base, target not found
    │   └── MergeError           4   the method cannot be merged
    ├── DeviceError              5   environment: missing package, device, unsupported dtype
    │   └── ProcessLost          5   another process of the same run has ended
    ├── StorageError             6   disk full, permission, locked, folder in use
    ├── CheckpointError          7   none valid, damaged, or of another recipe
    ├── NumericalError           8   NaN or infinity, divergence
    ├── MemoryLimitError         9   out of memory, host or device
    ├── CheckFailed             10   a check did not hold: merge tolerance, expect, reproduce, --locked
    ├── HubError                11   network or hub
    └── Interrupted            130   SIGINT after a checkpoint (143: SIGTERM, 129: SIGHUP)

The number is the exit code of the command line. An error gathers every fault of its kind before it is raised, so that
a user mends them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: what, where (`file:line:column`, data row, tensor name), and what to do."""

    message: str
    where: str | None = None
    fix: str | None = None

    def lines(self) -> list[str]:
        """The fault as lines of a message, place and remedy indented."""
        lines = [self.message]
        if self.where:
            lines.append(f"  at {self.where}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return lines


class FieldFault(ValueError):
    """A value that a field cannot have, as a section's own check says it: the field's name and place are known to others."""

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message if fix is None else f"{message}: {fix}")
        self.message = message
        self.fix = fix


class PeftcliError(Exception):
    """Base of all errors that the command line reports in a few lines, without a traceback."""

    exit_code: ClassVar[int] = 1
    summary: ClassVar[str] = "a bug in peftcli; please report it with the named file"

    def __init__(
        self, message: str, *, where: str | None = None, fix: str | None = None, faults: Sequence[Fault] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix
        self.faults: tuple[Fault, ...] = tuple(faults) or (Fault(message, where, fix),)
        if len(self.faults) == 1:
            only = self.faults[0]
            self.faults = (Fault(only.message, only.where or where, only.fix or fix),)

    def render(self) -> str:
        """The block of text for stderr: one fault as it is, several under a headline."""
        if len(self.faults) == 1:
            first, *rest = self.faults[0].lines()
            return "\n".join([f"error: {first}", *rest])
        lines = [f"error: {self.message}"]
        for fault in self.faults[:MAX_FAULTS_SHOWN]:
            first, *rest = fault.lines()
            lines += [f"- {first}", *rest]
        if len(self.faults) > MAX_FAULTS_SHOWN:
            lines.append(f"... and {len(self.faults) - MAX_FAULTS_SHOWN} more")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render().removeprefix("error: ")


class RecipeError(PeftcliError):
    """The recipe or the command's arguments are wrong."""

    exit_code = 2
    summary = "usage or recipe: a key, a value or an argument is wrong; the message names the line and the right one"


class DataError(PeftcliError):
    """A data file is missing, unreadable or holds rows that cannot be used."""

    exit_code = 3
    summary = "data: missing, unreadable or unusable rows; the message names file and row"


class ModelError(PeftcliError):
    """A base model or tokenizer cannot be loaded or used."""

    exit_code = 4
    summary = "model, tokenizer or adapter: cannot load, wrong base, damaged, target not found, cannot be merged"


class AdapterError(ModelError):
    """An adapter is damaged, belongs to another base, or its targets are not found."""


class ModelWarning(UserWarning):
    """Something about a base is odd, and what is done about it."""


class AdapterWarning(ModelWarning):
    """An adapter loads, or is written, although something about it is odd; the message says what that means.

    A Python warning, so that it reaches whoever loads from Python; the command line prints it as one line on stderr.
    """


class MergeError(ModelError):
    """The method, or this adapter on this base, cannot be merged; the model is untouched."""


class DeviceError(PeftcliError):
    """The environment lacks a package, a device or a data type."""

    exit_code = 5
    summary = "environment: missing package, device, unsupported dtype; `peft doctor` shows what is installed"


class ProcessLost(DeviceError):
    """Another process of the same run has ended; the checkpoints stay."""


class StorageError(PeftcliError):
    """A file or folder cannot be written, read or owned."""

    exit_code = 6
    summary = "storage: disk full, permission, locked, folder in use"


class CheckpointError(PeftcliError):
    """No checkpoint can be used, or it belongs to another recipe."""

    exit_code = 7
    summary = "checkpoint: none valid, damaged, or of another recipe"


class NumericalError(PeftcliError):
    """A loss, gradient or tensor is not finite, or training diverged."""

    exit_code = 8
    summary = "numerics: NaN or infinity, divergence; the batch that did it is kept in RUN/data"


class MemoryLimitError(PeftcliError):
    """Host or device memory ran out."""

    exit_code = 9
    summary = "out of memory, host or device; smaller micro_batch_size, max_length or gradient_checkpointing help"


class CheckFailed(PeftcliError):
    """A check that was asked for did not hold."""

    exit_code = 10
    summary = "a check did not hold: merge beyond tolerance, `expect`, `reproduce`, `--locked`"


class HubError(PeftcliError):
    """The model hub or the network answered with an error."""

    exit_code = 11
    summary = "network or hub: not found, gated or offline; the message says which"


class Interrupted(PeftcliError):
    """A signal stopped the run after a checkpoint."""

    exit_code = 130
    summary = "interrupted (SIGINT), after a checkpoint; `peft resume RUN` continues it"

    def __init__(self, message: str, *, signal_number: int, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(message, where=where, fix=fix)
        self.signal_number = signal_number


SIGNAL_CODES: dict[int, str] = {
    129: "the terminal hung up (SIGHUP), after a checkpoint; `peft resume RUN` continues it",
    130: Interrupted.summary,
    143: "terminated (SIGTERM), after a checkpoint; `peft resume RUN` continues it",
}
"""What the codes of `Interrupted` mean, by the signal."""


def all_at_once(headline: str, checks: Iterable[Callable[[], object]]) -> None:
    """Runs every check; raises one error of the first one's kind, with the faults of all that failed, each once."""
    errors: list[PeftcliError] = []
    for check in checks:
        try:
            check()
        except PeftcliError as error:
            errors.append(error)
    if not errors:
        return
    faults: dict[str, Fault] = {}
    for fault in (fault for error in errors for fault in error.faults):
        # two checks may meet the same mistake: the one that knows its place says it
        if fault.message not in faults or faults[fault.message].where is None:
            faults[fault.message] = fault
    if len(errors) == 1:
        raise errors[0]
    raise type(errors[0])(headline, faults=list(faults.values()))


def exit_code_of(error: PeftcliError) -> int:
    """The process exit code for an error; for signals 128 + number, as shells count."""
    return 128 + error.signal_number if isinstance(error, Interrupted) else error.exit_code


def error_facts(error: PeftcliError) -> dict[str, Any]:
    """An error as plain data, for another process of ours."""
    faults = [[fault.message, fault.where, fault.fix] for fault in error.faults]
    return {
        "type": type(error).__name__,
        "message": error.message,
        "where": error.where,
        "fix": error.fix,
        "faults": faults,
        "signal_number": error.signal_number if isinstance(error, Interrupted) else None,
    }


def error_from(facts: dict[str, Any]) -> PeftcliError:
    """The inverse of `error_facts`."""
    kinds = {kind.__name__: kind for kind in _kinds(PeftcliError)}
    kind = kinds[facts["type"]]
    if issubclass(kind, Interrupted):
        # a signal says nothing of faults
        number = int(facts["signal_number"])
        return kind(facts["message"], signal_number=number, where=facts["where"], fix=facts["fix"])
    faults = [Fault(*fault) for fault in facts["faults"]]
    return kind(facts["message"], where=facts["where"], fix=facts["fix"], faults=faults)


def _kinds(kind: type[PeftcliError]) -> Iterable[type[PeftcliError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)
