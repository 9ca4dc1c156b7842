"""Runs put together that differ in their seed alone, and kept apart where anything else would mix the figures."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.comparison.runs import SPLITS, StoredRun
from finetune.errors import FinetuneError
from finetune.lookup import family_of
from finetune.settings.declaration import Values
from finetune.settings.declared import default_values, facts_of, is_used
from finetune.settings.describe import describe_settings

__all__ = ["Group", "describe_machines", "group_runs", "refuse_different_splits"]

LONGEST_SETTINGS = 45  # characters of a group's name
# What a machine is, as far as seconds and bytes depend on it.
MACHINE = {
    "processor": "processor",
    "gpus": "GPUs",
    "num_processes": "processes",
    "num_threads": "threads per process",
}


@dataclass(frozen=True)
class Group:
    """Runs of one method with the same settings, one a seed.

    Attributes:
        name: The method, and the settings by which it differs from other groups of the method; a number instead if
            they are long.
        method: As in `run.json`.
        settings: These settings by name.
        runs: In the order of their seeds.
    """

    name: str
    method: str
    settings: dict[str, Any]
    runs: tuple[StoredRun, ...]

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def is_tuned(self) -> bool:
        """Whether settings were tried before each run."""
        return self.runs[0].record.search is not None

    @property
    def is_deterministic(self) -> bool:
        """Whether another seed would change nothing; what is tried depends on it."""
        return family_of(self.method).is_deterministic and not self.is_tuned

    def mean_cost(self, name: str) -> float | None:
        """Return the mean of a cost over the runs; None if a run has no such cost."""
        known = [value for run in self.runs if (value := run.cost(name)) is not None]
        return float(np.mean(known)) if len(known) == len(self.runs) else None


def refuse_different_splits(runs: Sequence[StoredRun]) -> None:
    """Refuse runs whose figures don't stand side by side: other rows to train, tune or test on.

    Raises:
        FinetuneError: Naming the split, and the runs on each side.
    """
    _refuse_different(runs, "task", [(run.problem_type, *run.label_names) for run in runs])
    for split in reversed(SPLITS):
        _refuse_different(runs, f"{split} split", [dict(run.record.data.splits)[split].sha256 for run in runs])
    # Pairs of scores go by the order of the rows, which the hash of the split doesn't prove of the predictions.
    first = runs[0].test
    _refuse_different(runs, "ids in test.parquet", [run.test.ids.equals(first.ids) for run in runs])
    _refuse_different(runs, "labels in test.parquet", [np.array_equal(run.test.labels, first.labels) for run in runs])


def _refuse_different(runs: Sequence[StoredRun], what: str, keys: Sequence[Hashable]) -> None:
    sides = defaultdict(list)
    for run, key in zip(runs, keys, strict=True):
        sides[key].append(str(run.directory))
    if len(sides) > 1:
        shown = "; ".join(_list_some(names) for names in sides.values())
        raise FinetuneError(
            f"Expected runs with the same {what} in one report, but found {len(sides)} of them: {shown}. "
            "Report each side on its own."
        )


def _list_some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def group_runs(runs: Sequence[StoredRun]) -> tuple[list[Group], list[str]]:
    """Put together the runs of a method that differ in nothing but the seed.

    Args:
        runs: On the same splits.

    Returns:
        The groups in the order in which their methods were found, and one line for each run that is left out because
        its group has its seed already: counted twice, it would pass for another seed.
    """
    by_method = defaultdict(list)
    for run in runs:
        record = run.record
        parts = {"tuned": record.search, "taught": record.teacher}
        by_method[run.method, tuple(kind for kind, part in parts.items() if part is not None)].append(run)
    groups, left_out = [], []
    for (method, kinds), same_method in by_method.items():
        settings = {run: _settings(run) for run in same_method}
        varying = _varying(list(settings.values()))
        by_settings = defaultdict(list)
        for run in same_method:
            by_settings[tuple(repr(settings[run].get(name)) for name in varying)].append(run)
        own = [{name: settings[some[0]].get(name) for name in varying} for some in by_settings.values()]
        for name, chosen, same_settings in zip(
            _name_groups(method, kinds, own), own, by_settings.values(), strict=True
        ):
            kept: dict[int, StoredRun] = {}
            for run in same_settings:
                if run.seed in kept:
                    left_out.append(
                        f"{run.directory}: it has the method, settings and seed of {kept[run.seed].directory}, and a "
                        "seed counts once"
                    )
                else:
                    kept[run.seed] = run
            groups.append(Group(name, method, chosen, tuple(kept[seed] for seed in sorted(kept))))
    return groups, left_out


def _name_groups(method: str, kinds: Sequence[str], settings: Sequence[dict[str, Any]]) -> list[str]:
    """Name the groups of a method by the settings that differ; by numbers where that gets too long."""
    described = [describe_settings(one) for one in settings]
    if len(described) == 1:
        return [f"{method} ({', '.join(kinds)})" if kinds else method]
    if max(map(len, described)) > LONGEST_SETTINGS:
        return [" ".join([method, *kinds, str(number)]) for number in range(1, len(described) + 1)]
    return [f"{method} ({', '.join([*kinds, one])})" for one in described]


def _settings(run: StoredRun) -> dict[str, Any]:
    """Return the settings that may change what a run's method does, whatever the seed."""
    recorded = {name: value for part in dict(run.record.arguments).values() for name, value in part.items()}
    flat = {"pretrain_epochs": 0.0, **recorded}  # runs from before this setting began without
    values = Values({**flat, "method": run.method}, default_values())
    settings = {
        name: value
        for name, value in flat.items()
        if (facts := facts_of(name)).changes == "results" and not facts.refused and is_used(name, values)
    }
    if run.record.teacher is not None:  # each seed may have a teacher of its own
        settings["teacher"] = run.record.teacher.method or run.record.teacher.name
    if run.record.pretraining is not None:  # with --unlabeled_file there are more
        settings["pretraining_texts"] = run.record.pretraining.texts
    if run.record.search is None:
        return settings
    # How they were searched for is what the runs of a group have in common; each chose its own.
    return {name: value for name, value in settings.items() if name not in run.record.search.chosen}


def _varying(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Name the settings that differ where they are used; that they are in some runs alone is another one's doing."""
    names = list(dict.fromkeys(name for one in settings for name in one))
    return [name for name in names if len({repr(one[name]) for one in settings if name in one}) > 1]


def describe_machines(runs: Sequence[StoredRun]) -> list[str]:
    """Describe in one line each what of the machine differs between runs, so that their costs don't compare."""
    lines = []
    for field, name in MACHINE.items():
        sides = defaultdict(list)
        for run in runs:
            found = getattr(run.record.environment, field)
            shown = ", ".join(map(str, found)) or "none" if isinstance(found, list) else str(found)
            sides[shown].append(str(run.directory))
        if len(sides) > 1:
            described = "; ".join(f"{side} ({_list_some(names, 3)})" for side, names in sides.items())
            lines.append(f"The runs were made with different {name}, so their costs don't compare: {described}.")
    return lines
