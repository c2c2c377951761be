"""Heart-sound scores as a module of Hugging Face ``evaluate``; works without the Hub.

``evaluate.load("<path of this file>", keep_in_memory=True)`` copies the file elsewhere and imports
it there, and reads its imports line by line: so absolute imports only, each on one line.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

PROBLEM_LABELS = ("extrahls", "extrastole", "murmur")

_DESCRIPTION = """\
Scores of a heart-sound classifier: accuracy, unweighted average recall (UAR), macro-F1, precision,
recall, F1 and support of every class, and sensitivity, specificity and AUROC of "any heart
problem", where a problem is a murmur, an extra heart sound or an extrasystole.
"""

_INPUTS = """
Args:
    predictions (list of int): predicted label ids, [N].
    references (list of int): true label ids, [N].
    labels (list of str): name of every label id, [C].
    prediction_scores (array of float, optional): class probabilities, [N, C]; needed for AUROC.
Returns:
    accuracy: share of correct predictions.
    uar: mean recall over the classes present in the references (Schuller et al. 2009).
    macro_f1: mean F1 over the classes present in the references. A prediction of an absent class
        counts as a miss of the true class.
    problem_sensitivity, problem_specificity: of "any heart problem": one problem label taken for
        another is correct here, and specificity is over all other examples, artifacts included.
    auroc_macro: mean one-vs-rest AUROC over the classes present in the references.
    problem_auroc: AUROC of the summed probability of the problem labels.
    per_class: {label: {precision, recall, f1, support}}. Precision is 0 for a class that is present
        but never predicted.
    confusion_matrix: counts [C, C], rows are true labels.
    An undefined score (AUROC without scores or with one class, sensitivity without problems, recall
    of an absent class) is None, never NaN.
"""

_CITATION = """\
@inproceedings{schuller2009interspeech,
  title={The INTERSPEECH 2009 Emotion Challenge},
  author={Schuller, Bj{\\"o}rn and Steidl, Stefan and Batliner, Anton},
  booktitle={Proc. Interspeech},
  pages={312--315},
  year={2009}
}
"""


class HeartSoundMetric(evaluate.Metric):
    """See ``inputs_description``; ``labels`` and ``prediction_scores`` are arguments of compute."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
            ),
        )

    def _compute(
        self,
        predictions: Sequence[int],
        references: Sequence[int],
        labels: Sequence[str],
        prediction_scores: Any = None,
    ) -> dict[str, Any]:
        y_pred, y_true = np.asarray(predictions), np.asarray(references)
        ids = np.arange(len(labels))
        if not len(y_true):
            raise ValueError("got no references; expected at least one example")
        if not (np.isin(y_true, ids).all() and np.isin(y_pred, ids).all()):
            raise ValueError(
                f"got label ids outside 0 to {len(labels) - 1}; expected an index into "
                f"{', '.join(labels)}"
            )
        present = np.unique(y_true)
        precision, recall, f1, support = precision_recall_fscore_support(
            y_true, y_pred, labels=ids, zero_division=0.0
        )
        scores: dict[str, Any] = {
            "accuracy": float((y_true == y_pred).mean()),
            "uar": float(recall[present].mean()),
            "macro_f1": float(f1[present].mean()),
        }
        is_problem = np.isin(list(labels), PROBLEM_LABELS)
        problem, found = is_problem[y_true], is_problem[y_pred]
        scores["problem_sensitivity"] = float(found[problem].mean()) if problem.any() else None
        scores["problem_specificity"] = (
            float((~found[~problem]).mean()) if not problem.all() else None
        )
        scores["auroc_macro"], scores["problem_auroc"] = None, None
        if prediction_scores is not None:
            probabilities = np.asarray(prediction_scores, dtype=float)
            if probabilities.shape != (len(y_true), len(labels)):
                raise ValueError(
                    f"got prediction_scores of shape {probabilities.shape}; expected "
                    f"({len(y_true)}, {len(labels)})"
                )
            # sklearn's own macro one-vs-rest refuses absent classes, hence one class at a time.
            per_class = [_auroc(y_true == i, probabilities[:, i]) for i in present]
            defined = [value for value in per_class if value is not None]
            scores["auroc_macro"] = float(np.mean(defined)) if defined else None
            scores["problem_auroc"] = _auroc(problem, probabilities[:, is_problem].sum(axis=1))
        predicted = np.bincount(y_pred, minlength=len(labels))
        scores["per_class"] = {
            label: {
                "precision": float(precision[i]) if support[i] or predicted[i] else None,
                "recall": float(recall[i]) if support[i] else None,
                "f1": float(f1[i]) if support[i] else None,
                "support": int(support[i]),
            }
            for i, label in enumerate(labels)
        }
        scores["confusion_matrix"] = confusion_matrix(y_true, y_pred, labels=ids).tolist()
        return scores


def _auroc(positive: np.ndarray, score: np.ndarray) -> float | None:
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, score))
