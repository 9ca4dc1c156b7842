"""Write a model as ONNX, and measure on the validation split what that costs and gives before it counts as done.

transformers' own exporters trace the plain model: the attention, dropout and number formats that make training fast
here stay out of the graph. What is written takes what the tokenizer gives, so that anything runs it that runs ONNX; the
folder is laid out as transformers.js wants it. `finetune.inference.exported` runs it without torch.
"""

import contextlib
import importlib.util
import inspect
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel

from finetune import __version__
from finetune.adapted import has_adapter
from finetune.comparison.statistics import mean_interval, paired_difference
from finetune.data.labels import label_matrix
from finetune.data.load import read_examples
from finetune.decisions.saved import copy_rules, read_rules
from finetune.environment import describe_environment
from finetune.errors import FinetuneError, explain_failure
from finetune.escape import blank_tokens
from finetune.examination.checksums import write_checksums
from finetune.export.attention import use_exported_attention
from finetune.files import write_folder_aside, write_json
from finetune.inference.exported import (
    EXPORT_FILE,
    INT8_FILE,
    MODEL_FILE,
    ExportedPredictor,
    find_graph,
    is_exported,
    open_session,
)
from finetune.inference.load import find_model_folder, find_saved_family, load
from finetune.methods.merging import merge_adapter
from finetune.models.answers import TextClassifier, unit_of_logits
from finetune.models.finetune_config import FINETUNE_CONFIG_FILE, FinetuneConfig, read_finetune_config
from finetune.models.inputs import needs_equal_lengths, shortest_input
from finetune.progress_bar import progress_bar
from finetune.settings.parts import DataArguments
from finetune.tasks import MULTI_LABEL, REGRESSION, Task

__all__ = ["Examples", "describe", "export", "measure_cost", "read_validation", "write_onnx"]

TRACED_FILE = "model.onnx"  # by the name that transformers gives it
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
MAX_DIFFERENCE = 1e-3  # of logits in float32, where nothing but the order of sums changes
QUANTIZATION: dict[str, Any] = {"per_channel": True, "reduce_range": True}
# Of several words, since sizes of one would be taken for fixed, and of two lengths, since a batch has padding.
SAMPLE = ["A text of several words, and of some more beside them.", "A text of several words."]
NUM_SCALE_TEXTS = 128  # that the scales of 8 bits are found on
NUM_PADDED_TEXTS = 8  # that are computed alone and padded
MAX_PADDED_DIFFERENCE = 1e-4  # of logits in float32; in 8 bits a rounding can fall the other way
MAX_PADDED_DIFFERENCE_INT8 = 0.1
NUM_LATENCY_TEXTS, NUM_THROUGHPUT_TEXTS, BATCH_SIZE = 100, 256, 32


