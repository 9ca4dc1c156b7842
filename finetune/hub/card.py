"""The model card: what a model is, what was measured, and how it is used; checked before anything is uploaded.

Drawn from the run's record alone. Nothing in it names a path of this machine. What the card claims as `model-index`
metadata are the numbers of the record, which `check_card` reads back.
"""

import math
import re
import shlex
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from finetune.catalogue import FAMILIES
from finetune.data.embedded import EMBEDDED_MODEL_ID
from finetune.errors import FinetuneError
from finetune.escape import blank_tokens, holds_token, to_markdown, to_markdown_code, to_terminal
from finetune.family import Shipped
from finetune.files import read_json
from finetune.lookup import find_method, name_of
from finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from finetune.run.fields import Metrics
from finetune.run.record import CompleteRecord

__all__ = ["build_card", "check_card", "read_comparison", "read_results"]

SECTIONS = ["How to use", "Data", "Training", "Results", "Costs", "Limitations"]
# In the table and in the metadata, by task; an interval is shown where run.json has one.
REPORTED = {
    SINGLE_LABEL: ("accuracy", "macro_f1", "mcc", "roc_auc", "loss"),
    MULTI_LABEL: ("micro_f1", "macro_f1", "accuracy", "average_precision", "loss"),
    REGRESSION: ("mae", "mse", "r2", "spearman"),
}
# What the Hub calls them, where that differs.
HUB_METRICS = {"macro_f1": "f1", "micro_f1": "f1", "mcc": "matthews_correlation", "spearman": "spearmanr"}
SETTINGS = {
    "data": ("max_length", "truncation", "max_train_samples"),
    "method": ("lora_r", "lora_alpha", "lora_dropout", "num_layers", "class_weights", "focal_gamma"),
    "training": (
        "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
        "weight_decay", "warmup_steps", "lr_scheduler_type", "label_smoothing_factor", "seed",
    ),
}  # fmt: skip
ADAPTER_NOTE = (
    "Load it by PEFT, as above. `AutoModelForSequenceClassification.from_pretrained`, given an adapter, draws the head "
    "at random in some versions of transformers (5.17 for one) and does not say so."
)
ABSOLUTE_PATH = re.compile(r"(?<![\w./:<`-])(?:[A-Za-z]:\\|/[\w.@+~-]+[/\\]|~/)[^\s'\"`|,;)]*|file://\S+")


def build_card(shipped: Shipped, record: CompleteRecord | None, comparison: dict[str, Any] | None = None) -> str:
    """Write the card.

    Args:
        shipped: What goes to the Hub.
        record: The run's; None for a model folder without its run, whose card says that it has no figures.
        comparison: The `report.json` of a comparison that this run is part of, if there is one.
    """
    parts = [
        _what_it_does(shipped, record),
        "## How to use\n\n" + _how_to_use(shipped),
        "## Data\n\n" + _data(record),
        "## Training\n\n" + _training(shipped, record),
        "## Results\n\n" + _results(record, comparison),
        "## Costs\n\n" + _costs(record),
        "## Limitations\n\n" + _limitations(shipped, record),
    ]
    body = "\n\n".join(parts)
    return f"---\n{_metadata(shipped, record)}\n---\n\n{blank_tokens(_without_paths(body))}\n"


def _metadata(shipped: Shipped, record: CompleteRecord | None) -> str:
    results = None if record is None else _eval_results(record)
    library = "peft" if shipped.is_adapter else shipped.family.library_name
    dataset = _dataset_of(record, "train")[0] if record else None
    tags = ["text-classification", "finetune", *([record.method.rpartition(":")[2]] if record else [])]
    data = ModelCardData(
        model_name=shipped.name.split("/")[1],
        base_model=shipped.base and shipped.base[0],
        datasets=[dataset] if dataset and "/" in dataset else None,
        library_name=library,
        pipeline_tag="text-classification",
        tags=tags,
        metrics=sorted({result.metric_type for result in results}) if results else None,
        eval_results=results or None,
        base_model_relation=_relation(shipped),
    )
    return data.to_yaml().strip()


def _relation(shipped: Shipped) -> str | None:
    if shipped.base is None:
        return None
    return "adapter" if shipped.is_adapter else "finetune"


