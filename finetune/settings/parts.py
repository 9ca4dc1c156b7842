"""The settings of our own, by part. Each is declared once, here; its name is its flag and its key in a YAML file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from finetune.decisions.cost_matrix import read_cost_matrix
from finetune.decisions.rules import Wishes
from finetune.lookup import family_of, find_method
from finetune.settings.declaration import (
    Condition,
    Setting,
    Values,
    always,
    can_pretrain,
    starts_from_pretrained,
    takes_adapter,
    takes_word_vectors,
    trains_encoder,
    trains_network,
)
from finetune.tasks import PROBLEM_TYPES

__all__ = [
    "PARTS",
    "DataArguments",
    "DecisionArguments",
    "HubTarget",
    "MethodArguments",
    "ModelArguments",
    "RunArguments",
    "TuningArguments",
    "setting",
]


ROWS = Setting(changes="rows")
SHOWS = Setting(used_when=always, changes="nothing")
ADAPTER = Setting(used_when=takes_adapter)


def setting(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """Declare a field with what `--help` says of it, and the values that it may have."""
    return field(default=default, metadata={"help": help} | ({} if choices is None else {"choices": choices}))


def _pretrains(settings: Values) -> bool:
    return can_pretrain(settings) and settings.pretrain_epochs > 0


def _passes_dropout(settings: Values) -> bool:
    return trains_encoder(settings) or _pretrains(settings)


def _computes_in_pieces(settings: Values) -> bool:
    return trains_network(settings) or _pretrains(settings)


def _cuts_windows(settings: Values) -> bool:
    return trains_network(settings) and settings.truncation == "window"


def _has_lora_matrices(settings: Values) -> bool:
    method = find_method(settings.method)
    return trains_network(settings) and method.takes_adapter and method.peft_type in ("LORA", "ADALORA", None)


def _has_cycles(settings: Values) -> bool:
    return trains_network(settings) and settings.lr_schedule not in (None, "slanted_triangular")


def _can_learn(settings: Values) -> bool:
    return family_of(settings.method).learns_from_teacher


def _has_teacher(settings: Values) -> bool:
    return _can_learn(settings) and settings.teacher is not None


def _takes_unlabeled(settings: Values) -> bool:
    return _has_teacher(settings) or _pretrains(settings)


def _softens_answers(settings: Values) -> bool:
    return _has_teacher(settings) and trains_network(settings)


def _keeps_best(settings: Values) -> bool:
    return trains_network(settings) and settings.load_best_model_at_end


def _has_search(settings: Values) -> bool:
    """Return whether any setting that a search would try for the method has a use."""
    from finetune.settings.declared import is_used

    return any(is_used(name, settings) for name in find_method(settings.method).search)


@dataclass
class DataArguments:
    """Where the text comes from and how it is cut."""

    _argument_group_name = "data"

    dataset_name: Annotated[str | None, ROWS] = setting(
        None, "A data set on the Hub, or 'embedded': the 25,000 film reviews of the quickstart extra."
    )
    dataset_config_name: Annotated[str | None, ROWS] = setting(None, "The data set's configuration.")
    dataset_revision: Annotated[str | None, ROWS] = setting(
        None, "The data set's version: a branch, tag or commit on the Hub."
    )
    train_file: Annotated[str | None, ROWS] = setting(
        None,
        "Training examples instead of a data set: .csv, .tsv, .jsonl, .json, .parquet, each also .gz or "
        ".zst; lines 'label text'; or a folder with a folder of .txt files for each class.",
    )
    validation_file: Annotated[str | None, ROWS] = setting(
        None, "Validation examples; without it they are carved from the training split."
    )
    test_file: Annotated[str | None, ROWS] = setting(
        None, "Test examples; without it they are carved from the training split."
    )
    unlabeled_file: Annotated[str | None, Setting(used_when=_takes_unlabeled, changes="rows")] = setting(
        None,
        "Texts without labels, in the formats of --train_file or one a line, which --teacher labels, or on which "
        "--pretrain_epochs trains too.",
    )
    text_column: Annotated[str | None, ROWS] = setting(None, "The column of the text. Default: by its name.")
    text_pair_column: Annotated[str | None, ROWS] = setting(
        None, "The column of a second text, for pairs. Default: by its name, as in GLUE."
    )
    label_column: Annotated[str | None, ROWS] = setting(None, "The column of the label. Default: by its name.")
    id_column: Annotated[str | None, ROWS] = setting(None, "The column of an id. Default: the file's name and the row.")
    group_column: Annotated[str | None, ROWS] = setting(
        None, "Rows with one value here, such as an author, stay in one carved split."
    )
    encoding: Annotated[str | None, ROWS] = setting(
        None, "How the files' bytes are read as text. Default: UTF-8, else it is found out."
    )
    problem_type: Annotated[str | None, ROWS] = setting(
        None,
        "What is predicted. Default: several labels where the column holds lists or --label_delimiter is "
        "given, a number where it holds fractions, else one class.",
        choices=PROBLEM_TYPES,
    )
    label_delimiter: Annotated[str | None, ROWS] = setting(
        None, "What separates several labels of a text in one column."
    )
    label_columns: Annotated[str | None, ROWS] = setting(
        None, "Columns of 0 and 1, one for each label, with commas between their names."
    )
    streaming: Annotated[bool, ROWS] = setting(
        False,
        "Read the training texts from disk while training: --train_file is a folder of Parquet files. For "
        "data larger than memory.",
    )
    remove_leakage: Annotated[bool, ROWS] = setting(
        False, "Drop training texts that are also in the given validation or test split."
    )
    max_length: Annotated[int, Setting(at_least=3, used_when=trains_network)] = setting(
        512, "Tokens a text is cut to, special tokens included."
    )
    truncation: Annotated[str, Setting(used_when=trains_network)] = setting(
        "head",
        "What is kept of a text longer than max_length: its head; its tail; a quarter of the tokens from "
        "the head and the rest from the tail (Sun et al. 2019); or all of it, in windows.",
        choices=["head", "tail", "head+tail", "window"],
    )
    window_stride: Annotated[int | None, Setting(at_least=0, used_when=_cuts_windows)] = setting(
        None, "Tokens that a window shares with the one before it. Default: max_length / 4."
    )
    window_pooling: Annotated[str, Setting(used_when=_cuts_windows)] = setting(
        "mean",
        "How the logits of a text's windows are combined: their mean, their maximum, or a vote.",
        choices=["mean", "max", "vote"],
    )
    max_train_windows: Annotated[int, Setting(at_least=1, used_when=_cuts_windows)] = setting(
        8, "Most windows of a text that train in a step, evenly spread over it."
    )
    max_train_samples: Annotated[int | None, Setting(at_least=2, changes="rows")] = setting(
        None, "Train on a stratified sample of this many examples."
    )
    max_eval_samples: Annotated[int | None, Setting(at_least=2, changes="rows")] = setting(
        None, "Evaluate on stratified samples of at most this many examples, in each split."
    )
    split_seed: Annotated[int, Setting(at_least=0, changes="rows")] = setting(
        0, "Seed of the carved splits and samples; apart from --seed, so runs share splits."
    )

    @property
    def is_on_hub(self) -> bool:
        """Whether `dataset_name` is a data set on the Hub: neither the embedded one nor a folder here."""
        name = self.dataset_name
        return name not in (None, "embedded") and not Path(str(name)).exists()


@dataclass
class ModelArguments:
    """What is fine-tuned."""

    _argument_group_name = "model"

    model_name_or_path: Annotated[str, Setting(used_when=starts_from_pretrained)] = setting(
        "embedded", "A model on the Hub, a folder, or 'embedded': all-MiniLM-L6-v2 of the quickstart extra."
    )
    model_revision: Annotated[str | None, Setting(used_when=starts_from_pretrained)] = setting(
        None, "The model's version: a branch, tag or commit on the Hub."
    )
    word_vectors: Annotated[str | None, Setting(used_when=takes_word_vectors)] = setting(
        None,
        "Static vectors in place of --model_name_or_path: a text file of word2vec or GloVe, also .gz, or a folder of "
        "model2vec.",
    )
    pretrain_epochs: Annotated[float, Setting(at_least=0, below=math.inf, used_when=can_pretrain)] = setting(
        0.0,
        "First train the model for so many epochs on the texts of the training split and of --unlabeled_file, without "
        "labels: on masked words or the next word, if the checkpoint has its head for them, else on sentences (TSDAE).",
    )
    attention_dropout: Annotated[float, Setting(at_least=0, below=1, used_when=_passes_dropout)] = setting(
        0.0, "Dropout on the attention weights. 0 keeps the fused kernel; checkpoints often say 0.1."
    )


@dataclass
class MethodArguments:
    """Which parameters move."""

    _argument_group_name = "method"

    method: Annotated[str, Setting(used_when=always)] = setting(
        "full", "What moves, and how: `finetune methods` describes each; or package.module:NAME of one of your own."
    )
    peft_config: Annotated[str | None, ADAPTER] = setting(
        None, "A YAML file of fields for PEFT's config class; --method peft takes its peft_type from there."
    )
    num_layers: Annotated[int, Setting(used_when=lambda settings: settings.method == "last_layers")] = setting(
        2, "How many layers --method last_layers trains, from the top."
    )
    reinit_layers: Annotated[int, Setting(at_least=0)] = setting(
        0, "Draw this many of the top layers anew before training (Zhang et al. 2021)."
    )
    class_weights: str = setting(
        "none",
        "balanced: weight each class in the loss by rows / (classes x its rows); for several labels the "
        "presence of each by rows without / rows with it.",
        choices=["none", "balanced"],
    )
    focal_gamma: Annotated[float, Setting(at_least=0)] = setting(
        0.0, "Focal loss (Lin et al. 2017): weight an example by (1 - p)^gamma; 2 is usual, 0 is off."
    )
    oversample: bool = setting(False, "Repeat training rows of rarer classes until all classes have as many.")
    lora_r: Annotated[int | None, Setting(at_least=1, used_when=takes_adapter)] = setting(
        None, "Rank of the adapter's matrices. Default: the method's."
    )
    lora_alpha: Annotated[int | None, Setting(at_least=1, used_when=takes_adapter)] = setting(
        None, "Scale: the update is multiplied by alpha / r. Default: the method's."
    )
    lora_dropout: Annotated[float | None, Setting(at_least=0, below=1, used_when=takes_adapter)] = setting(
        None, "Dropout on the input of the adapter's matrices. Default: the method's."
    )
    teacher: Annotated[str | None, Setting(used_when=_can_learn)] = setting(
        None,
        "A finished run, model folder or model on the Hub, whose answers the model learns from beside the labels "
        "(Hinton et al. 2015).",
    )
    distillation_alpha: Annotated[float, Setting(above=0, below=1, used_when=_has_teacher)] = setting(
        0.5, "Share of the teacher's answers in the loss of labelled rows; texts without labels have these alone."
    )
    distillation_temperature: Annotated[float, Setting(above=0, used_when=_softens_answers)] = setting(
        2.0, "What logits are divided by before the teacher's probabilities are compared with a network's."
    )


@dataclass
class TuningArguments:
    """How fast each parameter moves, and when."""

    _argument_group_name = "tuning"

    layer_decay: Annotated[float, Setting(above=0, at_most=1, usual="0.95 is usual.")] = setting(
        1.0, "Factor on the learning rate for each layer further down (Sun et al. 2019: 0.95)."
    )
    head_learning_rate: Annotated[float | None, Setting(at_least=0)] = setting(
        None, "Learning rate of the classification head. Default: --learning_rate."
    )
    lora_plus_ratio: Annotated[float, Setting(above=0, used_when=_has_lora_matrices)] = setting(
        1.0, "How many times as fast LoRA's B matrices learn as A (Hayou et al. 2024: 16)."
    )
    unfreeze_every: Annotated[float | None, Setting(above=0)] = setting(
        None,
        "Unfreeze gradually (Howard and Ruder 2018): the head first, after each of this many epochs one "
        "layer more from the top, the embeddings last.",
    )
    lr_schedule: str | None = setting(
        None,
        "A schedule that --lr_scheduler_type does not have: a slanted triangle (Howard and Ruder 2018) or "
        "cycles (Smith 2017). Without warm-up.",
        choices=["slanted_triangular", "triangular", "triangular2", "exp_range"],
    )
    num_cycles: Annotated[float, Setting(at_least=0.5, used_when=_has_cycles)] = setting(
        2.0, "Cycles of --lr_schedule over the training."
    )


@dataclass
class DecisionArguments:
    """How probabilities become answers; fitted on the validation split when the model is trained."""

    _argument_group_name = "decisions"

    calibrate: Annotated[bool, Setting(changes="nothing")] = setting(
        True,
        "Scale probabilities so that they hold, by a temperature (Guo et al. 2017). It changes no answer.",
    )
    abstain: Annotated[float | None, Setting(above=0, below=1, changes="nothing")] = setting(
        None,
        "Answer only texts where the model is sure enough that this share of the answers is right, such as 0.98.",
    )
    coverage: Annotated[float | None, Setting(above=0, below=1, changes="nothing")] = setting(
        None,
        "Give sets of labels, or intervals of numbers, that hold the right one for this share of the texts, such as "
        "0.9.",
    )
    class_conditional: Annotated[bool, Setting(changes="nothing")] = setting(
        False, "Let --coverage hold for the texts of each class by themselves."
    )
    cost_matrix: str | None = setting(
        None,
        "A YAML file of what mistakes cost, 'spam: {ham: 10}' for spam that is taken for ham, others 1; the answer is "
        "the one of least expected cost (Elkan 2001).",
    )

    def to_wishes(self) -> Wishes:
        """Return what is asked of answers, the file of costs read."""
        costs = None if self.cost_matrix is None else read_cost_matrix(self.cost_matrix)
        return Wishes(self.calibrate, self.abstain, self.coverage, self.class_conditional, costs)


@dataclass
class RunArguments:
    """How it runs on this machine."""

    _argument_group_name = "run"

    config: Annotated[str | None, SHOWS] = setting(
        None, "A YAML file of settings, named like the flags; flags win over it."
    )
    num_threads: Annotated[int | None, Setting(at_least=1, used_when=always, changes="nothing")] = setting(
        None, "Threads for torch in each process. Default: physical cores / processes on this host."
    )
    max_tokens_per_micro_batch: Annotated[int | None, Setting(at_least=1, used_when=_computes_in_pieces)] = setting(
        None,
        "A step's examples are worked off in pieces of at most this many tokens, padding included, which "
        "bounds memory. Default: 3,072 on a CPU, whose cache then holds the activations; 16,384 on a GPU.",
    )
    accelerated: bool = setting(
        True,
        "Compute with faster attention, dropout and LoRA products where the processor is seen to gain, without padding "
        "in prediction; off: transformers' and PEFT's own modules.",
    )
    early_stopping_patience: Annotated[int, Setting(at_least=0, used_when=_keeps_best)] = setting(
        2, "Stop after this many evaluations without a better metric_for_best_model; 0: never."
    )
    trials: Annotated[int | None, Setting(at_least=1, used_when=_has_search)] = setting(
        None,
        "Before the run, try so many settings of the method, the defaults first; it then trains with those that are "
        "best on validation rows. `finetune tune` sets 20.",
    )
    budget: Annotated[str | None, Setting(used_when=_has_search)] = setting(
        None, "Time for these trials, such as 90s, 10m or 2h; with --trials whichever ends first."
    )
    floor: Annotated[bool, Setting(changes="nothing")] = setting(
        True, "Fit TF-IDF + logistic regression on the same rows too and show it beside the result."
    )
    no_store_text: Annotated[bool, SHOWS] = setting(False, "Leave the texts out of predictions/.")
    restart: Annotated[bool, SHOWS] = setting(False, "Delete the run that --output_dir holds and start it over.")
    resume_with_changes: Annotated[bool, SHOWS] = setting(
        False, "Go on from the checkpoint although settings or data have changed since; run.json says which."
    )


@dataclass(frozen=True)
class HubTarget:
    """Where a finished run goes: taken out of `TrainingArguments`, whose `Trainer` would push at every checkpoint.

    Attributes:
        model_id: `user/name` on the Hub.
        private: Whether only its owner can see it.
        revision: The branch; None for main.
    """

    model_id: str
    private: bool = True
    revision: str | None = None


# The parts by name, each with when its settings have a use unless they say otherwise.
PARTS: dict[str, tuple[type, Condition]] = {
    "data": (DataArguments, always),
    "model": (ModelArguments, trains_network),
    "method": (MethodArguments, trains_network),
    "tuning": (TuningArguments, trains_network),
    "decisions": (DecisionArguments, always),
    "run": (RunArguments, trains_network),
}
