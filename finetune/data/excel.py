"""Tables of Excel (.xlsx), read by openpyxl, which the extra `excel` installs."""

import datetime
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError

__all__ = ["read_sheet"]


def read_sheet(path: Path) -> tuple[list[str], Iterator[tuple[dict[str, Any], int]]]:
    """Read the one sheet of a workbook that has rows: a header, then a row each, blank ones left out.

    Returns:
        The names of the columns, and each row's values by column with its number in the sheet.

    Raises:
        FinetuneError: If openpyxl is missing, it is no workbook, or several sheets have rows.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise FinetuneError(
            f"Expected openpyxl to read {str(path)!r}, but it is not installed. Install it: pip install -c "
            "constraints.txt -e '.[excel]', or save the sheet as .csv."
        )
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        filled = [
            sheet for sheet in book.worksheets if any(_is_filled(row) for row in sheet.iter_rows(values_only=True))
        ]
    except Exception as error:  # of zip, XML and openpyxl itself, which have no common class
        raise FinetuneError(
            f"Expected a workbook of Excel in {str(path)!r}, but got: {type(error).__name__}. Save it again as "
            ".xlsx, or as .csv."
        ) from error
    if len(filled) > 1:
        raise FinetuneError(
            f"Expected one sheet with rows in {str(path)!r}, but found {[sheet.title for sheet in filled][:5]}. Save "
            "the one with the examples as .csv or in a file of its own."
        )
    if not filled:
        return [], iter(())
    numbered = enumerate(filled[0].iter_rows(values_only=True), 1)
    head = next(row for _, row in numbered if _is_filled(row))
    places = [place for place, name in enumerate(head) if name is not None]
    is_indexed = head[0] is None  # as pandas writes its index
    columns = [str(head[place]).strip() for place in places]

    def rows() -> Iterator[tuple[dict[str, Any], int]]:
        for number, row in numbered:
            if not _is_filled(row):
                continue
            beyond = [value for place, value in enumerate(row) if place not in places and value is not None]
            if is_indexed and isinstance(row[0], int | float):
                beyond = beyond[1:]
            if beyond:
                raise FinetuneError(
                    f"Expected a name above every column of {str(path)!r}, but row {number} has "
                    f"{str(beyond[0])[:40]!r} in one without. Name the column, or remove it."
                )
            found = {
                name: row[place] if place < len(row) else None for name, place in zip(columns, places, strict=True)
            }
            yield {name: _plain(value) for name, value in found.items()}, number

    return columns, rows()


def _is_filled(row: tuple[Any, ...]) -> bool:
    return any(value is not None and str(value).strip() for value in row)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value