def _dataset_of(record: CompleteRecord, split: str) -> tuple[str, str, str | None, str | None]:
    """Return the id on the Hub of what a split is from, or a word for it, its name, configuration and revision."""
    data = record.arguments.data
    name, file = data.get("dataset_name"), data.get(f"{split}_file")
    if file is not None:
        name = None
    if name == "embedded":
        return "imdb", "IMDb, parts of the official training split", None, None
    if name is not None and not PurePath(name).is_absolute():
        return name, name, data.get("dataset_config_name"), record.data.commit
    file = file or data.get("train_file") or name
    return "local", to_terminal(PurePath(str(file)).name), None, None


def _eval_results(record: CompleteRecord) -> list[EvalResult]:
    results = []
    for split, metrics in record.metrics:
        dataset_type, dataset_name, dataset_config, revision = _dataset_of(record, split)
        for name in REPORTED[record.data.problem_type]:
            value = metrics.get(name)
            if value is None or not math.isfinite(value):
                continue
            details: dict[str, Any] = {"num_examples": metrics.num_examples}
            bounds = metrics.interval(name)
            if bounds is not None:
                details["interval_95"] = list(bounds)
            results.append(
                EvalResult(
                    task_type="text-classification",
                    task_name="Text classification",
                    dataset_type=dataset_type,
                    dataset_name=dataset_name,
                    dataset_config=dataset_config,
                    dataset_revision=revision,
                    dataset_split=split,
                    dataset_args={"sha256": dict(record.data.splits)[split].sha256},
                    metric_type=HUB_METRICS.get(name, name),
                    metric_name=name,
                    metric_value=value,
                    metric_args=details,
                )
            )
    return results


def read_results(card: str) -> dict[tuple[str, str], tuple[float, list[float] | None]]:
    """Read the figures back that a card claims in its metadata: value and interval by split and metric."""
    metadata = _read_metadata(card)
    _, results = model_index_to_eval_results(metadata.get("model-index") or [{"name": "", "results": []}])
    return {
        (str(one.dataset_split), str(one.metric_name)): (one.metric_value, (one.metric_args or {}).get("interval_95"))
        for one in results
    }


def _what_it_does(shipped: Shipped, record: CompleteRecord | None) -> str:
    names = ", ".join(map(to_markdown_code, shipped.label_names))
    subject = "a pair of texts" if shipped.config.is_paired else "a text"
    what = {
        SINGLE_LABEL: f"Gives {subject} one of {len(shipped.label_names)} labels: {names}.",
        MULTI_LABEL: f"Gives {subject} any number of {len(shipped.label_names)} labels: {names}.",
        REGRESSION: f"Predicts a number for {subject}: {names}.",
    }[shipped.config.problem_type]
    if shipped.config.thresholds is not None:
        cuts = ", ".join(
            f"{to_markdown_code(name)} {threshold:.3f}"
            for name, threshold in zip(shipped.label_names, shipped.config.thresholds, strict=True)
        )
        what += f"\n\nA label is predicted from this probability on, chosen on the validation split: {cuts}."
    return f"# {shipped.name.split('/')[1]}\n\n{what}"


def _how_to_use(shipped: Shipped) -> str:
    text = shipped.config.text
    snippet = shipped.family.write_snippet(shipped)
    lines = [_code_block("python", snippet)]
    if shipped.is_adapter:
        lines.append(ADAPTER_NOTE)
    if text is not None:
        cut = {
            "head": f"Texts are cut at their end, to {text.max_length} tokens, as in training"
            + ("; without `truncation=True` a longer one fails." if "truncation=True" in snippet else "."),
            "tail": f"In training the last {text.max_length} tokens of a text were kept.",
            "head+tail": f"In training a long text was cut in its middle, to {text.max_length} tokens.",
            "window": f"In training texts were read in windows of {text.max_length} tokens, combined by "
            f"{text.window_pooling}.",
        }[text.truncation]
        if text.truncation != "head":
            cut += " `pipeline` does not do that: it cuts at the end, and longer texts get other answers than below."
        lines.append(cut)
    if shipped.config.thresholds is not None:
        lines.append("`pipeline` gives all probabilities and knows nothing of the thresholds above.")
    pair = ' --pairs "Its second text."' if shipped.config.is_paired else ""
    own = "" if name_of(shipped.family) in FAMILIES else f" --family {name_of(shipped.family)}"
    command = f'finetune predict {shipped.path} "A text to classify."{pair}{own}'
    lines.append("As it was measured, with finetune:\n\n" + _code_block("bash", command))
    return "\n\n".join(lines)


