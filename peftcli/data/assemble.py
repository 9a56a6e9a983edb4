"""From encoded sources to the rows of a split: chosen, cut to length, mixed, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftcli.data.config import DataConfig
from peftcli.data.doctor.base import SplitRows, Tallies, Tally
from peftcli.data.facts import SourceFacts, SplitFacts, histogram_of, order_sha256, quantiles_of, stream_sha256
from peftcli.data.faults import place
from peftcli.data.load_source import Part
from peftcli.data.mixing import calm_weights, epoch_counts, epoch_rows, split_off
from peftcli.data.readers.containers import is_by_row
from peftcli.data.store import RowIndex, TokenColumns, TokenStore
from peftcli.data.truncation import EMPTIED, MAX_DROPPED, TOO_LONG, Cut, Keep, cut_rows, read_lengths
from peftcli.errors import DataError, Fault


@dataclass(frozen=True)
class SplitPlan:
    """Which rows of which sources make a split. `rows[i]` are row numbers of `parts[i]`."""

    name: str
    parts: Sequence[Part]
    rows: Sequence[np.ndarray]


@dataclass(frozen=True)
class SplitData:
    """A split, ready; `rows` are its rows before any cut, for checks that compare rows."""

    name: str
    store: TokenStore
    facts: SplitFacts
    rows: SplitRows
    tallies: Tallies

    def raise_if_empty(self) -> None:
        """`DataError` with the count for each reason when no row is left."""
        if len(self.store):
            return
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.facts.dropped.items())
        raise DataError(
            f"no row of {self.name} is left of {self.facts.rows_read:,}: {reasons or 'none were there'}",
            where=", ".join(source.name for source in self.facts.sources)[:300],
            fix="a larger `data.max_length`, or another `data.truncation`",
        )


def plan_splits(
    config: DataConfig, train: Sequence[Part], validation: Sequence[Part], seed: int, *, by_class: bool = False
) -> list[SplitPlan]:
    """The training split, and the validation split if there is one. `by_class`: labels keep their proportions."""
    everything = [np.arange(len(part.data.length)) for part in train]
    wanted = config.rows_to_split_off(sum(len(rows) for rows in everything))
    if wanted:
        classes = _classes(train) if by_class else None
        pairs = split_off([len(rows) for rows in everything], wanted, seed, classes)
        return [
            SplitPlan("train", train, [kept for kept, _ in pairs]),
            SplitPlan("validation", train, [drawn for _, drawn in pairs]),
        ]
    plans = [SplitPlan("train", train, everything)]
    if validation:
        plans.append(SplitPlan("validation", validation, [np.arange(len(part.data.length)) for part in validation]))
    return plans


def _classes(parts: Sequence[Part]) -> np.ndarray | None:
    """(rows of all sources,) number of each row's class; None where labels are lists, or measured values."""
    sets = [each for part in parts for each in part.data.label_sets]
    if not sets or any(len(each) != 1 or isinstance(each[0], float) for each in sets):
        return None
    # by `repr`, since labels of different types cannot be compared
    numbers = {each: number for number, each in enumerate(sorted(set(sets), key=repr))}
    return np.array(
        [numbers[part.data.label_sets[number]] for part in parts for number in part.data.label.tolist()], dtype=np.int64
    )


