"""What transformers and the Hub raise while a base is read, told as what is wrong and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import transformers

from peftcli.errors import DeviceError, HubError, ModelError, PeftcliError
from peftcli.models.config_faults import likely_fields, readable_config
from peftcli.models.conversions import conversion_faults
from peftcli.models.device import is_out_of_memory, says_out_of_memory
from peftcli.models.hub import hub_errors, offline
from peftcli.models.source import (
    BaseSource,
    describes_sizes,
)


@contextlib.contextmanager
def loading_errors(source: BaseSource, what: str) -> Iterator[None]:
    """Turns what transformers and huggingface_hub raise into our errors, each cause told apart."""
    try:
        with hub_errors(source.name, source.revision):
            yield
    except PeftcliError:
        raise
    except Exception as error:  # code of all families, on a configuration and files that may hold anything
        if is_out_of_memory(error):
            raise
        faults = conversion_faults(error)
        if any(says_out_of_memory(fault) for fault in faults):
            raise MemoryError(f"no room for {what} of {source.name}") from error
        raise _load_error(source, what, error, faults) from error


def _load_error(
    source: BaseSource, what: str, error: Exception, faults: Sequence[str]
) -> ModelError | HubError | DeviceError:
    # of a conversion the cause, and what was made: the last lines below its traceback
    text = " ".join(" ".join(faults[0].splitlines()[-2:] if faults else [str(error)]).split())
    if isinstance(error, ImportError):
        return DeviceError(f"{source.name} needs a package that is missing: {text[:200]}")
    if not source.is_local and ("offline" in text or "connect" in text.lower() or "couldn't" in text.lower()):
        return offline(source.name)
    where = source.location if source.is_local else None
    if "model type" in text or "model_type" in text:
        return ModelError(
            f"{source.name} is of a family that transformers {transformers.__version__} does not have",
            where=where,
            fix="a newer transformers may have it; `config.json` names the family under `model_type`",
        )
    if "size mismatch" in text or "ignore_mismatched_sizes" in text:
        return ModelError(f"{what} of {source.name} do not fit its config.json", where=where, fix="download it again")
    # a folder's whole path stands in `where`
    name = Path(source.name).name if source.is_local else source.name
    if fields := likely_fields(source, error):
        return ModelError(
            f"cannot load {what} of {name}: {text[:150]}; in config.json {'; '.join(fields[:3])}",
            where=where,
            fix="correct config.json, or download the model again",
        )
    sizes = describes_sizes(readable_config(source))
    fix = "check the files"
    if isinstance(error, AttributeError):
        # code of the family's reads what its own configuration lacks, which no change of a good file mends
        fix = (
            "check config.json; if it is as published, transformers cannot build it for this task: choose another base"
        )
    return ModelError(f"cannot load {what} of {name}: {text[:300]}{sizes}", where=where, fix=fix)
