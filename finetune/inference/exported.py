"""Run what `finetune export` wrote, with onnxruntime and tokenizers alone: neither torch nor transformers is imported.

It reads texts as the model that was exported does: the same tokens, cut the same way, the same windows.
"""

import functools
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from tokenizers import Tokenizer

from finetune.data.cutting import TextConfig, cut_contents, group_equal, type_tokens
from finetune.decisions.saved import read_rules
from finetune.errors import FinetuneError, explain_shortage
from finetune.examination.folder import examine_export
from finetune.models.answers import TextClassifier
from finetune.models.finetune_config import read_finetune_config
from finetune.tasks import MULTI_LABEL, Task
from finetune.threads import compute_side_by_side, default_num_threads

__all__ = [
    "EXPORT_FILE",
    "INT8_FILE",
    "MODEL_FILE",
    "ExportedPredictor",
    "find_graph",
    "is_exported",
    "load_exported",
    "open_session",
    "pool_windows",
]

MODEL_FILE, INT8_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"  # where transformers.js looks for them
OLD_MODEL_FILE = "model.onnx"  # of finetune 0.1, without `attention_mask`
EXPORT_FILE = "export.json"  # transformers' manifest with our measurements in it, written last
MASK = "attention_mask"
MAX_TOKENS = 512  # computed at once: what the processor's caches hold


def is_exported(path: str | Path) -> bool:
    """Return whether a path is a folder that `finetune export` wrote."""
    return (Path(path) / EXPORT_FILE).is_file()


def find_graph(folder: Path) -> Path:
    """Return the model itself in an exported folder, also in one of finetune 0.1.

    Raises:
        FinetuneError: If it is not there.
    """
    for name in (MODEL_FILE, INT8_FILE, OLD_MODEL_FILE):
        if (folder / name).is_file():
            return folder / name
    raise FinetuneError(
        f"Expected {MODEL_FILE} or {INT8_FILE} in {str(folder)!r}, but there is neither. Export the model again."
    )