def assemble(
    plan: SplitPlan,
    config: DataConfig,
    seed: int,
    begin: int | None,
    context: int | None,
    keep: Keep | None = None,
    alternatives: Sequence[int] = (),
    apart: bool = False,
) -> SplitData:
    """Cuts and mixes the rows of a split. `begin`: the token that begins a text. `context`: the base's positions.
    `keep`: how rows of several parts are shortened. `alternatives`: parts of which a model reads one at a time.
    `apart`: every text of a row is read by itself, and `max_length` is of each.

    Raises `DataError` when truncation would take too much.
    """
    columns: list[TokenColumns] = [part.data.columns for part in plan.parts]
    files = [name for part in plan.parts for name in part.data.names]
    # files and labels of all sources stand in one table each: where a source's begin
    offsets = np.cumsum([0, *(len(part.data.names) for part in plan.parts)])
    sets = np.cumsum([0, *(len(part.data.label_sets) for part in plan.parts)])
    indexes = [
        part.data.index(number, int(offsets[number]), int(sets[number])).take(rows)
        for number, (part, rows) in enumerate(zip(plan.parts, plan.rows, strict=True))
    ]
    tallies: Tallies = {}
    cuts: list[Cut] = []
    # one after the other, for each cut may add columns that later ones count from
    for part, index in zip(plan.parts, indexes, strict=True):
        cut = cut_rows(
            columns,
            index,
            config.truncation,
            config.max_length,
            joins=part.data.joins,
            begin=begin,
            keep=keep,
            alternatives=alternatives,
            apart=apart,
        )
        columns = cut.columns
        cuts.append(cut)
        tally_cut(cut, index, files, tallies)
    sizes = [read_lengths(columns, index, alternatives, apart=apart) for index in indexes]
    longest = max((int(each.max(initial=0)) for each in sizes), default=0)
    _check_losses(plan, config, indexes, cuts, files, context, longest, splits=keep is None)
    store = _mixed(plan, columns, cuts, files, seed)
    return SplitData(plan.name, store, _facts(plan, store, cuts), _rows_before(plan, columns, indexes, files), tallies)


def tally_cut(cut: Cut, index: RowIndex, files: Sequence[str], tallies: Tallies) -> None:
    """Notes rows that lost trained tokens or never had one, under the checks of those names."""
    for check, rows, message in (
        ("no-trained-tokens", cut.unlearnt, "no trained token"),
        ("truncated-answers", cut.shortened, "trained tokens are cut off by max_length"),
    ):
        for row in rows.tolist():
            tally = tallies.setdefault((check, files[int(index.file[row])]), Tally())
            tally.add(int(index.line[row]), message)


def _check_losses(
    plan: SplitPlan,
    config: DataConfig,
    indexes: Sequence[RowIndex],
    cuts: Sequence[Cut],
    files: Sequence[str],
    context: int | None,
    longest: int,
    *,
    splits: bool,
) -> None:
    """`error` allows no long row; otherwise at most 5 % may go without having been asked to (`drop` asks). `splits`:
    whether a row may become several."""
    total = sum(len(index.length) for index in indexes)
    going = [cut.too_long if config.truncation in ("error", "auto") else cut.shortened for cut in cuts]
    # `drop` was asked for, so rows that it leaves out are no loss
    lost = sum(
        cut.dropped.get(TOO_LONG, 0) * (config.truncation != "drop") + cut.dropped.get(EMPTIED, 0) for cut in cuts
    )
    if not lost or (config.truncation != "error" and lost <= MAX_DROPPED * total):
        return
    named = [
        place(file, int(index.line[row]), by_row=_is_by_row(file))
        for index, rows in zip(indexes, going, strict=True)
        for row in rows[:5].tolist()
        if (file := files[int(index.file[row])])
    ]
    kind = "longer than" if config.truncation in ("error", "auto") else "left without an answer by"
    raise DataError(
        f"{lost:,} of {total:,} rows of {plan.name} are {kind} max_length ({config.max_length}); the longest "
        f"has {longest:,} tokens",
        where=", ".join(named[:5]),
        fix=_longer(longest, config.max_length, context)
        + f"another data.truncation (drop, left, right{', split' if splits else ''})",
    )


def _longer(longest: int, given: int, context: int | None) -> str:
    """The advice to read longer rows, as far as the base can."""
    if context is None or longest <= context:
        return f"data.max_length: {longest}, or "
    if given < context:
        return f"data.max_length: {context} at most, the base's context, or "
    return f"the base's context is {context}: "


def _is_by_row(file: str) -> bool:
    return file.endswith("]") or is_by_row(Path(file))


def _mixed(
    plan: SplitPlan, columns: list[TokenColumns], cuts: Sequence[Cut], files: Sequence[str], seed: int
) -> TokenStore:
    available = [len(cut.index.length) for cut in cuts]
    weights = [part.config.weight for part in plan.parts]
    counts = epoch_counts(available, weights, [part.config.repeat for part in plan.parts])
    _require_all_to_take_part(plan, available, counts)
    whole = RowIndex.concatenate([cut.index for cut in cuts])
    # one source that is taken whole needs no order of its own: batches are drawn at random anyway
    if len(cuts) > 1 or counts != available:
        sources, rows = epoch_rows(available, counts, seed)
        starts = np.cumsum([0, *available[:-1]])
        whole = whole.take(starts[sources] + rows)
    return TokenStore(columns, whole, files, tuple(each for part in plan.parts for each in part.data.label_sets))


