"""`peft merge`: a plain base-format model with the adapter baked in, proven by reloading it before it is put in place.

base + adapter in float32 -> logits on prompts that meet what was changed, answers of each adapted module
merge in memory -> the same answers of each module -> rounded once to the types of the base's files -> written aside
reloaded from disk -> the same bits; logits as before but for that rounding; enough of the update left -> put in place
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli import files
from peftcli.adapters.documents import OWN_NAME
from peftcli.adapters.merging import merge as merge_in_memory
from peftcli.adapters.surgery import adapter_of, disabled
from peftcli.errors import CheckFailed, Fault, MergeError, RecipeError, StorageError
from peftcli.evaluation.prompts import stop_token_ids
from peftcli.jobs.adapter_base import load_base
from peftcli.jobs.merge_answers import (
    FLOOR,
    MEASURABLE,
    NOISE_FACTOR,
    agreement,
    block_outputs,
    can_compute_in_float64,
    drift,
    logits_of,
    max_difference,
    require_finite,
    scale_of,
    surviving_share,
)
from peftcli.jobs.merge_folder import Changes, require_space, write_beside, write_model
from peftcli.jobs.merge_prompts import encode_prompts, meeting_rows
from peftcli.jobs.merge_report import MergeReport, merge_text, percent
from peftcli.jobs.merge_rounding import Survival, round_to_file_types, shake
from peftcli.jobs.merge_witness import (
    Witness,
    adapted_sites,
    digests,
    in_float64,
    named_tensors,
    require_same_bits,
    require_same_function,
    witness,
)
from peftcli.jobs.opening import OpenModel, open_adapter
from peftcli.jobs.whole_models import origin_document
from peftcli.models.auto_class import WRITING
from peftcli.models.companions import check_vocabulary, tokenizer_files, write_generation_config
from peftcli.models.dequantized import dequantize, storage_name
from peftcli.models.load import DTYPES, load_model
from peftcli.models.quantized import without_packed
from peftcli.models.source import BaseSource
from peftcli.models.stored import StoredTypes, main_type, tensors_of_base
from peftcli.planning.fit import total_memory_bytes
from peftcli.planning.plan import resolve_device
from peftcli.planning.sizes import parse_size
from peftcli.runs.writing_notes import CHAT, read_notes

__all__ = ["MergeReport", "answer_stops", "answers_chats", "merge_adapter", "merge_text"]

LEAST_SHARE = 0.9
"""A merge that keeps less of the adapter's effect, on the logits or on the weights together, fails."""
LEAST_SHARE_OF_ONE = 0.5
"""The same for a single weight that carries a tenth of the mean update or more."""
MOST_POSITIONS = 0.9
PRECISE_SHARE = 0.4
"""Of the total memory that may hold a model in float64 while it is compared."""
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


@dataclass(frozen=True)
class _Answers:
    """What the model with its adapter on says, and the base."""

    rows: list[Tensor]
    unmet: list[str]
    precise: bool
    expected: list[Tensor]
    plain: list[Tensor]
    blocks: dict[str, Tensor]


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
        raise StorageError("the output exists already", where=str(output), fix="choose another --output, or remove it")
    opened, storage = _open(path, base, may_dequantize=dtype is not None)
    adapter_of(opened.model).require_mergeable()
    check_vocabulary(opened.model, opened.tokenizer, str(opened.location.adapter))
    changes = _changes(opened, None if dtype is None else DTYPES[dtype])
    say("computing the answers of base + adapter")
    answers = _answers(opened)
    seen = witness(opened.model, changes.type_of, answers.rows)
    tied_before = _says_tied(opened.model)
    merge_in_memory(opened.model)
    require_same_function(opened.model, seen)
    survival = round_to_file_types(opened.model, seen, changes.type_of)
    _require_update(survival, changes)
    written = digests(opened.model)
    untied = tied_before and not _says_tied(opened.model)
    require_space(output, opened.model, changes, shard_bytes)
    say("writing the merged model aside, and reading it back")
    with files.staged_folder(output) as staging:
        write_beside(staging, opened.source, opened.location.adapter, opened.tokenizer)
        if (origin := origin_document(opened)) is not None:
            staging.write_json(OWN_NAME, origin)
        settings = read_notes(opened.location.adapter).generation.as_generation_config()
        write_generation_config(staging, opened.source, opened.model, answer_stops(opened), settings)
        carried = write_model(staging, opened.model, opened.source, changes, shard_bytes)
        compared = _compare(output, staging, opened, changes, answers, seen, survival, written)
        names = tuple(sorted(staging.files))
    worst = survival.worst()
    return MergeReport(
        output=str(output),
        dtype=str(changes.dtype or changes.main).removeprefix("torch."),
        prompts=len(answers.rows),
        update_share=survival.share(),
        worst_weight=None if worst is None else worst[0],
        worst_share=None if worst is None else worst[1],
        weights=len(survival.exact),
        unmet=tuple(answers.unmet),
        carried=carried,
        arithmetic="float64" if answers.precise else "float32",
        classifies=not _writes_text(opened),
        untied=untied,
        dequantized=storage,
        files=names,
        **compared,
    )