def _code_block(language: str, code: str) -> str:
    """Write code between fences that nothing in it ends."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


def _data(record: CompleteRecord | None) -> str:
    if record is None:
        return "Not recorded: the model was pushed without its run."
    rows = ["| split | from | rows | SHA-256 of labels and texts |", "|---|---|---|---|"]
    for name, split in record.data.splits:
        rows.append(f"| {name} | {to_markdown(split.origin)} | {split.rows:,} | {to_markdown_code(split.sha256)} |")
    revision = record.data.commit
    return "\n".join(rows) + (f"\n\nRevision {to_markdown_code(revision)} of the data set." if revision else "")


def _training(shipped: Shipped, record: CompleteRecord | None) -> str:
    lines = []
    if shipped.base is not None:
        name, revision = shipped.base
        at = f", revision {to_markdown_code(revision)}" if revision else ""
        lines.append(f"Base: [{name}](https://huggingface.co/{name}){at}.")
    if record is None:
        return "\n\n".join([*lines, "Not recorded: the model was pushed without its run."])
    method = find_method(record.method)
    merged = " The adapter is merged into the weights." if shipped.merged else ""
    lines.append(f"Method `{record.method}`: {method.what} ({method.paper}).{merged}")
    if record.word_vectors is not None:
        vectors = record.word_vectors
        name = Path(str(record.arguments.model["word_vectors"])).name
        found = "" if vectors.found is None else f"; {vectors.found:,} of {vectors.words:,} training words have one"
        lines.append(f"Word vectors: {to_markdown_code(name)}, SHA-256 `{vectors.sha256}`{found}.")
    if (made := record.pretraining) is not None:
        lines.append(
            f"Before, the base was trained on texts alone: {made.task}, {to_markdown(made.losses)}. Its seconds count "
            "below."
        )
    if record.teacher is not None:
        who = f"a model of method `{record.teacher.method}`" if record.teacher.method else "another model"
        unlabeled = record.data.unlabeled
        more = "" if unlabeled is None else f", also on {unlabeled.rows:,} texts without labels"
        lines.append(
            f"It learnt from the answers of {who} beside the labels{more} (Hinton et al. 2015); SHA-256 of the "
            f"teacher's files: `{record.teacher.sha256}`."
        )
    parts = {**SETTINGS, "family": tuple(record.arguments.family)}
    settings = [
        f"`{name}` {to_markdown(str(value))}"
        for part, names in parts.items()
        for name in names
        if (value := dict(record.arguments)[part].get(name)) not in (None, -1, 0.0, "none")
    ]
    lines.append(f"Settings: {', '.join(settings)}.")
    command = to_terminal(shlex.join(_without_folder(str(word)) for word in record.command))
    lines.append("The exact command, without folders:\n\n" + _code_block("bash", f"accelerate launch {command}"))
    packages = ", ".join(f"{name} {version}" for name, version in record.environment.packages.items() if version)
    lines.append(to_markdown(f"Made with {packages}, Python {record.environment.python}."))
    return "\n\n".join(lines)


def _results(record: CompleteRecord | None, comparison: dict[str, Any] | None) -> str:
    if record is None:
        return "Not measured: the model was pushed without its run."
    names = REPORTED[record.data.problem_type]
    lines = [f"| split | examples | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for split, metrics in record.metrics:
        if metrics.labels_withheld:
            lines.append(f"| {split} | {metrics.num_examples:,} |" + " not scored: labels withheld |" * len(names))
        else:
            lines.append(
                f"| {split} | {metrics.num_examples:,} | {' | '.join(_figure(metrics, name) for name in names)} |"
            )
    if record.floor is not None and not record.floor.test.labels_withheld:
        metrics = record.floor.test
        lines.append(f"| test, TF-IDF and a linear model | {metrics.num_examples:,} | "
                     f"{' | '.join(_figure(metrics, name) for name in names)} |")  # fmt: skip
    notes = (
        "In brackets 95 % intervals over examples (Wilson's for an accuracy); they don't hold the choice of training "
        "seed. The validation split chose the checkpoint; the test split was used once. The figures are those of the "
        "saved model, reloaded."
    )
    parts = ["\n".join(lines), notes]
    if record.thresholds is not None:
        half, tuned = record.thresholds.at_half, record.thresholds.test  # the latter of a run of 0.1
        decides = "by the thresholds above. One half would give" if half else "at one half. The thresholds above give"
        other = half or tuned
        if other is not None:
            parts.append(
                f"The figures decide {decides} on test: micro-F1 {other.micro_f1:.4f}, macro-F1 {other.macro_f1:.4f}, "
                f"accuracy {other.accuracy:.4f}."
            )
    per_class = record.metrics.test.per_class
    if per_class:
        table = ["| label (test) | precision | recall | F1 | examples |", "|---|---|---|---|---|"]
        for label, one in per_class.items():
            figures = " | ".join(f"{value:.3f}" for value in (one.precision, one.recall, one.f1))
            table.append(f"| {to_markdown_code(label, in_table=True)} | {figures} | {one.num_examples:,} |")
        parts.append("\n".join(table))
    if comparison is not None:
        parts.append(_comparison(comparison))
    return "\n\n".join(parts)


def _figure(metrics: Metrics, name: str) -> str:
    value, bounds = metrics.get(name), metrics.interval(name)
    if value is None:
        return ""
    return f"{value:.4f}" if bounds is None else f"{value:.4f} ({bounds[0]:.4f} to {bounds[1]:.4f})"


def _comparison(comparison: dict[str, Any]) -> str:
    metric = comparison["metric"]
    lines = [f"Beside other methods on the same splits, mean {metric} over seeds on the test split:", "",
             f"| method | seeds | {metric} |", "|---|---|---|"]  # fmt: skip
    for group in comparison["groups"]:
        found = group["quality"][metric]
        bounds = "" if found["low"] is None else f" ({found['low']:.4f} to {found['high']:.4f})"
        lines.append(f"| {to_markdown(str(group['name']))} | {len(group['seeds'])} | {found['estimate']:.4f}{bounds} |")
    return "\n".join(lines)


def _costs(record: CompleteRecord | None) -> str:
    if record is None:
        return "Not recorded: the model was pushed without its run."
    model, costs, environment = record.model, record.costs, record.environment
    machine = to_markdown(", ".join(environment.gpus) or environment.processor)
    return "\n".join(
        [
            f"- {model.trainable_parameters:,} parameters trained of {model.total_parameters:,}",
            f"- {costs.train_seconds:.0f} s of training in {environment.precision}, "
            f"{environment.num_processes} process(es) of {environment.num_threads} thread(s), on {machine}",
            f"- at most {costs.peak_memory_bytes / 2**30:.2f} GiB of memory",
            f"- {costs.latency_seconds * 1000:.1f} ms for one, {costs.texts_per_second:,.0f} texts/s in bulk",
        ]
    )


def _describe_probabilities(record: CompleteRecord | None) -> str:
    calibration = None if record is None or record.answers is None else record.answers.calibration
    if calibration is None:
        return "- Probabilities are those of the model, not calibrated frequencies."
    before, after = calibration.test_before, calibration.test_after
    figures = "" if before is None or after is None else (
        f": on test a calibration error of {after.ece:.1%} in place of {before.ece:.1%}"
    )  # fmt: skip
    return (
        f"- finetune divides logits by a temperature of {calibration.temperature:.2f}, fitted on validation, so that "
        f"probabilities hold{figures}. transformers' `pipeline` gives them without, and knows nothing of thresholds, "
        "costs, sets and silence in `decisions.json`."
    )


def _limitations(shipped: Shipped, record: CompleteRecord | None) -> str:
    lines = [
        "- The figures hold for texts like those of the test split. On other sources, periods, lengths and languages "
        "the model was not measured.",
        "- It has learnt whatever its training labels and its base model carry, biases against groups of people "
        "included. No audit for bias was made. Don't decide about people with it unaided.",
        _describe_probabilities(record),
        "- No licence is declared for the weights; those of the base model and of the data apply.",
    ]
    if shipped.config.problem_type == REGRESSION:
        del lines[2]
    if record is not None:
        rare = [
            f"{to_markdown_code(label)} ({one.num_examples})"
            for label, one in record.metrics.test.per_class.items()
            if one.num_examples < 20
        ]
        if rare:
            lines.append(f"- Measured on fewer than 20 test examples: {', '.join(rare)}.")
        if record.arguments.data.get("dataset_name") == "embedded":
            lines.append("- Train and test are carved from one collection, in which reviews of one film can fall on "
                         "both sides; the figures flatter a little.")  # fmt: skip
    if shipped.base is not None and shipped.base[0] == EMBEDDED_MODEL_ID:
        lines.append("- The base model was made from English texts.")
    return "\n".join(lines)


def _without_folder(word: str) -> str:
    """Shorten a word of a command, `/folder/file` or `--flag=/folder/file`, to the file."""
    flag, equals, value = word.rpartition("=")
    return flag + equals + (PurePath(value).name if PurePath(value).is_absolute() else value)


def _without_paths(text: str) -> str:
    """Leave the last part of absolute paths alone: who trained where is nobody's business."""
    return ABSOLUTE_PATH.sub(lambda match: PurePath(match[0].rstrip("/\\")).name or "folder", text)


