"""Load the three splits from the embedded reviews, local files, or the Hub; carve the ones that are missing.

Every split leaves with the columns `id`, `text` and `label`; `text_pair` and `group` where they are named; without
`label` where it is withheld. Texts lie in the cache of `datasets` and are mapped, not held, in memory. What is not
here: looking for trouble in the data, which is `finetune.data_doctor`'s.
"""

import contextlib
import itertools
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, List, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase

from finetune.data.columns import Columns, choose_columns
from finetune.data.cutting import TextConfig
from finetune.data.embedded import load_embedded_reviews
from finetune.data.examples import iterate_examples, name_group, name_of, name_values, write_examples
from finetune.data.labels import Task, encode_labels, find_task, find_twins, is_hidden, is_number_name, name_classes
from finetune.data.read import Row, Table, detect_common_encoding, open_table
from finetune.data.split import carve_splits, check_classes, drop_duplicates, remove_leakage, sample_stratified
from finetune.data.stream import Shards, TokenizingRows
from finetune.data.vectors import name_bits, parse_bit
from finetune.errors import FinetuneError
from finetune.hub_client import find_commit
from finetune.settings.parts import DataArguments
from finetune.tasks import MULTI_LABEL, REGRESSION

__all__ = [
    "SPLITS",
    "GivenSplits",
    "Reading",
    "complete_splits",
    "load_given_splits",
    "load_splits",
    "open_stream",
    "read_examples",
]

SPLITS = ("train", "validation", "test")
# Rows carved when a split is missing: those of the embedded reviews leave 20,000 of their 24,904 texts for training.
EMBEDDED_SIZES = {"test": 2_500, "validation": 2_404}
CARVED_SHARE = 0.1
SAMPLED_ROWS = 10_000  # of a stream


@dataclass
class Reading:
    """How a split was read, for the person whose data it is.

    Attributes:
        where: The file or data set.
        columns: Which column is what, in words.
        layout: How its rows are written, such as "separated by commas".
        encoding: How its bytes were read as text; None where that does not matter.
        ignored: What of it is left out.
        twins: Spellings of label names that differ in nothing visible, and were taken for one.
        numbered: Numbers that stood for the names of classes, and these.
    """

    where: str
    columns: str
    layout: str = ""
    encoding: str | None = None
    ignored: tuple[str, ...] = ()
    twins: list[list[str]] = field(default_factory=list)
    numbered: dict[str, str] = field(default_factory=dict)


class GivenSplits(DatasetDict):
    """Splits as they were read, with what was understood of them.

    Attributes:
        task: What is to be predicted.
        readings: How each split was read.
    """

    task: Task
    readings: dict[str, Reading]

    @property
    def encoding(self) -> str | None:
        """What bytes that are no UTF-8 were read as, in all splits alike."""
        found = {reading.encoding for reading in self.readings.values()} - {None, "utf-8"}
        return found.pop() if len(found) == 1 else None


@dataclass
class _Source:
    """A split as it was read: its examples without labels, and these as they stood, classes by their names."""

    examples: Dataset
    labels: list[Any] | None
    label_names: list[str] | None  # in the order of the source's own class names
    where: str
    origin: str
    reading: Reading
    cache: Path | None = None  # where the examples of a file were written
    other_labels: tuple[Any, ...] = ()  # of rows that are not among the examples
    is_one_hot: bool = False
    bits: list[str] = field(default_factory=list)  # columns of 0 and 1, where no label was found


@contextlib.contextmanager
def _discarding(source: _Source) -> Iterator[None]:
    """Leave nothing of a file in the cache whose labels turn out to be bad."""
    try:
        yield
    except FinetuneError:
        if source.cache is not None:
            source.cache.unlink(missing_ok=True)
        raise


def load_splits(arguments: DataArguments) -> DatasetDict:
    """Load train, validation and test as `arguments` says: `load_given_splits`, then `complete_splits`."""
    return complete_splits(load_given_splits(arguments), arguments)


