"""The head of a frozen encoder trains on the encoder's features, which are computed once."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from finetune.errors import Interrupted
from finetune.methods.features import (
    FeatureCollator,
    compute_features,
    encoder_replaced,
    find_feature_reader,
    has_frozen_encoder,
)
from finetune.progress_bar import progress_bar
from finetune.training.evaluation import EvaluatingTrainer
from finetune.training.upstream import AGAIN

__all__ = ["features_of_frozen_encoder"]


@contextlib.contextmanager
def features_of_frozen_encoder(trainer: EvaluatingTrainer, probes: dict[str, torch.Tensor]) -> Iterator[None]:
    """Let features stand in for a trainer's texts, if the encoder is frozen and what its head reads can be found.

    Args:
        trainer: Has a collator of our own, and data sets with the column `length`.
        probes: A few texts, as the model takes them.
    """
    model: Any = trainer.model
    if not has_frozen_encoder(model) or trainer.example_loss is None or trainer.example_loss.window_pooling is not None:
        yield
        return
    model.to(trainer.args.device).eval()
    read = find_feature_reader(model, probes)
    if read is None:
        yield
        return
    texts: Any = (trainer.train_dataset, trainer.eval_dataset, trainer.data_collator)
    collator: Any = trainer.data_collator
    features = []
    # The validation split's features are a part of its evaluations.
    for dataset, counted in ((texts[0], trainer.costs.training()), (texts[1], trainer.costs.evaluating())):
        with counted, progress_bar(len(dataset), "Computing features") as advance:
            on_batch = trainer.unless_interrupted(advance, Interrupted(AGAIN))
            arguments = dataset, collator.collate, collator.max_tokens, trainer.precision, on_batch
            features.append(compute_features(model, read, *arguments))
    trainer.costs.train_tokens += sum(texts[0]["length"])
    trainer.train_dataset, trainer.eval_dataset, trainer.data_collator = *features, FeatureCollator()
    try:
        with encoder_replaced(model):
            yield
    finally:
        trainer.train_dataset, trainer.eval_dataset, trainer.data_collator = texts
