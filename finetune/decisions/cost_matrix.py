"""What mistakes cost: a YAML file of the labels' names, and the decision of least expected cost (Elkan 2001)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.files import read_yaml

__all__ = ["build_cost_matrix", "read_cost_matrix"]


def read_cost_matrix(path: str) -> dict[str, dict[str, float]]:
    """Read what mistakes cost from a YAML file: for each true label, what each wrong answer costs.

    Raises:
        FinetuneError: If it can't be read, or holds anything but names and numbers from 0 on.
    """
    content = read_yaml(path, "--cost_matrix")
    shape = "Write a line for each true label, such as 'spam: {ham: 10}': spam that is taken for ham costs 10."
    if not isinstance(content, dict) or not all(isinstance(costs, dict) for costs in content.values()):
        raise FinetuneError(f"Expected labels and costs in {path!r}, but found a {_describe(content)}. {shape}")
    found: dict[str, dict[str, float]] = {}
    for truth, costs in content.items():
        for answer, cost in costs.items():
            if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < float("inf"):
                raise FinetuneError(
                    f"Expected a cost of at least 0 for {truth!r} taken for {answer!r} in {path!r}, but found {cost!r}."
                )
        found[str(truth)] = {str(answer): float(cost) for answer, cost in costs.items()}
    return found


def build_cost_matrix(costs: Mapping[str, Mapping[str, float]], label_names: Sequence[str]) -> np.ndarray:
    """Build `(num_labels, num_labels)`, what it costs to answer a column's label where a row's is right.

    A wrong answer that is not listed costs 1, a right one nothing.

    Raises:
        FinetuneError: If a label is not one of the model's, or no mistake costs anything.
    """
    matrix = 1.0 - np.eye(len(label_names))
    numbers = {name: number for number, name in enumerate(label_names)}
    for truth, row in costs.items():
        for answer, cost in row.items():
            for name in (truth, answer):
                if name not in numbers:
                    known = ", ".join(label_names[:10]) + (" …" if len(label_names) > 10 else "")
                    raise FinetuneError(
                        f"Expected labels of the data in --cost_matrix ({known}), but found {name!r}. YAML takes yes, "
                        "no, on and off for truth values unless they are quoted."
                    )
            matrix[numbers[truth], numbers[answer]] = cost
    if not (matrix > 0).any():
        raise FinetuneError("Expected --cost_matrix to have a cost above 0, but every answer is free.")
    return matrix


def _describe(content: Any) -> str:
    return type(content).__name__ if not isinstance(content, dict) else "value that is no list of costs"
