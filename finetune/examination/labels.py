"""The names of a model's labels: as many as its outputs, each of them a name, and none of them twice."""

import collections
import re
from pathlib import Path
from typing import Any

from finetune.examination.documents import refusal, show
from finetune.tasks import PROBLEM_TYPES, REGRESSION, SINGLE_LABEL

__all__ = ["check_label_names", "check_problem_type", "read_id2label"]

HALVES = re.compile("[\ud800-\udfff]")  # of characters, which JSON can spell and nothing else can write


def check_label_names(names: Any, file: Path) -> list[str]:
    """Return a list of names; refuse what is none.

    Args:
        names: What stands in the file.
        file: Which.

    Raises:
        FinetuneError: If it is no list of distinct names.
    """
    what = "a list of distinct label names"
    if not isinstance(names, list) or not names:
        raise refusal(file, what, show(names))
    for name in names:
        if not isinstance(name, str) or not name or HALVES.search(name):
            raise refusal(file, what, f"{show(name)} among them")
    double, times = collections.Counter(names).most_common(1)[0]
    if times > 1:
        raise refusal(file, what, f"{show(double)} twice")
    return names


def read_id2label(config: dict[str, Any], file: Path) -> list[str] | None:
    """Return the names of a config's labels in the order of their numbers; None where it has none.

    Raises:
        FinetuneError: If the numbers have gaps, the names are none or not distinct, or `label2id` or `num_labels` says
            something else.
    """
    found = config.get("id2label")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise refusal(file, "id2label to name numbers", show(found))
    if set(found) != {str(number) for number in range(len(found))}:
        raise refusal(file, "id2label to name the numbers from 0 on without gaps", show(sorted(found)))
    names = check_label_names([found[str(number)] for number in range(len(found))], file)
    numbers = config.get("label2id")  # of other names in models of others, and not read
    if (
        isinstance(numbers, dict)
        and set(numbers) == set(names)
        and [numbers[name] for name in names] != [*range(len(names))]
    ):
        raise refusal(file, "label2id to be id2label the other way round", show(numbers))
    count = config.get("num_labels")
    if count is not None and count != len(names):
        raise refusal(file, f"num_labels {len(names)}, as many as id2label names", show(count))
    return names


def check_problem_type(problem_type: Any, num_labels: int, file: Path, names_file: Path) -> None:
    """Refuse a kind of task that does not go with the number of labels.

    Args:
        problem_type: transformers' name of the task; None if the file doesn't say.
        num_labels: How many names of labels there are.
        file: Which file says what kind it is.
        names_file: Which file names the labels.

    Raises:
        FinetuneError: If it is unknown, numbers are predicted under several names, or one class is all there is.
    """
    if problem_type is None:
        return
    if problem_type not in PROBLEM_TYPES:
        raise refusal(file, f"a problem_type of {', '.join(PROBLEM_TYPES)}", show(problem_type))
    if problem_type == REGRESSION and num_labels != 1:
        raise refusal(file, "the problem_type of a classifier, since there are several labels", show(problem_type))
    if problem_type == SINGLE_LABEL and num_labels < 2:
        raise refusal(names_file, "two labels or more, one of which is predicted", f"{num_labels}")
