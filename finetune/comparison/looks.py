"""How often the same question was looked at: kept beside the runs, since every look is another chance to be wrong.

`looks.json` in the folder that holds the runs has one entry for each set of runs that a verdict was made of. The same
runs again are the same look, so a report can be made anew as often as one likes.
"""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.comparison.runs import StoredRun
from finetune.errors import FinetuneError
from finetune.files import read_json, write_aside

__all__ = ["LOOKS_FILE", "note_look"]

LOOKS_FILE = "looks.json"
# Runs further below a folder than this are not one experiment that somebody keeps there.
MOST_LEVELS = 3


def note_look(runs: Sequence[StoredRun]) -> tuple[int, str | None]:
    """Count the look at these runs, and keep it for the next one.

    Looks are of one question: what to fit to these training rows. Other seeds, methods or settings, or other test
    examples make another look.

    Args:
        runs: That a verdict is made of, on the same splits.

    Returns:
        The how manieth look it is, from 1, and a warning if it can't be kept.

    Raises:
        FinetuneError: If what is kept can't be read.
    """
    folder = _find_folder(runs)
    if folder is None:
        return 1, "The runs lie in folders far apart, so how often they were looked at is not kept."
    seen = sorted(run.record.id or str(run.directory.resolve()) for run in runs)
    splits = runs[0].record.data.splits
    path = folder / LOOKS_FILE
    looks = _read(path)
    earlier = [look for look in looks if look.get("train_sha256") == splits.train.sha256]
    for number, look in enumerate(earlier, start=1):
        if (look.get("runs"), look.get("test_sha256")) == (seen, splits.test.sha256):
            return number, None
    seeds = defaultdict(list)
    for run in runs:
        seeds[run.method].append(run.seed)
    looks.append(
        {
            "train_sha256": splits.train.sha256,
            "test_sha256": splits.test.sha256,
            "runs": seen,
            "seeds": {method: sorted(numbers) for method, numbers in seeds.items()},
            "test_examples": len(runs[0].test.labels),
            "first_seen": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    try:
        with write_aside(path) as aside:
            aside.write_text(json.dumps(looks, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        return len(earlier) + 1, f"{str(path)!r} can't be written, so this look is not kept: {error.strerror}."
    return len(earlier) + 1, None


def _find_folder(runs: Sequence[StoredRun]) -> Path | None:
    """Return the folder that holds all runs, unless they lie far below it."""
    parents = [run.directory.resolve().parent for run in runs]
    folder = Path(os.path.commonpath(parents))
    levels = max(len(parent.parts) for parent in parents) - len(folder.parts)
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  `Path.home` raises where there is none
    return folder if levels < MOST_LEVELS and folder != home and len(folder.parts) > 1 else None


def _read(path: Path) -> list[dict[str, Any]]:
    looks = read_json(path) if os.path.lexists(path) else []
    if not isinstance(looks, list) or not all(isinstance(look, dict) and "train_sha256" in look for look in looks):
        raise FinetuneError(
            f"Expected earlier looks at these runs in {str(path)!r}, but it can't be read. Restore it, or move it away "
            "to count from one."
        )
    return looks