def complete_splits(given: DatasetDict, arguments: DataArguments) -> DatasetDict:
    """Carve the splits that are missing, and take samples.

    A missing split is carved from train, whose duplicate texts are dropped first; no split is borrowed for another.
    Splits that are given stay as they are, unless `remove_leakage` drops training rows whose text is in another.
    `max_train_samples` and `max_eval_samples` then take stratified samples.

    Returns:
        The splits `train`, `validation` and `test`; each one's `info.description` says where its rows come from.

    Raises:
        FinetuneError: If there are too few rows, or a split has a single class.
    """
    if arguments.remove_leakage:
        given = remove_leakage(given)
    missing = [split for split in ("test", "validation") if split not in given]
    if missing:
        train = drop_duplicates(given["train"])
        size = max(1, round(CARVED_SHARE * len(train)))
        sizes = EMBEDDED_SIZES if arguments.dataset_name == "embedded" else dict.fromkeys(missing, size)
        carved = carve_splits(train, {split: sizes[split] for split in missing}, arguments.split_seed)
        given = DatasetDict({**given, **carved})

    splits = DatasetDict()
    for split in SPLITS:
        most = arguments.max_train_samples if split == "train" else arguments.max_eval_samples
        rows = given[split]
        splits[split] = rows if most is None else sample_stratified(rows, most, arguments.split_seed)
    check_classes(splits)
    return splits


def load_given_splits(arguments: DataArguments) -> GivenSplits:
    """Load the splits that a source has, as they are, with their labels as numbers.

    Raises:
        FinetuneError: If a source can't be read, or labels don't fit.
    """
    if arguments.streaming and arguments.train_file is None:
        raise FinetuneError("Expected --train_file to be a folder of Parquet files with --streaming, but got none.")
    if arguments.dataset_name == "embedded":
        _refuse_flags_of_files(arguments)
        sources = {"train": _embedded_source()}
    elif arguments.dataset_name is not None:
        sources = _load_from_hub(arguments)
    else:
        sources = {}
    paths = {split: Path(path) for split in SPLITS if (path := getattr(arguments, f"{split}_file")) is not None}
    streamed = ["train"] if arguments.streaming else []
    fallback = None
    if len(paths) > 1 and arguments.encoding is None:
        fallback = detect_common_encoding([path for split, path in paths.items() if split not in streamed])
    for split, path in paths.items():
        sources[split] = _read_sample(path, arguments) if split in streamed else _read_file(path, arguments, fallback)
    _refuse_unequal_texts(sources)
    if arguments.encoding is not None and all(source.reading.encoding is None for source in sources.values()):
        warnings.warn("--encoding has no effect: none of the data is read from text", stacklevel=2)
    return _number_labels(sources, arguments)


def _refuse_flags_of_files(arguments: DataArguments) -> None:
    """Refuse flags that say how files are read where there are none beside the embedded reviews."""
    if arguments.validation_file is not None or arguments.test_file is not None:
        return
    own = {"text_column": "text", "label_column": "label"}
    parts = ("text", "text_pair", "label", "id", "group")
    names = [*(f"{part}_column" for part in parts), "label_columns", "label_delimiter", "encoding"]
    given = [f"--{name}" for name in names if getattr(arguments, name) not in (None, own.get(name))]
    if given:
        raise FinetuneError(
            f"Expected no {given[0]} with the embedded reviews, which are read as they are. Leave it out."
        )


def _refuse_unequal_texts(sources: dict[str, _Source]) -> None:
    """Refuse splits of pairs beside splits of single texts: a model reads the one or the other."""
    train = sources["train"]
    for source in sources.values():
        if ("text_pair" in source.examples.column_names) != ("text_pair" in train.examples.column_names):
            paired, single = (source, train) if "text_pair" in source.examples.column_names else (train, source)
            raise FinetuneError(
                f"Expected one or two texts a row alike in all splits, but found two in {paired.where} and one in "
                f"{single.where}. Name the columns alike, or pass --text_column and --text_pair_column."
            )


