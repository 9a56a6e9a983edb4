"""How often a step waits for the device, counted: a number that no load moves."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from peftcli.planning.plan import prepare_run
from peftcli.recipe import load_recipe
from peftcli.runs.assembly import Assembly, assemble
from peftcli.runs.attaching import attach_method
from peftcli.runs.fitting import fit_setup
from peftcli.tasks.losses import next_token
from peftcli.training.loop import _Run
from peftcli.training.signals import StopRequest

WAITS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "nonzero", "equal", "is_nonzero", "to"}
"""What needs a tensor's values, or moves them, on the host."""
SETTLED = 11
"""Steps after which what watches the first steps looks rarely."""


class OnDevice(Tensor):
    """A tensor that stands for one on a GPU: whatever is computed from it is one too, and reading it is counted."""

    reads: ClassVar[Counter[str]] = Counter()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        on_device = any(isinstance(one, OnDevice) for one in args)
        if name in WAITS and on_device and not (name == "to" and "cpu" not in map(str, args)):
            callers = [frame for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
            cls.reads["/".join(Path(callers[-1].filename).parts[-2:])] += 1
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.fixture
def assembly(request: pytest.FixtureRequest, tmp_path: Path) -> Assembly:
    document = {
        "model": "builtin:tiny",
        "data": {"train": "builtin:support", "validation": 0, "max_length": 256, "packing": request.param},
        "method": {"type": "lora", "r": 4},
        "training": {"max_steps": 99, "batch_size": 6, "micro_batch_size": 2},
        "device": "cpu",
        "threads": 1,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "run").mkdir()
    found = assemble(prepare_run(load_recipe(path, ())), tmp_path / "run", quiet=True)
    attach_method(found, resuming=False)
    return found


@pytest.mark.parametrize("assembly", [False, True], ids=["padded", "packed"], indirect=True)
def test_a_step_waits_once_for_its_line(assembly: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = fit_setup(assembly, resuming=False)
    setup.store = None
    passes: list[int] = []

    def on_device(tensor: Tensor, _device: torch.device) -> Tensor:
        return tensor.as_subclass(OnDevice)

    compute = setup.compute_loss

    def counted(model: Any, batch: Any) -> Any:
        passes.append(1)
        return compute(model, batch)

    setup.compute_loss = counted
    run = _Run(setup, StopRequest(), None)
    run._train_mode()
    for _ in range(SETTLED):
        run.stepper.train_step()
    monkeypatch.setattr(next_token, "to_device", on_device)
    passes.clear()
    OnDevice.reads.clear()
    run.stepper.train_step()
    reads = dict(OnDevice.reads)
    assert reads.pop("training/stepper.py") == 1, "loss and norm come to the host together, for the line of the step"
    # transformers asks once a forward pass whether anything is padded, or packed, to choose the kernel of attention
    assert reads.pop("transformers/masking_utils.py", 0) <= len(passes)
    assert not reads
