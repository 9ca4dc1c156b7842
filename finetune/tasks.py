"""The kinds of task, by transformers' names for them; cheap to import, since a model without torch needs them too."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["MULTI_LABEL", "PROBLEM_TYPES", "REGRESSION", "SINGLE_LABEL", "Task"]

# transformers' names of what is predicted: one class, any number of labels, or a number.
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = [SINGLE_LABEL, MULTI_LABEL, REGRESSION]


@dataclass(frozen=True)
class Task:
    """A kind of task, by transformers' `problem_type`, and the names of its labels in the order of their numbers.

    Regression has one label, the number itself, named by its column. `is_numbered` says that the order of the names is
    the source's own, as of a data set's class names, so that numbers in another file may stand for them.
    """

    problem_type: str
    label_names: list[str]
    is_numbered: bool = field(default=False, compare=False)

    @property
    def feature(self) -> Any:
        """The column type of `label`: a class, a list of classes, or a number."""
        from datasets import ClassLabel, List, Value

        if self.problem_type == REGRESSION:
            return Value("float32")
        label = ClassLabel(names=self.label_names)
        return List(label) if self.problem_type == MULTI_LABEL else label

    def to_config(self) -> dict[str, Any]:
        """Return `id2label`, `label2id` and `problem_type`, as the config of a `PreTrainedModel` takes them."""
        return {
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: number for number, name in enumerate(self.label_names)},
            "problem_type": self.problem_type,
        }