def open_stream(
    arguments: DataArguments, task: Task, tokenizer: PreTrainedTokenizerBase, config: TextConfig
) -> TokenizingRows:
    """Open the folder of shards that `train_file` names, to train on all its rows."""
    shards, columns, _ = _open_shards(Path(str(arguments.train_file)), arguments)
    return TokenizingRows(shards, columns, task, arguments.label_delimiter, tokenizer, config)


def read_examples(
    path: str, arguments: DataArguments | None = None, task: Task | None = None, fallback: str | None = None
) -> Dataset:
    """Read a local file of labelled texts, every value as it stands ("NA" and "007" stay text).

    Args:
        path: See `finetune.data.read.FORMATS`.
        arguments: Names of its columns, its encoding, its task; told from the file where they are None.
        task: The labels to number by, if it is known already.
        fallback: How to read bytes that are no UTF-8, as a model's training texts were; found out if None.

    Returns:
        Columns `id` (the file's name and row), `text` and `label`, whose names are the labels found, in natural order.

    Raises:
        FinetuneError: If the file can't be read, lacks a column, has no rows, or an empty label.
    """
    arguments = arguments or DataArguments()
    return _number_labels({"train": _read_file(Path(path), arguments, fallback)}, arguments, task)["train"]


def _number_labels(sources: dict[str, _Source], arguments: DataArguments, task: Task | None = None) -> GivenSplits:
    """Find the task by the training labels and number those of every split as train does."""
    train = sources["train"]
    with _discarding(train):
        if train.labels is None:
            raise FinetuneError(
                f"Expected labels in {train.where}, but found no column that holds them. "
                f"{_advise_on_labels(train.bits)}"
            )
        delimiter = arguments.label_delimiter
        labels = [*train.labels, *train.other_labels]
        if train.is_one_hot and (delimiter is not None or arguments.problem_type not in (None, MULTI_LABEL)):
            other = "--label_delimiter" if delimiter is not None else f"--problem_type {arguments.problem_type}"
            raise FinetuneError(f"Expected --label_columns without {other}: they hold several labels a text. Drop one.")
        if task is None and train.is_one_hot:
            task = Task(MULTI_LABEL, train.label_names or [])
        task = task or find_task(labels, train.label_names, arguments.problem_type, delimiter, train.where)
    splits = GivenSplits()
    for name, source in sources.items():
        hidden = source.labels is not None and "-1" not in task.label_names and is_hidden(source.labels)
        withheld = source.labels is None or (name == "test" and hidden)
        if withheld and name == "validation":
            raise FinetuneError(f"Expected labels in {source.where}, which models are chosen by. Pass --label_column.")
        split = source.examples
        if not withheld:
            assert source.labels is not None
            with _discarding(source):
                split = _add_labels(split, _as_numbers(source, task, arguments), task)
                _note_names(source, task, arguments)
        split.info.description = source.origin + (", labels withheld" if withheld else "")
        splits[name] = split
    given = GivenSplits({name: splits[name] for name in SPLITS if name in splits})
    given.task, given.readings = task, {name: sources[name].reading for name in given}
    return given


def _advise_on_labels(bits: list[str]) -> str:
    """Name the flag for labels that were not found, with the columns of 0 and 1 if there are some."""
    return f"Columns of 0 and 1 are read with --label_columns {','.join(bits)}." if bits else "Pass --label_column."


def _note_names(source: _Source, task: Task, arguments: DataArguments) -> None:
    """Note which spellings of labels were taken for one, and which numbers for names."""
    if task.problem_type == REGRESSION or source.labels is None:
        return
    known = [[name] for name in task.label_names]  # of which another split may have other spellings
    source.reading.twins = find_twins([*source.labels, *known], arguments.label_delimiter)
    found = {str(value) for value in source.labels if not isinstance(value, list)}
    if source.label_names is None and task.is_numbered and all(map(is_number_name, found)):
        names = task.label_names
        if not any(map(is_number_name, names)):
            source.reading.numbered = {name: names[int(float(name))] for name in sorted(found, key=float)}


