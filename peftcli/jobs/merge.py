"""`peft merge`: a plain base-format model with the adapter baked in, proven by reloading it before it is put in place.

base + adapter -> logits on real prompts
merge in memory (float32, one rounding) -> written aside -> reloaded from disk -> logits on the same prompts
within tolerance: renamed into place; beyond: nothing is written, and the layers that drifted are named
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from peftcli import files
from peftcli.adapters.merging import merge as merge_in_memory
from peftcli.adapters.surgery import disabled
from peftcli.errors import CheckFailed, Fault, RecipeError, StorageError
from peftcli.jobs.opening import Opened, auto_class_of, open_adapter
from peftcli.jobs.sizes import parse_size
from peftcli.models.load import DTYPES, load_model
from peftcli.models.source import BaseSource
from peftcli.models.structure import structure
from peftcli.plan import total_memory_bytes

TOLERANCE_FP32 = 1e-4
PRECISE_SHARE = 0.4
"""Of the total memory that may hold a model in float64 while float32 weights are compared."""
NOISE_FACTOR = 3.0
"""In half precision the merged model may differ by this many times the base's own rounding noise."""
PROMPT_TOKENS = 64
SAMPLE_PROMPTS = 8
PROMPTS = (
    "Please write a short reply to the following request.",
    "The quick brown fox jumps over the lazy dog, and then",
    "def add(a, b):\n    return",
    "1, 2, 3, 5, 8, 13,",
    "Once upon a time there was a little",
    "Question: Where does the sun rise?\nAnswer:",
    '{"name": "Ada", "city":',
    "Thank you for your message. We will",
)


@dataclass(frozen=True)
class MergeReport:
    """What was proven. Differences are of logits, the largest in absolute value."""

    output: str
    dtype: str
    prompts: int
    max_difference: float
    tolerance: float
    agreement: float
    """Share of positions where both models would pick the same token."""
    adapter_effect: float
    """The same difference between base and base + adapter: how much there was to bake in."""
    untied: bool
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "files": list(self.files)}


def merge_adapter(
    path: str | Path,
    *,
    output: str | Path,
    base: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    say: Callable[[str], None] = lambda line: None,
) -> MergeReport:
    """Merges the adapter of a run or adapter folder into its base and writes the model to `output`.

    `dtype`: of the written weights (default: that of the base in training). Compared on our own prompts and on those of
    the run's samples.
    Raises `StorageError` when `output` exists, `MergeError` when the method cannot be merged, `CheckFailed` when the
    reloaded model differs beyond the tolerance.
    """
    output = Path(output)
    shard_bytes = parse_size(max_shard_size, "--max-shard-size 2GB")
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"unknown dtype {dtype!r}", fix=f"one of {', '.join(DTYPES)}")
    if output.exists():
        raise StorageError("the output exists already", where=str(output), fix="choose another --output, or remove it")
    opened = open_adapter(path, base=base)
    target = DTYPES[dtype] if dtype else opened.dtype
    say("computing the answers of base + adapter")
    texts = [
        *PROMPTS,
        *(str(sample["prompt"]) for sample in opened.location.record.get("samples", [])[:SAMPLE_PROMPTS]),
    ]
    inputs = encode_prompts(opened.tokenizer, texts, opened.device)
    precise = _compares_in_float64(opened, target)
    with _in_float64(opened.model, precise):
        expected = logits_of(opened.model, inputs)
        outputs_before = block_outputs(opened.model, inputs[0])
        with disabled(opened.model):
            plain = logits_of(opened.model, inputs)
    tolerance = _tolerance(opened, target, inputs, plain)
    tied_before = bool(opened.model.config.tie_word_embeddings)  # type: ignore[union-attr]
    merge_in_memory(opened.model)
    opened.model.to(target)
    _require_space(output, opened.model, shard_bytes)
    say("writing the merged model aside, and reading it back")
    with files.staged_folder(output) as staging:
        write_model(staging, opened.model, opened.tokenizer, shard_bytes)
        reloaded = load_model(
            BaseSource(str(output), str(staging.path), None, staging.path),
            dtype=target,
            device=opened.device,
            auto_class=auto_class_of(opened.location),
        )
        with _in_float64(reloaded, precise):
            found = logits_of(reloaded, inputs)
            outputs_after = block_outputs(reloaded, inputs[0])
        difference = max_difference(expected, found)
        if not difference <= tolerance:
            raise _beyond(output, difference, tolerance, outputs_before, outputs_after)
        names = tuple(sorted(staging.files))
        tied_after = bool(reloaded.config.tie_word_embeddings)  # type: ignore[union-attr]
    return MergeReport(
        output=str(output),
        dtype=str(target).removeprefix("torch."),
        prompts=len(texts),
        max_difference=difference,
        tolerance=tolerance,
        agreement=agreement(expected, found),
        adapter_effect=max_difference(expected, plain),
        untied=tied_before and not tied_after,
        files=names,
    )


