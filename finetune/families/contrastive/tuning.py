"""Tune an encoder so that the cosine of two texts says whether they have the same labels.

SetFit (Tunstall et al. 2022) writes pairs of texts down, 40 for each row, and computes both texts of each. Here every
two texts of a batch are a pair, so that a text is computed once for all of its pairs, and none is ever written down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset
from transformers import get_linear_schedule_with_warmup, set_seed

from finetune.accelerated import enable
from finetune.accelerated.precision import DTYPES, autocast
from finetune.adapted import has_adapter
from finetune.data.batch import MicroBatchCollator
from finetune.data.labels import label_matrix
from finetune.families.embeddings.fit import precision_of
from finetune.families.embeddings.vectors import MAX_TOKENS, tokenize_texts
from finetune.lookup import find_method
from finetune.methods import adapt_encoder
from finetune.methods.merging import merge_adapter
from finetune.models.inputs import shortest_input
from finetune.progress_bar import progress_bar
from finetune.tasks import MULTI_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune.families.embeddings.pooled_encoder import PooledEncoderForSequenceClassification
    from finetune.run.run import Run
    from finetune.settings.arguments import Arguments
    from finetune.tasks import Task

__all__ = ["compute_pair_loss", "count_steps", "draw_batches", "tune_encoder"]

MOST_STEPS = 1_000  # unless their number was chosen: beyond, an encoder with a head learns as much in less time


def tune_encoder(
    run: Run,
    train: Dataset,
    model: PooledEncoderForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
) -> int:
    """Tune the encoder of a model, in place; a method with an adapter trains that, which is then merged.

    Args:
        run: Its settings say how fast, how long, and in which number format.
        train: The training split.
        model: With its pretrained encoder.
        tokenizer: Its tokenizer.
        task: One class of several, or several labels.

    Returns:
        How many parameters were trained.

    Raises:
        FinetuneError: If the adapter does not fit the encoder, or does not merge.
    """
    training = run.arguments.training
    set_seed(training.seed)
    labels = label_matrix(train["label"], task)
    if task.problem_type != MULTI_LABEL:
        labels = np.eye(len(task.label_names), dtype=np.int64)[labels]
    tokenized = tokenize_texts(train, "text", tokenizer, run.text_config)
    collate = MicroBatchCollator(tokenizer, MAX_TOKENS, min_length=shortest_input(model)).collate
    dtype = DTYPES[precision_of(run)]
    dtype = torch.float32 if dtype is torch.float16 else dtype  # whose gradients would have to be scaled
    size = training.per_device_train_batch_size
    num_steps = count_steps(run.arguments, len(train))
    if find_method(run.arguments.method.method).takes_adapter:
        model.encoder = adapt_encoder(model.encoder, run.arguments.method)
    if run.arguments.run.accelerated:
        enable(model)
    model.to(device=training.device).train()  # type: ignore[call-arg]
    trained = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, training.get_warmup_steps(num_steps), num_steps)
    with progress_bar(num_steps * size, "Tuning the encoder") as advance:
        for rows in draw_batches(labels, size, num_steps, training.seed):
            inputs = collate([tokenized[int(row)] for row in rows])
            with autocast(training.device, dtype):
                vectors = model.embed(**{name: tensor.to(training.device) for name, tensor in inputs.items()})
            loss = compute_pair_loss(vectors, torch.from_numpy(labels[rows]).to(training.device))
            optimizer.zero_grad()
            loss.backward()
            if training.max_grad_norm > 0:
                torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
            optimizer.step()
            schedule.step()
            advance(len(rows))
    if has_adapter(model.encoder):
        model.encoder = merge_adapter(model.encoder)
    model.eval()
    return sum(parameter.numel() for parameter in trained)


def count_steps(arguments: Arguments, num_rows: int) -> int:
    """Return how many steps there will be: `--max_steps`, or those of the epochs, limited unless these are chosen."""
    training = arguments.training
    if training.max_steps > 0:
        return training.max_steps
    steps = max(1, math.ceil(training.num_train_epochs * num_rows / training.per_device_train_batch_size))
    return steps if "num_train_epochs" in arguments.given else min(steps, MOST_STEPS)


def draw_batches(labels: np.ndarray, size: int, num_steps: int, seed: int) -> Iterator[np.ndarray]:
    """Draw batches in which labels meet, each with equally many rows of several sets of labels.

    A batch has rows of at most size / 2 of the sets, so that most have two, and the sets take turns; of each all rows
    are drawn before any is drawn twice.

    Args:
        labels: 0 and 1, `(rows, num_labels)`.
        size: Rows of a batch.
        num_steps: Batches.
        seed: Of the draws.

    Yields:
        Numbers of rows, `(size,)`; fewer where a batch would hold a row twice.
    """
    generator = np.random.default_rng(seed)
    _, owners = np.unique(labels, axis=0, return_inverse=True)
    sets = [np.flatnonzero(owners.ravel() == number) for number in range(owners.max() + 1)]
    waiting: list[list[int]] = [[] for _ in sets]
    turns = np.zeros(len(sets), dtype=np.int64)
    wanted = min(len(sets), max(1, size // 2))
    for _ in range(num_steps):
        rows: list[int] = []
        chosen = np.lexsort((generator.random(len(sets)), turns))[:wanted]  # those that have had the fewest turns
        turns[chosen] += 1
        for place, number in enumerate(chosen.tolist()):
            count = size // wanted + (place < size % wanted)
            for _ in range(min(count, len(sets[number]))):
                if not waiting[number]:
                    waiting[number] = generator.permutation(sets[number]).tolist()
                rows.append(waiting[number].pop())
        yield np.unique(rows)  # a set whose rows begin anew can give one twice


def compute_pair_loss(vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute how far the cosines of all pairs of a batch are from what the labels say: a mean squared error.

    The cosine is to be the share of the labels that two texts have in common (Jaccard): 1 for the same class, 0 for
    another one. Pairs with something in common and pairs without count half each, as in SetFit, however many there are.

    Args:
        vectors: `(rows, width)`, of length one.
        labels: 0 and 1, `(rows, num_labels)`.
    """
    labels = labels.to(vectors)
    shared = labels @ labels.T
    number = labels.sum(dim=1)
    either = number[:, None] + number[None] - shared
    wanted = torch.where(either > 0, shared / either.clamp(min=1), 1.0)  # two texts without a label are alike
    errors = (vectors @ vectors.T - wanted).square()
    others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    parts = [errors[others & alike] for alike in (wanted > 0, wanted == 0)]
    found = [part.mean() for part in parts if len(part)]
    return torch.stack(found).mean() if found else vectors.sum() * 0.0
