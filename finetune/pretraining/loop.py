"""Train a model on texts for some epochs: AdamW, a warm-up and a linear decay, steps of texts of similar length."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup, set_seed

from finetune.data.batch import GlobalStepSampler
from finetune.errors import FinetuneError
from finetune.pretraining.objectives import SEED, Objective
from finetune.progress_bar import progress_bar

__all__ = ["train_on_texts"]

STEP_SIZE = 32  # texts
LEARNING_RATE = 5e-5  # the highest, after the warm-up
DRAWN_LEARNING_RATE = 5e-4  # of what was drawn at random, which has all to learn
WARMUP_SHARE = 0.06  # Gururangan et al. 2020, appendix B, as are the decay of the weights and the linear schedule
WEIGHT_DECAY = 0.01
MOST_GRADIENT = 1.0  # the norm to which gradients are clipped


def train_on_texts(
    objective: Objective,
    examples: Sequence[dict[str, Any]],
    epochs: float,
    device: torch.device,
    dtype: torch.dtype,
) -> list[float]:
    """Train a model on tokenized texts, in place.

    Args:
        objective: What is learnt, and its model.
        examples: Each has `input_ids`, a list of token numbers.
        epochs: Passes over them, above 0.
        device: Where it is computed.
        dtype: Number format of the matrix products, by autocast.

    Returns:
        The loss of each step.

    Raises:
        FinetuneError: If a loss is no number.
    """
    set_seed(SEED)
    sampler = GlobalStepSampler([len(one["input_ids"]) for one in examples], STEP_SIZE, SEED)
    num_steps = max(1, round(epochs * len(sampler)))
    model: Any = objective.model
    model.to(device=device).train()
    groups = _group(objective.model, LEARNING_RATE)
    if objective.drawn is not None:
        groups += _group(objective.drawn.to(device), DRAWN_LEARNING_RATE)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP_SHARE * num_steps), num_steps)
    losses: list[float] = []
    with progress_bar(min(num_steps * STEP_SIZE, math.ceil(epochs * len(examples))), "Pretraining") as advance:
        for epoch in range(math.ceil(num_steps / len(sampler))):
            sampler.set_epoch(epoch)
            for rows in itertools.islice(sampler, num_steps - len(losses)):
                optimizer.zero_grad()
                losses.append(objective.add_gradients([examples[row] for row in rows], device, dtype))
                if not math.isfinite(losses[-1]):
                    raise FinetuneError(
                        f"Expected a loss that is a number while pretraining, but step {len(losses)} of {num_steps} "
                        f"gave {losses[-1]}. Leave --pretrain_epochs out, or pass --bf16 false --fp16 false."
                    )
                torch.nn.utils.clip_grad_norm_(trained, MOST_GRADIENT)
                optimizer.step()
                schedule.step()
                advance(len(rows))
    model.eval()
    return losses


def _group(model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """Group the parameters of a model: biases and normalisations don't decay."""
    return [
        {
            "params": [one for one in model.parameters() if one.requires_grad and (one.ndim > 1) is decays],
            "weight_decay": WEIGHT_DECAY if decays else 0.0,
            "lr": learning_rate,
        }
        for decays in (True, False)
    ]
