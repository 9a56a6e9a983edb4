"""What the card can do at most, and whether attention's backward pass repeats on it, strictly and as torch has it."""

from __future__ import annotations

from typing import Any

import torch
from llama import copy_rate, matrix_peak
from setting import Setting, require

from peftcli.lock.environment import describe
from peftcli.models.device import before_start
from peftcli.training.seeding import LENIENT, STRICT, deterministic_kernels

WORTH = 10
SECONDS = 60
ALONE = True
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def run(setting: Setting) -> str:
    before_start(setting.device)
    setting.note(environment=describe(setting.device), torch=torch.__version__, cuda=torch.version.cuda)
    size = 256 if setting.tiny else 8192
    names = list(DTYPES) if setting.on_gpu else ["bf16", "fp32"]
    peaks = {name: matrix_peak(setting.device, DTYPES[name], size, 2 if setting.tiny else 20) for name in names}
    copies = copy_rate(setting.device, (1 << 24) if setting.tiny else (4 << 30))
    setting.note(matrix_peak=peaks, copy_bytes_per_second=copies)
    for name in names:
        for masked in (False, True):
            _require_repeats(setting, DTYPES[name], f"{name}{' masked' if masked else ''}", masked)
    told = ", ".join(f"{name} {peak / 1e12:.3g}" for name, peak in peaks.items())
    lenient = sorted({key for key, same in setting.figures["repeats_leniently"].items() if not same})
    return (
        f"TFLOP/s {told}; copies {copies / 1e12:.2f} TB/s; repeats strictly, else not: {', '.join(lenient) or 'none'}"
    )


def _require_repeats(setting: Setting, dtype: torch.dtype, label: str, masked: bool) -> None:
    """Equal gradients of attention each time in the mode that training uses; the lenient mode is only told."""
    found = {}
    for mode in (STRICT, LENIENT):
        with deterministic_kernels(mode):
            gradients = [_attention_gradients(setting, dtype, masked) for _ in range(3)]
        found[mode] = all(
            torch.equal(a, b) for other in gradients[1:] for a, b in zip(gradients[0], other, strict=True)
        )
    told: dict[str, Any] = setting.figures.get("repeats_leniently", {})
    setting.note(repeats_leniently={**told, label: found[LENIENT]})
    require(found[STRICT], f"attention's gradients in {label} differ from one run to the next")


def _attention_gradients(setting: Setting, dtype: torch.dtype, masked: bool) -> list[torch.Tensor]:
    rows, heads, length, width = (2, 2, 32, 16) if setting.tiny else (4, 16, 1024, 64)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(rows, heads, length, width, generator=generator) for _ in range(3)]
    states = [state.to(setting.device, dtype).requires_grad_() for state in states]
    mask = torch.ones(length, length, dtype=torch.bool, device=setting.device).tril().expand(rows, 1, -1, -1)
    chosen = {"attn_mask": mask} if masked else {"is_causal": True}
    answer = torch.nn.functional.scaled_dot_product_attention(*states, **chosen)  # type: ignore[arg-type]
    answer.float().square().sum().backward()
    return [state.grad for state in states if state.grad is not None]
