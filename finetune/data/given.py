"""Data in the forms that Python has it in: brought to files, so that every way in reads it by one way.

A file has a name by its content, lies in the cache of `datasets`, and can be read by other processes: those of several
GPUs, of a comparison, and of the same call after it was cut off.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from finetune.errors import FinetuneError

if TYPE_CHECKING:
    import pandas
    from datasets import Dataset, DatasetDict

__all__ = ["Data", "Rows", "Texts", "name_data"]

Rows: TypeAlias = "pandas.DataFrame | Dataset | Sequence[Mapping[str, Any]] | tuple[Sequence[Any], Sequence[Any]]"
Data: TypeAlias = "Rows | DatasetDict | str | Path"
Texts: TypeAlias = "Sequence[str] | pandas.DataFrame | Dataset | str | Path"

SPLITS = ("train", "validation", "test")


def name_data(
    data: Data,
    validation: Rows | str | Path | None = None,
    test: Rows | str | Path | None = None,
    unlabeled: Texts | None = None,
) -> dict[str, str]:
    """Name the files or the data set that hold what was given, as settings.

    Args:
        data: A DataFrame, a `Dataset`, a list of dictionaries, `(texts, labels)`; a `DatasetDict` with the split
            `train` and perhaps `validation` and `test`; the path of a file or folder; "embedded", or a name on the Hub.
        validation: Rows to choose the best model by; carved from `data` if None.
        test: Rows to measure the model on, once; carved from `data` if None.
        unlabeled: Texts without labels: a list of them, a DataFrame or `Dataset` with a column of them, a path.

    Returns:
        `train_file`, `validation_file` and `test_file`, or `dataset_name`; and `unlabeled_file`.

    Raises:
        FinetuneError: If it is none of these, or a split is given twice.
    """
    beside: dict[str, Any] = {
        name: rows
        for name, rows in (("validation", validation), ("test", test), ("unlabeled", unlabeled))
        if rows is not None
    }
    if isinstance(unlabeled, Sequence) and not isinstance(unlabeled, str):
        wrong = next((text for text in unlabeled if not isinstance(text, str)), None)
        if wrong is not None:
            raise FinetuneError(f"Expected texts among the unlabelled ones, but found a {type(wrong).__name__}.")
        beside["unlabeled"] = [{"text": text} for text in unlabeled]
    if isinstance(data, Mapping):
        if "train" not in data:
            raise FinetuneError(f"There is no split 'train' in the data (found {', '.join(map(repr, data))}).")
        twice = [name for name in beside if name in data]
        if twice:
            raise FinetuneError(f"The split {twice[0]!r} is in the data, and given beside it. Leave one of them out.")
        beside = {**{name: rows for name, rows in data.items() if name in SPLITS}, **beside}
    elif isinstance(data, str | Path) and not Path(data).exists() and not _looks_like_a_file(str(data)):
        return {"dataset_name": str(data), **{f"{name}_file": _write(rows) for name, rows in beside.items()}}
    else:
        beside = {"train": data, **beside}
    return {f"{name}_file": _write(rows) for name, rows in beside.items()}


def _looks_like_a_file(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix != ""


def _write(rows: Any) -> str:
    """Write rows as Parquet under a name by their content, and return its path; that of a file stays what it is."""
    if isinstance(rows, str | Path):
        return str(Path(rows).expanduser())
    import datasets
    import pandas
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "finetune"
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{uuid.uuid4().hex}.partial"
    try:
        if isinstance(rows, datasets.Dataset):
            rows.to_parquet(str(aside))
        else:
            try:
                pq.write_table(_to_table(rows, pandas, pa), aside)
            except FinetuneError:
                raise
            except (pa.ArrowException, TypeError, ValueError) as error:
                reason = " ".join(str(part) for part in error.args).partition("\n")[0].rstrip(".")
                raise FinetuneError(f"The rows have values that fit into no column: {reason}.") from error
        with aside.open("rb") as file:
            target = folder / f"given-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.parquet"
        aside.rename(target)
    finally:
        aside.unlink(missing_ok=True)
    return str(target)


def _to_table(rows: Any, pandas: Any, pa: Any) -> Any:
    if isinstance(rows, pandas.DataFrame):
        if not all(isinstance(name, str) for name in rows.columns):
            raise FinetuneError(f"The columns of a DataFrame need names, but they are {list(rows.columns)[:5]}.")
        twice = rows.columns[rows.columns.duplicated()]
        if len(twice):
            raise FinetuneError(f"Expected each column of a DataFrame once, but {twice[0]!r} is there again. Drop one.")
        categories = [name for name in rows.columns if isinstance(rows[name].dtype, pandas.CategoricalDtype)]
        return pa.Table.from_pandas(rows.astype(dict.fromkeys(categories, object)), preserve_index=False)
    if isinstance(rows, tuple) and len(rows) == 2:
        texts, labels = (list(part) for part in rows)
        if len(texts) != len(labels):
            raise FinetuneError(
                f"There are {len(texts):,} texts and {len(labels):,} labels. Give a label for each text."
            )
        return pa.table({"text": texts, "label": labels})
    if isinstance(rows, Sequence) and not isinstance(rows, str) and all(isinstance(row, Mapping) for row in rows):
        return pa.Table.from_pylist([dict(row) for row in rows])
    raise FinetuneError(
        f"A {type(rows).__name__} is no data that can be read. Give a DataFrame, a Dataset, a list of dictionaries, "
        "(texts, labels), or a path."
    )