def _read_metadata(card: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if match is None:
        raise FinetuneError("Expected a model card that begins with metadata between '---' lines, but found none.")
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise FinetuneError(f"Expected a model card with YAML metadata, but it can't be read: {error}") from error
    if not isinstance(metadata, dict):
        raise FinetuneError(f"Expected 'name: value' lines in the model card's metadata, but found {metadata!r}.")
    return metadata


def check_card(card: str, shipped: Shipped, record: CompleteRecord | None) -> None:
    """Refuse a card that lacks something, claims other figures than `run.json`, or gives away a path or a token.

    Raises:
        FinetuneError: With everything that is wrong.
    """
    metadata = _read_metadata(card)
    wrong = []
    if metadata.get("pipeline_tag") != "text-classification":
        wrong.append("pipeline_tag is not text-classification")
    if metadata.get("library_name") not in ("transformers", "peft", "finetune"):
        wrong.append("library_name is not transformers, peft or finetune")
    if shipped.base is not None and metadata.get("base_model") != shipped.base[0]:
        wrong.append(f"base_model is not {shipped.base[0]}")
    headings = re.findall(r"^## (.+?)\s*$", card, re.MULTILINE)
    wrong += [f"there is no section '## {section}'" for section in SECTIONS if section not in headings]
    if _code_block("python", shipped.family.write_snippet(shipped)) not in card:
        wrong.append("the snippet that loads the model is missing")
    wrong += [f"the label {name!r} is not named" for name in shipped.label_names if to_markdown_code(name) not in card]
    if record is not None:
        try:
            claimed = read_results(card)
        except (KeyError, TypeError, AttributeError) as error:
            claimed = {}
            wrong.append(f"model-index can't be read ({error})")
        for result in _eval_results(record):
            key = (str(result.dataset_split), str(result.metric_name))
            if key not in claimed:
                wrong.append(f"model-index lacks {key[1]} on {key[0]}")
            elif claimed[key] != (result.metric_value, (result.metric_args or {}).get("interval_95")):
                wrong.append(f"model-index has another {key[1]} on {key[0]} than run.json")
    wrong += [f"it names the path {match[0]!r}" for match in ABSOLUTE_PATH.finditer(card)]
    if holds_token(card):
        wrong.append("it holds a token")
    if wrong:
        raise FinetuneError(f"Expected a whole model card, but {'; '.join(wrong)}. Nothing was uploaded.")


def read_comparison(run_directory: Path) -> dict[str, Any] | None:
    """Find the `report.json` beside a run that compares it with others, as `finetune compare` writes it."""
    file = run_directory.parent / "report/report.json"
    content = read_json(file)
    try:
        directories = {Path(run["directory"]).resolve() for run in content["runs"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if run_directory.resolve() in directories and len(content["groups"]) > 1 else None
