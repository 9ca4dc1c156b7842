"""What `run.json` holds, part by part; `finetune.run.record` puts the parts together, reads and writes them.

Each field is described where it is declared, with its unit, and `docs/reference/run.md` is made of these descriptions.
What is not always there has a default and says when it is absent; what can be `null` says when. A number that is not
defined on these examples is NaN here and `null` in the file, which JSON has.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

__all__ = [
    "AbstentionRecord",
    "Answers",
    "Calibration",
    "CalibrationFigures",
    "Change",
    "ClassMetrics",
    "Compilation",
    "Costs",
    "DataRecord",
    "Decisions",
    "Environment",
    "Floor",
    "MeasuredSplits",
    "Metrics",
    "ModelRecord",
    "Part",
    "PredictionSetsRecord",
    "Pretraining",
    "Reload",
    "Search",
    "Settings",
    "SplitRecord",
    "Splits",
    "Teacher",
    "Thresholds",
    "TrainingCosts",
    "WordVectorsRecord",
]


class Part(BaseModel):
    """A part of the record: of exactly these types, also when a field is assigned to.

    A name that is not declared is an error for who writes it; `RunRecord.read` passes over it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True)

    def to_dict(self) -> dict[str, Any]:
        """Return what the file holds: the fields that were set, by name."""
        return self.model_dump(exclude_unset=True)


def _check_distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("distinct names")
    return names


