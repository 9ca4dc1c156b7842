"""`finetune report`: run directories to a page, Markdown, JSON, and a table on the terminal."""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.comparison.drawings import draw_report
from finetune.comparison.page import build_page
from finetune.comparison.reasons import Reasons
from finetune.comparison.report import Report, build_report, to_json
from finetune.comparison.text import describe_report, to_markdown
from finetune.errors import FinetuneError
from finetune.escape import say
from finetune.files import read_json, write_aside

__all__ = ["report_runs"]

FILES = ("report.html", "report.md", "report.json")


def report_runs(
    paths: Sequence[str],
    output_dir: str,
    metric: str | None = None,
    margin: float = 1.0,
    cost: str | None = None,
    explain: Callable[[Report], Reasons] | None = None,
) -> None:
    """Write `report.html`, `report.md`, `report.json` and `figures/` into a folder; print the verdict and the table.

    Files of an earlier report there are replaced; everything is worked out before the first is written.

    Args:
        paths: Run directories, or folders that contain them.
        output_dir: The folder; it is made if need be.
        metric: See `finetune.comparison.report.build_report`.
        margin: In points.
        cost: What the verdict calls cheap; see `build_report`.
        explain: Finds out why methods answer as they do, with their models; None for a report without it.

    Raises:
        FinetuneError: If there is nothing to report, or the folder is not one, or holds files of others.
    """
    folder = Path(output_dir)
    earlier = _list_earlier(folder)
    report = build_report(paths, metric, margin, cost)
    if explain is not None:
        report = replace(report, reasons=explain(report))
    drawings = draw_report(report)
    contents = {  # by the first and the second a later report tells what is of this one
        "report.json": json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": to_markdown(report, drawings),
        "report.html": build_page(report, drawings),
    }
    for line in report.left_out:
        say(f"left out: {line}")
    for line in report.warnings:
        say(f"warning: {line}")
    for line in [] if report.reasons is None else report.reasons.missing:
        say(f"not explained: {line}")
    print(describe_report(report))

    contents |= {f"figures/{drawing.name}.svg": drawing.svg for drawing in drawings}
    try:
        _write(folder, contents, earlier)
    except OSError as error:
        raise FinetuneError(
            f"Expected to write into {output_dir!r}, but it failed: {error}. Pass another one."
        ) from None
    print(flush=True)
    say(f"written: {folder / 'report.html'} (opens in a browser), report.md, report.json, figures/", file=sys.stdout)


def _write(folder: Path, contents: Mapping[str, str], earlier: set[str]) -> None:
    """Write each file aside and rename it; figures of an earlier report that this one has not are removed."""
    for name in contents.keys() - earlier:
        if os.path.lexists(folder / name):
            raise _refuse_other_file(folder / name)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name in earlier - contents.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        with write_aside(folder / name, replaces=name in earlier) as aside:
            aside.write_bytes(content.encode("utf-8", "replace"))  # a lone surrogate in a label has no encoding


def _list_figures(folder: Path) -> set[str]:
    """List the figures that an earlier report names."""
    report = folder / "report.md"
    try:
        return set(re.findall(r"\]\((figures/[\w-]+\.svg)\)", report.read_text("utf-8"))) if report.is_file() else set()
    except (OSError, ValueError):
        return set()


def _list_earlier(folder: Path) -> set[str]:
    """List the files of an earlier report, which may be replaced; refuse those that no report has written."""
    if folder.exists() and not folder.is_dir():
        raise FinetuneError(f"Expected --output_dir to be a folder, but {str(folder)!r} is a file. Pass another one.")
    found = {name for name in FILES if os.path.lexists(folder / name)}
    earlier = read_json(folder / "report.json")
    if isinstance(earlier, dict) and {"finetune", "groups"} <= earlier.keys():
        return found | _list_figures(folder)
    if found:
        raise _refuse_other_file(folder / min(found))
    return set()


def _refuse_other_file(path: Path) -> FinetuneError:
    return FinetuneError(
        f"Expected --output_dir without files of others, but {str(path)!r} is from no report. Pass another folder."
    )