def _as_numbers(source: _Source, task: Task, arguments: DataArguments) -> list[Any]:
    """Number a split's labels; of a source with its own class names, those that are no such name are missing."""
    values: Any = source.labels
    if source.label_names is not None and not source.is_one_hot:
        names = set(source.label_names)
        found = itertools.chain.from_iterable(value if isinstance(value, list) else [value] for value in values)
        wrong = [value for value in found if not isinstance(value, str) or value not in names]
        if wrong:
            raise FinetuneError(
                f"Expected a label in every row of {source.where}, but found {wrong[0]!r}, which stands for a missing "
                "or hidden one. Remove these rows."
            )
    delimiter = None if source.is_one_hot else arguments.label_delimiter
    return encode_labels(values, task, delimiter, source.where)


def _add_labels(examples: Dataset, labels: list[Any], task: Task) -> Dataset:
    column = Dataset.from_dict({"label": labels}, features=datasets.Features({"label": task.feature}))
    return datasets.concatenate_datasets([examples, column], axis=1)


def _embedded_source() -> _Source:
    reviews = load_embedded_reviews()
    names = reviews.features["label"].names
    examples = reviews.remove_columns("label")
    labels = [name_classes(number, names) for number in reviews["label"][:]]
    reading = Reading("the embedded reviews", "text from column 'text', label from column 'label'")
    return _Source(examples, labels, names, "the embedded reviews", reviews.info.description, reading)


def _read_file(path: Path, arguments: DataArguments, fallback: str | None = None) -> _Source:
    """Read a file's rows into the cache, unless they are there."""
    where = repr(str(path))
    table = open_table(path, arguments.encoding, fallback)
    sample = list(itertools.islice(table.rows, 100))
    if not sample:
        raise FinetuneError(f"Expected rows of examples in {where}, but found none below its header.")
    columns = choose_columns(table, sample, vars(arguments), where)
    table = replace(table, rows=itertools.chain(sample, table.rows))
    cache = write_examples(path, table, columns, where)
    try:
        dataset = Dataset.from_file(str(cache))
    except (pa.ArrowInvalid, OSError):  # broken since it was written
        cache.unlink(missing_ok=True)
        dataset = Dataset.from_file(str(write_examples(path, table, columns, where)))
    labels, class_names = None, table.class_names.get(columns.label or "")
    if columns.label is not None or columns.labels:
        labels = [json.loads(value) for value in dataset["label"][:]]
        if class_names is not None:
            labels = [name_classes(value, class_names) for value in labels]
    where = _name_columns(columns, table.columns, where)
    origin = f"file {name_of(path)}, {columns}" + (f", read as {table.encoding}" if table.encoding else "")
    reading = Reading(f"file {name_of(path)}", str(columns), table.layout, table.encoding, table.ignored)
    examples = dataset.remove_columns("label")
    bits = _find_bits(sample, columns) if labels is None else []
    names = list(columns.labels or ()) or class_names
    return _Source(examples, labels, names, where, origin, reading, cache, is_one_hot=bool(columns.labels), bits=bits)


def _name_columns(columns: Columns, found: list[str], where: str) -> str:
    """Return, for messages, where labels stand."""
    if columns.labels:
        return f"columns {', '.join(map(repr, columns.labels))} of {where}"
    return f"columns {found} of {where}" if columns.label is None else f"column {columns.label!r} of {where}"


def _find_bits(sample: list[Row], columns: Columns) -> list[str]:
    """Find the columns that hold nothing but 0 and 1, if there are several."""
    used = {columns.text, columns.text_pair, columns.id, columns.group}
    names = [name for name in sample[0].values if name not in used]
    bits = [name for name in names if all(parse_bit(row.values.get(name)) is not None for row in sample)]
    return bits if len(bits) > 1 else []


def _open_shards(folder: Path, arguments: DataArguments) -> tuple[Shards, Columns, list[Row]]:
    shards = Shards(folder)
    sample = [Row(values, "") for values in shards.sample(100, shards.column_names)]
    table = Table(shards.column_names, iter(()), None, shards.class_names)
    return shards, choose_columns(table, sample, vars(arguments), repr(str(folder))), sample