# NaN where a figure is not defined; null in the file.
Figure = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
# Two bounds; JSON has them as a list.
Interval = Annotated[tuple[Figure, Figure], Field(strict=False)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(Part):
    """Every setting with its value, defaults filled in; no tokens. The flags of the recipes, by part."""

    data: dict[str, Any] = Field(description="where texts and labels come from, and how texts are cut")
    model: dict[str, Any] = Field(description="the pretrained model; in the first runs also the sizes of a TextCNN")
    method: dict[str, Any] = Field(description="the method and its own settings, `peft_config` with the file's content")
    family: dict[str, Any] = Field(
        default_factory=dict,
        description="settings that the method's family has of its own, such as the sizes of a TextCNN; absent in the "
        "first runs",
    )
    decisions: dict[str, Any] = Field(
        default_factory=dict,
        description="what is asked of answers, `cost_matrix` with the file's content; absent in the first runs",
    )
    tuning: dict[str, Any] = Field(description="learning rates by layer, unfreezing, schedules")
    run: dict[str, Any] = Field(description="threads, restarts, early stopping, what is stored")
    training: dict[str, Any] = Field(description="transformers' `TrainingArguments`")


class Pretraining(Part):
    """What the model that training started from had learnt of texts without labels before (`--pretrain_epochs`)."""

    objective: str = Field(description="what was learnt: `masked words`, `the next word` or `sentences`")
    paper: str = Field(description="where that is from")
    texts: Count = Field(description="number of different texts")
    epochs: Amount = Field(description="passes over them")
    steps: Count = Field(description="number of optimizer steps")
    first_loss: Figure = Field(description="mean loss of the first tenth of the steps")
    last_loss: Figure = Field(description="mean loss of the last tenth")
    encoder: str = Field(description="SHA-256 of the JSON and safetensors files of `encoder/`")
    seconds: Amount = Field(
        description="wall seconds that it took whoever made it: this run, or an earlier one on the same texts, whose "
        "encoder was kept; `train_seconds` has them"
    )
    cpu_seconds: Amount = Field(description="seconds that processors worked in that time; `train_cpu_seconds` has them")
    peak_memory_bytes: Count = Field(description="most memory held until then, bytes")

    @property
    def task(self) -> str:
        """What was learnt of how many texts, in words."""
        return f"{self.objective} ({self.paper}) on {self.texts:,} texts without labels, {self.epochs:g} epochs"

    @property
    def losses(self) -> str:
        """How the loss changed, in words."""
        return f"loss {self.first_loss:.3f} at first, {self.last_loss:.3f} at last"


class Search(Part):
    """Settings that were tried before the run, by validation rows alone; `trials.jsonl` has each."""

    trials: Count = Field(description="how many were tried")
    pruned: Count = Field(description="of these given up on the way")
    failed: Count = Field(description="of these ended by an error")
    seconds: Amount = Field(description="wall time of all of them, which `costs` does not have")
    cpu_seconds: Amount = Field(description="seconds that processors worked for them")
    metric: str = Field(description="what they were judged by")
    folds: Count | None = Field(
        description="folds of the training split that were left out in turns; null where the validation split judged"
    )
    default: Figure = Field(description="the metric with the settings of a run without a search")
    best: Figure = Field(description="the metric with those that were chosen")
    chosen: dict[str, Any] = Field(description="the settings that are best, with which the run was then trained")

    @property
    def judges(self) -> str:
        """The rows that judged, in words."""
        return f"{self.folds} folds of the training split" if self.folds else "the validation split"


class Teacher(Part):
    """Another model, whose answers the model was trained to give too."""

    name: str = Field(description="what `--teacher` says")
    method: str | None = Field(description="how it was fitted; null if it is not the folder of a run")
    run_id: str | None = Field(description="the id of its run; null likewise")
    sha256: str = Field(description="SHA-256 of the JSON and safetensors files of its model")
    seconds: Amount = Field(description="wall time of its answers, which `costs` does not have")
    cpu_seconds: Amount = Field(description="seconds that processors worked for them")


class Compilation(Part):
    """How `torch.compile` was told to compile the model."""

    backend: str = Field(description="`inductor`, say")
    mode: str = Field(description="`default`, `reduce-overhead`, `max-autotune` …")
    is_dynamic: bool = Field(description="whether one compilation serves batches of several shapes")
    is_whole_graph: bool = Field(description="whether what can't be compiled is an error")
    is_by_layer: bool = Field(description="whether one compilation serves all layers")


class Environment(Part):
    """What the run ran on."""

    python: str = Field(description="version of Python")
    packages: dict[str, str | None] = Field(
        description="version of each package that results depend on; null if it is not installed"
    )
    git_commit: str | None = Field(
        description="commit of the code, with `+changes` if tracked files differed; null outside of a checkout"
    )
    platform: str = Field(description="operating system, as Python names it")
    processor: str = Field(description="processor, as the operating system names it")
    physical_cores: int = Field(description="cores of the host")
    memory_bytes: int = Field(description="memory of the host, bytes")
    gpus: list[str] = Field(description="names of the GPUs that torch sees")
    num_threads: int = Field(description="threads of each process")
    num_processes: int = Field(description="processes that trained together")
    precision: str = Field(
        description="number format of training, as it was measured: `bf16`, `fp16`, `tf32`, `fp32`; `fp64` for TF-IDF"
    )
    compilation: Compilation | None = Field(
        default=None, description="what compiled the training, whoever asked for it; absent where nothing was compiled"
    )
    prediction_precision: str = Field(description="number format of the metrics, latency and throughput")


class SplitRecord(Part):
    """The rows of a split."""

    origin: str = Field(description="where the rows come from, in words")
    rows: Count = Field(description="number of examples")
    distinct_texts: Count = Field(description="number of different texts")
    labels: dict[str, int | float] | None = Field(
        description="rows of each label by its name; of numbers to predict `mean`, `std`, `min`, `max`; null where the "
        "labels are withheld"
    )
    sha256: str = Field(description="SHA-256 of labels and texts in their order")
    mean_tokens: Amount | None = Field(
        default=None, description="mean length in tokens after cutting; absent for TF-IDF"
    )
    truncated_share: Amount | None = Field(
        default=None, description="share of the texts that `max_length` cuts, 0 to 1; absent for TF-IDF"
    )


class Splits(Part):
    """The three splits."""

    train: SplitRecord = Field(description="what the model was fitted on; of streamed shards a sample of it")
    validation: SplitRecord = Field(description="what chose the checkpoint and the thresholds")
    test: SplitRecord = Field(description="what was used once, at the end")


class DataRecord(Part):
    """What is predicted, and from what."""

    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = Field(
        description="the task, by transformers' name: one class, any number of labels, or a number"
    )
    commit: str | None = Field(
        default=None,
        description="of a data set on the Hub the commit that was loaded, whatever `--dataset_revision` says; absent "
        "for others",
    )
    label_names: Annotated[list[str], Field(min_length=1), AfterValidator(_check_distinct)] = Field(
        description="names of the labels in the order of their numbers; of a number to predict that of its column"
    )
    understood: list[str] = Field(
        default_factory=list,
        description="lines: the task with its classes and counts, how each split was read; absent in the first runs",
    )
    splits: Splits = Field(description="size, origin and content of each split")
    unlabeled: SplitRecord | None = Field(
        default=None, description="texts without labels that were learnt from; absent without `--unlabeled_file`"
    )


class WordVectorsRecord(Part):
    """The static vectors of `--word_vectors`."""

    sha256: str = Field(description="SHA-256 of the file; of a model2vec folder one of its three files")
    found: Count | None = Field(
        default=None,
        description="distinct words of the training texts that have a vector; absent where tokens are parts of words",
    )
    words: Count | None = Field(
        default=None, description="distinct words of the training texts, as far as the vocabulary goes; absent likewise"
    )
    kept: Count | None = Field(default=None, description="words whose vectors the model has; absent likewise")


class ModelRecord(Part):
    """The model in `model/`."""

    name: str | None = Field(
        description="what `--model_name_or_path` says; null if the method starts from no pretrained model"
    )
    architecture: str = Field(description="class of the model, or scikit-learn's parts")
    trainable_parameters: Count = Field(description="number of parameters that training changed")
    total_parameters: Count = Field(description="number of all parameters")
    bytes: Count = Field(description="size of `model/`, bytes")
    base_bytes: Count = Field(
        default=0,
        description="size of the pretrained weights that an adapter in `model/` needs beside it, bytes, as they are "
        "loaded; absent for whole models, and in the first runs",
    )


class TrainingCosts(Part):
    """What training costs; known before the model is saved."""

    train_seconds: Amount = Field(
        description="wall seconds of the training steps, checkpoints included, of a frozen encoder's features of "
        "the training rows, and of `pretraining`; not of evaluations or the features of validation rows; summed over "
        "the starts of a run that was cut off"
    )
    train_cpu_seconds: Amount | None = Field(
        default=None,
        description="seconds that processors worked in that time, all threads of all processes added up; absent in the "
        "first runs",
    )
    train_evaluation_seconds: Amount | None = Field(
        default=None, description="wall seconds of the evaluations during training; absent for TF-IDF"
    )
    train_steps: Count | None = Field(default=None, description="number of optimizer steps; absent for TF-IDF")
    train_tokens: Count | None = Field(
        default=None,
        description="number of tokens trained on, padding not counted, over all processes and starts; absent for "
        "TF-IDF",
    )
    tokens_per_second: Amount | None = Field(
        default=None,
        description="`train_tokens` a second of `train_seconds` without those of `pretraining`; absent for TF-IDF",
    )
    compile_seconds: Amount | None = Field(
        default=None, description="wall seconds of the first step, which compiles; absent where nothing was compiled"
    )
    peak_memory_bytes: Count = Field(
        description="most memory held until training ended, bytes: with a GPU what was allocated on it; without, all "
        "that is resident in the process, so Python and its libraries, the data, model and optimizer; summed over the "
        "processes"
    )
    start_memory_bytes: Count | None = Field(
        default=None,
        description="bytes of it that were held before any data or model was loaded, by Python, its libraries and "
        "whoever calls finetune; absent in the first runs",
    )
    slowdown: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="how busy the machine was: the mean time of a short computation, repeated in each thread before, "
        "during and after training, over its shortest time; about 1 where no other program takes turns with this one; "
        "absent in the first runs",
    )


