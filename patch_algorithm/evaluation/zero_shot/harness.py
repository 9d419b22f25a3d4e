"""Scores of zero-shot tasks by lm-evaluation-harness, which the extra ``eval`` installs."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patch_algorithm.evaluation.models import Evaluated
from patch_algorithm.evaluation.zero_shot.items import TaskData

__all__ = ["TaskScore", "require_harness", "score_tasks"]


@dataclass(frozen=True)
class TaskScore:
    """How a model did in one task, by one measure.

    Attributes:
        task: The task's name.
        measure: ``acc``, ``acc_norm`` or ``perplexity``.
        scores: Of each item: 1 where the model was right, otherwise 0; for ``perplexity`` its log-likelihood.
    """

    task: str
    measure: str
    scores: tuple[float, ...]

    @property
    def value(self) -> float:
        """The mean; for ``perplexity`` ``exp`` of the negative mean."""
        mean = float(np.mean(self.scores))
        return math.exp(min(-mean, 700)) if self.measure == "perplexity" else mean

    @property
    def error(self) -> float | None:
        """The standard error of the value over items; ``None`` for a single item."""
        if len(self.scores) < 2:
            return None
        error = float(np.std(self.scores, ddof=1)) / math.sqrt(len(self.scores))
        return error * self.value if self.measure == "perplexity" else error

    def to_json(self) -> dict[str, Any]:
        """Primitives."""
        return {
            "task": self.task,
            "measure": self.measure,
            "value": self.value,
            "error": self.error,
            "items": len(self.scores),
            "scores": list(self.scores),
        }


def require_harness() -> None:
    """Refuses to go on without lm-evaluation-harness.

    Raises:
        ValueError: If it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            "--preset zero-shot needs lm-evaluation-harness; install it with `pip install "
            "'patch-algorithm[eval]'`."
        )


def score_tasks(
    subject: Evaluated, chosen: Sequence[TaskData], *, context: int, batch: int = 4
) -> list[TaskScore]:
    """Scores a model in tasks, without examples.

    Args:
        subject: The model.
        chosen: The tasks.
        context: Tokens that the model reads at most; of a longer text its beginning is left out.
        batch: Texts at once.
    """
    require_harness()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # advice on arguments that are meant
    # By name: the package is not there in every installation, nor for the type checker.
    task_kind: Any = importlib.import_module("lm_eval.api.task").ConfigurableTask
    model_kind: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
    evaluate: Any = importlib.import_module("lm_eval.evaluator").evaluate
    model = model_kind(
        pretrained=subject.model,
        tokenizer=subject.tokenizer,
        backend="causal",
        max_length=context,
        batch_size=batch,
    )
    made = {data.task.name: task_kind(config=_config(data)) for data in chosen}
    for task in made.values():
        task.set_fewshot_seed(seed=0)  # it is asked for, though there are no examples
    listed = {"tasks": made, "groups": {}, "group_map": {}}
    found = evaluate(lm=model, task_dict=listed, bootstrap_iters=0, log_samples=True)
    return [
        TaskScore(data.task.name, measure, tuple(float(one[measure]) for one in samples))
        for data in chosen
        for samples in [sorted(found["samples"][data.task.name], key=lambda one: one["doc_id"])]
        for measure in data.task.measures
    ]


def _config(data: TaskData) -> dict[str, Any]:
    def from_items(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(list(data.items))}

    return {**data.task.config, "custom_dataset": from_items}
