"""The step of a run before its method: a pretrained model is trained on texts, and takes the model's place.

What comes of it lies in `encoder/` of the run directory, like any folder that `--model_name_or_path` names, and in the
cache of `datasets`, under a name that depends on the texts and all else that makes it, so that the other runs of a
comparison take it from there. What it has cost counts as if each had made it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
import transformers
from datasets import Dataset
from pydantic import ValidationError
from transformers import AutoModel

from finetune.accelerated import enable
from finetune.data.cutting import TextConfig
from finetune.data.tokenize import find_cache, tokenize_dataset
from finetune.errors import FinetuneError, failures_explained
from finetune.escape import say
from finetune.families.embeddings.vectors import read_beside
from finetune.files import is_disk_full, read_json, write_folder_aside, write_json
from finetune.hardware import cpu_seconds, peak_memory_bytes
from finetune.models.inputs import add_embeddings
from finetune.models.load import (
    fingerprint_model,
    load_pretrained_tokenizer,
    load_tokenizer,
    load_weights,
    loading,
    read_config,
)
from finetune.pretraining import loop, objectives
from finetune.pretraining.loop import train_on_texts
from finetune.pretraining.objectives import SEED, Objective, load_objective
from finetune.run.fields import Pretraining

if TYPE_CHECKING:
    from finetune.run.run import Run
    from finetune.settings.arguments import Arguments
    from finetune.settings.parts import ModelArguments

__all__ = ["list_texts", "make_encoder", "pretrain_encoder"]

# By which an encoder says how it is pooled; they stand beside its weights.
SIDECARS = ("modules.json", "1_Pooling/config.json")


def pretrain_encoder(run: Run, *sources: Dataset | None) -> None:
    """Train the model that a run starts from on texts, as `--pretrain_epochs` says, and let the run start from that.

    A run that was cut off while it pretrained starts over; one that goes on from a checkpoint keeps its encoder.

    Args:
        run: Its data has been recorded. Left as it is if no pretraining is asked for, or its method has no use for it.
        *sources: What has texts to train on: the training split, and the texts that have no labels, if there are any.
            Labels are not looked at.

    Raises:
        FinetuneError: If the model can't be trained so, or the disk is full.
    """
    arguments = run.arguments
    if not arguments.model.pretrain_epochs or "pretrain_epochs" in arguments.unused():
        return
    made = None
    if run.is_main:
        made = _find_or_make(
            run, list_texts(source for source in sources if source is not None), run.run_directory.encoder
        )
        say(f"pretraining: {made.task}: {made.losses} ({made.seconds:.0f} s)")
    run.record_pretraining(made)


def list_texts(sources: Iterable[Dataset]) -> list[str]:
    """List each text once, those of pairs too, and none that is blank.

    They are sorted, so that it makes no difference which rows of the same texts have labels.
    """
    columns = (source[name] for source in sources for name in ("text", "text_pair") if name in source.column_names)
    return sorted({text for column in columns for text in column if text and text.strip()})


def make_encoder(arguments: Arguments, text_config: TextConfig, texts: Sequence[str], folder: Path) -> Pretraining:
    """Train the model that the settings name on texts, and write what comes of it.

    Args:
        arguments: Which model, for how many epochs, in which number format.
        text_config: How texts are cut; every window of one is a text.
        texts: At least one.
        folder: Takes the place of what is there; a folder that `--model_name_or_path` takes.

    Returns:
        What was done.

    Raises:
        FinetuneError: If the model can't be trained so, or the disk is full.
    """
    wall, cpu = time.perf_counter(), cpu_seconds()
    tokenizer = load_tokenizer(arguments.model, text_config.max_length)
    examples = _spread_windows(tokenize_dataset(Dataset.from_dict({"text": list(texts)}), tokenizer, text_config))
    objective = load_objective(arguments.model, tokenizer, arguments.run.max_tokens_per_micro_batch or 0)
    _warn_of_lost_head(arguments.model)
    say(f"pretraining: {objective.what} on {len(texts):,} texts without labels")
    if arguments.run.accelerated:
        enable(objective.model)
    dtype = torch.bfloat16 if arguments.training.bf16 else torch.float32  # in fp16 gradients would have to be scaled
    epochs = float(arguments.model.pretrain_epochs)
    losses = train_on_texts(objective, examples, epochs, arguments.training.device, dtype)
    _put(folder, lambda aside: _write_encoder(objective, arguments.model, tokenizer, aside))
    tenth = max(1, len(losses) // 10)
    return Pretraining(
        objective=objective.what,
        paper=objective.paper,
        texts=len(texts),
        epochs=epochs,
        steps=len(losses),
        first_loss=statistics.fmean(losses[:tenth]),
        last_loss=statistics.fmean(losses[-tenth:]),
        encoder=fingerprint_model(str(folder)),
        seconds=time.perf_counter() - wall,
        cpu_seconds=cpu_seconds() - cpu,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _find_or_make(run: Run, texts: Sequence[str], folder: Path) -> Pretraining:
    """Return what is known of the encoder that stands in the folder of the run, then or already."""
    before = None if run.earlier is None else run.earlier.pretraining
    if before is not None and _is_whole(folder, before):
        return before  # settings and data may have changed since, the checkpoint is of this one
    if not texts:
        raise FinetuneError("Expected texts to pretrain on, but all are blank. Leave --pretrain_epochs out.")
    kept = _find_kept(run, texts)
    made = _read_kept(kept)
    if made is not None:
        _put(folder, lambda aside: _copy(kept, aside))
    else:
        made = make_encoder(run.arguments, run.text_config, texts, folder)
        _keep(folder, kept, made)
    if before is not None and made.encoder != before.encoder:
        raise FinetuneError(
            f"Expected the encoder in {str(folder)!r} that this run was started with, but it is gone, and another one "
            "comes of these settings and texts. Restore it, or pass --restart to start over."
        )
    return made


def _warn_of_lost_head(arguments: ModelArguments) -> None:
    config = read_config(arguments)
    if any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        warnings.warn(
            f"--pretrain_epochs drops the classification head of {arguments.model_name_or_path}: a new one is drawn",
            stacklevel=2,
        )


def _spread_windows(tokenized: Dataset) -> list[dict[str, Any]]:
    """Return the tokens of each text, or of each of its windows."""
    names = [name for name in ("input_ids", "token_type_ids") if name in tokenized.column_names]
    rows = zip(*(tokenized[name] for name in names), strict=True)
    examples = []
    for row in rows:
        windows = zip(*row, strict=True) if isinstance(row[0][0], list) else [row]
        examples += [dict(zip(names, window, strict=True)) for window in windows]
    return examples


def _write_encoder(objective: Objective, arguments: ModelArguments, tokenizer: Any, folder: Path) -> None:
    """Write the checkpoint with the trained weights in place of its own: no head, and a pooler only if it had one."""
    name = arguments.model_name_or_path
    whole, info = load_weights(AutoModel, arguments, read_config(arguments))
    with loading(arguments):
        add_embeddings(whole, tokenizer, name)
    trained = {name: weight.detach().cpu() for name, weight in objective.encoder.state_dict().items()}
    unknown = whole.load_state_dict(trained, strict=False).unexpected_keys
    assert not unknown, f"{type(whole).__name__} lacks {unknown[0]}"
    weights = {name: weight for name, weight in whole.state_dict().items() if name not in info["missing_keys"]}
    whole.save_pretrained(folder, state_dict=weights)
    load_pretrained_tokenizer(name, arguments.model_revision).save_pretrained(folder)  # as it was, before it was fitted
    for sidecar in SIDECARS:
        content = read_beside(arguments, sidecar)
        if content is not None:
            (folder / sidecar).parent.mkdir(exist_ok=True)
            write_json(folder / sidecar, content)


def _find_kept(run: Run, texts: Sequence[str]) -> Path:
    """Name the folder that an encoder is kept in, by all that it depends on."""
    tokenizer = load_tokenizer(run.arguments.model, run.text_config.max_length)
    tokens = find_cache(Dataset.from_dict({"text": list(texts)}), tokenizer, run.text_config)
    arguments, environment = run.arguments, run.record.environment
    facts = [
        run.record.pretrained,
        arguments.model.pretrain_epochs,
        arguments.model.attention_dropout,
        arguments.run.accelerated,
        arguments.run.max_tokens_per_micro_batch,
        arguments.training.bf16,
        environment.num_threads,
        arguments.training.device.type,
    ]
    digest = hashlib.sha256(tokens.encode())
    for code in (__file__, loop.__file__, objectives.__file__):
        digest.update(Path(str(code)).read_bytes())
    digest.update(f"{transformers.__version__} {torch.__version__} {SEED} {facts}".encode())
    return Path(datasets.config.HF_DATASETS_CACHE) / "finetune" / f"encoder-{digest.hexdigest()}"


def _facts_file(kept: Path) -> Path:
    return kept.with_name(f"{kept.name}.json")


def _read_kept(kept: Path) -> Pretraining | None:
    """Read what is known of an encoder that was kept; None if it is not there, or not as it was."""
    try:
        made = Pretraining.model_validate(read_json(_facts_file(kept)))
    except ValidationError:
        return None
    return made if _is_whole(kept, made) else None


def _is_whole(folder: Path, made: Pretraining) -> bool:
    return (folder / "config.json").is_file() and fingerprint_model(str(folder)) == made.encoder


def _keep(folder: Path, kept: Path, made: Pretraining) -> None:
    """Keep an encoder for other runs; where that is not possible, they make it again."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if _read_kept(kept) is None:  # else another run has made it meanwhile, and others may be reading it
            _put(kept, lambda aside: _copy(folder, aside))
            write_json(_facts_file(kept), made.to_dict())
    except (OSError, FinetuneError) as error:
        warnings.warn(f"the pretrained encoder could not be kept for other runs: {error}", stacklevel=2)


def _put(folder: Path, write: Any) -> None:
    """Let a folder be written aside, and take its place when it is whole.

    Raises:
        FinetuneError: If the disk is full.
    """
    try:
        with write_folder_aside(folder, replaces=True) as aside:
            write(aside)
    except Exception as error:
        if not is_disk_full(error):
            with failures_explained(folder):
                raise
        raise FinetuneError(
            f"Expected room for the pretrained encoder in {str(folder)!r}, but the disk is full. Make room, and start "
            "the same command again."
        ) from error


def _copy(source: Path, folder: Path) -> None:
    """Copy an encoder; its weights take no room twice where the file system has links."""
    for file in sorted(source.rglob("*")):
        target = folder / file.relative_to(source)
        if file.is_dir():
            target.mkdir()
        elif file.suffix == ".safetensors":
            try:
                os.link(file, target)
            except OSError:
                shutil.copyfile(file, target)
        else:
            shutil.copyfile(file, target)
