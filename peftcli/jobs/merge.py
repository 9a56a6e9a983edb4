"""`peft merge`: a plain base-format model with the adapter baked in, proven by reloading it before it is put in place.

base + adapter in float32 -> logits on prompts that meet what was changed, answers of each adapted module
merge in memory -> the same answers of each module -> rounded once to the types of the base's files -> written aside
reloaded from disk -> the same bits; logits as before but for that rounding; enough of the update left -> put in place
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli import folders
from peftcli.adapters.documents import OWN_NAME
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import CheckFailed, Fault, RecipeError, StorageError
from peftcli.evaluation.prompts import stop_token_ids
from peftcli.jobs.adapter_base import base_of
from peftcli.jobs.merge_answers import (
    FLOOR,
    MEASURABLE,
    NOISE_FACTOR,
    Answers,
    agreement,
    drift,
    max_difference,
    require_finite,
    scale_of,
    surviving_share,
)
from peftcli.jobs.merge_changes import Changes
from peftcli.jobs.merge_folder import require_space, write_beside
from peftcli.jobs.merge_prompts import encode_prompts
from peftcli.jobs.merge_report import MergeReport, merge_text, percent
from peftcli.jobs.merge_rounding import Survival
from peftcli.jobs.merge_streamed import StreamedMerge
from peftcli.jobs.merge_whole import WholeMerge
from peftcli.jobs.opening import OpenModel
from peftcli.jobs.whole_models import origin_document
from peftcli.models.auto_class import WRITING
from peftcli.models.companions import check_vocabulary, tokenizer_files, write_generation_config
from peftcli.models.load import DTYPES, fetch_weights
from peftcli.models.source import BaseSource
from peftcli.models.stored import tensors_of_base
from peftcli.models.streamed import NotStreamed
from peftcli.planning.memory import HELD_WHOLE
from peftcli.planning.sizes import parse_size
from peftcli.runs.locating import locate
from peftcli.runs.writing_notes import CHAT, read_notes

__all__ = ["MergeReport", "answer_stops", "answers_chats", "merge_adapter", "merge_text"]

LEAST_SHARE = 0.9
"""A merge that keeps less of the adapter's effect, on the logits or on the weights together, fails."""
LEAST_SHARE_OF_ONE = 0.5
"""The same for a single weight that carries a tenth of the mean update or more."""
MOST_POSITIONS = 0.9
SAMPLE_PROMPTS = 8
REMEDY = "merge with --dtype float32, which keeps all of it"
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
"""What every merge is tried on: prose, code, numbers, questions and JSON."""


Merging = WholeMerge | StreamedMerge


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

    `dtype`: of the written weights (default: each tensor's own in the base's files). Compared on our own prompts, on
    those of the run's samples, and on tokens that meet what the adapter changed.
    Raises `StorageError` when `output` exists, `MergeError` when the method cannot be merged, `CheckFailed` when the
    reloaded model is not what base and adapter say, or keeps too little of the adapter's effect.
    """
    output = Path(output)
    shard_bytes = parse_size(max_shard_size, "--max-shard-size 2GB")
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"unknown dtype {dtype!r}", fix=f"one of {', '.join(DTYPES)}")
    if output.exists():
        raise StorageError("the output already exists", where=str(output), fix="choose another --output, or remove it")
    kind = None if dtype is None else DTYPES[dtype]
    if _is_small(path, base):
        return _merge(WholeMerge.open(path, base, kind), output, shard_bytes, say)
    try:
        return _merge(StreamedMerge.open(path, base, kind), output, shard_bytes, say)
    except NotStreamed as reason:
        say(f"the base is held whole: {reason}")
    return _merge(WholeMerge.open(path, base, kind), output, shard_bytes, say)


def _is_small(path: str | Path, base: str | None) -> bool:
    """Whether a base is small enough to be held a few times, which is faster and lets it be compared in float64."""
    source = base_of(locate(path, base=base))
    fetch_weights(source)
    return sum(torch.Size(tensor.shape).numel() for tensor in tensors_of_base(source).values()) <= HELD_WHOLE


def _merge(merging: Merging, output: Path, shard_bytes: int, say: Callable[[str], None]) -> MergeReport:
    opened, changes = merging.opened, merging.changes
    adapter_of(opened.model).require_mergeable()
    check_vocabulary(opened.model, opened.tokenizer, str(opened.location.adapter))
    say("computing the answers of base + adapter")
    answers = merging.answers(_prompts(opened))
    require_finite(answers.expected, "base + adapter", answers.plain)
    tied_before = _says_tied(opened.model)
    require_space(output, opened.model, changes, shard_bytes)
    say("writing the merged model aside, and reading it back")
    with folders.staged_folder(output) as staging:
        with staging.scratch("merged") as scratch:
            survival = merging.merge(answers, scratch)
            _require_update(survival, changes)
            untied = tied_before and not _says_tied(opened.model)
            write_beside(staging, opened.source, opened.location.adapter, opened.tokenizer)
            if (origin := origin_document(opened)) is not None:
                staging.write_json(OWN_NAME, origin)
            settings = read_notes(opened.location.adapter).generation.as_generation_config()
            write_generation_config(staging, opened.source, opened.model, answer_stops(opened), settings)
            carried = merging.write(staging, shard_bytes)
            for leftover in scratch.iterdir():
                leftover.unlink()
        compared = _compare(output, staging, merging, answers)
        names = tuple(sorted(staging.files))
    worst = survival.worst()
    return MergeReport(
        output=str(output),
        dtype=str(changes.dtype or changes.main).removeprefix("torch."),
        prompts=sum(len(row) for row in answers.rows),
        update_share=survival.share(),
        worst_weight=None if worst is None else worst[0],
        worst_share=None if worst is None else worst[1],
        weights=len(survival.exact),
        unmet=tuple(answers.unmet),
        carried=carried,
        arithmetic="float64" if answers.precise else "float32",
        classifies=not _writes_text(opened),
        untied=untied,
        dequantized=merging.storage,
        files=names,
        **compared,
    )


# -- opening -----------------------------------------------------------------------------------------------------


def _says_tied(model: nn.Module) -> bool:
    """Whether the configuration ties the embeddings; a few families have no such setting."""
    return bool(getattr(model.config, "tie_word_embeddings", False))


def _writes_text(opened: OpenModel) -> bool:
    return opened.auto_class in WRITING


def answer_stops(opened: OpenModel) -> list[int]:
    """Every token that ends an answer; the template's only where the adapter was trained through it."""
    return stop_token_ids(opened.model, opened.tokenizer, chat=answers_chats(opened))