@dataclass(frozen=True)
class Examples:
    """Labelled texts to measure on.

    Attributes:
        texts: The texts.
        pairs: A second text for each; None for models of single texts.
        labels: As `label_matrix` gives them.
        source: Where they are from, in words.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> tuple[list[str], list[str] | None]:
        """Return the texts of some rows, and their second texts."""
        pairs = self.pairs
        return [self.texts[row] for row in rows], None if pairs is None else [pairs[row] for row in rows]


def export(
    path: str | Path,
    output: str | Path,
    *,
    int8: bool = False,
    tolerance: float = 0.5,
    validation_file: str | None = None,
    columns: dict[str, Any] | None = None,
    max_samples: int | None = None,
) -> dict[str, Any]:
    """Write a model as ONNX; see `docs/how-to/export-and-serve.md`.

    Args:
        path: A run directory or model folder; an adapter is merged.
        output: The folder to write; must not exist.
        int8: Hold weights in 8 bits, and compute with them.
        tolerance: The most that may be lost on the validation split, in points.
        validation_file: Labelled texts to measure on instead of the run's validation split.
        columns: `text_column` and other settings of `DataArguments` for reading `validation_file`.
        max_samples: Measure on so many of the texts, the first ones in a random order; all if None.

    Returns:
        What was measured, as in `export.json` under `measured`.

    Raises:
        FinetuneError: If the model can't be exported, there is nothing to measure on, or too much is lost. Then there
            is no folder `output`.
        FileExistsError: If something came into being there meanwhile.
    """
    output = Path(output)
    _check_packages()
    if not tolerance >= 0:
        raise FinetuneError(f"Expected --tolerance of at least 0 points, but got {tolerance:g}.")
    folder = find_model_folder(path)
    if is_exported(folder):
        raise FinetuneError(f"Expected a trained model, but {str(path)!r} is exported already. Pass its run.")
    if os.path.lexists(output):
        raise FinetuneError(f"Expected a new folder to write to, but {str(output)!r} exists. Pass another one.")
    model, tokenizer = load(folder)
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise FinetuneError(
            f"Expected an encoder, a TextCNN or another network to export, but {str(path)!r} is a "
            f"{type(model).__name__}. Use it as it is."
        )
    find_saved_family(folder, read_finetune_config(folder)).check_exportable(model)
    if shortest_input(model) > 1:
        raise FinetuneError(
            f"Expected a model that computes any text without padding, but {type(model).__name__} needs it for short "
            "ones. Use it as it is."
        )
    if has_adapter(model):
        model = merge_adapter(model)
    config = read_finetune_config(folder)
    family = find_saved_family(folder, config)
    reference = family.build_predictor(model, tokenizer, config.text, torch.float32)
    reference.follow(config, read_rules(folder, reference.task, config.thresholds))
    examples = _sample(
        _read_examples(path, reference.task, validation_file, columns or {}, config.encoding), max_samples
    )

    output.parent.mkdir(parents=True, exist_ok=True)
    with write_folder_aside(output) as aside:
        plain = load(folder)[0]  # the predictor has changed how the first one computes
        plain = merge_adapter(plain) if has_adapter(plain) else plain
        told = replace(config, problem_type=reference.task.problem_type, text=reference.text_config, four_bit=False)
        some = _sample(examples, NUM_SCALE_TEXTS)
        write_onnx(aside, plain, tokenizer, told, int8, (some.texts, some.pairs))
        copy_rules(folder, aside)
        del plain
        exported = ExportedPredictor(aside, torch.get_num_threads())
        measured = _measure(reference, exported, examples)
        if needs_equal_lengths(model):
            warnings.warn(
                f"padding changes the answers of {type(model).__name__}: whoever runs this export by other means than "
                "finetune must give it texts of one length",
                stacklevel=2,
            )
        else:
            measured["max_padded_difference"] = _compare_padded(aside, exported, tokenizer, examples)
        measured["bytes"] = {
            "original": sum(one.numel() * one.element_size() for one in model.parameters()),
            "exported": sum(file.stat().st_size for file in find_graph(aside).parent.glob("model*.onnx*")),
        }
        _check(measured, int8, tolerance)
        manifest = json.loads((aside / EXPORT_FILE).read_text(encoding="utf-8"))
        write_json(
            aside / EXPORT_FILE,
            {**manifest, "tolerance": tolerance, "measured": blank_tokens(measured), "finetune_version": __version__,
             "environment": describe_environment()},
        )  # fmt: skip
        write_checksums(aside)
    return measured


def _check_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise FinetuneError(
            f"Expected {', '.join(PACKAGES)} to export, but {', '.join(missing)} is not installed. "
            "Install them: pip install -c constraints.txt -e '.[onnx]'"
        )
    try:
        from transformers.exporters import ExportedModel  # noqa: F401
    except ImportError:
        raise FinetuneError(
            f"Expected transformers 5.23 or newer to export, but {transformers.__version__} is installed. "
            "Install it: pip install 'transformers>=5.23,<6'"
        ) from None


def write_onnx(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    config: FinetuneConfig,
    int8: bool,
    texts: tuple[list[str], list[str] | None],
) -> None:
    """Trace a model with any batch and any length, and write it with all that its use needs.

    The graph takes what the tokenizer gives, `attention_mask` too, so that a text has the same logits alone and padded.

    8 bits: weights of matrix products a scale a column, activations a scale that is found on `texts`; the sums and
    everything else stay in float32. Weights take 7 of the 8 bits, since processors without VNNI overflow on 8.

    Args:
        folder: An existing folder.
        model: As it was loaded, in float32, not what a `Predictor` has changed. Its attention is changed here.
        tokenizer: Its tokenizer, whose inputs become those of the graph.
        config: How texts are cut, the task, thresholds.
        int8: Hold weights in 8 bits.
        texts: What the scales of 8 bits are found on, and the second ones of pairs.

    Raises:
        FinetuneError: If the model can't be traced.
    """
    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    taken = inspect.signature(model.forward).parameters
    encoded = tokenizer([*SAMPLE, SAMPLE[0]], truncation=True, max_length=16, padding=True, return_tensors="pt")
    inputs: dict[str, Any] = {name: tokens for name, tokens in encoded.items() if name in taken}
    tokenizer.model_input_names = list(inputs)
    if config.text is not None:  # to which other readers cut
        tokenizer.model_max_length = min(tokenizer.model_max_length, config.text.max_length)
    if config.is_paired and "pair_input_ids" in taken:  # each text of a pair has tokens of its own
        inputs |= {f"pair_{name}": tokens[:, :-2] for name, tokens in inputs.items()}
    use_exported_attention(model)
    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(**QUANTIZATION)) if int8 else None
    try:
        with _quiet():
            exported = OnnxExporter().export(model.eval(), inputs, OnnxConfig(dynamic=True, quantizer=quantizer))
            exported.save_pretrained(folder)
        tokenizer.backend_tokenizer.no_padding()  # the last call's would be saved
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.save_pretrained(str(folder))
        write_json(folder / FINETUNE_CONFIG_FILE, config.to_dict())
        _lay_out(folder, INT8_FILE if int8 else MODEL_FILE)
        if int8:
            _fix_scales(folder, texts)
    except Exception as error:  # whatever torch's tracer and three libraries raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise explain_failure(error, folder) or FinetuneError(
            f"Expected a model that can be written as ONNX, but {type(model).__name__} can't: {reason}"
        ) from error


def _lay_out(folder: Path, file: str) -> None:
    """Move a graph and its weights to where transformers.js looks for them, and let `config.json` say so."""
    import onnx

    weights = f"{file}_data"
    (folder / file).parent.mkdir()
    graph = onnx.load(str(folder / TRACED_FILE), load_external_data=False)
    for tensor in onnx.external_data_helper._get_all_tensors(graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = Path(weights).name
    onnx.save(graph, str(folder / file))
    (folder / TRACED_FILE).unlink()
    (folder / f"{TRACED_FILE}.data").rename(folder / weights)
    manifest = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
    (component,) = manifest["components"].values()
    component["file"] = file
    write_json(folder / EXPORT_FILE, {**manifest, "int8": file == INT8_FILE})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.pop("auto_map", None) is not None:  # a class of our own, whose code is in the graph now
        config |= {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    config["transformers.js_config"] = {
        "dtype": "q8" if file == INT8_FILE else "fp32",
        "use_external_data_format": {Path(file).name: 1},
    }
    write_json(folder / "config.json", config)


def _fix_scales(folder: Path, texts: tuple[list[str], list[str] | None]) -> None:
    """Find the scales of activations on texts, each computed by itself."""
    from finetune.export.scales import fix_scales

    predictor = ExportedPredictor(folder, torch.get_num_threads())
    fix_scales(find_graph(folder), predictor.feeds(*texts, max_tokens=1))
    manifest = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
    write_json(folder / EXPORT_FILE, {**manifest, "num_scale_texts": len(texts[0])})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' reports on their own progress from the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def read_validation(path: str | Path, task: Task) -> Examples | None:
    """Read the validation split of a run, with its labels; None for a folder without one, or without its texts."""
    file = Path(path) / "predictions/validation.parquet"
    if not file.is_file():
        return None
    try:
        if not {"text", "label"} <= set(pq.read_schema(file).names):
            return None
        columns = pq.read_table(file).to_pydict()
    except (OSError, ValueError) as error:  # of pyarrow too
        raise FinetuneError(
            f"Expected {str(file)!r} as the run wrote it, but reading it gave: {error}. Restore it, or pass labelled "
            "texts as --validation_file."
        ) from error
    texts, pairs = (
        [text or "" for text in columns[name]] if name in columns else None for name in ("text", "text_pair")
    )
    assert texts is not None
    return Examples(texts, pairs, label_matrix(columns["label"], task), f"the validation split of {Path(path).name}")


def _read_examples(
    path: str | Path, task: Task, file: str | None, columns: dict[str, Any], encoding: str | None
) -> Examples:
    if file is not None:
        rows = read_examples(file, DataArguments(**columns), task, encoding)
        pairs = [text or "" for text in rows["text_pair"]] if "text_pair" in rows.column_names else None
        texts = [text or "" for text in rows["text"]]
        return Examples(texts, pairs, label_matrix(rows["label"], task), Path(file).name)
    examples = read_validation(path, task)
    if examples is None or len(examples) == 0:
        raise FinetuneError(
            f"Expected a run with the texts and labels of its validation split, but {str(path)!r} has none. "
            "Pass labelled texts as --validation_file."
        )
    return examples


def _sample(examples: Examples, count: int | None) -> Examples:
    """Take so many of the examples, the first ones in a random order that is always the same."""
    if count is None or count >= len(examples):
        return examples
    rows = np.sort(np.random.default_rng(0).permutation(len(examples))[:count]).tolist()
    texts, pairs = examples.take(rows)
    return Examples(texts, pairs, examples.labels[rows], f"{count} of the {len(examples)} texts of {examples.source}")


def _measure(reference: TextClassifier, exported: ExportedPredictor, examples: Examples) -> dict[str, Any]:
    """Compare two predictors on labelled texts: answers, and what they cost."""
    logits = []
    for predictor, name in ((reference, "the original"), (exported, "the export")):
        with progress_bar(len(examples), f"Measuring {name}") as advance:
            logits.append(predictor.compute_logits(examples.texts, examples.pairs, advance)[0])
    measured = _compare(reference, logits[0], logits[1], examples.labels)
    costs = {"original": measure_cost(reference, examples), "exported": measure_cost(exported, examples)}
    return {
        "num_texts": len(examples),
        "source": examples.source,
        "num_threads": torch.get_num_threads(),
        **measured,
        **{name: {who: cost[name] for who, cost in costs.items()} for name in costs["original"]},
    }


def _compare_padded(folder: Path, exported: ExportedPredictor, tokenizer: Any, examples: Examples) -> float:
    """Return by how much logits differ between texts alone and padded to the longest, by onnxruntime alone.

    Raises:
        FinetuneError: If it is much: the model doesn't heed its mask.
    """
    order = sorted(range(len(examples)), key=lambda row: len(examples.texts[row]))
    rows = sorted({order[len(order) * part // NUM_PADDED_TEXTS] for part in range(NUM_PADDED_TEXTS)} | {order[-1]})
    texts, pairs = examples.take(rows)
    session = open_session(folder, torch.get_num_threads())

    def compute(texts: list[str], pairs: list[str] | None) -> np.ndarray:
        how: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "np"}  # as any reader would
        if pairs is None or "pair_input_ids" not in exported.input_names:
            feed = dict(tokenizer(texts, pairs, **how))
        else:
            feed = dict(tokenizer(texts, **how)) | {
                f"pair_{name}": row for name, row in tokenizer(pairs, **how).items()
            }
        return session.run(["logits"], feed)[0]

    alone = [compute([text], None if pairs is None else [pairs[at]]) for at, text in enumerate(texts)]
    found = np.concatenate(alone)
    difference = float(np.abs(compute(texts, pairs) - found).max())
    most = MAX_PADDED_DIFFERENCE_INT8 if find_graph(folder).name == Path(INT8_FILE).name else MAX_PADDED_DIFFERENCE
    if not difference <= most * unit_of_logits(found, exported.task.problem_type):
        raise FinetuneError(
            f"Expected the same logits of a text alone and padded, but they differ by {difference:.1e}. Nothing was "
            "written; please report this."
        )
    return difference


def _compare(reference: TextClassifier, before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compare the logits of an export with those of the original, text by text.

    `score` is the accuracy; for several labels a text the share of texts with every label right; for a number the
    absolute error, negative, in standard deviations of the labels.
    """
    difference = float(np.abs(after - before).max())
    if reference.task.problem_type == REGRESSION:
        spread = float(labels.std()) or 1.0
        scores = [-np.abs(one[:, 0] - labels) / spread for one in (before, after)]
        agreement = float((np.abs(after - before)[:, 0] <= 0.01 * spread).mean())
    else:
        chosen = [reference.rules.decide(reference.rules.to_probabilities(one)) for one in (before, after)]
        agreement = float((chosen[0] == chosen[1]).all(axis=1).mean())
        if reference.task.problem_type == MULTI_LABEL:
            right = labels.astype(bool)
        else:
            right = labels[:, None] == np.arange(before.shape[1])
        scores = [(one == right).all(axis=1).astype(float) for one in chosen]
    change = paired_difference(scores[1][None], scores[0][None])
    return {
        "max_logit_difference": difference,
        "logit_unit": unit_of_logits(before, reference.task.problem_type),
        "agreement": agreement,
        "score": {
            who: list(mean_interval(one[None])) for who, one in zip(("original", "exported"), scores, strict=True)
        },
        "score_difference": [change.estimate, change.low, change.high],
    }