def _read_sample(folder: Path, arguments: DataArguments) -> _Source:
    """Read rows from all over the shards: to examine them, to tell the task, to build a vocabulary from."""
    shards, columns, head = _open_shards(folder, arguments)
    where = repr(str(folder))
    if columns.labels:
        for name in columns.labels:
            shards.check_bits(name)
    elif columns.label is None:
        advice = _advise_on_labels(_find_bits(head, columns))
        raise FinetuneError(f"Expected labels in {where}, but found {shards.column_names}. {advice}")
    else:
        shards.check_labels(columns.label)
    rows = [
        Row(values, f"sampled row {number}")
        for number, values in enumerate(shards.sample(SAMPLED_ROWS, shards.column_names), 1)
    ]
    table = Table(shards.column_names, iter(rows), None, shards.class_names)
    examples = list(iterate_examples(table, columns, name_of(folder), where))
    labels = [json.loads(example.pop("label")) for example in examples]
    origin = (
        f"folder {name_of(folder)}, {columns}, streamed: {shards.num_rows:,} rows in {len(shards.paths)} files; "
        f"here a sample"
    )
    reading = Reading(f"folder {name_of(folder)}", str(columns), f"{len(shards.paths)} shards of Parquet")
    names = list(columns.labels or ()) or shards.class_names.get(columns.label or "")
    others: tuple[Any, ...] = ()
    if columns.label is not None:
        found = {str(one) for label in labels for one in (label if isinstance(label, list) else [label])}
        others = tuple(label for label in shards.distinct(columns.label) if str(label) not in found)
        if any(isinstance(label, list) for label in labels):
            others = tuple([label] for label in others)
    where = _name_columns(columns, shards.column_names, where)
    examples = Dataset.from_list(examples)
    return _Source(
        examples, labels, names, where, origin, reading, other_labels=others, is_one_hot=bool(columns.labels)
    )


def _load_from_hub(arguments: DataArguments) -> dict[str, _Source]:
    """Load a data set from the Hub at its commit, from the cache where the Hub can't be reached, or from a folder."""
    name = arguments.dataset_name
    assert name is not None
    commit = find_commit(name, arguments.dataset_revision, "dataset") if arguments.is_on_hub else None
    if Path(name).is_dir():
        _compare_shards(Path(name), arguments.label_column)
    try:
        loaded: Any = load_dataset(name, arguments.dataset_config_name, revision=commit)
    except (OSError, ValueError, RuntimeError, DatasetGenerationError) as error:
        reason = str(error).splitlines()[0]
        raise FinetuneError(
            f"Expected to load the data set {name!r} from the Hub, but got: {reason}. "
            "Use the embedded reviews (--dataset_name embedded) or your own --train_file."
        ) from error
    if commit is not None:
        _refuse_other_commit(loaded, name, commit)
    if "train" not in loaded:
        raise FinetuneError(f"Expected a split 'train' in {name!r}, but found {list(loaded)}.")
    return {split: _hub_source(loaded[split], name, split, arguments) for split in SPLITS if split in loaded}


def _refuse_other_commit(loaded: DatasetDict, name: str, commit: str) -> None:
    """Refuse another version: where the Hub can't be reached, `datasets` takes the latest that its cache has."""
    found = {Path(file["filename"]).parent.name for split in loaded.values() for file in split.cache_files}
    if found and found != {commit}:  # there are none where the libraries are told to hold data in memory
        raise FinetuneError(
            f"No copy of the data set {name!r} at commit {commit} is ready in the cache, whose latest is at "
            f"{', '.join(sorted(found))}. Pass that as --dataset_revision, or connect to the Hub."
        )


