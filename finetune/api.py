"""The public functions. Cheap to import: each imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.given import Data, Rows, Texts, name_data
from finetune.errors import failures_explained
from finetune.results import Comparison, Findings, TrainedRun

if TYPE_CHECKING:
    from finetune.models.answers import TextClassifier

__all__ = ["compare", "doctor", "load", "load_classifier", "train"]


@failures_explained()
def train(
    data: Data,
    *,
    method: str = "full",
    model: str | None = None,
    output_dir: str | Path | None = None,
    validation: Rows | str | Path | None = None,
    test: Rows | str | Path | None = None,
    unlabeled: Texts | None = None,
    **settings: Any,
) -> TrainedRun:
    """Fit a text classifier, save it, reload it and measure it once on the untouched test split.

    Args:
        data: Texts and labels: a DataFrame, a `Dataset` or `DatasetDict`, a list of dictionaries, `(texts, labels)`,
            the path of a file or folder, "embedded", or a data set's name on the Hub. What is missing of validation and
            test is carved from it, without duplicates and stratified.
        method: How the model is fitted: a name that `finetune methods` lists, such as "lora" or "full", or
            "package.module:NAME" of a method of your own.
        model: A model on the Hub, a folder, or "embedded", the default.
        output_dir: The run directory; `runs/{method}-seed{seed}` if None. A call that was cut off goes on from its last
            checkpoint when it is made again.
        validation: Rows to choose the best checkpoint by.
        test: Rows to measure the model on.
        unlabeled: Texts without labels, which the model named by `teacher` labels: a list of strings, a DataFrame or
            `Dataset` with a column of them, or a path.
        **settings: By the names in `docs/reference/settings.md`, such as `max_length=128`, `learning_rate=2e-5`,
            `seed=1`.

    Returns:
        The finished run.

    Raises:
        finetune.errors.FinetuneError: For data or settings that can't be used, in one line.
    """
    from finetune.engine import parse_training, run_training
    from finetune.quiet import quiet_restored
    from finetune.settings.parsing import to_flags

    given = {**name_data(data, validation, test, unlabeled), "method": method, "model_name_or_path": model, **settings}
    if output_dir is not None:
        given["output_dir"] = str(output_dir)
    with quiet_restored():
        return TrainedRun(run_training(parse_training(to_flags(given))))


@failures_explained()
def compare(
    data: Data,
    *,
    methods: Sequence[str],
    seeds: int | Sequence[int] = 3,
    output_dir: str | Path,
    validation: Rows | str | Path | None = None,
    test: Rows | str | Path | None = None,
    unlabeled: Texts | None = None,
    metric: str | None = None,
    margin: float = 1.0,
    cost: str | None = None,
    trials: int | None = None,
    budget: str | None = None,
    total_budget: str | None = None,
    **settings: Any,
) -> Comparison:
    """Fit each method with each seed on identical splits, and say which is worth its cost.

    Every run is a process of its own, so that its time and memory are its own. What is finished is kept when the call
    is made again, what was cut off goes on.

    Args:
        data: See `train`.
        methods: Names that `finetune methods` lists, or "package.module:NAME" of methods of your own.
        seeds: How many, from 0 on, or which.
        output_dir: Gets a run directory for each run.
        validation: See `train`.
        test: See `train`.
        unlabeled: See `train`.
        metric: What the verdict goes by; that of the task if None.
        margin: Points of the metric that don't matter.
        cost: What is cheap: "train_cpu_seconds", "train_seconds", "latency_seconds", "bytes" or "peak_memory_bytes"; if
            None CPU time, or training time where a GPU worked.
        trials: Also tune each method: so many settings are tried before a run, beside the runs with the defaults.
        budget: Likewise, time for these trials, such as "10m".
        total_budget: Time for all runs, such as "1h"; what does not fit in is left out, and said.
        **settings: See `train`; for all runs.

    Returns:
        The comparison of the runs that have finished.

    Raises:
        finetune.errors.FinetuneError: If the data or a setting can't be used, or no run has finished.
    """
    from finetune.comparison.compare import TRAIN, Plan, run_plan
    from finetune.engine import check_training
    from finetune.settings.parsing import to_flags

    flags = to_flags({**name_data(data, validation, test, unlabeled), **settings})
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    search = {name: value for name, value in (("trials", trials), ("budget", budget)) if value is not None}
    plan = Plan(TRAIN, list(methods), list(numbers), Path(output_dir), flags, search=search, total_budget=total_budget)
    check_training(flags, plan.methods)
    failures = run_plan(plan)
    finished = [str(run.directory) for run in plan.runs if run.is_finished()]
    return Comparison(finished, metric, margin, cost, failures)


@failures_explained()
def doctor(
    data: Data,
    *,
    validation: Rows | str | Path | None = None,
    test: Rows | str | Path | None = None,
    check_labels: bool = False,
    **settings: Any,
) -> Findings:
    """Look for what would make a figure wrong: duplicates, leakage, sorted files, contradictory labels, and more.

    Args:
        data: See `train`.
        validation: See `train`.
        test: See `train`.
        check_labels: Also look for labels that are likely wrong, which takes as long as some fits of TF-IDF.
        **settings: How to read the data, by the names in `docs/reference/settings.md`, such as `text_column="review"`.

    Returns:
        The findings, the severest first.

    Raises:
        finetune.errors.FinetuneError: If the data can't be read.
    """
    from finetune.data.load import load_given_splits
    from finetune.data_doctor.examine import examine
    from finetune.settings.parts import DataArguments

    names: dict[str, Any] = {**name_data(data, validation, test), **settings}
    splits = load_given_splits(DataArguments(**names))
    return Findings(examine(splits, check_labels=check_labels))


@failures_explained()
def load_classifier(
    path: str | Path,
    trust_remote_code: bool = False,
    accelerated: bool = True,
    calibrate: bool = True,
    abstain: float | None = None,
    coverage: float | None = None,
    class_conditional: bool = False,
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> TextClassifier:
    """Load what a run saved, whatever its method, as an object that takes texts.

    The module of a family of your own has to be imported before; a folder can't make this function do it.

    Args:
        path: A run directory, a model folder, an export, `user/name` or `user/name@revision` on the Hub.
        trust_remote_code: Whether a model on the Hub may run code of its own; finetune's own don't.
        accelerated: Whether a network computes with `finetune.accelerated`, the same up to rounding; else with
            transformers' own modules alone.
        calibrate: Whether probabilities are scaled so that they hold, as they were fitted to in training.
        abstain: The share of the given answers that is to be right, in (0, 1), such as 0.98; what was asked for in
            training if None. A prediction without an answer has no labels, and `is_given` is False.
        coverage: The share of texts whose `label_set`, or `interval`, is to hold the right label or number, in (0, 1);
            likewise.
        class_conditional: Whether that is to hold for each class by itself.
        costs: What wrong answers cost, by the names of the true and the answered label; `{"spam": {"ham": 10}}`.

    Returns:
        A classifier: `predict(texts)` gives each text's label, its probability and all probabilities, for pairs with
        `predict(texts, pairs)`; `label_names` are in the order of the probabilities.

    Raises:
        finetune.errors.FinetuneError: If there is no model, or it can't be loaded.
    """
    from finetune.decisions.rules import Wishes
    from finetune.inference.load import uses_torch
    from finetune.inference.predict import load_predictor

    wishes = Wishes(calibrate, abstain, coverage, class_conditional, costs)
    asked = None if wishes == Wishes() else wishes
    if not uses_torch(path):  # nor the libraries that have to be quietened
        return load_predictor(path, accelerated=accelerated, wishes=asked)
    from finetune.quiet import quietly

    with quietly():
        return load_predictor(path, trust_remote_code=trust_remote_code, accelerated=accelerated, wishes=asked)


@failures_explained()
def load(path: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load the model and the tokenizer of a run directory, of a saved model folder, or from the Hub.

    Args:
        path: A run directory (its `model/` is taken), a folder that a recipe, `save_pretrained` or PEFT wrote, or
            `user/name`, `user/name@revision` of the Hub, of which only safetensors are read.
        trust_remote_code: Whether a model may run Python code that lies beside its weights; finetune's own don't.

    Returns:
        `(model, tokenizer)`: a `PreTrainedModel` or `PeftModel` in evaluation mode, in float32 on the CPU, with
        label names in `model.config.id2label`, and its tokenizer. For a TF-IDF model, the
        `finetune.families.tfidf.classifier.TfidfClassifier` and None; `load_classifier` gives one interface for all.

    Raises:
        finetune.errors.FinetuneError: If `path` holds no model, or it can't be had.
    """
    from finetune.inference.load import load as load_model_and_tokenizer
    from finetune.quiet import quietly

    with quietly():
        return load_model_and_tokenizer(path, trust_remote_code)
