"""All settings of a run, resolved: what the user chose, what follows from the task, what the method has a use for."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from finetune.decisions.cost_matrix import read_cost_matrix
from finetune.errors import FinetuneError
from finetune.lookup import family_of
from finetune.metrics import DEFAULT_METRIC, METRICS, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from finetune.settings.declaration import Values
from finetune.settings.declared import default_values, is_used
from finetune.settings.parts import (
    PARTS,
    DataArguments,
    DecisionArguments,
    HubTarget,
    MethodArguments,
    ModelArguments,
    RunArguments,
    TuningArguments,
)
from finetune.settings.peft_config import read_peft_config
from finetune.settings.training import BY_METRIC

__all__ = ["Arguments"]

# Validation rows by which a checkpoint is chosen: of 100 answers the share that is right has a standard error of 3 to 5
# points, more than what checkpoints of one training differ by.
FEWEST_TO_CHOOSE = 100


@dataclass
class Arguments:
    """All settings of a run, resolved and checked, and the names of those that the user chose.

    Attributes:
        data: Where the text comes from and how it is cut.
        model: What is fine-tuned.
        method: Which parameters move.
        family: The settings that the method's family has of its own, in its dataclass; None if it has none.
        tuning: How fast each parameter moves, and when.
        decisions: How probabilities become answers.
        run: How it runs on this machine.
        training: transformers' own.
        given: Names of the settings that the user chose.
        hub: Where the finished run goes.
        unpinned: Settings as they were asked for, by part, where something more exact has taken their place.
    """

    data: DataArguments
    model: ModelArguments
    method: MethodArguments
    tuning: TuningArguments
    decisions: DecisionArguments
    run: RunArguments
    training: TrainingArguments
    given: frozenset[str]
    family: Any = None
    hub: HubTarget | None = None
    unpinned: dict[str, dict[str, Any]] = field(default_factory=dict)

    def pin(self, commits: dict[str, str]) -> None:
        """Load the model and the data set at these commits from now on; `to_dict` still gives the revisions asked for.

        Args:
            commits: Of what is on the Hub: `model`, `dataset`, both or none.
        """
        if "model" in commits:
            self.unpinned["model"] = {"model_revision": self.model.model_revision}
            self.model.model_revision = commits["model"]
        if "dataset" in commits:
            self.unpinned["data"] = {"dataset_revision": self.data.dataset_revision}
            self.data.dataset_revision = commits["dataset"]

    def start_from(self, folder: Path) -> None:
        """Load the model from a folder from now on; `to_dict` still gives the one that was asked for."""
        asked = {"model_name_or_path": self.model.model_name_or_path, "model_revision": self.model.model_revision}
        self.unpinned["model"] = {**asked, **self.unpinned.get("model", {})}
        self.model.model_name_or_path, self.model.model_revision = str(folder), None

    def values(self) -> dict[str, Any]:
        """Return every setting by its name."""
        parts = (self.data, self.model, self.method, self.family, self.tuning, self.decisions, self.run, self.training)
        return {name: value for part in parts if part is not None for name, value in vars(part).items()}

    def copy(self) -> "Arguments":
        """Return settings of which some can be changed without changing these."""
        parts = {part: copy.copy(getattr(self, part)) for part in (*PARTS, "family", "training")}
        return replace(self, **parts)

    def change(self, changes: Mapping[str, Any]) -> None:
        """Set settings by their names, of whatever part they are."""
        for name, value in changes.items():
            part = next(part for part in (*PARTS, "family", "training") if hasattr(getattr(self, part), name))
            setattr(getattr(self, part), name, value)

    def settle(
        self, problem_type: str, is_paired: bool = False, num_rows: int | None = None, num_validation: int | None = None
    ) -> list[str]:
        """Set what depends on the task and the numbers of rows, and refuse what does not fit the task.

        Args:
            problem_type: Of the task.
            is_paired: Whether a row has two texts.
            num_rows: Of the training split; None where they are not counted.
            num_validation: Rows of the validation split.

        Returns:
            What was set because there are few rows, a line each.

        Raises:
            FinetuneError: If a chosen metric, smoothing, weighting or truncation is not defined for the task.
        """
        if is_paired and self.data.truncation != "head":
            raise FinetuneError(
                f"Expected --truncation head for pairs of texts, but got {self.data.truncation!r}. "
                "The longer one is cut."
            )
        method, training = self.method, self.training
        notes = self._settle_few_rows(num_rows, num_validation)
        what = {MULTI_LABEL: "several labels a text", REGRESSION: "a number to predict"}.get(problem_type, "classes")
        metric = (training.metric_for_best_model or "loss").removeprefix("eval_")
        chosen = "metric_for_best_model" in self.given
        if metric not in METRICS[problem_type] or (problem_type != SINGLE_LABEL and not chosen):
            if chosen:
                raise FinetuneError(
                    f"Expected --metric_for_best_model for {what} to be one of {', '.join(METRICS[problem_type])}, "
                    f"but got {metric!r}."
                )
            metric = DEFAULT_METRIC[problem_type]
            training.metric_for_best_model = metric
        self.check_direction(metric, METRICS[problem_type][metric])
        training.greater_is_better = METRICS[problem_type][metric]
        if problem_type == SINGLE_LABEL:
            return notes
        if training.label_smoothing_factor and "label_smoothing_factor" in self.given:
            raise FinetuneError(
                f"Expected no --label_smoothing_factor with {what}: it is defined for single classes. Leave it out."
            )
        training.label_smoothing_factor = 0.0
        if method.oversample or (problem_type == REGRESSION and (method.class_weights != "none" or method.focal_gamma)):
            names = "--oversample" if method.oversample else "--class_weights or --focal_gamma"
            raise FinetuneError(f"Expected no {names} with {what}: it is defined for classes. Leave it out.")
        if problem_type == REGRESSION and self.data.truncation == "window" and self.data.window_pooling != "mean":
            raise FinetuneError("Expected --window_pooling mean with a number to predict. Leave it out.")
        return notes

    def _settle_few_rows(self, num_rows: int | None, num_validation: int | None) -> list[str]:
        """Train longer on few rows, and keep the last checkpoint where too few would choose one."""
        training, notes, family = self.training, [], family_of(self.method.method)
        epochs = training.num_train_epochs
        if num_rows:
            family.settle(self, num_rows)
        if training.num_train_epochs != epochs:
            notes.append(
                f"{training.num_train_epochs:g} epochs in place of {epochs:g}, since {num_rows:,} rows make few steps: "
                "--num_train_epochs sets another number"
            )
        is_chosen = {"load_best_model_at_end", "metric_for_best_model", "early_stopping_patience"} & self.given
        is_small = num_validation is not None and num_validation < FEWEST_TO_CHOOSE
        if is_small and family.trains_network and training.load_best_model_at_end and not is_chosen:
            training.load_best_model_at_end = False
            notes.append(
                f"the last checkpoint counts, since {num_validation:,} validation rows say too little of which is "
                "best: --load_best_model_at_end true takes the best all the same"
            )
        return notes

    def check_direction(self, metric: str, greater_is_better: bool) -> None:
        """Refuse a direction that is not the metric's: the worst checkpoint would be kept.

        Raises:
            FinetuneError: If it was given by `--greater_is_better` or to a schedule.
        """
        if "greater_is_better" in self.given and self.training.greater_is_better is not greater_is_better:
            raise FinetuneError(
                f"Expected --greater_is_better {str(greater_is_better).lower()} with --metric_for_best_model {metric}, "
                f"but got {str(self.training.greater_is_better).lower()}: the worst checkpoint would be kept. Leave it "
                "out."
            )
        settings: Any = self.training.lr_scheduler_kwargs or {}
        mode = "max" if greater_is_better else "min"
        if self.training.lr_scheduler_type in BY_METRIC and settings.get("mode", mode) != mode:
            raise FinetuneError(
                f"Expected mode {mode!r} among --lr_scheduler_kwargs with --metric_for_best_model {metric}, but got "
                f"{settings['mode']!r}: the rate would fall as it gets better. Leave it out."
            )

    def unused(self) -> set[str]:
        """Name the settings that the method has no use for; those of other families only if they were given."""
        values = {**default_values(), **self.values()}
        # Where to push is taken out of `TrainingArguments` for the end of the run.
        settings = Values({**values, "push_to_hub": self.hub is not None})
        known = {*self.values(), *(self.given & set(values))}
        return {name for name in known if not is_used(name, settings)}

    def settings_of_run(self) -> dict[str, Any]:
        """Return the settings by name that are not the `Trainer`'s and have a value, for trackers."""
        parts = (values for part, values in self.to_dict().items() if part != "training")
        return {name: value for values in parts for name, value in values.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by part and name, without tokens, for `run.json`."""
        parts = {part: vars(getattr(self, part)).copy() for part in PARTS}
        parts["family"] = {} if self.family is None else vars(self.family).copy()
        for part, revisions in self.unpinned.items():
            parts[part].update(revisions)
        if self.method.peft_config is not None:
            parts["method"]["peft_config"] = read_peft_config(self.method.peft_config)  # the file may change
        if self.decisions.cost_matrix is not None:
            parts["decisions"]["cost_matrix"] = read_cost_matrix(self.decisions.cost_matrix)  # likewise
        settings = TrainingArguments.to_dict(self.training)
        training = {name: value for name, value in settings.items() if not name.endswith("_token")}
        return {**parts, "training": training}
