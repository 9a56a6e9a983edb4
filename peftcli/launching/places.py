"""Which process of how many this one is, from the environment: no launcher, no variables, one process."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from peftcli.errors import DeviceError

RENDEZVOUS = "PEFTCLI_RENDEZVOUS"
"""A file by which processes that we start ourselves find each other: no port that another could take first."""
LIFELINE = "PEFTCLI_LIFELINE"
"""The end of a pipe that the launcher holds: it closes when that has died."""


@dataclass(frozen=True)
class Place:
    """The process `rank` of `size`; on its machine, `local_rank` of `local_size`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what the run leaves behind."""
        return self.rank == 0


_LAUNCHERS = (
    # torchrun, accelerate launch, the training operator of Kubernetes, and our own workers
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    # a step of srun; the script of a batch job alone has no step, and is one process whatever its job may start
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
)
"""Names of rank, size, local rank and local size, by launcher."""
_MEETING = ("MASTER_ADDR", "MASTER_PORT")


def place(environment: Mapping[str, str] | None = None) -> Place:
    """This process's place. Raises `DeviceError` for variables that make no sense together."""
    variables = os.environ if environment is None else environment
    for names in _LAUNCHERS:
        if all(name in variables for name in names[:2]):
            found = _read(variables, names)
            if found.size > 1:
                _require_meeting(variables)
                return found
    return Place()


def _read(variables: Mapping[str, str], names: tuple[str, str, str, str]) -> Place:
    rank, size = (_number(variables, name) for name in names[:2])
    # a launcher that says nothing of machines starts one process on each
    local_rank, local_size = _number(variables, names[2], 0), _number(variables, names[3], 1)
    local_size = max(local_size, local_rank + 1)
    if not (0 <= rank < size and local_rank < size):
        raise DeviceError(
            f"the launcher's variables do not fit together: {names[0]} is {rank}, {names[1]} {size}",
            fix="start the run by one launcher only, or unset them",
        )
    return Place(rank, size, local_rank, min(local_size, size))


def _number(variables: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = variables.get(name, "")
    # srun writes "4(x2)" for four on each of two machines
    found = re.match(r"\d+", text.strip())
    if found is None and (text or otherwise is None):
        raise DeviceError(f"{name} is {text!r}, not a number", fix="start the run by one launcher only, or unset it")
    return otherwise or 0 if found is None else int(found[0])


def _require_meeting(variables: Mapping[str, str]) -> None:
    missing = [name for name in _MEETING if not variables.get(name)]
    if missing and not variables.get(RENDEZVOUS):
        raise DeviceError(
            f"the launcher does not say where the processes meet: {' and '.join(missing)} not set",
            fix="export MASTER_ADDR (the first machine) and MASTER_PORT (a free port, such as 29500) before it",
        )