def load_exported(path: str | Path, num_threads: int | None = None) -> "ExportedPredictor":
    """Load an exported folder for prediction.

    Args:
        path: What `finetune export` wrote.
        num_threads: Threads; by default one for each physical core.

    Raises:
        FinetuneError: If onnxruntime is missing, or the folder can't be loaded.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise FinetuneError(
            f"Expected onnxruntime to run {str(path)!r}, but it is not installed. "
            "Install it: pip install -c constraints.txt -e '.[onnx]'"
        )
    try:
        return ExportedPredictor(Path(path), num_threads or default_num_threads())
    except FinetuneError:
        raise
    except Exception as error:  # onnxruntime and tokenizers raise errors of their own, without a common class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise explain_shortage(error) or FinetuneError(
            f"Expected a model that was exported to {str(path)!r}, but got: {reason} Export it again."
        ) from error


class ExportedPredictor(TextClassifier):
    """A model in ONNX that takes texts.

    Args:
        folder: What `finetune export` wrote.
        num_threads: Threads of onnxruntime.
    """

    def __init__(self, folder: Path, num_threads: int):
        examine_export(folder, find_graph(folder))
        config = read_finetune_config(folder)
        names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        self.task = Task(config.problem_type, [names[str(number)] for number in range(len(names))])
        self.text_config: TextConfig = config.text or TextConfig(512)
        self.follow(config, read_rules(folder, self.task, config.thresholds))
        self.tokenizer = _TextTokenizer(folder)
        self.folder, self.num_threads = folder, num_threads
        self.session = open_session(folder, num_threads)
        manifest = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
        # In 8 bits a batch of finetune 0.1 shares the scale of its activations: alone, a text's answer is the same.
        searches_scales = manifest.get("int8") and "num_scale_texts" not in manifest
        self.max_tokens = 1 if searches_scales else MAX_TOKENS
        self.input_names = [one.name for one in self.session.get_inputs()]

    @functools.cached_property
    def single_threaded_session(self) -> Any:
        """The model once more, for threads of our own that each compute a text."""
        return self.session if self.num_threads == 1 else open_session(self.folder, 1)

    def compute_logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda num_examples: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score texts; see `TextClassifier`."""
        self.check_pairs(pairs)
        columns, counts = self._encode(texts, pairs)
        lengths, pair_lengths = _count_tokens(columns)
        logits = np.zeros((len(lengths), len(self.task.label_names)), dtype=np.float32)
        groups = group_equal(lengths, self.max_tokens, pair_lengths)[::-1]  # longest first, so that no thread is late
        # A thread for each group beats all threads on one: products of a few hundred rows don't divide well.
        side_by_side = len(groups) >= self.num_threads
        session = self.single_threaded_session if side_by_side else self.session

        def compute(group: list[int]) -> None:
            logits[group] = session.run(["logits"], self._feed(columns, group))[0]

        results = compute_side_by_side(compute, groups, self.num_threads if side_by_side else 1)
        for group, _ in zip(groups, results, strict=True):
            on_batch(len(group))
        if self.text_config.truncation == "window" and pairs is None:
            logits = pool_windows(logits, counts, self.text_config.window_pooling, self.task.problem_type)
        if pair_lengths is not None:
            lengths = [sum(both) for both in zip(lengths, pair_lengths, strict=True)]
        owners = np.repeat(np.arange(len(counts)), counts)
        return logits, np.bincount(owners, weights=lengths, minlength=len(counts)).astype(np.int64)

    def feeds(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_tokens: int = MAX_TOKENS
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield what the model is given of texts, batch by batch, each of rows of one length."""
        columns, _ = self._encode(texts, pairs)
        lengths, pair_lengths = _count_tokens(columns)
        for group in group_equal(lengths, max_tokens, pair_lengths):
            yield self._feed(columns, group)

    def _encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None
    ) -> tuple[dict[str, list[list[int]]], list[int]]:
        """Return the rows of each input, and how many of them each text has."""
        apart = pairs is not None and "pair_input_ids" in self.input_names  # each text of a pair has tokens of its own
        rows, types, counts = self.tokenizer.encode(texts, None if apart else pairs, self.text_config)
        columns = {"input_ids": rows, "token_type_ids": types}
        if apart:
            assert pairs is not None
            others, other_types, _ = self.tokenizer.encode(pairs, None, self.text_config)
            columns |= {"pair_input_ids": others, "pair_token_type_ids": other_types}
        return columns, counts

    def _feed(self, columns: dict[str, list[list[int]]], group: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the inputs of rows of one length, of which none is padded."""
        feed = {name: np.array([columns[name][at] for at in group], np.int64)
                for name in self.input_names if not name.endswith(MASK)}  # fmt: skip
        masks = [name for name in self.input_names if name.endswith(MASK)]
        return feed | {name: np.ones_like(feed[name.replace(MASK, "input_ids")]) for name in masks}


def _count_tokens(columns: dict[str, list[list[int]]]) -> tuple[list[int], list[int] | None]:
    """Return the tokens of each row, and of its second text where that is read apart."""
    pairs = columns.get("pair_input_ids")
    return [len(row) for row in columns["input_ids"]], None if pairs is None else [len(row) for row in pairs]


def open_session(folder: Path, num_threads: int) -> Any:
    """Open the model of an exported folder with onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(find_graph(folder), options, providers=["CPUExecutionProvider"])


class _TextTokenizer:
    """The saved tokenizer, called as transformers would call it."""

    def __init__(self, folder: Path):
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        pad_token = settings["pad_token"]
        pad = self.tokenizer.token_to_id(pad_token["content"] if isinstance(pad_token, dict) else pad_token)
        assert pad is not None
        self.nothing = [pad]  # what stands for a text without any token
        self.cuts = settings.get("truncation_side", "right")
        self.tokenizer.no_padding()  # a tokenizer.json may ask for it, as that of all-MiniLM-L6-v2 does to 128
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = settings.get("split_special_tokens", False)
        sample = self.tokenizer.encode("a")
        ids, types, special = sample.ids, sample.type_ids, sample.special_tokens_mask
        first = special.index(0) if 0 in special else 0
        last = len(ids) - special[::-1].index(0) if 0 in special else 0
        self.prefix, self.suffix = ids[:first], ids[last:]
        self.types = types[:first], types[first] if 0 in special else 0, types[last:]

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, config: TextConfig
    ) -> tuple[list[list[int]], list[list[int]], list[int]]:
        """Return the tokens of every row, their types, and how many rows each text has."""
        if config.truncation == "head" or pairs is not None:
            self.tokenizer.enable_truncation(config.max_length, direction=self.cuts)
            whole: Any = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
            encoded = self.tokenizer.encode_batch(whole)
            self.tokenizer.no_truncation()
            rows = [one.ids or self.nothing for one in encoded]
            return rows, [one.type_ids or [0] for one in encoded], [1] * len(encoded)
        contents = [one.ids for one in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        if not self.prefix + self.suffix:
            contents = [content or self.nothing for content in contents]
        cut = cut_contents(contents, self.prefix, self.suffix, config)["input_ids"]
        windows = cut if config.truncation == "window" else [[row] for row in cut]
        rows = [row for several in windows for row in several]
        return rows, type_tokens(rows, *self.types), [len(several) for several in windows]


def pool_windows(logits: np.ndarray, counts: Sequence[int], how: str, problem_type: str) -> np.ndarray:
    """Combine the logits of windows to those of texts, as `finetune.models.logits.pool_windows` does in torch.

    Args:
        logits: `(windows, num_labels)`, the windows of a text one after the other.
        counts: Windows of each text, at least one.
        how: "mean", "max" or "vote".
        problem_type: transformers' name of the task.

    Returns:
        `(texts, num_labels)` in float32.
    """
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(int)
    if how == "max":
        return np.maximum.reduceat(logits, firsts)
    size = np.asarray(counts, dtype=np.float32)[:, None]
    mean = np.add.reduceat(logits, firsts) / size
    if how == "mean":
        return mean
    if problem_type == MULTI_LABEL:
        votes = np.add.reduceat((logits >= 0).astype(np.float32), firsts)
        shares = np.clip((votes + expit(mean)) / (size + 1), 1e-6, 1 - 1e-6)
        return np.log(shares / (1 - shares))
    chosen = logits.argmax(axis=1)[:, None] == np.arange(logits.shape[1])
    votes = np.add.reduceat(chosen.astype(np.float32), firsts)
    return np.log(np.maximum((votes + softmax(mean, axis=1)) / (size + 1), 1e-6))
