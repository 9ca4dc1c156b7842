"""Files that are not read, told by their first bytes or their ending, each with the way to get to one that is."""

import zipfile
from pathlib import Path

from finetune.errors import FinetuneError

__all__ = ["refuse_other_formats"]

CONVERT = "Convert it with pandas: pandas.{reader}({name!r}).to_csv('{stem}.csv', index=False)."
# First bytes: what the file is, and how to get to one that can be read.
SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"SQLite format 3\0", "a SQLite data base",
     "Save a table of it: sqlite3 -header -csv {name!r} 'select * from TABLE' > {stem}.csv."),
    (b"%PDF-", "a PDF document", "Save its texts with their labels as .csv or .jsonl, for example with pdftotext."),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file (.xls, .doc)",
     "Open it and save the table as .xlsx or .csv."),
    (b"{\\rtf", "a document in RTF", "Save its texts with their labels as .csv or .jsonl."),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it, and pass a file of it."),
    (b"Rar!\x1a\x07", "a RAR archive", "Unpack it, and pass a file of it."),
    (b"\xfd7zXZ\0", "compressed with xz", "Unpack it with: xz -d {name!r}; .gz and .zst are read as they are."),
    (b"BZh91AY&SY", "compressed with bzip2", "Unpack it with: bunzip2 {name!r}; .gz and .zst are read as they are."),
    (b"ARROW1\0\0", "an Arrow or Feather file", CONVERT.replace("{reader}", "read_feather")),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", CONVERT.replace("{reader}", "read_hdf")),
    (b"\x93NUMPY", "an array of NumPy", "Save the texts with their labels as .csv or .jsonl."),
    (b"Obj\x01", "an Avro file", "Save its rows as .jsonl or .parquet."),
    (b"<!DOCTYPE html", "a web page", "Download the data itself, not the page that shows it."),
    (b"<!doctype html", "a web page", "Download the data itself, not the page that shows it."),
    (b"<html", "a web page", "Download the data itself, not the page that shows it."),
    (b"<?xml", "XML", CONVERT.replace("{reader}", "read_xml")),
    (b"@relation", "an ARFF file of Weka", "Save it there as .csv."),
    (b"@RELATION", "an ARFF file of Weka", "Save it there as .csv."),
    (b"version https://git-lfs.github.com", "a pointer of Git LFS, and not the data",
     "Fetch the file itself with: git lfs pull."),
)  # fmt: skip
PICKLES = tuple(bytes([0x80, version]) for version in range(2, 6))
PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")
LEAD_BYTES = 512


def refuse_other_formats(path: Path, ending: str, lead: bytes) -> None:
    """Refuse a file of another format with the way to get to one that is read.

    Args:
        path: The file.
        ending: Its ending, without that of a compression.
        lead: Its first bytes, unpacked.

    Raises:
        FinetuneError: If it is one of those that are known.
    """
    reason = _find_format(path, ending, lead)
    if reason is not None:
        what, fix = reason
        fix = fix.replace("{name!r}", repr(path.name)).replace("{stem}", path.stem)
        raise FinetuneError(f"Expected a table or lines of text in {str(path)!r}, but it is {what}. {fix}")


def _find_format(path: Path, ending: str, lead: bytes) -> tuple[str, str] | None:
    for signature, what, fix in SIGNATURES:
        if lead.startswith(signature):
            return what, fix
    if lead.startswith(PICKLES) and (ending in PICKLED or b"." not in lead[:2]):
        return "a pickle, which can run code when it is read", (
            "Where it came from, save the table as .parquet: frame.to_parquet('{stem}.parquet')."
        )
    if lead[257:262] == b"ustar":
        return "a tar archive", "Unpack it with: tar xf {name!r}, and pass a file or folder of it."
    if lead.startswith(b"PAR1") and ending != ".parquet":
        return "a Parquet file", "Rename it to {stem}.parquet."
    if lead.startswith(b"\x1f\x8b"):
        return "compressed with gzip", "Give it the ending .gz behind its own, as in {stem}.csv.gz."
    if lead.startswith(b"\x28\xb5\x2f\xfd"):
        return "compressed with zstd", "Give it the ending .zst behind its own, as in {stem}.csv.zst."
    if lead.startswith(b"PK\x03\x04") and ending not in (".xlsx", ".xlsm"):
        return _find_archive(path)
    if ending in PICKLED and not lead.isascii():
        return "what Python or torch saves, and can run code when it is read", "Save the table as .parquet or .csv."
    return None


def _find_archive(path: Path) -> tuple[str, str]:
    """Return what a zip archive is: office programs and torch write them too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        names = []
    if "xl/workbook.xml" in names:
        return "an Excel file", "Rename it to {stem}.xlsx."
    if "word/document.xml" in names:
        return "a Word document", "Save its texts with their labels as .xlsx or .csv."
    if "content.xml" in names:
        return "a file of LibreOffice", "Open it and save the table as .xlsx or .csv."
    if any(name.endswith("data.pkl") for name in names):
        return "what torch saves, and can run code when it is read", "Save the table as .parquet or .csv."
    return "a zip archive", "Unpack it with: unzip {name!r}, and pass a file or folder of it."
