"""Mean ROUGE-L F-measure of answers (Lin 2004, W04-1013), by the package rouge-score, without stemming."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftcli.evaluation.metric import AnswerPair, Metric, mean_over_answers


def rows(answers: Sequence[AnswerPair]) -> np.ndarray:
    """ROUGE-L of each answer, (rows, 1)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    score = mean_over_answers(lambda answer: scorer.score(answer.reference, answer.prediction)["rougeL"].fmeasure)
    return score(answers)


METRIC = Metric(better="higher", answers=rows, packages=("rouge_score",), fraction=True)
