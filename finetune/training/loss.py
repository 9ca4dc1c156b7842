"""The loss of each example: cross-entropy, its variants for imbalanced classes, several labels, or a number."""

from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F

from finetune.errors import FinetuneError
from finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from finetune.models.logits import pool_windows
from finetune.models.output_layer import Standard

__all__ = ["ExampleLoss", "oversample"]


@dataclass(frozen=True)
class ExampleLoss:
    """Loss of each example of a batch, `(examples,)`; the `Trainer` sums it and divides by the examples of the step.

    Attributes:
        problem_type: One class: cross-entropy. Several labels: binary cross-entropy, the mean over the labels. A
            number: squared error.
        label_smoothing: epsilon of Szegedy et al. 2016, section 7: the target of the true class is
            1 - epsilon + epsilon / num_labels. One class alone.
        class_weights: `(num_labels,)`. Each class's factor; with several labels the factor of a label's presence.
        focal_gamma: gamma of Lin et al. 2017: a factor (1 - p)^gamma of the true class's probability p, so that what is
            easy counts less. 0 is none. Not with label smoothing, which it would undo: as p nears 1 the factor
            vanishes, and with it what smoothing has against that.
        window_pooling: How the logits of a text's windows are combined before the loss is taken; with "vote", which has
            no gradient, the loss is the mean over the windows.
        standard: Of numbers to predict: the loss is the squared error of standard ones.
        temperature: What the logits of student and teacher are divided by before they are compared (Hinton et al. 2015,
            section 2); that part of the loss is multiplied by its square, so that gradients keep their size.

    Raises:
        FinetuneError: If both a focal loss and label smoothing are asked for.
    """

    problem_type: str = SINGLE_LABEL
    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None
    focal_gamma: float = 0.0
    window_pooling: str | None = None
    standard: Standard = field(default_factory=Standard)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.focal_gamma and self.label_smoothing:
            raise FinetuneError(
                f"Expected a focal loss or label smoothing, but got focal_gamma {self.focal_gamma:g} and "
                f"label_smoothing {self.label_smoothing:g}, which undo each other. Drop one of them."
            )

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_windows: torch.Tensor | None = None,
        teacher: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute `(examples,)`.

        Args:
            logits: `(examples or windows, num_labels)`, float32.
            labels: Class numbers or numbers to predict, `(examples,)`; for several labels `(examples, num_labels)`.
            num_windows: Of each text, `(examples,)`; None where texts have no windows.
            teacher: `(examples, 1 + num_labels)`: the share of the loss that follows the teacher, and its logits.
        """
        losses = self._of_labels(logits, labels, num_windows)
        if teacher is None:
            return losses
        if num_windows is not None and self.window_pooling is not None:
            pooling = "mean" if self.window_pooling == "vote" else self.window_pooling
            logits = pool_windows(logits, num_windows, pooling, self.problem_type)
        share = teacher[:, 0]
        return (1 - share) * losses + share * self._of_answers(logits, teacher[:, 1:])

    def _of_answers(self, logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """Compute the cross-entropy against a teacher's probabilities, both softened; of numbers the squared error."""
        if self.problem_type == REGRESSION:
            return (logits - self.standard.apply(answers).to(logits)).square().squeeze(-1)
        logits, answers = logits / self.temperature, answers / self.temperature
        if self.problem_type == MULTI_LABEL:
            losses = F.binary_cross_entropy_with_logits(logits, answers.sigmoid(), reduction="none").mean(dim=-1)
        else:
            losses = F.cross_entropy(logits, answers.softmax(dim=-1), reduction="none")
        return losses * self.temperature**2

    def _of_labels(self, logits: torch.Tensor, labels: torch.Tensor, num_windows: torch.Tensor | None) -> torch.Tensor:
        if num_windows is None or self.window_pooling is None:
            return self._of_rows(logits, labels)
        if self.window_pooling != "vote":
            return self._of_rows(pool_windows(logits, num_windows, self.window_pooling, self.problem_type), labels)
        labels = torch.repeat_interleave(labels, num_windows, dim=0, output_size=len(logits))
        of_windows = self._of_rows(logits, labels)
        return pool_windows(of_windows.unsqueeze(1), num_windows, "mean", self.problem_type).squeeze(1)

    def _of_rows(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weights = None if self.class_weights is None else self.class_weights.to(logits, non_blocking=True)
        if self.problem_type == REGRESSION:
            return (logits.squeeze(-1) - self.standard.apply(labels).to(logits)).square()
        if self.problem_type == MULTI_LABEL:
            targets = labels.to(logits)
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weights)
            if self.focal_gamma:
                right = torch.sigmoid(torch.where(targets > 0, logits, -logits))
                losses = losses * self._focus(right)
            return losses.mean(dim=-1)
        losses = F.cross_entropy(logits, labels, weight=weights, reduction="none", label_smoothing=self.label_smoothing)
        if self.focal_gamma:
            right = torch.softmax(logits, dim=-1).gather(1, labels.unsqueeze(1)).squeeze(1)
            losses = losses * self._focus(right)
        return losses

    def _focus(self, right: torch.Tensor) -> torch.Tensor:
        """Compute the factors. At 0 the slope of a power below 1 is infinite, and its product with a loss of 0 NaN."""
        return (1 - right).clamp_min(torch.finfo(right.dtype).tiny) ** self.focal_gamma


def oversample(dataset: Dataset, seed: int) -> Dataset:
    """Repeat rows of rarer classes until each class has as many as the most frequent one.

    Args:
        dataset: Has class numbers in `labels`.
        seed: Seed of the rows that are repeated once more than others.
    """
    labels = np.asarray(dataset["labels"][:])
    generator = np.random.default_rng(seed)
    most = np.bincount(labels).max()
    rows = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rows += [np.tile(own, most // len(own)), generator.permutation(own)[: most % len(own)]]
    return dataset.select(np.concatenate(rows))
