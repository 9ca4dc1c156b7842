"""Few labels: the encoder is tuned so that texts of one label are alike, then a linear model reads its vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from finetune.errors import FinetuneError
from finetune.families.embeddings import PooledEncoderFamily
from finetune.family import ModelFacts
from finetune.tasks import REGRESSION

if TYPE_CHECKING:
    from datasets import DatasetDict

    from finetune.run.run import Run
    from finetune.tasks import Task

__all__ = ["Contrastive"]


class Contrastive(PooledEncoderFamily):
    """SetFit (Tunstall et al. 2022) with the pairs of a batch in place of a list of pairs.

    A run that is cut off starts over: with few labels it takes less than a minute, and ends with the same weights.
    """

    trains_encoder: ClassVar[bool] = True
    also_uses: ClassVar[frozenset[str]] = PooledEncoderFamily.also_uses | {
        "learning_rate", "max_grad_norm", "max_steps", "num_train_epochs", "per_device_train_batch_size",
        "warmup_steps", "weight_decay",
    }  # fmt: skip

    def fit(self, run: Run, splits: DatasetDict, task: Task) -> tuple[Any, Any]:
        """Tune the encoder on the training rows, and fit a linear layer to their vectors.

        Raises:
            FinetuneError: For numbers to predict and for pairs.
        """
        from finetune.families.contrastive.tuning import tune_encoder
        from finetune.families.embeddings.fit import compute_features, fit_classifier, record_tokens
        from finetune.families.embeddings.linear import OF_TUNED_ENCODERS
        from finetune.families.embeddings.vectors import load_pooled_encoder

        method = run.arguments.method.method
        if task.problem_type == REGRESSION:
            raise FinetuneError(
                f"Expected labels for --method {method}, but the data has numbers to predict, by which no two texts "
                "are alike. Take --method embeddings or full."
            )
        if run.is_paired:
            raise FinetuneError(
                f"Expected single texts for --method {method}, but the data has pairs. Take --method embeddings or "
                "full."
            )
        train = splits["train"]
        tokenizer = self.load_tokenizer(run.arguments, train)
        record_tokens(run, splits, tokenizer)
        model = load_pooled_encoder(run.arguments.model, tokenizer, task, False)
        with run.measure_costs():
            trained = tune_encoder(run, train, model, tokenizer, task)
            model.tuned_parameters = trained  # type: ignore[assignment]
            features = compute_features(run, train, model, tokenizer)
            balanced = run.arguments.method.class_weights == "balanced"
            fit_classifier(model, features, train, task, OF_TUNED_ENCODERS, balanced)
        return model, tokenizer

    def describe(self, model: Any) -> ModelFacts:
        """Return the encoder's class and the regression, and how many parameters of both were trained."""
        architecture = f"{type(model.encoder).__name__} + LogisticRegression"
        trained = model.tuned_parameters + sum(parameter.numel() for parameter in model.classifier.parameters())
        return super().describe(model)._replace(architecture=architecture, trainable_parameters=trained)