class Costs(TrainingCosts):
    """What training and prediction cost."""

    latency_seconds: Amount = Field(
        description="median wall seconds from one text to its logits, over at most 30 test texts; of an adapter that "
        "merges once it is merged, as `finetune push` ships it"
    )
    texts_per_second: Amount = Field(description="test texts a second in bulk, an adapter beside its base")
    tokenize_seconds: Amount | None = Field(
        default=None,
        description="wall seconds to tokenize the training rows once, by a sample of them, since all may lie in the "
        "cache; absent where `train_seconds` has them, as for TF-IDF and streamed rows, and in the first runs",
    )
    tokenize_cpu_seconds: Amount | None = Field(
        default=None, description="seconds that processors work for that; absent likewise"
    )


class ClassMetrics(Part):
    """Figures of one label."""

    precision: Figure = Field(description="share of the predictions of this label that are right; 0 if there are none")
    recall: Figure = Field(description="share of the label's examples that are found; 0 if there are none")
    f1: Figure = Field(description="harmonic mean of the two")
    num_examples: Count = Field(description="number of examples that have the label")


class Metrics(Part):
    """Figures on a split. Which are there depends on the task, and all but `num_examples` are absent without labels.

    "Macro" is the unweighted mean over the labels. Intervals hold the uncertainty from the choice of examples, not that
    from the training seed.
    """

    num_examples: Count = Field(description="number of examples")
    labels_withheld: bool = Field(default=False, description="true where the split has no labels; else absent")
    accuracy: Figure = Field(
        default=math.nan, description="share of examples whose label is right, or all labels; absent for a number"
    )
    accuracy_interval: Interval | None = Field(
        default=None, description="95 % interval of `accuracy` (Wilson 1927); absent for a number"
    )
    balanced_accuracy: Figure = Field(
        default=math.nan, description="mean recall of the classes that have examples; absent but for one class"
    )
    micro_f1: Figure = Field(
        default=math.nan, description="F1 of all decisions of all labels together; absent but for several labels"
    )
    macro_f1: Figure = Field(default=math.nan, description="macro mean of F1; absent for a number")
    precision: Figure = Field(default=math.nan, description="macro mean of precision; absent for a number")
    recall: Figure = Field(default=math.nan, description="macro mean of recall; absent for a number")
    mcc: Figure = Field(
        default=math.nan, description="Matthews' correlation coefficient, -1 to 1 (Gorodkin 2004); absent but for one "
        "class"
    )  # fmt: skip
    roc_auc: Figure = Field(
        default=math.nan,
        description="area under the ROC curve, macro mean; null where a label has no example, or all; absent for a "
        "number",
    )
    average_precision: Figure = Field(
        default=math.nan,
        description="area under the precision-recall curve, macro mean; null like `roc_auc`; absent but for several "
        "labels",
    )
    loss: Figure = Field(
        default=math.nan,
        description="mean cross-entropy in nats, not smoothed or weighted; of a number `mse`; absent where labels are "
        "withheld",
    )
    cost_per_text: Figure = Field(
        default=math.nan, description="mean cost of an answer by `--cost_matrix`; absent without"
    )
    mse: Figure = Field(
        default=math.nan, description="mean squared error, in the number's unit squared; absent but for a number"
    )
    mae: Figure = Field(
        default=math.nan, description="mean absolute error, in the number's unit; absent but for a number"
    )
    mae_interval: Interval | None = Field(
        default=None,
        description="95 % interval of `mae` (normal); null bounds with one example; absent but for a number",
    )
    r2: Figure = Field(
        default=math.nan, description="share of the variance explained; null with one example; absent but for a number"
    )
    pearson: Figure = Field(
        default=math.nan,
        description="linear correlation, -1 to 1; null where labels or predictions are all alike; absent but for a "
        "number",
    )
    spearman: Figure = Field(
        default=math.nan, description="correlation of ranks, -1 to 1; null like `pearson`; absent but for a number"
    )
    per_class: dict[str, ClassMetrics] = Field(
        default_factory=dict, description="figures of each label by its name; absent for a number"
    )

    def get(self, name: str) -> float | None:
        """Return a figure by its name; None if the task has none of that name, or it is not defined here."""
        value = getattr(self, name, math.nan)
        return None if math.isnan(value) else value

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of a figure; None if it has none, or it is not defined here."""
        bounds = getattr(self, f"{name}_interval", None)
        return None if bounds is None or any(map(math.isnan, bounds)) else bounds


class MeasuredSplits(Part):
    """Where metrics are measured."""

    validation: Metrics = Field(description="figures on the validation split")
    test: Metrics = Field(description="figures on the test split")


class Reload(Part):
    """Proof that what was saved is what was trained."""

    max_difference: Amount = Field(
        description="largest absolute difference between the logits of the model in memory and of the saved one, "
        "reloaded, both in float32"
    )
    num_texts: Count = Field(description="number of validation texts that were compared")


class Decisions(Part):
    """Figures of the labels that are predicted from some probabilities on."""

    micro_f1: Figure = Field(description="F1 of all decisions of all labels together")
    macro_f1: Figure = Field(description="macro mean of F1")
    accuracy: Figure = Field(description="share of examples whose labels are all right")


class Thresholds(Part):
    """From which probability on each of several labels is predicted, for the greatest F1 on validation."""

    values: list[float] = Field(description="thresholds in the order of the labels, 0 to 1; `metrics` are by them")
    at_half: Decisions | None = Field(
        default=None, description="what one half would have given on the test split; absent if its labels are withheld"
    )
    validation: Decisions | None = Field(
        default=None,
        description="figures by the thresholds, in runs of 0.1, whose `metrics` are at one half; else absent",
    )
    test: Decisions | None = Field(default=None, description="the same on the test split; in runs of 0.1, else absent")


class CalibrationFigures(Part):
    """How far probabilities can be believed; the lower, the better."""

    log_loss: Figure = Field(description="mean cross-entropy in nats")
    ece: Figure = Field(
        description="expected calibration error in 15 bins (Guo et al. 2017), 0 to 1; of several labels the mean of "
        "each label's"
    )
    brier: Figure = Field(description="mean squared distance of the probabilities from what is true (Brier 1950)")


class Calibration(Part):
    """Temperature scaling (Guo et al. 2017): probabilities are those of logits divided by a number."""

    temperature: Amount = Field(
        description="that number, fitted on validation; above 1 where the model was too confident, 1 with "
        "`--no_calibrate`"
    )
    validation_before: CalibrationFigures = Field(description="figures on validation, as the model gives them")
    validation_after: CalibrationFigures = Field(
        description="figures of each fifth of validation, scaled by what the other four fifths give"
    )
    test_before: CalibrationFigures | None = Field(
        default=None, description="figures on test, as the model gives them; absent if its labels are withheld"
    )
    test_after: CalibrationFigures | None = Field(
        default=None, description="figures on test, divided by the temperature; absent likewise"
    )


class AbstentionRecord(Part):
    """Which answers are given (`--abstain`): those whose probability is high enough."""

    precision: Amount = Field(description="share of the given answers that was asked to be right, 0 to 1")
    confidence: Amount = Field(
        description="probability from which on an answer is given, chosen on validation; above 1 where none proves "
        "right so often, so that no text is answered"
    )
    validation_answered: Amount = Field(description="share of the validation texts that are answered, 0 to 1")
    test_answered: Amount | None = Field(
        default=None, description="share of the test texts that are answered; absent if their labels are withheld"
    )
    test_precision: Amount | None = Field(
        default=None, description="share of these answers that is right; absent likewise, and where there is none"
    )
    test_precision_interval: Interval | None = Field(
        default=None, description="its 95 % interval (Wilson 1927); absent likewise"
    )


class PredictionSetsRecord(Part):
    """Sets of labels that hold the right one, or intervals that hold the number (`--coverage`)."""

    coverage: Amount = Field(description="share of texts whose set was asked to hold the right label, 0 to 1")
    class_conditional: bool = Field(description="whether that was asked for each class by itself")
    quantiles: list[Figure] = Field(
        description="for each label how far below 1 its probability may be to stand in a set; of a number how far an "
        "interval reaches to each side, null where there are too few validation rows for any"
    )
    test_coverage: Amount | None = Field(
        default=None, description="share of the test texts whose set does; absent if their labels are withheld"
    )
    test_coverage_interval: Interval | None = Field(
        default=None, description="its 95 % interval (Wilson 1927); absent likewise"
    )
    test_mean_size: Figure | None = Field(
        default=None, description="mean number of labels in a set, or width of an interval; absent likewise"
    )


class Answers(Part):
    """How probabilities become answers, fitted on the validation split and saved with the model."""

    calibration: Calibration | None = Field(
        default=None, description="what probabilities are scaled by; absent for a number"
    )
    costs: list[list[float]] | None = Field(
        default=None,
        description="what answering a column's label costs where a row's is right; absent without `--cost_matrix`",
    )
    abstention: AbstentionRecord | None = Field(
        default=None, description="which answers are given; absent without `--abstain`"
    )
    prediction_sets: PredictionSetsRecord | None = Field(
        default=None, description="sets of labels; absent without `--coverage`"
    )


class Floor(Part):
    """TF-IDF and a linear model on whole texts, fitted on the same training rows: what a network has to beat."""

    test: Metrics = Field(description="its figures on the test split")
    train_seconds: Amount = Field(description="wall seconds of its fit")
    train_cpu_seconds: Amount | None = Field(
        default=None, description="seconds that processors worked in that time; absent in the first runs"
    )


class Change(Part):
    """What differed when a run went on with `--resume_with_changes`."""

    after_step: Count = Field(description="the step of the checkpoint that it went on from")
    changed: list[str] = Field(description="each setting or split that differed, in words")
