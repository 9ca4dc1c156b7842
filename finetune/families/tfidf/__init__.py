"""TF-IDF of words and word pairs, and a linear model: the floor that a network has to beat. It needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from finetune.family import Family, ModelFacts
from finetune.settings.declaration import Setting
from finetune.settings.parts import setting

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from finetune.data.cutting import TextConfig
    from finetune.models.answers import TextClassifier
    from finetune.models.finetune_config import FinetuneConfig
    from finetune.settings.arguments import Arguments
    from finetune.tasks import Task

__all__ = ["Tfidf", "TfidfSettings"]

WEIGHTS_FILE, TERMS_FILE, LABEL_NAMES_FILE = "tfidf.safetensors", "tfidf_terms.json", "label_names.json"


@dataclass
class TfidfSettings:
    """What counts as a term, and how far the linear model follows the training rows."""

    _argument_group_name = "TF-IDF"

    tfidf_c: Annotated[float, Setting(above=0, below=float("inf"))] = setting(
        10.0, "Inverse of the linear model's penalty: more follows the training rows more closely."
    )
    tfidf_max_ngram: Annotated[int, Setting(at_least=1, at_most=100)] = setting(
        2, "Most neighbouring words that are a term."
    )


class Tfidf(Family):
    """TF-IDF and logistic or ridge regression, of scikit-learn."""

    settings: ClassVar[type] = TfidfSettings
    is_deterministic: ClassVar[bool] = True
    learns_from_teacher: ClassVar[bool] = True
    also_uses: ClassVar[frozenset[str]] = frozenset({"class_weights"})
    uses_torch: ClassVar[bool] = False
    precision: ClassVar[str] = "fp64"
    files: ClassVar[tuple[str, ...]] = (TERMS_FILE, LABEL_NAMES_FILE)

    def fit_rows(self, train: Dataset, arguments: Arguments) -> Any:
        """Count the words, and fit the regression; beside another method with the defaults."""
        from finetune.families.tfidf.fit import fit_floor

        seed = arguments.training.seed
        if not isinstance(arguments.family, TfidfSettings):
            return fit_floor(train, seed)
        own, balanced = arguments.family, arguments.method.class_weights == "balanced"
        return fit_floor(train, seed, own.tfidf_c, own.tfidf_max_ngram, balanced)

    def save(self, model: Any, tokenizer: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
        """Write arrays, terms and label names."""
        model.save_pretrained(folder)

    def load(self, folder: Path, config: FinetuneConfig, trust_remote_code: bool = False) -> tuple[Any, Any]:
        """Read arrays, terms and label names; there is no tokenizer."""
        from finetune.families.tfidf.classifier import TfidfClassifier

        return TfidfClassifier.from_pretrained(folder, config.problem_type), None

    def recognises(self, folder: Path) -> bool:
        """Return whether its arrays are there."""
        return (folder / WEIGHTS_FILE).is_file()

    def build_predictor(
        self,
        model: Any,
        tokenizer: Any = None,
        text_config: TextConfig | None = None,
        dtype: torch.dtype | None = None,
        accelerated: bool = True,
    ) -> TextClassifier:
        """Build what takes texts; they are read whole, in the format that the arrays have."""
        from finetune.families.tfidf.classifier import TfidfPredictor

        return TfidfPredictor(model)

    def task_of(self, model: Any) -> Task:
        """Return the task that it was fitted to."""
        from finetune.tasks import Task

        return Task(model.problem_type, model.label_names)

    def describe(self, model: Any) -> ModelFacts:
        """Return scikit-learn's parts, and the weights and intercepts."""
        from finetune.tasks import REGRESSION

        linear = "Ridge" if model.problem_type == REGRESSION else "LogisticRegression"
        return ModelFacts(f"TfidfVectorizer + {linear}", model.num_parameters(), model.num_parameters())

    def count_bytes(self, model: Any) -> int:
        """Count the bytes of arrays and terms."""
        return model.num_bytes()