def measure_cost(predictor: TextClassifier, examples: Examples) -> dict[str, float]:
    """Measure a predictor from texts to logits, tokens included.

    Args:
        predictor: What loads in any format.
        examples: The first of them are used.

    Returns:
        `latency_p50_seconds` and `latency_p95_seconds` of one text at a time, `texts_per_second` in batches of 32 texts
        of similar length.
    """
    ones = [examples.take([row]) for row in range(min(len(examples), NUM_LATENCY_TEXTS))]
    predictor.compute_logits(*ones[0])
    seconds = []
    for one in ones:
        start = time.perf_counter()
        predictor.compute_logits(*one)
        seconds.append(time.perf_counter() - start)
    rows = sorted(range(min(len(examples), NUM_THROUGHPUT_TEXTS)), key=lambda row: len(examples.texts[row]))
    batches = [examples.take(rows[start : start + BATCH_SIZE]) for start in range(0, len(rows), BATCH_SIZE)]
    start = time.perf_counter()
    for batch in batches:
        predictor.compute_logits(*batch)
    return {
        "latency_p50_seconds": float(np.quantile(seconds, 0.5)),
        "latency_p95_seconds": float(np.quantile(seconds, 0.95)),
        "texts_per_second": len(rows) / (time.perf_counter() - start),
    }


