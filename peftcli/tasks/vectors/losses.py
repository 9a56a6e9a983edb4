"""The contrastive loss (arXiv:1807.03748, with the negatives of a batch as arXiv:1705.00652) and the regression of a cosine.

Of an anchor a, its match p and every other match or negative n of the optimizer batch:

    -log exp(cos(a, p) / t) / sum over p and all n of exp(cos(a, .) / t)

A text equal to the match, or to the match of an equal anchor, is no negative. Scored texts: (cos(a, b) - score)^2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from peftcli.tasks.base import Batch
from peftcli.tasks.vectors.pooling import unit


def row_losses(vectors: Tensor, known: Batch, temperature: float, *, chunk: int | None = None) -> Tensor:
    """The loss of each row, (rows,), in the type of the vectors. `vectors`: (texts, width), of any length; `known`: what
    `batches.collate` says of these texts. `chunk`: anchors that compete at once; None: all."""
    vectors = unit(vectors)
    contest = _Contest.of(known)
    losses = _scored(vectors, known["score"], contest)
    device, others = vectors.device, vectors[contest.others.to(vectors.device)]
    for chosen in contest.chunks(chunk):
        anchors = vectors[contest.anchors[chosen].to(device)]
        own = contest.own[chosen]
        logits = (anchors @ others.T / temperature).masked_fill(contest.barred(chosen).to(device), float("-inf"))
        found = torch.nn.functional.cross_entropy(logits, own.to(device), reduction="none")
        losses = losses.index_add(0, contest.rows[chosen].to(device), found)
    return losses


def _scored(vectors: Tensor, scores: Tensor, contest: _Contest) -> Tensor:
    """The loss of rows with a score, 0 for the others."""
    first, second = (places.to(vectors.device) for places in (contest.first, contest.second))
    cosines = (vectors[first] * vectors[second]).sum(dim=1)
    truth = scores.nan_to_num(0.0).to(cosines)
    return torch.where((~scores.isnan()).to(vectors.device), (cosines - truth).square(), torch.zeros_like(cosines))


@dataclass(frozen=True)
class _Contest:
    """Who competes for whom: numbers of texts, on the device of the batch."""

    first: Tensor
    """(rows,) the anchor of each row, and `second` its match or the text that it has a score with."""
    second: Tensor
    rows: Tensor
    """(matched,) rows that have a match, not a score; `anchors` their first texts."""
    anchors: Tensor
    others: Tensor
    """(candidates,) matches and negatives of all of them."""
    own: Tensor
    """(matched,) where the match stands among the candidates."""
    group: Tensor
    """(matched,) equal for equal anchors."""
    candidate: Tensor
    """(candidates,) equal for equal texts."""

    @staticmethod
    def of(known: Batch) -> _Contest:
        row, place, key = known["row"], known["place"], known["key"]
        first, second = (torch.nonzero(place == number).squeeze(1) for number in (0, 1))
        matched = known["score"].isnan()
        rows = torch.nonzero(matched).squeeze(1)
        others = torch.nonzero((place > 0) & matched[row]).squeeze(1)
        group = torch.unique(key[first[rows]], return_inverse=True)[1]
        candidate = torch.unique(key[others], return_inverse=True)[1]
        own = torch.searchsorted(others, second[rows])
        return _Contest(first, second, rows, first[rows], others, own, group, candidate)

    def chunks(self, size: int | None) -> Iterator[slice]:
        step = size or max(1, len(self.rows))
        yield from (slice(start, start + step) for start in range(0, len(self.rows), step))

    def barred(self, chosen: slice) -> Tensor:
        """Whether a candidate is no negative of an anchor, being another match of it, (chosen, candidates)."""
        groups, inside = torch.unique(self.group[chosen], return_inverse=True)
        concerned = torch.nonzero(torch.isin(self.group, groups)).squeeze(1)
        matches = torch.zeros(len(groups), int(self.candidate.max()) + 1, dtype=torch.bool, device=groups.device)
        matches[torch.searchsorted(groups, self.group[concerned]), self.candidate[self.own[concerned]]] = True
        barred = matches[inside][:, self.candidate]
        barred[torch.arange(len(inside), device=groups.device), self.own[chosen]] = False
        return barred
