"""The experiment trackers that a recipe's `tracking` may name, and the package of each; free of torch."""

from __future__ import annotations

import difflib

from peftcli.errors import FieldFault

TRACKER_PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
    "comet_ml": "comet_ml",
    "aim": "aim",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
}
"""Name as Accelerate knows it -> distribution to install."""
TRACKER_MODULES = {"tensorboard": ("tensorboard", "tensorboardX")}
"""Modules of which any one will do; else the tracker's own name."""


def require_tracker(name: str) -> None:
    """Raises `ValueError`, with the nearest name, for a tracker that Accelerate does not have."""
    if name in TRACKER_PACKAGES:
        return
    near = difflib.get_close_matches(name.lower().replace("-", "_"), TRACKER_PACKAGES, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(TRACKER_PACKAGES)}"
    raise FieldFault(f"no tracker {name[:40]!r}", hint)
