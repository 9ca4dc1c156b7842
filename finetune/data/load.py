"""Load the three splits from the embedded reviews, local files, or the Hub; carve the ones that are missing.

Every split leaves with the columns `id`, `text` and `label` (a `ClassLabel`). What is not here: looking for trouble in
the data beyond a split of one class.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from finetune.arguments import DataArguments
from finetune.data.embedded import load_embedded_reviews
from finetune.data.split import carve_splits, check_classes, drop_duplicates, sample_stratified
from finetune.errors import FinetuneError
from finetune.hub import reach_hub

__all__ = ["load_splits", "number_labels", "read_examples"]

# Rows carved when a split is missing: those of the embedded reviews leave 20,000 of their 24,904 texts for training.
EMBEDDED_SIZES = {"test": 2_500, "validation": 2_404}
CARVED_SHARE = 0.1


def load_splits(arguments: DataArguments) -> DatasetDict:
    """Load train, validation and test as `arguments` says.

    A missing split is carved from train, whose duplicate texts are dropped first; no split is borrowed for another.
    `max_train_samples` and `max_eval_samples` then take stratified samples.

    Returns:
        The splits `train`, `validation` and `test`; each one's `info.description` says where its rows come from.

    Raises:
        FinetuneError: If a source can't be read or a split has a single class.
    """
    if arguments.dataset_name == "embedded":
        given = DatasetDict(train=load_embedded_reviews())
    elif arguments.dataset_name is not None:
        given = _load_from_hub(arguments)
    else:
        given = DatasetDict()
    for split in ("train", "validation", "test"):
        path = getattr(arguments, f"{split}_file")
        if path is not None:
            given[split] = read_examples(path, arguments.text_column, arguments.label_column)
    given = _share_label_names(given)

    missing = [split for split in ("test", "validation") if split not in given]
    if missing:
        train = drop_duplicates(given["train"])
        size = max(1, round(CARVED_SHARE * len(train)))
        sizes = EMBEDDED_SIZES if arguments.dataset_name == "embedded" else dict.fromkeys(missing, size)
        carved = carve_splits(train, {split: sizes[split] for split in missing}, arguments.split_seed)
        given = DatasetDict({**given, **carved})

    splits = DatasetDict()
    for split in ("train", "validation", "test"):
        most = arguments.max_train_samples if split == "train" else arguments.max_eval_samples
        rows = given[split]
        splits[split] = rows if most is None else sample_stratified(rows, most, arguments.split_seed)
    check_classes(splits)
    return splits


def read_examples(path: str, text_column: str = "text", label_column: str = "label") -> Dataset:
    """Read a local file of labelled texts, every value as it stands ("NA" and "007" stay text).

    Args:
        path: A `.csv`, `.tsv`, `.jsonl`, `.json` (a list of objects) or `.parquet` file in UTF-8.
        text_column: The column of the texts.
        label_column: The column of the labels: names or numbers.

    Returns:
        Columns `id` (the file's name and row), `text` and `label`, whose names are the labels found, in natural order.

    Raises:
        FinetuneError: If the file can't be read, lacks a column, has no rows, or an empty label.
    """
    table = _read_table(Path(path))
    missing = [column for column in (text_column, label_column) if column not in table.columns]
    if missing:
        raise FinetuneError(
            f"Expected columns {[text_column, label_column]} in {path!r}, but found {list(table.columns)}. "
            "Pass --text_column and --label_column."
        )
    if table.empty:
        raise FinetuneError(f"Expected labelled rows in {path!r}, but found none below its header.")
    empty = table[[text_column, label_column]].isna().any(axis=1) | (table[label_column].astype(str) == "")
    if empty.any():
        row = int(np.flatnonzero(empty)[0]) + 1
        raise FinetuneError(
            f"Expected a text and a label in every row of {path!r}, but row {row} lacks one. Remove or complete it."
        )
    labels = [_label_name(value) for value in table[label_column]]
    names = sorted(set(labels), key=_natural_order)
    features = Features({"id": Value("string"), "text": Value("string"), "label": ClassLabel(names=names)})
    columns = {
        "id": [f"{Path(path).name}-{row}" for row in range(len(table))],
        "text": table[text_column].astype(str).tolist(),
        "label": labels,
    }
    dataset = Dataset.from_dict(columns, features=features)
    dataset.info.description = f"file {Path(path).name}"
    return dataset


def _read_table(path: Path) -> pd.DataFrame:
    """Read a file by its ending; text stays text."""
    try:
        match path.suffix.lower():
            case ".csv" | ".tsv":
                separator = "\t" if path.suffix.lower() == ".tsv" else ","
                with warnings.catch_warnings():
                    warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more fields than the header
                    return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, index_col=False)
            case ".jsonl" | ".json":
                return pd.read_json(path, lines=path.suffix.lower() == ".jsonl", dtype=False)
            case ".parquet":
                return pd.read_parquet(path)
    except FileNotFoundError:
        raise FinetuneError(f"Expected a file of labelled texts, but {str(path)!r} does not exist.") from None
    except pd.errors.ParserWarning:
        raise FinetuneError(
            f"Expected as many fields in each row of {str(path)!r} as in its header, but found a row with more. "
            "Put texts that contain the separator in double quotes."
        ) from None
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parser errors are ValueErrors
        raise FinetuneError(
            f"Expected {str(path)!r} to be a readable {path.suffix} file in UTF-8, but got: {error}. "
            "Check what is in it, or save it again."
        ) from error
    raise FinetuneError(f"Expected a .csv, .tsv, .jsonl, .json or .parquet file, but got {str(path)!r}.")


def _label_name(value: object) -> str:
    """Name a label as a person would: whole floats, which a column with a gap becomes, without '.0'."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    """Order "2" before "10": runs of digits compare as numbers."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def number_labels(found: Sequence[str], known: Sequence[str], where: str) -> list[int]:
    """Give the number in `known` of each label name in `found`; names that are numbers may stand for themselves.

    Raises:
        FinetuneError: If `found` has a label that is not known.
    """
    numbers = {name: number for number, name in enumerate(known)}
    if not numbers.keys() & set(found):
        numbers = {str(number): number for number in range(len(known))}
    unknown = [name for name in found if name not in numbers]
    if unknown:
        raise FinetuneError(
            f"Expected only the labels {list(known)} in {where}, but found {unknown} too. "
            "Rename or remove them, or pass the right --label_column."
        )
    return [numbers[name] for name in found]


def _share_label_names(splits: DatasetDict) -> DatasetDict:
    """Number the labels of every split as train does."""
    names = splits["train"].features["label"].names
    for name, split in splits.items():
        own = split.features["label"].names
        if own != names:
            numbers = number_labels(own, names, f"split {name!r}")
            labels = [numbers[label] for label in split["label"]]
            origin = split.info.description
            splits[name] = split.remove_columns("label").add_column("label", labels)
            splits[name] = splits[name].cast_column("label", ClassLabel(names=names))
            splits[name].info.description = origin
    return splits


def _load_from_hub(arguments: DataArguments) -> DatasetDict:
    """Load a data set from the Hub, or from its cache where the Hub can't be reached."""
    name = arguments.dataset_name
    assert name is not None
    offline = "Use the embedded reviews (--dataset_name embedded) or your own --train_file."
    reach_hub()
    try:
        loaded = load_dataset(name)
    except (OSError, ValueError, RuntimeError, DatasetGenerationError) as error:
        reason = str(error).splitlines()[0]
        raise FinetuneError(
            f"Expected to load the data set {name!r} from the Hub, but got: {reason}. {offline}"
        ) from error
    splits = DatasetDict()
    for split in ("train", "validation", "test"):
        if split in loaded:
            splits[split] = _to_examples(loaded[split], f"{name}-{split}", arguments)
            splits[split].info.description = f"{name}, split {split}"
    if "train" not in splits:
        raise FinetuneError(f"Expected a split 'train' in {name!r}, but found {list(loaded)}.")
    return splits


def _to_examples(dataset: Dataset, prefix: str, arguments: DataArguments) -> Dataset:
    """Bring a Hub split to the columns `id`, `text` and `label`."""
    text, label = arguments.text_column, arguments.label_column
    if text not in dataset.column_names or label not in dataset.column_names:
        raise FinetuneError(
            f"Expected columns {[text, label]} in {prefix!r}, but found {dataset.column_names}. "
            "Pass --text_column and --label_column."
        )
    if not isinstance(dataset.features[label], ClassLabel):
        names = sorted({_label_name(value) for value in dataset[label]}, key=_natural_order)
        values = [_label_name(value) for value in dataset[label]]
        dataset = dataset.remove_columns(label).add_column(label, values).cast_column(label, ClassLabel(names=names))
    if None in dataset[text] or any(value in (None, -1) for value in dataset[label]):
        raise FinetuneError(
            f"Expected a text and a label in every row of {prefix!r}, but found rows without, or with the label -1, "
            "which stands for a hidden one. Pass files with all labels instead."
        )
    dataset = dataset.select_columns([text, label]).rename_columns(
        {old: new for old, new in ((text, "text"), (label, "label")) if old != new}
    )
    return dataset.add_column("id", [f"{prefix}-{row}" for row in range(len(dataset))])