def _compare_shards(folder: Path, column: str | None) -> None:
    """Refuse shards of a local data set whose classes have other numbers: `datasets` would take the first one's."""
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        by_folder.setdefault(path.parent, []).append(path)
    for paths in by_folder.values():
        first: tuple[Path, dict[str, list[str]]] | None = None
        for path in paths:
            names = open_table(path).class_names
            first = first or (path, names)
            differing = [one for one in first[1] if names.get(one, first[1][one]) != first[1][one]]
            if differing and column in (None, *differing):
                raise FinetuneError(
                    f"Expected the class names {first[1][differing[0]][:20]} of column {differing[0]!r} in every file, "
                    f"as in {first[0].name}, but {path.name} has {names[differing[0]][:20]}. Pass the files by "
                    "--train_file and --test_file, or write them with the same names."
                )


def _flatten(dataset: Dataset, columns: Columns, where: str) -> Dataset:
    """Bring values within objects that were named with dots, such as data.text, to columns of their own."""
    parts = [columns.text, columns.text_pair, columns.label, columns.id, columns.group, *(columns.labels or ())]
    named = {name for name in parts if name is not None}
    if named <= set(dataset.column_names):
        return dataset
    flat = dataset.flatten()
    missing = sorted(named - set(flat.column_names))
    if missing:
        raise FinetuneError(
            f"Expected columns {missing} in {where}, but found {flat.column_names}. Of a list no single value can be "
            "named there: save the data as .jsonl, and pass it as --train_file."
        )
    return flat


def _hub_source(dataset: Dataset, name: str, split: str, arguments: DataArguments) -> _Source:
    """Bring a Hub split to the columns of an example."""
    where = f"split {split!r} of {name}"
    sample = [Row(values, "") for values in dataset.select(range(min(100, len(dataset)))).to_list()]
    columns = choose_columns(Table(dataset.column_names, iter(()), None, {}), sample, vars(arguments), where)
    dataset = _flatten(dataset, columns, where)
    labels, class_names = None, None
    if columns.labels:
        rows = dataset.select_columns(list(columns.labels)).to_list()
        named = {name: one.names for name in columns.labels if isinstance(one := dataset.features[name], ClassLabel)}
        labels = [
            name_bits(name_values(values, named), columns.labels, f"row {number}", where)
            for number, values in enumerate(rows, 1)
        ]
        where = _name_columns(columns, dataset.column_names, where)
    elif columns.label is not None:
        feature = dataset.features[columns.label]
        inner = feature.feature if isinstance(feature, List) else feature
        labels = dataset[columns.label][:]
        class_names = inner.names if isinstance(inner, ClassLabel) else None
        if class_names is not None:
            labels = [name_classes(value, class_names) for value in labels]
        where = f"column {columns.label!r} of {where}"
    parts = {part: getattr(columns, part) for part in ("text", "text_pair", "group", "id")}
    kept = {source: part for part, source in parts.items() if source is not None}
    for source, part in kept.items():
        if not isinstance(dataset.features[source], datasets.Value | ClassLabel):
            raise FinetuneError(
                f"Expected one value a row in column {source!r} of split {split!r} of {name}, but found "
                f"{dataset.features[source]}. Pass --{part}_column with another of {dataset.column_names}."
            )
    examples = dataset.select_columns(list(kept))
    examples = examples.rename_columns({source: part for source, part in kept.items() if source != part})
    for part in kept.values():
        examples = examples.cast_column(part, datasets.Value("string"))
    if "id" not in examples.column_names:
        ids = [f"{name}-{split}-{row}" for row in range(len(examples))]
        examples = examples.add_column("id", np.array(ids))  # type: ignore[arg-type]
    if "group" in examples.column_names:
        groups = examples["group"][:]
        filled = [name_group(group, id) for id, group in zip(examples["id"], groups, strict=True)]
        if filled != groups:
            examples = examples.remove_columns("group").add_column("group", filled)
    origin = f"{name}, split {split}, {columns}"
    label_names = list(columns.labels or ()) or class_names
    reading = Reading(f"{name}, split {split}", str(columns))
    return _Source(examples, labels, label_names, where, origin, reading, is_one_hot=bool(columns.labels))
