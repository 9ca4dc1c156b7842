"""What a model's class can't do is said before any data is read: it is built without weights."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainingArguments

from finetune.errors import FinetuneError
from finetune.models.load import resolve_model
from finetune.quiet import quiet_loading
from finetune.settings.parts import ModelArguments

__all__ = ["refuse_unsupported"]


def refuse_unsupported(arguments: ModelArguments, training: TrainingArguments) -> None:
    """Refuse to compute activations again, or to add noise to embeddings, where the model's class has no way to.

    Args:
        arguments: Which model.
        training: The settings.

    Raises:
        FinetuneError: If it has none, or the model can't be had.
    """
    if not (training.gradient_checkpointing or training.neftune_noise_alpha):
        return
    path, commit = resolve_model(arguments.model_name_or_path, arguments.model_revision)
    try:
        with quiet_loading(), torch.device("meta"):
            config = AutoConfig.from_pretrained(path, revision=commit, trust_remote_code=False)
            model: Any = AutoModelForSequenceClassification.from_config(config)
    except Exception:  # loading it will say what it is
        return
    name = arguments.model_name_or_path
    if training.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise FinetuneError(
            f"Expected a model that can compute its activations again for --gradient_checkpointing, but {name!r} "
            f"({type(model).__name__}) can't. Leave it out: --max_tokens_per_micro_batch bounds the memory too."
        )
    if training.neftune_noise_alpha:
        try:
            found = isinstance(model.get_input_embeddings(), torch.nn.Module)
        except (NotImplementedError, AttributeError):
            found = False
        if not found:
            raise FinetuneError(
                f"Expected a model with an embedding of its tokens for --neftune_noise_alpha, but {name!r} "
                f"({type(model).__name__}) has none. Leave it out."
            )
