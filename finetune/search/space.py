"""Which settings a search tries for a method, and between which values."""

import math
from typing import Any

from finetune.catalogue import Around
from finetune.errors import FinetuneError
from finetune.lookup import find_method
from finetune.metrics import SINGLE_LABEL
from finetune.settings.arguments import Arguments

__all__ = ["build_space"]


def build_space(arguments: Arguments, problem_type: str) -> dict[str, Any]:
    """Build the space of a run's method, around its settings as they are without a search.

    Args:
        arguments: Settled. What the user chose is not tried; what the method has no use for neither.
        problem_type: Of the task.

    Returns:
        By setting a distribution of Optuna that has the present value in it.

    Raises:
        FinetuneError: If the user chose every setting that could be tried.
    """
    values, unused = arguments.values(), arguments.unused()
    search = find_method(arguments.method.method).search
    open_ones = {name: tried for name, tried in search.items() if name not in unused}
    if problem_type != SINGLE_LABEL or arguments.method.focal_gamma:
        open_ones.pop("label_smoothing_factor", None)
    if "max_steps" in arguments.given:
        open_ones.pop("num_train_epochs", None)
    free = {name: tried for name, tried in open_ones.items() if name not in arguments.given}
    if open_ones and not free:
        raise FinetuneError(
            f"Expected something to try for {arguments.method.method}, but all that a search tries was chosen: "
            f"{', '.join(f'--{name}' for name in open_ones)}. Leave one of them out, or --trials and --budget."
        )
    return {name: _build_distribution(tried, values[name]) for name, tried in free.items()}


def _build_distribution(tried: Around | tuple[Any, ...], value: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(tried, Around):
        return CategoricalDistribution(list(dict.fromkeys([value, *tried])))
    low, high = value / tried.factor, value * tried.factor
    if tried.whole:
        return IntDistribution(max(1, math.ceil(low)), math.floor(high), log=True)
    return FloatDistribution(low, high, log=True)
