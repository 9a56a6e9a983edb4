"""Every method, one step forward and backward in bf16 on the device, beside float32 on the CPU with the same tensors.

The CPU's base holds the bf16-rounded weights in float32, so that only the arithmetic differs. Tolerances: all gradients of
a method as one vector within `GRADIENT_TOLERANCE` of the CPU's, relative; logits within `NOISE_FACTOR` times what bf16
does to the base's own. The base must come back bit for bit, and the saved file give the CPU the same logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from setting import BASE, Setting, require
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.base import Adapter, InitContext
from peftcli.adapters.base_modules import named_base_parameters
from peftcli.adapters.registry import method_names
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError
from peftcli.models.device import before_start
from peftcli.models.fingerprint import fingerprint
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.tasks.registry import task
from peftcli.testing.sections import SECTIONS

WORTH = 40
SECONDS = 150
GRADIENT_TOLERANCE = 0.15
NOISE_FACTOR = 4.0
RELOAD_TOLERANCE = 1e-3
"""Of the largest logit: a start that shifts the base is saved as one sum and was computed as two."""
Batch = dict[str, Tensor]


def run(setting: Setting) -> str:
    before_start(setting.device)
    source = resolve_base(BASE, folder=setting.folder)
    device_model = load_model(source, dtype=torch.bfloat16, device=setting.device)
    cpu_model = load_model(source, dtype=torch.bfloat16).float()
    labels = [label for label in SECTIONS if not setting.tiny or label in method_names()]
    faults = []
    for number, label in enumerate(labels):
        try:
            figures = _compare(label, device_model, cpu_model, setting.folder / label)
        except AdapterError as error:
            figures = {"does not fit": error.faults[0].message if error.faults else error.message}
        except Exception as error:
            # the others are looked at all the same; what a method has left behind is thrown away with the models
            faults.append(
                f"{label}: {type(error).__name__ if not isinstance(error, AssertionError) else ''} {error}"[:200]
            )
            device_model = load_model(source, dtype=torch.bfloat16, device=setting.device)
            cpu_model = load_model(source, dtype=torch.bfloat16).float()
            figures = {"fault": faults[-1]}
        setting.note(methods={**setting.figures.get("methods", {}), label: figures}, tried=number + 1)
    require(not faults, f"{len(faults)} of {len(labels)}: {'; '.join(faults)}")
    fit = {label: found for label, found in setting.figures["methods"].items() if "gradients_apart" in found}
    require(set(method_names()) <= set(fit), f"not tried: {sorted(set(method_names()) - set(fit))}")
    worst = max(fit, key=lambda label: fit[label]["gradients_apart"])
    apart = fit[worst]["gradients_apart"]
    return f"{len(fit)} sections; gradients at most {apart:.3f} from the CPU's float32 ({worst}), base untouched"


def _compare(label: str, device_model: nn.Module, cpu_model: nn.Module, folder: Path) -> dict[str, Any]:
    section = SECTIONS[label]
    plain, base_print = _logits(device_model), fingerprint(named_base_parameters(device_model))
    noise = _apart(plain, _logits(cpu_model))
    cpu, there = _attached(cpu_model, section), _attached(device_model, section)
    _leave_start(cpu)
    there.load_state(cpu.state())
    apart = _gradients_apart(_gradients(device_model), _gradients(cpu_model))
    require(apart <= GRADIENT_TOLERANCE, f"gradients {apart:.3f} from the CPU's float32")
    tuned, wanted = _logits(device_model), _logits(cpu_model)
    differ, scale = _apart(tuned, wanted), float(wanted.abs().max())
    allowed = NOISE_FACTOR * noise * max(1.0, scale / float(plain.abs().max()))
    require(differ <= allowed, f"logits differ by {differ:.3g}, allowed are {allowed:.3g}")
    with adapters.disabled(device_model):
        require(torch.equal(_logits(device_model), plain), "switched off, it does not answer as the base")
    adapters.save(device_model, folder, base_name=BASE)
    for model in (device_model, cpu_model):
        adapters.detach(model)
    require(fingerprint(named_base_parameters(device_model)) == base_print, "the base was changed")
    require(torch.equal(_logits(device_model), plain), "taken out, it leaves something behind")
    adapters.load(cpu_model, folder)
    reloaded = _apart(_logits(cpu_model), wanted)
    adapters.detach(cpu_model)
    require(
        reloaded <= RELOAD_TOLERANCE * max(1.0, scale), f"the saved file's logits differ by {reloaded:.3g} on the CPU"
    )
    return {"gradients_apart": apart, "logits_apart": differ, "allowed": allowed, "reloaded_apart": reloaded}


def _attached(model: nn.Module, section: Mapping[str, Any]) -> Adapter:
    """With a start of its own on this device, whatever it is computed from."""
    device = next(model.parameters()).device
    context = InitContext(
        torch.Generator().manual_seed(0),
        tokenizer=None,
        batches=lambda: [_batch(device, seed=seed) for seed in (5, 6)],
        loss=lambda found, batch: task("causal-lm").loss(found, batch).total,
    )
    adapters.attach(model, dict(section), context=context)
    return adapter_of(model)


def _leave_start(adapter: Adapter) -> None:
    """As after training: no tensor at a start from which another gets no gradient."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.trainable_parameters().values():
            size = 0.05 * max(float(parameter.abs().mean()), 0.2)
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, size, generator=generator))


def _batch(device: torch.device | str, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 1600, (3, 24), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 17:] = mask[2, 9:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask, "weights": mask.float()}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    adapter = adapter_of(model)
    # `weights` on the CPU, as in training
    found = task("causal-lm").loss(model, _batch("cpu"))
    loss, extra = found.total / found.weight, adapter.extra_loss()
    (loss if extra is None else loss + extra).backward()
    gradients = {}
    for name, parameter in adapter.trainable_parameters().items():
        if parameter.grad is not None:
            require(bool(torch.isfinite(parameter.grad).all()), f"the gradient of {name} is not finite")
            gradients[name] = parameter.grad.double().cpu()
            parameter.grad = None
    return gradients


def _gradients_apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    require(one.keys() == other.keys(), "other tensors have a gradient on the device than on the CPU")
    require(bool(one), "no tensor has a gradient")
    ours, theirs = (torch.cat([gradients[name].flatten() for name in one]) for gradients in (one, other))
    require(float(theirs.norm()) > 0, "every gradient is zero")
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    batch = _batch(next(model.parameters()).device)
    found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return found.float().cpu()[batch["attention_mask"].bool().cpu()]  # type: ignore[no-any-return]


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
