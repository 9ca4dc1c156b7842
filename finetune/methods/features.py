"""A frozen encoder computed once: its features stand in for it while the head trains.

With every parameter of the encoder frozen and its dropout off, a text's features are the same in every epoch. They are
computed once, and the model's own `forward` then runs on them, so that whatever a head does (pool, project, drop,
classify) is done by the code that will do it on texts.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from finetune.accelerated.precision import autocast
from finetune.data.batch import OF_EXAMPLES
from finetune.models.logits import compute_rows

__all__ = ["FeatureCollator", "compute_features", "encoder_replaced", "find_feature_reader", "has_frozen_encoder"]

FeatureReader = Callable[[Any, torch.Tensor], torch.Tensor]


class _Features(nn.Module):
    """Takes an encoder's place: gives the features that it is handed as `inputs_embeds`, `(batch, 1, 2 · hidden)`."""

    def forward(
        self, *args: Any, inputs_embeds: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        token, pooled = inputs_embeds.chunk(2, dim=-1)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=token, pooler_output=pooled[:, 0])


def has_frozen_encoder(model: nn.Module) -> bool:
    """Return whether something trains outside the encoder, and nothing inside."""
    if not isinstance(model, PreTrainedModel) or model.base_model is model:
        return False
    inside = any(parameter.requires_grad for parameter in model.base_model.parameters())
    return not inside and any(parameter.requires_grad for parameter in model.parameters())


@contextlib.contextmanager
def encoder_replaced(model: PreTrainedModel) -> Iterator[None]:
    """Let a model take features instead of texts for a while: `inputs_embeds` of shape `(batch, 1, 2 · hidden)`."""
    encoder = model.base_model
    setattr(model, model.base_model_prefix, _Features())
    try:
        yield
    finally:
        setattr(model, model.base_model_prefix, encoder)


def _first_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _last_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=mask.device), last]


def _mean_of_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)


@torch.inference_mode()
def find_feature_reader(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> FeatureReader | None:
    """Find what the model's head reads of the encoder's output: the first token, the last, or the mean of them.

    Found by trial: the right one makes the head give the logits of the whole model.

    Args:
        model: In evaluation mode.
        inputs: A few texts of different lengths, padded.

    Returns:
        A function from the encoder's outputs and the attention mask to features `(batch, 2 · hidden)`; None if the head
        reads something else.
    """
    expected = model(**inputs).logits
    outputs = model.base_model(**inputs)
    if "attention_mask" not in inputs:  # FNet: nothing tells padding from text
        return None
    for read_tokens in (_first_token, _last_token, _mean_of_tokens):

        def read(outputs: Any, mask: torch.Tensor, read_tokens: Any = read_tokens) -> torch.Tensor:
            token = read_tokens(outputs.last_hidden_state, mask)
            pooled = getattr(outputs, "pooler_output", None)
            return torch.cat([token, torch.zeros_like(token) if pooled is None else pooled], dim=-1)

        features = read(outputs, inputs["attention_mask"])
        with encoder_replaced(model):
            try:
                logits = model(inputs_embeds=features.unsqueeze(1)).logits
            except (AttributeError, NotImplementedError, TypeError, ValueError):
                return None  # T5 and BART find their token in input_ids; XLNet wants more of its encoder
        if logits.shape == expected.shape and torch.allclose(logits, expected, atol=1e-4):
            return read
    return None


def compute_features(
    model: PreTrainedModel,
    read: FeatureReader,
    dataset: Dataset,
    collate: Callable[[list[dict]], dict[str, torch.Tensor]],
    max_tokens: int,
    dtype: torch.dtype,
    on_batch: Callable[[int], None] = lambda num_examples: None,
) -> Dataset:
    """Compute the encoder's features of every example.

    Args:
        model: In evaluation mode, its encoder frozen.
        read: As `find_feature_reader` gives it.
        dataset: Columns of `tokenize_dataset`.
        collate: Pads examples into tensors.
        max_tokens: Most tokens of a batch, padding included.
        dtype: Number format of the matrix products; features are float32.
        on_batch: Called with the number of examples after each batch.

    Returns:
        Columns `inputs_embeds` (float32, 2 · hidden), `length`, which is 1, `labels`, and `teacher` if there is one.
    """
    device = next(model.parameters()).device

    def encode(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast(device, dtype):
            return read(model.base_model(**inputs), inputs["attention_mask"])

    width = 2 * model.config.hidden_size
    rows = compute_rows(encode, width, dataset, dataset["length"], collate, max_tokens, device, on_batch)
    columns = {"inputs_embeds": rows, "length": np.ones(len(rows), dtype=np.int64)}
    columns |= {name: dataset[name][:] for name in OF_EXAMPLES if name in dataset.column_names}
    return Dataset.from_dict(columns)


class FeatureCollator:
    """Batches features as `MicroBatchCollator` batches texts. They cost no tokens: the encoder has run already."""

    max_tokens = 2**14

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return one micro-batch."""
        return {"micro_batches": [self.collate(examples)], "num_examples": len(examples), "num_tokens": 0}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Stack examples to `inputs_embeds`, `(batch, 1, 2 · hidden)`, `labels`, and `teacher`."""
        features = np.array([example["inputs_embeds"] for example in examples], dtype=np.float32)
        inputs = {"inputs_embeds": torch.from_numpy(features).unsqueeze(1)}
        return inputs | {
            name: torch.tensor([example[name] for example in examples]) for name in OF_EXAMPLES if name in examples[0]
        }
