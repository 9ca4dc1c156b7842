"""Zero labels: a text gets the label whose description it resembles most; no training row is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from finetune.errors import FinetuneError
from finetune.families.embeddings import PooledEncoderFamily
from finetune.family import ModelFacts
from finetune.settings.parts import setting
from finetune.tasks import REGRESSION

if TYPE_CHECKING:
    from datasets import DatasetDict

    from finetune.run.run import Run
    from finetune.tasks import Task

__all__ = ["ZeroShot", "ZeroShotSettings"]


@dataclass
class ZeroShotSettings:
    """What the labels mean, in words."""

    _argument_group_name = "zero-shot"

    label_descriptions: str | None = setting(
        None,
        "What --method zero-shot compares texts with: a YAML file of 'label: description' lines, or "
        "'label=description; label=description'. Default: the labels' names.",
    )


class ZeroShot(PooledEncoderFamily):
    """The cosine of a text's vector and those of the labels' descriptions, computed by a sentence encoder as it is."""

    settings: ClassVar[type] = ZeroShotSettings
    is_deterministic: ClassVar[bool] = True

    def fit(self, run: Run, splits: DatasetDict, task: Task) -> tuple[Any, Any]:
        """Compute the vectors of the descriptions; of the training rows the names of their labels are all that counts.

        Raises:
            FinetuneError: For numbers to predict, for pairs, and for descriptions of labels that the data doesn't have.
        """
        from finetune.families.embeddings.fit import record_tokens
        from finetune.families.embeddings.vectors import load_pooled_encoder
        from finetune.families.zero_shot.descriptions import describe_by_vectors, read_descriptions

        method = run.arguments.method.method
        if task.problem_type == REGRESSION:
            raise FinetuneError(
                f"Expected labels for --method {method}, but the data has numbers to predict, which no description "
                "stands for. Take another method."
            )
        if run.is_paired:
            raise FinetuneError(
                f"Expected single texts for --method {method}, but the data has pairs, which no description resembles. "
                "Take another method."
            )
        descriptions = read_descriptions(run.arguments.family.label_descriptions, task.label_names)
        tokenizer = self.load_tokenizer(run.arguments, splits["train"])
        record_tokens(run, splits, tokenizer)
        model = load_pooled_encoder(run.arguments.model, tokenizer, task, False)
        with run.measure_costs():
            describe_by_vectors(model, tokenizer, descriptions, run.text_config)
        model.config.label_descriptions = dict(zip(task.label_names, descriptions, strict=True))
        return model, tokenizer

    def describe(self, model: Any) -> ModelFacts:
        """Return the encoder's class, and that nothing was trained."""
        return (
            super()
            .describe(model)
            ._replace(architecture=f"{type(model.encoder).__name__} + cosine similarity", trainable_parameters=0)
        )