def _check(measured: dict[str, Any], int8: bool, tolerance: float) -> None:
    """Refuse an export that is not the model."""
    most = MAX_DIFFERENCE * measured["logit_unit"]
    if not int8 and not measured["max_logit_difference"] <= most:
        raise FinetuneError(
            f"Expected the logits of the original within {most:g}, but they differ by "
            f"{measured['max_logit_difference']:.1e}. Nothing was written; please report this."
        )
    change, low, high = (100 * one for one in measured["score_difference"])
    if not -change <= tolerance:
        raise FinetuneError(
            f"Expected to lose at most {tolerance:g} points on {measured['source']}, but lost {-change:.2f} (95 % "
            f"interval {-high:.2f} to {-low:.2f}). Nothing was written. Export without --int8, or pass --tolerance "
            f"{-change:.2f} to take it."
        )


def describe(measured: dict[str, Any]) -> str:
    """Tabulate what was measured."""
    name = "accuracy" if measured["score"]["original"][0] >= 0 else "-|error|/std"
    rows = [(f"{'':<24}{'original, fp32':>16}{'export':>16}")]
    for key, title, scale, digits in (
        ("score", name, 1, 4), ("bytes", "megabytes", 1e-6, 1), ("latency_p50_seconds", "latency p50, ms", 1e3, 1),
        ("latency_p95_seconds", "latency p95, ms", 1e3, 1), ("texts_per_second", "texts a second", 1, 1),
    ):  # fmt: skip
        both = [measured[key][who] for who in ("original", "exported")]
        numbers = [scale * (one[0] if isinstance(one, list) else one) for one in both]
        rows.append(f"{title:<24}{numbers[0]:>16.{digits}f}{numbers[1]:>16.{digits}f}")
    change, low, high = (100 * one for one in measured["score_difference"])
    rows.append(
        f"{measured['num_texts']:,} texts ({measured['source']}): {100 * measured['agreement']:.2f} % of the answers "
        f"are the same; {change:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}); logits differ by at most "
        f"{measured['max_logit_difference']:.1e}; {measured['num_threads']} threads"
    )
    return "\n".join(rows)
