"""Write a model so that it reloads."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data.cutting import TextConfig
from finetune.decisions.saved import copy_rules
from finetune.errors import FinetuneError, failures_explained
from finetune.examination.checksums import write_checksums
from finetune.family import Family
from finetune.files import is_disk_full, write_folder_aside, write_json
from finetune.lookup import name_of
from finetune.models.finetune_config import FINETUNE_CONFIG_FILE, FinetuneConfig

__all__ = ["write_model", "write_thresholds"]


def write_model(
    folder: Path,
    family: Family,
    model: Any,
    tokenizer: Any,
    text_config: TextConfig | None = None,
    thresholds: Sequence[float] | None = None,
    weights: dict[str, Any] | None = None,
    is_paired: bool | None = None,
    encoding: str | None = None,
    is_numbered: bool | None = None,
    rules_from: Path | None = None,
    replaces: bool = False,
) -> None:
    """Write a model, its tokenizer and its label names aside and rename the folder, so that it is always whole.

    `finetune_config.json` beside them holds what transformers' own files don't: the family that reads them, how texts
    are cut, whether they come in pairs, how their bytes were read, and the kind of task; `checksums.json` by what they
    are known to be unchanged. `weights` are the whole ones of a model that is divided over processes. `rules_from` is a
    folder whose rules for answers hold for this model too.
    With `replaces` it takes the place of an earlier model of the same run.

    Raises:
        FileExistsError: If it does not replace what has the folder's name.
        FinetuneError: If the disk is full.
    """
    try:
        with write_folder_aside(folder, replaces) as aside:
            family.save(model, tokenizer, aside, weights)
            config = FinetuneConfig(
                family.task_of(model).problem_type,
                text_config,
                None if thresholds is None else list(thresholds),
                family.is_four_bit(model),
                is_paired,
                encoding,
                is_numbered,
                name_of(family),
            )
            write_json(aside / FINETUNE_CONFIG_FILE, config.to_dict())
            if rules_from is not None:
                copy_rules(rules_from, aside)
            write_checksums(aside)
            mode = (aside / FINETUNE_CONFIG_FILE).stat().st_mode
            for file in filter(Path.is_file, aside.rglob("*")):
                file.chmod(mode)  # safetensors lets nobody but their owner read its files, whatever the umask says
    except Exception as error:
        if not is_disk_full(error):
            with failures_explained(folder):
                raise
        free = shutil.disk_usage(folder.parent).free
        raise FinetuneError(
            f"Expected {family.count_bytes(model):,} bytes free for the model in {str(folder)!r}, but found {free:,}. "
            "Make room, and start the same command again."
        ) from error


def write_thresholds(folder: Path, thresholds: Sequence[float]) -> None:
    """Add the probabilities from which on labels are predicted to a saved model, whose checksums are then old."""
    content = json.loads((folder / FINETUNE_CONFIG_FILE).read_text(encoding="utf-8"))
    write_json(folder / FINETUNE_CONFIG_FILE, {**content, "thresholds": list(thresholds)})