# -- opening -----------------------------------------------------------------------------------------------------


def _says_tied(model: nn.Module) -> bool:
    """Whether the configuration ties the embeddings; a few families have no such setting."""
    return bool(getattr(model.config, "tie_word_embeddings", False))


def _open(path: str | Path, base: str | None, *, may_dequantize: bool) -> tuple[OpenModel, str | None]:
    """Base and adapter in float32, which holds every type of a base's files exactly, on a device that has the room; and
    how the base was stored in training, where it was packed: its weights are then what they dequantize to."""
    device = resolve_device("auto")
    opened = open_adapter(path, base=base, dtype=torch.float32, device="cpu")
    storage = storage_name(opened.model)
    if storage is not None and not may_dequantize:
        raise MergeError(
            f"the base is stored as {storage}: merged into it, the sum would be rounded to {storage} again",
            where=str(path),
            fix="add --dtype bfloat16: the merged model then holds the dequantized weights that were trained on",
        )
    if storage is not None:
        dequantize(opened.model, torch.float32)
        opened = replace(opened, model=opened.model.float(), dtype=torch.float32)
    needed = 6 * sum(parameter.numel() for parameter in opened.model.parameters())
    if device != "cuda" or needed > total_memory_bytes(device):
        return opened, storage
    opened.model.to(device)
    return replace(opened, device=device), storage


def _changes(opened: OpenModel, dtype: torch.dtype | None) -> Changes:
    base = without_packed(tensors_of_base(opened.source))
    main = main_type(base)
    stored = StoredTypes(base, [name for name, _ in named_tensors(opened.model)])
    narrow = dtype is not None and dtype != torch.float32
    apart = _kept_apart(opened, dtype) if narrow and main == torch.float32 and dtype is not None else frozenset()

    def type_of(name: str) -> torch.dtype:
        own = stored.of(name)
        if dtype is None or not own.is_floating_point:
            return own
        kept = narrow and own == torch.float32 and (main != torch.float32 or name in apart)
        return torch.float32 if kept else dtype

    with disabled(opened.model):
        config = opened.model.config.to_dict()  # type: ignore[union-attr, operator]
    return Changes(base, config, type_of, dtype, main)


def _kept_apart(opened: OpenModel, dtype: torch.dtype) -> frozenset[str]:
    """Tensors that the family keeps in float32 in a model of half precision (biases of routers)."""
    model = load_base(opened.location, opened.source, auto_class=opened.auto_class, dtype=dtype)
    return frozenset(name for name, tensor in named_tensors(model) if tensor.dtype == torch.float32)


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


def _answers(opened: OpenModel) -> _Answers:
    samples = opened.location.record.get("samples", [])[:SAMPLE_PROMPTS]
    texts = [*PROMPTS, *(str(sample["prompt"]) for sample in samples)]
    rows = encode_prompts(opened.tokenizer, texts, opened.device)
    rows, unmet = meeting_rows(opened.model, adapted_sites(opened.model), rows)
    precise = _has_room_for_float64(opened) and can_compute_in_float64(opened.model, rows[0])
    with in_float64(opened.model, precise):
        expected = logits_of(opened.model, rows)
        blocks = block_outputs(opened.model, rows[0])
        with disabled(opened.model):
            plain = logits_of(opened.model, rows)
    require_finite(expected, "base + adapter", plain)
    return _Answers(rows, unmet, precise, expected, plain, blocks)


