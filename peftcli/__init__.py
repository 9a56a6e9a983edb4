"""Fine-tune language models with parameter-efficient methods: recipe in, adapter, report and verified merge out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftcli.errors import PeftcliError

if TYPE_CHECKING:
    from peftcli.run import resume, train

__version__ = "0.1.0"

__all__ = ["PeftcliError", "__version__", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name in ("train", "resume"):
        # torch is imported only by those who train: `peft validate` must stay quick
        from peftcli import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