# -- comparing ---------------------------------------------------------------------------------------------------


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], device: str) -> list[Tensor]:
    """Each text as its own unpadded row (1, length)."""
    rows = [tokenizer(text, truncation=True, max_length=PROMPT_TOKENS)["input_ids"] for text in texts]
    return [torch.tensor([row or [tokenizer.eos_token_id or 0]], device=device) for row in rows]


def _compares_in_float64(opened: Opened, target: torch.dtype) -> bool:
    """Float32 weights are compared in float64 arithmetic where memory allows: the rounding of the forward pass itself,
    which says nothing about the merge, is then out of the way."""
    if target != torch.float32 or opened.dtype != torch.float32 or opened.device == "mps":
        return False
    needed = 8 * sum(parameter.numel() for parameter in opened.model.parameters())
    return needed < PRECISE_SHARE * total_memory_bytes(opened.device)


@contextlib.contextmanager
def _in_float64(model: nn.Module, precise: bool) -> Iterator[None]:
    """Float32 weights as float64 inside the block; there and back is exact."""
    if precise:
        model.double()
    try:
        yield
    finally:
        if precise:
            model.float()


def logits_of(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Float32 logits (length, vocab) of each row, on the CPU."""
    with torch.inference_mode():
        return [model(input_ids=row, use_cache=False).logits[0].float().cpu() for row in inputs]


def max_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Largest absolute difference over all rows; infinite where one is not finite."""
    worst = max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
    return worst if worst == worst else float("inf")


def agreement(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Share of positions with the same most likely token."""
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(one, other, strict=True))
    return same / sum(len(a) for a in one)


def _tolerance(opened: Opened, target: torch.dtype, inputs: Sequence[Tensor], plain: Sequence[Tensor]) -> float:
    """Float32: fixed. Half precision: a multiple of what rounding the base alone does to its own logits."""
    if target == torch.float32 and opened.dtype == torch.float32:
        return TOLERANCE_FP32
    others = (torch.float32, target) if opened.dtype == target else (target,)
    noise = 0.0
    for dtype in others:
        if dtype == opened.dtype:
            continue
        copy = load_model(opened.source, dtype=dtype, device=opened.device, auto_class=auto_class_of(opened.location))
        noise = max(noise, max_difference(plain, logits_of(copy, inputs)))
        del copy
    return NOISE_FACTOR * noise


def block_outputs(model: nn.Module, row: Tensor) -> dict[str, Tensor]:
    """Output of each block on one row, to tell where two models part."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            found[path] = hidden.detach().float().cpu()

        return hook

    handles = [block.register_forward_hook(keep(path)) for path, block in structure(model).blocks.items()]
    try:
        with torch.inference_mode():
            model(input_ids=row, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _beyond(
    output: Path, difference: float, tolerance: float, before: dict[str, Tensor], after: dict[str, Tensor]
) -> CheckFailed:
    drift = {
        path: float((before[path] - after[path]).abs().max() / before[path].abs().max().clamp_min(1e-12))
        for path in before
        if path in after
    }
    worst = sorted(drift, key=lambda path: -drift[path])[:5]
    shown = ", ".join(f"{path} ({drift[path]:.1e})" for path in worst)
    fault = Fault(
        f"the merged model's logits differ by {difference:.3g}, allowed are {tolerance:.3g}; nothing was written",
        where=str(output),
        fix=f"drifted most, relative: {shown}; merge with --dtype float32, or report this",
    )
    return CheckFailed("the merge could not be proven", faults=[fault])


# -- writing -----------------------------------------------------------------------------------------------------


def _require_space(output: Path, model: nn.Module, shard_bytes: int) -> None:
    """Room for the model and, for a moment, a second copy of one of its files."""
    model_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    needed = int(1.05 * (model_bytes + min(shard_bytes, model_bytes)))
    free = files.free_bytes(output.absolute())
    if free < needed:
        raise StorageError(
            f"no space for the merged model: {needed:,} bytes are needed, {free:,} are free",
            where=str(output),
            fix="free some space, or choose an --output on another disk",
        )


def write_model(
    staging: files.StagedFolder,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    shard_bytes: int,
) -> None:
    """The model, tokenizer, template and generation config as plain transformers reads them."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with staging.scratch() as scratch:
        model.save_pretrained(scratch, max_shard_size=shard_bytes)  # type: ignore[operator]
        tokenizer.save_pretrained(scratch)


def merge_text(report: MergeReport) -> str:
    """What `peft merge` prints."""
    lines = [
        f"merged into {report.output} ({report.dtype})",
        f"proven by reloading it: logits on {report.prompts} prompts differ by {report.max_difference:.2g} at most",
        f"(allowed {report.tolerance:.2g}; the adapter itself changes them by {report.adapter_effect:.2g}),",
        f"same most likely token at {100 * report.agreement:.1f} % of positions",
    ]
    if report.untied:
        lines.append("input and output embeddings were tied and are now separate")
    return "\n".join(lines)