def _has_room_for_float64(opened: OpenModel) -> bool:
    """In float64 the rounding of the forward pass itself, which says nothing about the merge, is out of the way."""
    needed = 8 * sum(parameter.numel() for parameter in opened.model.parameters())
    return needed < PRECISE_SHARE * total_memory_bytes(opened.device)


def _compare(
    output: Path,
    staging: files.StagedFolder,
    opened: OpenModel,
    changes: Changes,
    answers: _Answers,
    seen: Witness,
    survival: Survival,
    written: dict[str, str],
) -> dict[str, Any]:
    """The folder, read back, against what was seen before."""
    folder = BaseSource(str(output), str(staging.path), None, staging.path)
    reloaded = load_model(folder, dtype=torch.float32, device=opened.device, auto_class=opened.auto_class)
    require_same_bits(reloaded, written)
    with in_float64(reloaded, answers.precise):
        found = logits_of(reloaded, answers.rows)
        blocks = block_outputs(reloaded, answers.rows[0])
    require_finite(found, "the merged model", answers.plain)
    ground = _base_as_written(reloaded, seen, changes, answers)
    shaken = _shaken(reloaded, survival, changes, answers)
    del reloaded
    effect = max_difference(answers.expected, answers.plain)
    positions, tolerance = _tolerance(found, shaken, effect, answers)
    difference = max_difference(answers.expected, found, positions)
    if not difference <= tolerance:
        raise _beyond(output, difference, tolerance, drift(answers.blocks, blocks))
    least = MEASURABLE[torch.float64 if answers.precise else torch.float32] * scale_of(answers.expected)
    share = surviving_share(answers.expected, answers.plain, found, ground, least)
    if share is not None and share < LEAST_SHARE:
        raise _eaten(f"of the adapter's effect on the logits {percent(share)} is left", changes)
    _require_usable(folder, opened, changes, answers)
    return {
        "max_difference": difference,
        "tolerance": tolerance,
        "positions": positions,
        "agreement": agreement(answers.expected, found),
        "adapter_effect": effect,
        "logits_share": share,
    }


@torch.no_grad()
def _base_as_written(model: nn.Module, seen: Witness, changes: Changes, answers: _Answers) -> Sequence[Tensor]:
    """Answers of the base in the types of the folder: what remains when the adapter is taken out of `model` again."""
    if changes.dtype in (None, torch.float32):
        return answers.plain
    tensors = {name: tensor for name, tensor in named_tensors(model) if name in seen.originals}
    merged = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.copy_(seen.originals[name].to(changes.type_of(name)))
    with in_float64(model, answers.precise):
        found = logits_of(model, answers.rows)
    for name, tensor in tensors.items():
        tensor.copy_(merged[name])
    return found


def _shaken(model: nn.Module, survival: Survival, changes: Changes, answers: _Answers) -> list[Tensor]:
    """Answers once the weights that were rounded are moved by as much again, at random. Spoils the model."""
    narrowed = changes.dtype not in (None, torch.float32)
    others = {name: torch.ones(()) for name, _ in named_tensors(model)} if narrowed else {}
    # in float64, where a float32 has room for a part of a unit
    with in_float64(model, answers.precise):
        shake(model, {**others, **survival.rounded}, changes.type_of, every=not answers.precise)
        return logits_of(model, answers.rows)


def _tolerance(found: list[Tensor], shaken: list[Tensor], effect: float, answers: _Answers) -> tuple[float, float]:
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


def _require_usable(folder: BaseSource, opened: OpenModel, changes: Changes, answers: _Answers) -> None:
    """In half precision a model can overflow whose weights are all finite: it is run as it will be used."""
    kind = changes.dtype or changes.main
    if kind.itemsize >= torch.float32.itemsize:
        return
    model = load_model(folder, dtype=kind, device=opened.device, auto_class=opened.auto_class)
    name = str(kind).removeprefix("torch.")
    require_finite(logits_of(model, answers.rows), f"the merged model in {name}", answers.plain)


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