def _require_all_to_take_part(plan: SplitPlan, available: Sequence[int], counts: Sequence[int]) -> None:
    """A weight so small that no row of its source is in an epoch is a mistake, or the source could be left out."""
    faults = [
        Fault(
            f"no row of {part.config.path} is in an epoch: its weight {part.config.weight:g} is too small beside the others",
            fix="a larger weight, or leave this source out",
        )
        for part, held, count in zip(plan.parts, available, counts, strict=True)
        if part.config.weight is not None and held and not count
    ]
    if faults:
        raise DataError("sources take no part in training", faults=faults)


def _facts(plan: SplitPlan, store: TokenStore, cuts: Sequence[Cut]) -> SplitFacts:
    weights = [part.config.weight for part in plan.parts]
    given = [weight for weight in weights if weight is not None]
    calm = calm_weights(given).tolist() if given else []
    asked = iter([weight / sum(calm) for weight in calm])
    sources = []
    for number, (part, rows, cut) in enumerate(zip(plan.parts, plan.rows, cuts, strict=True)):
        of_source = store.index.source == number
        # rows that were empty belong to no split; they are counted where their source is trained on
        empty = part.data.dropped if plan.name == "train" or len(rows) == len(part.data.length) else {}
        count = int(of_source.sum())
        sources.append(
            SourceFacts(
                name=part.config.path,
                format=part.data.format,
                why=part.data.why,
                files=list(part.data.inputs),
                rows_read=len(rows) + sum(empty.values()),
                rows_kept=cut.rows_kept,
                dropped={**empty, **cut.dropped},
                rows=count,
                share=count / max(len(store), 1),
                asked=None if part.config.weight is None else next(asked),
                tokens=int(store.lengths[of_source].sum()),
                trained_tokens=int(store.trained[of_source].sum()),
                tokens_lost=cut.tokens_lost,
                trained_tokens_lost=cut.trained_lost,
            )
        )
    return _split_facts(plan, store, sources)


def _split_facts(plan: SplitPlan, store: TokenStore, sources: list[SourceFacts]) -> SplitFacts:
    dropped: dict[str, int] = {}
    for source in sources:
        for reason, count in source.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    inputs = [_content_hash(part, name) for part in plan.parts for name in part.data.names]
    return SplitFacts(
        rows_read=sum(source.rows_read for source in sources),
        rows_kept=sum(source.rows_kept for source in sources),
        dropped=dropped,
        rows=len(store),
        tokens=int(store.lengths.sum()),
        trained_tokens=int(store.trained.sum()),
        tokens_lost=sum(source.tokens_lost for source in sources),
        trained_tokens_lost=sum(source.trained_tokens_lost for source in sources),
        quantiles=quantiles_of(store.lengths),
        histogram=histogram_of(store.lengths),
        sources=sources,
        order_sha256=order_sha256(store, inputs),
        stream_sha256=stream_sha256(store),
    )


def _content_hash(part: Part, name: str) -> str:
    number = list(part.data.names).index(name)
    inputs = part.data.inputs
    return inputs[number].sha256 if len(inputs) == len(part.data.names) else "".join(each.sha256 for each in inputs)


def whole_row(columns: Sequence[TokenColumns], index: RowIndex, row: int) -> np.ndarray:
    """Ids of a row of the index, (length,) int32."""
    start = int(index.start[row])
    return columns[int(index.column[row])].tokens[start : start + int(index.length[row])]


def _rows_before(
    plan: SplitPlan, columns: list[TokenColumns], indexes: Sequence[RowIndex], files: Sequence[str]
) -> SplitRows:
    whole = RowIndex.concatenate(list(indexes))
    return SplitRows(
        length=whole.length,
        key=np.concatenate([part.data.key[rows] for part, rows in zip(plan.parts, plan.rows, strict=True)]),
        sketch=np.concatenate([part.data.sketch[rows] for part, rows in zip(plan.parts, plan.rows, strict=True)]),
        file=whole.file,
        line=whole.line,
        files=tuple(files),
        joined=all(part.data.joins for part in plan.parts),
        read=lambda row: whole_row(columns, whole, row),
    )