def answers_chats(opened: OpenModel) -> bool:
    """Whether the adapter was trained through the chat template, as its notes say, or as it seems where it brings a
    tokenizer of its own."""
    adapter = opened.location.adapter
    style = read_notes(adapter).prompt
    return style == CHAT or (style is None and "tokenizer.json" in tokenizer_files(adapter))


# -- comparing ---------------------------------------------------------------------------------------------------


def _prompts(opened: OpenModel) -> list[Tensor]:
    samples = opened.location.record.get("samples", [])[:SAMPLE_PROMPTS]
    added = read_notes(opened.location.adapter).added_tokens
    texts = [*PROMPTS, *(str(sample["prompt"]) for sample in samples), *(f"{PROMPTS[0]} {token}" for token in added)]
    return encode_prompts(opened.tokenizer, texts, opened.device)


def _compare(output: Path, staging: folders.StagedFolder, merging: Merging, answers: Answers) -> dict[str, Any]:
    """The folder, read back, against what was seen before."""
    folder, changes = BaseSource(str(output), str(staging.path), None, staging.path), merging.changes
    again = merging.reread(folder, answers)
    require_finite(again.found, "the merged model", answers.plain)
    effect = max_difference(answers.expected, answers.plain)
    positions, tolerance = _tolerance(again.found, again.shaken, effect, answers)
    difference = max_difference(answers.expected, again.found, positions)
    if not difference <= tolerance:
        raise _beyond(output, difference, tolerance, drift(answers.blocks, again.blocks))
    least = MEASURABLE[torch.float64 if answers.precise else torch.float32] * scale_of(answers.expected)
    share = surviving_share(answers.expected, answers.plain, again.found, again.ground, least)
    if share is not None and share < LEAST_SHARE:
        raise _eaten(f"of the adapter's effect on the logits {percent(share)} is left", changes)
    kind = changes.dtype or changes.main
    if kind.itemsize < torch.float32.itemsize:
        # in half precision a model can overflow whose weights are all finite: it is run as it will be used
        name = str(kind).removeprefix("torch.")
        require_finite(merging.as_used(folder, kind, answers), f"the merged model in {name}", answers.plain)
    return {
        "max_difference": difference,
        "tolerance": tolerance,
        "positions": positions,
        "agreement": agreement(answers.expected, again.found),
        "adapter_effect": effect,
        "logits_share": share,
    }


def _tolerance(found: list[Tensor], shaken: list[Tensor], effect: float, answers: Answers) -> tuple[float, float]:
    """The share of positions to compare at, and what logits may differ by there: what rounding alone does to them.

    All positions, but where rounding alone makes some differ as much as the adapter does: a router that decides
    otherwise on a token says nothing of the weights.
    """
    floor = FLOOR * scale_of(answers.expected)
    for positions in (1.0, MOST_POSITIONS):
        tolerance = floor + NOISE_FACTOR * max_difference(found, shaken, positions)
        if tolerance <= 0.5 * effect:
            break
    return positions, tolerance


def _require_update(survival: Survival, changes: Changes) -> None:
    share, worst = survival.share(), survival.worst()
    if share is not None and share < LEAST_SHARE:
        raise _eaten(f"of the adapter's update of the weights {percent(share)} is left", changes)
    if worst is not None and worst[1] < LEAST_SHARE_OF_ONE:
        raise _eaten(f"of the update of {worst[0]} {percent(worst[1])} is left", changes)


def _eaten(what: str, changes: Changes) -> CheckFailed:
    kind = str(changes.dtype or changes.main).removeprefix("torch.")
    fault = Fault(f"{what}: rounding to {kind} lost the rest (required are {LEAST_SHARE:.0%})", fix=REMEDY)
    return CheckFailed("the merge would lose the adapter; nothing was written", faults=[fault])


def _beyond(output: Path, difference: float, tolerance: float, drifted: str) -> CheckFailed:
    fault = Fault(
        f"the merged model's logits differ by {difference:.3g}, allowed are {tolerance:.3g}; nothing was written",
        where=str(output),
        fix=f"drifted most, relative: {drifted}; merge with --dtype float32, or report this",
    )
    return CheckFailed("the merge could not be proven", faults=[fault])
