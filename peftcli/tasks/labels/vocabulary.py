"""Which labels the rows of a run have, and what kind of labels they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from peftcli.data.faults import excerpt, listed
from peftcli.data.rows import Label
from peftcli.data.store import UNLABELLED, TokenStore
from peftcli.errors import DataError
from peftcli.models.heads import MEASURED, SEVERAL, SINGLE, LabelHead

_SWITCHED = frozenset({0.0, 1.0})


def head_of(train: TokenStore, validation: TokenStore | None, base: LabelHead | None, problem: str | None) -> LabelHead:
    """The labels that a model of these rows gives, sorted by name (numbers by size).

    `problem`: what the labels mean, None to tell from the rows. `base`: labels that the base gives already, kept where
    they hold all of the rows'. Raises `DataError` for labels that cannot be learned.
    """
    sets = sets_of(train)
    problem = problem or _problem_of(sets)
    _require_of_a_kind(train, sets, problem)
    if _are_vectors(sets) and problem != SINGLE:
        head = LabelHead.unnamed(len(sets[0]), problem)
        found = base if base is not None and len(base.names) == len(sets[0]) else head
    elif problem == MEASURED:
        found = LabelHead.unnamed(1, problem)
    else:
        names = _ordered({label for labels in sets for label in labels})
        _require_two(train, names, problem)
        found = base if base is not None and _holds(base, names) else LabelHead(tuple(map(str, names)), problem)
    found = LabelHead(found.names, problem)
    if validation is not None:
        _require_known(validation, found)
    return found


def sets_of(store: TokenStore) -> list[tuple[Label, ...]]:
    """Each different list of labels that rows of a store have."""
    return [store.label_sets[number] for number in np.unique(store.index.label).tolist() if number != UNLABELLED]


def output_of(label: Label, head: LabelHead) -> int | None:
    """The output that stands for a label: by its name, or by its number; None where there is none."""
    found = head.numbers().get(str(label))
    if found is None and isinstance(label, int) and 0 <= label < len(head.names):
        return label
    return found


def truth_of(labels: Sequence[Label], head: LabelHead) -> np.ndarray:
    """(labels of the head,) float32: 1 where a label applies, or the true values; zeros for a row without labels."""
    if not labels:
        return np.zeros(len(head.names), dtype=np.float32)
    if head.problem == MEASURED or (head.problem == SEVERAL and any(isinstance(label, float) for label in labels)):
        return np.array([float(label) for label in labels], dtype=np.float32)
    found = np.zeros(len(head.names), dtype=np.float32)
    for label in labels:
        number = output_of(label, head)
        assert number is not None, "known since the head was made, or refused"
        found[number] = 1.0
    return found


def require_known(store: TokenStore, head: LabelHead) -> None:
    """Raises `DataError` for rows whose labels the head does not have."""
    _require_known(store, head)


def head_of_tags(train: TokenStore, validation: TokenStore | None, base: LabelHead | None) -> LabelHead:
    """The tags that words of the rows have, sorted; those of the base where it gives them already."""
    sets = sets_of(train)
    kinds = {type(tag) for tags in sets for tag in tags}
    if len(kinds) > 1:
        raise DataError(
            "tags are names in some rows and numbers in others",
            where=", ".join(_place(train, tags) for tags in _one_of_each(sets)),
            fix="write all of them one way",
        )
    names = _ordered({tag for tags in sets for tag in tags})
    _require_two(train, names, SINGLE)
    found = base if base is not None and _holds(base, names) else LabelHead(tuple(map(str, names)))
    head = LabelHead(found.names)
    if validation is not None:
        require_known_tags(validation, head)
    return head


def require_known_tags(store: TokenStore, head: LabelHead) -> None:
    """Raises `DataError` for rows with a tag that the head does not have."""
    for tags in sets_of(store):
        unknown = next((tag for tag in tags if output_of(tag, head) is None), None)
        if unknown is not None:
            raise DataError(
                f"the tag {excerpt(str(unknown))!r} is not one that the model has learned: {listed(head.names)}",
                where=_place(store, tags),
                fix="correct the tag, or train on rows that have it",
            )


def _problem_of(sets: Sequence[tuple[Label, ...]]) -> str:
    values = [label for labels in sets for label in labels]
    if _are_vectors(sets):
        switched = len(sets[0]) > 1 and set(values) <= _SWITCHED
        return SEVERAL if switched else MEASURED
    return SINGLE if all(len(labels) == 1 for labels in sets) else SEVERAL


def _are_vectors(sets: Sequence[tuple[Label, ...]]) -> bool:
    """Whether rows hold measured values, equally many in each."""
    alike = len({len(labels) for labels in sets}) == 1
    return alike and any(isinstance(label, float) for labels in sets for label in labels)


def _require_of_a_kind(store: TokenStore, sets: Sequence[tuple[Label, ...]], problem: str) -> None:
    counts = {len(labels) for labels in sets}
    if problem == MEASURED:
        wrong = next((labels for labels in sets if any(isinstance(label, str) for label in labels)), None)
        if wrong is not None:
            raise DataError(
                f"the label {excerpt(str(wrong[0]))!r} is a name, and regression learns numbers",
                where=_place(store, wrong),
                fix="classification.problem_type: single_label_classification",
            )
        if len(counts) > 1:
            usual = max(counts, key=[len(labels) for labels in sets].count)
            other = next(labels for labels in sets if len(labels) != usual)
            raise DataError(
                f"the row has {len(other)} values and others {usual}: regression needs equally many values in every row",
                where=_place(store, other),
                fix="correct the row",
            )
    elif problem == SINGLE and counts != {1}:
        wrong = next(labels for labels in sets if len(labels) != 1)
        raise DataError(
            f"the row has {len(wrong)} labels, and one of them is to be learned",
            where=_place(store, wrong),
            fix="classification.problem_type: multi_label_classification",
        )
    elif not _are_vectors(sets) or problem == SINGLE:
        kinds = {type(label) for labels in sets for label in labels}
        if len(kinds) > 1:
            raise DataError(
                "labels are names in some rows and numbers in others",
                where=", ".join(_place(store, labels) for labels in _one_of_each(sets)),
                fix="write all of them one way",
            )


def _one_of_each(sets: Iterable[tuple[Label, ...]]) -> list[tuple[Label, ...]]:
    first: dict[type, tuple[Label, ...]] = {}
    for labels in sets:
        for label in labels:
            first.setdefault(type(label), labels)
    return list(first.values())


def _ordered(labels: set[Label]) -> list[Label]:
    if all(isinstance(label, str) for label in labels):
        return sorted(labels, key=str)
    return sorted(labels, key=float)


def _require_two(store: TokenStore, names: Sequence[Label], problem: str) -> None:
    if len(names) < (2 if problem == SINGLE else 1):
        only = f"only the label {excerpt(str(names[0]))!r} occurs" if names else "no label occurs"
        raise DataError(
            f"{only} in the training rows: there is nothing to tell apart",
            where=store.origin(0).file,
            fix="give rows of at least two labels",
        )


def _holds(base: LabelHead, names: Sequence[Label]) -> bool:
    known = base.numbers()
    if all(str(name) in known for name in names):
        return True
    return all(isinstance(name, int) and 0 <= name < len(known) for name in names)


def _require_known(store: TokenStore, head: LabelHead) -> None:
    for labels in sets_of(store):
        if head.problem == MEASURED or (head.problem == SEVERAL and any(isinstance(each, float) for each in labels)):
            if len(labels) != len(head.names) or any(isinstance(each, str) for each in labels):
                raise DataError(
                    f"the row has {len(labels)} values, and the model gives {len(head.names)}",
                    where=_place(store, labels),
                    fix="correct the rows",
                )
            continue
        unknown = [label for label in labels if output_of(label, head) is None]
        if unknown or (head.problem == SINGLE and len(labels) != 1):
            what = f"the label {excerpt(str(unknown[0]))!r}" if unknown else f"a row of {len(labels)} labels"
            raise DataError(
                f"{what} is not one that the model has learned: {listed(head.names)}",
                where=_place(store, labels),
                fix="correct the label, or train on rows that have it",
            )


def _place(store: TokenStore, labels: tuple[Label, ...]) -> str:
    """File and line of the first row with these labels."""
    rows = [row for row in range(len(store)) if store.labels(row) == labels]
    origin = store.origin(rows[0])
    return f"{origin.file}:{origin.line}"
