"""A frozen encoder's vectors, pooled as it was made for, and a linear model over them: a fit takes one forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from finetune.errors import FinetuneError
from finetune.families.network import NetworkFamily, write_pipeline_snippet
from finetune.family import ModelFacts, Shipped
from finetune.files import read_json
from finetune.tasks import REGRESSION

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

    from finetune.data.cutting import TextConfig
    from finetune.models.answers import TextClassifier
    from finetune.models.finetune_config import FinetuneConfig
    from finetune.run.run import Run
    from finetune.settings.arguments import Arguments
    from finetune.settings.declaration import Values
    from finetune.tasks import Task

__all__ = ["Embeddings", "PooledEncoderFamily"]


class PooledEncoderFamily(NetworkFamily):
    """What families share whose model is an encoder, its pooling, and a linear layer that is not trained in steps.

    `pooled_encoder.py` is copied beside the weights, so that transformers alone can load it.
    """

    trains_network: ClassVar[bool] = False
    learns_from_teacher: ClassVar[bool] = False
    can_stream: ClassVar[bool] = False
    library_name: ClassVar[str] = "transformers"
    files: ClassVar[tuple[str, ...]] = ("pooled_encoder.py",)
    also_uses: ClassVar[frozenset[str]] = frozenset(
        {"max_length", "truncation", "bf16", "fp16", "accelerated", "floor", "class_weights"}
    )

    def starts_from_pretrained(self, settings: Values) -> bool:
        """Return True."""
        return True

    def can_pretrain(self, settings: Values) -> bool:
        """Return whether it is an encoder that computes, not a table of word vectors."""
        return self.starts_from_pretrained(settings)

    def settle(self, arguments: Arguments, num_rows: int) -> None:
        """Refuse windows: a text has one vector."""
        if arguments.data.truncation == "window":
            raise FinetuneError(
                f"Expected --truncation head, tail or head+tail with --method {arguments.method.method}, which has one "
                "vector for a text, but got window. Leave it out, or take --method full."
            )

    def load_tokenizer(self, arguments: Arguments, train: Dataset) -> PreTrainedTokenizerBase:
        """Load the tokenizer that the encoder was pretrained with."""
        from finetune.models.load import load_tokenizer

        return load_tokenizer(arguments.model, arguments.data.max_length)

    def load_model(self, folder: Path, config: FinetuneConfig, trust_remote_code: bool) -> Any:
        """Load it by the code of this package, not by the copy that lies beside its weights."""
        import finetune.families.embeddings.pooled_encoder  # noqa: F401  registers it with the Auto classes

        return super().load_model(folder, config, trust_remote_code)

    def build_predictor(
        self,
        model: Any,
        tokenizer: Any,
        text_config: TextConfig | None = None,
        dtype: torch.dtype | None = None,
        accelerated: bool = True,
    ) -> TextClassifier:
        """Build what tokenizes and computes; of a pair each text has a vector of its own."""
        from finetune.families.embeddings.predictor import PooledEncoderPredictor

        return PooledEncoderPredictor(model, tokenizer, text_config, dtype, accelerated=accelerated)

    def write_snippet(self, shipped: Shipped) -> str:
        """Write lines for transformers alone, which runs the code beside the weights; for pairs, lines for finetune."""
        if shipped.config.is_paired:
            return super(NetworkFamily, self).write_snippet(shipped)
        return write_pipeline_snippet(shipped, code=True)


class Embeddings(PooledEncoderFamily):
    """The encoder stays as it is; of the linear layer the cross-validated regularisation is all that is chosen."""

    learns_from_teacher: ClassVar[bool] = True
    is_deterministic: ClassVar[bool] = True

    def starts_from_pretrained(self, settings: Values) -> bool:
        """Return whether the encoder is a model, not a table of word vectors."""
        return settings.word_vectors is None

    def takes_word_vectors(self, settings: Values) -> bool:
        """Return True."""
        return True

    def fit(self, run: Run, splits: DatasetDict, task: Task) -> tuple[Any, Any]:
        """Compute the vectors of the training texts, or read those that were kept, and fit the linear layer."""
        from finetune.families.embeddings.fit import fit_classifier, load_features, record_tokens
        from finetune.families.embeddings.static import load_static_encoder
        from finetune.families.embeddings.vectors import load_pooled_encoder

        train, arguments, is_paired = splits["train"], run.arguments, bool(run.is_paired)
        if arguments.model.word_vectors is None:
            tokenizer = self.load_tokenizer(arguments, train)
            model = load_pooled_encoder(arguments.model, tokenizer, task, is_paired)
        else:
            model, tokenizer = load_static_encoder(
                arguments.model.word_vectors, train, arguments.data.max_length, task, is_paired
            )
            run.record_words(tokenizer)
        record_tokens(run, splits, tokenizer)
        with run.measure_costs():
            features, seconds = load_features(run, train, model, tokenizer)
            fit_classifier(model, features, train, task, balanced=arguments.method.class_weights == "balanced")
        costs = run.record.costs
        assert costs is not None
        assert costs.train_cpu_seconds is not None
        costs.train_seconds += float(seconds[0])  # a method costs what it would have cost without the vectors kept
        costs.train_cpu_seconds += float(seconds[1])
        return model, tokenizer

    def recognises(self, folder: Path) -> bool:
        """Return whether its config is there."""
        content = read_json(folder / "config.json")
        return isinstance(content, dict) and content.get("model_type") == "pooled_encoder"

    def describe(self, model: Any) -> ModelFacts:
        """Return the encoder's class and the regression, and the numbers of the latter's parameters and of all."""
        regression = "Ridge" if model.config.problem_type == REGRESSION else "LogisticRegression"
        trained = sum(parameter.numel() for parameter in model.classifier.parameters())
        total = super().describe(model).total_parameters
        return ModelFacts(f"{type(model.encoder).__name__} + {regression}", trained, total)
