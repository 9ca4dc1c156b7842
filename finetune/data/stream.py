"""Training texts that stay on disk: a folder of Parquet shards, read through once an epoch, in an order of its own.

An epoch opens `OPEN_GROUPS` row groups at a time, drawn at random from all shards, and takes `CHUNK` rows from each in
turn. The rows of a window of steps are then shuffled, ordered by length and cut into steps as those of a data set in
memory are. The order is a function of seed and epoch alone: there is no buffer to save with a checkpoint, a resumed run
reads past the rows that it has seen, and each process reads all rows but tokenizes only its own.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, List
from transformers import PreTrainedTokenizerBase

from finetune.data.batch import StepSampler
from finetune.data.columns import Columns
from finetune.data.cutting import TextConfig
from finetune.data.labels import Task, encode_labels, label_matrix, name_classes
from finetune.data.nested import get_value
from finetune.data.tokens import encode_texts
from finetune.data.vectors import name_bits, parse_bit
from finetune.errors import FinetuneError

__all__ = ["Shards", "StreamedStepSampler", "TokenizingRows"]

OPEN_GROUPS = 16
CHUNK = 50
LARGE_GROUP = 5_000  # rows; of fewer, a window of steps holds a good part
NAMED_CHARACTERS = 60
Chunk = tuple[int, int, int]  # number of a row group, its first row, the row after its last


class Shards:
    """The rows of a folder of Parquet files, in any order of their row groups.

    Args:
        folder: Holds `*.parquet`, all with the same columns.

    Raises:
        FinetuneError: If there are none, one can't be read, or their columns differ.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths = sorted(folder.glob("*.parquet"))
        if not self.paths:
            raise FinetuneError(f"Expected Parquet files (*.parquet) in the folder {str(folder)!r}, but found none.")
        self.groups: list[tuple[Path, int]] = []
        self.sizes: list[int] = []
        schemas = []
        self.shard_names: dict[Path, dict[str, list[str]]] = {}
        for path in self.paths:
            try:
                with pq.ParquetFile(path) as file:
                    schemas.append(file.schema_arrow)
                    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            except (OSError, ValueError) as error:
                raise FinetuneError(f"Expected a Parquet file, but {str(path)!r} can't be read: {error}") from error
            if schemas[-1].names != schemas[0].names:
                raise FinetuneError(
                    f"Expected the columns {schemas[0].names} in every shard, but {path.name} has {schemas[-1].names}."
                )
            self.shard_names[path] = _read_class_names(schemas[-1])
            self.groups += [(path, number) for number, size in enumerate(groups) if size]
            self.sizes += [size for size in groups if size]
        self.column_names: list[str] = schemas[0].names
        self.num_rows = sum(self.sizes)
        self.class_names = self.shard_names[self.paths[0]]
        self.types = {path: schema.types for path, schema in zip(self.paths, schemas, strict=True)}

    def check_labels(self, column: str) -> None:
        """Refuse shards whose labels can't be joined: other class names, none at all, or another type.

        Raises:
            FinetuneError: Naming the shard.
        """
        place, first = self.column_names.index(self.outer(column)), self.paths[0]
        names = self.class_names.get(column)
        for path in self.paths:
            found = self.shard_names[path].get(column)
            if (found is None) != (names is None) or sorted(found or []) != sorted(names or []):
                raise FinetuneError(
                    f"Expected the class names {(names or [])[:20]} of column {column!r} in every shard, as in "
                    f"{first.name}, but {path.name} has {(found or [])[:20]}. Write all shards with the same names."
                )
            if names is None and _kind(self.types[path][place]) != _kind(self.types[first][place]):
                raise FinetuneError(
                    f"Expected labels of one type in every shard, {self.types[first][place]} as in {first.name}, but "
                    f"{path.name} has {self.types[path][place]}. Write all shards alike."
                )

    def check_bits(self, column: str) -> None:
        """Refuse a column of `--label_columns` that holds anything else than 0 and 1.

        Raises:
            FinetuneError: Naming the column and the value.
        """
        wrong = [value for value in self.distinct(column) if parse_bit(value) is None]
        if wrong:
            raise FinetuneError(
                f"Expected 0 or 1 in each of --label_columns in {str(self.folder)!r}, but column {column!r} has "
                f"{str(wrong[0])[:80]!r}. Name the columns of labels alone, or mend the rows."
            )

    def outer(self, name: str) -> str:
        """Return the column that holds what a name with dots stands for, such as `data` for data.text."""
        return name if name in self.column_names else name.split(".")[0]

    def warn_of_large_groups(self) -> None:
        """Warn if a row group holds so many of the rows that they are hardly mixed with others."""
        largest = max(self.sizes)
        if largest > LARGE_GROUP and largest > self.num_rows / OPEN_GROUPS:
            warnings.warn(
                f"a row group of {str(self.folder)!r} has {largest:,} of its {self.num_rows:,} rows, which are read in "
                "their order: unless they are shuffled already, write the files with smaller row groups",
                stacklevel=2,
            )

    def order(self, generator: np.random.Generator) -> list[Chunk]:
        """Draw an order of all rows, as chunks: row groups at random, several of them in turn."""
        waiting = iter(generator.permutation(len(self.groups)).tolist())
        turns = [(group, 0) for group in islice(waiting, OPEN_GROUPS)]
        chunks = []
        while turns:
            group, start = turns.pop(0)
            stop = min(start + CHUNK, self.sizes[group])
            chunks.append((group, start, stop))
            if stop < self.sizes[group]:
                turns.append((group, stop))
            elif (following := next(waiting, None)) is not None:
                turns.append((following, 0))
        return chunks

    def read(self, chunks: Sequence[Chunk], columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """Read the rows of each chunk; the chunks of one row group come in their order."""
        files: dict[int, pq.ParquetFile] = {}
        readers: dict[int, Iterator[Any]] = {}
        for group, start, stop in chunks:
            if group not in readers:
                path, number = self.groups[group]
                files[group] = pq.ParquetFile(path, memory_map=True)
                batches = files[group].iter_batches(CHUNK, row_groups=[number], columns=list(columns))
                readers[group] = islice(batches, start // CHUNK, None)
            yield self._name_classes(self.groups[group][0], next(readers[group]).to_pylist())
            if stop == self.sizes[group]:
                del readers[group]
                files.pop(group).close()

    def _name_classes(self, path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Put the names of classes in the place of their numbers, which are a shard's own."""
        for column, names in self.shard_names[path].items():
            for row in rows:
                if column in row:
                    row[column] = name_classes(row[column], names)
        return rows

    def sample(self, size: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Read about `size` rows, chunks evenly spread over all shards, in the order in which they lie."""
        chunks = [
            (group, start, min(start + CHUNK, rows))
            for group, rows in enumerate(self.sizes)
            for start in range(0, rows, CHUNK)
        ]
        count = min(len(chunks), max(1, size // CHUNK))
        chosen = np.linspace(0, len(chunks) - 1, count).round().astype(int)
        rows = []
        for position in chosen:
            rows += next(self.read([chunks[position]], columns))
        return rows

    def distinct(self, column: str) -> list[Any]:
        """Read the values that a column of labels holds, each once; of lists, the values within them."""
        found: dict[Any, None] = {}
        for path in self.paths:
            with pq.ParquetFile(path, memory_map=True) as file:
                for batch in file.iter_batches(65_536, columns=[self.outer(column)]):
                    values = batch.column(0)
                    if column not in self.column_names:
                        values = pa.array([get_value(row, column) for row in batch.to_pylist()])
                    if "list" in str(values.type):
                        values = values.flatten()
                    names = self.shard_names[path].get(column)
                    distinct = values.unique().to_pylist()
                    found.update(dict.fromkeys(distinct if names is None else name_classes(distinct, names)))
        return list(found)


def _read_class_names(schema: Any) -> dict[str, list[str]]:
    """Read the names of classes by column, as `datasets` has noted them in a shard."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    features = Features.from_arrow_schema(schema)
    inner = {name: feature.feature if isinstance(feature, List) else feature for name, feature in features.items()}
    return {name: feature.names for name, feature in inner.items() if isinstance(feature, ClassLabel)}


def _kind(kind: Any) -> str:
    """Name a type without its width: labels of int32 and int64, or string and large_string, are the same."""
    return re.sub(r"large_|_view|\d+", "", str(kind)).replace("uint", "int").replace("double", "float")


def _to_text(value: Any) -> str:
    return "" if value is None or value != value else str(value)


class TokenizingRows:
    """Turns rows of the shards into examples when a batch asks for them; what a `DataLoader` takes for its data set.

    Args:
        shards: Where the rows lie.
        columns: Which of their columns hold texts and labels.
        task: The labels.
        delimiter: What separates several labels in one string.
        tokenizer: A fast tokenizer.
        config: How long texts are cut.
    """

    def __init__(
        self,
        shards: Shards,
        columns: Columns,
        task: Task,
        delimiter: str | None,
        tokenizer: PreTrainedTokenizerBase,
        config: TextConfig,
    ):
        self.shards = shards
        self.columns = columns
        self.task = task
        self.delimiter = delimiter
        self.tokenizer = tokenizer
        self.config = config

    def __len__(self) -> int:
        return self.shards.num_rows

    @property
    def names(self) -> list[str]:
        """The columns of the shards that are read."""
        used = [self.columns.text, self.columns.text_pair, self.columns.label, *(self.columns.labels or ())]
        return list(dict.fromkeys(self.shards.outer(name) for name in used if name is not None))

    def texts(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Return the texts of rows; a missing one is empty."""
        return [_to_text(get_value(row, self.columns.text)) for row in rows]

    def name(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """Return what a message calls rows, which have no number: the beginnings of their texts."""
        return [repr(text[:NAMED_CHARACTERS]) for text in self.texts(rows)]

    def __getitems__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Tokenize rows; see `encode_texts` for the columns."""
        pair, where = self.columns.text_pair, str(self.shards.folder)
        pairs = None if pair is None else [_to_text(get_value(row, pair)) for row in rows]
        encoded = encode_texts(self.texts(rows), self.tokenizer, self.config, pairs)
        if self.columns.labels:
            values: list[Any] = [name_bits(row, self.columns.labels, "a row", where) for row in rows]
        else:
            values = [get_value(row, str(self.columns.label)) for row in rows]
        numbers = encode_labels(values, self.task, self.delimiter, where)
        encoded["labels"] = list(label_matrix(numbers, self.task))
        return [dict(zip(encoded, example, strict=True)) for example in zip(*encoded.values(), strict=True)]


class StreamedStepSampler(StepSampler):
    """Read each optimizer step's rows from shards and give this process its share; see `StepSampler`.

    Yields the rows themselves, for `TokenizingRows`. Lengths are those of the texts in characters.
    """

    def __init__(self, rows: TokenizingRows, **settings: Any):
        super().__init__(len(rows), **settings)
        self.rows = rows

    def draw(self, generator: np.random.Generator, sizes: list[int]) -> Iterator[tuple[list[Any], np.ndarray]]:
        """Read each window's rows."""
        shards = self.rows.shards
        chunks = shards.read(shards.order(generator), self.rows.names)
        waiting: list[dict[str, Any]] = []
        for size in sizes:
            while len(waiting) < size:
                waiting += next(chunks)
            window, waiting = waiting[:size], waiting[size:]
            yield window, np.array([len(text) for text in self.rows.texts(window)])
