"""Parts of a run's record, each from the noun that knows it."""

from __future__ import annotations

from typing import Any

from peftcli.errors import PeftcliError, exit_code_of
from peftcli.evaluation.evaluate import Evaluation
from peftcli.evaluation.result import facts_of
from peftcli.kernels.names import OFF
from peftcli.lock.bands import Measured
from peftcli.lock.environment import summary_of_machine
from peftcli.models.device import peak_memory_bytes
from peftcli.planning.plan import Prepared
from peftcli.reports.record import Failure, Parameters, Predicted
from peftcli.runs.assembly import Assembly
from peftcli.runs.showing import shown_rows


def planned_facts(prepared: Prepared) -> dict[str, Any]:
    """What the plan settled: parameters, settings, data, and rows to show."""
    plan, resolved = prepared.plan, prepared.plan.resolved
    return {
        "parameters": Parameters(trainable=plan.trainable, total=plan.total),
        "planned_steps": resolved.steps,
        "learning_rate": resolved.learning_rate,
        "predicted": Predicted(peak_memory_bytes=plan.memory.peak_bytes),
        "settings": {
            "device": resolved.device,
            "precision": resolved.precision,
            "dtype": resolved.dtype,
            **({"quantization": resolved.quantization} if resolved.quantization else {}),
            "threads": resolved.threads,
            "batch_size": prepared.loaded.recipe.training.batch_size,
            "micro_batch_size": resolved.micro_batch_size,
            "kernels": list(resolved.kernels) or OFF,
            "learning_rate": resolved.learning_rate_note,
            "max_grad_norm": prepared.loaded.recipe.training.max_grad_norm,
        },
        "data": prepared.data.facts.to_dict(),
        "plan": plan.to_dict(),
        "rows": shown_rows(prepared),
    }


def spread_facts(assembly: Assembly) -> dict[str, Any]:
    """How many processes trained, and what each holds of a base that is spread over them."""
    if assembly.world.size == 1:
        return {}
    found: dict[str, Any] = {"processes": assembly.world.size}
    if assembly.base_bytes is not None:
        found |= {"base_bytes": assembly.base_bytes[0], "base_bytes_per_process": assembly.base_bytes[1]}
    return found


def machine_facts(assembly: Assembly) -> dict[str, Any]:
    """The machine, and the memory that was taken on it."""
    device = assembly.prepared.plan.resolved.device
    return {
        "peak_memory_bytes": peak_memory_bytes(device),
        "model_memory_bytes": assembly.model_memory_bytes,
        "environment": summary_of_machine(device),
    }


def failure_of(error: PeftcliError) -> Failure:
    """Why a run stopped, as the terminal tells it."""
    message = error.render().removeprefix("error: ")
    return Failure(error=type(error).__name__, exit_code=exit_code_of(error), message=message)


def measured(evaluation: Evaluation | None) -> list[Measured]:
    """An evaluation as the lock expects it again; none where nothing was scored."""
    return [] if evaluation is None else [Measured(evaluation.metrics, evaluation.intervals, facts_of(evaluation))]
