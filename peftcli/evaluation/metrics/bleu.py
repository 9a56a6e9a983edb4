"""Corpus BLEU, 0 to 100 (Papineni et al. 2002), by the package sacrebleu with its defaults: 13a, smoothing `exp`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftcli.evaluation.metric import AnswerPair, Metric


def rows(answers: Sequence[AnswerPair]) -> np.ndarray:
    """Matches and totals of 1- to 4-grams, then both lengths: (rows, 10)."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU()
    scores = [bleu.corpus_score([answer.prediction], [[answer.reference]]) for answer in answers]
    numbers = [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores]
    return np.array(numbers, dtype=np.float64).reshape(-1, 10)


def value(totals: np.ndarray) -> np.ndarray:
    """BLEU of one corpus, or of each of many, from summed counts (..., 10)."""
    from sacrebleu.metrics import BLEU

    def corpus(numbers: np.ndarray) -> float:
        *grams, predicted, wanted = (int(number) for number in numbers)
        score: float = BLEU.compute_bleu(grams[:4], grams[4:], predicted, wanted, smooth_method="exp").score
        return score

    return np.apply_along_axis(corpus, -1, totals)


METRIC = Metric(better="higher", answers=rows, value=value, packages=("sacrebleu",))
