"""Zero labels: a text gets the label whose description it resembles most; no training row is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from finetune.errors import FinetuneError
from finetune.families.embeddings import PooledEncoderFamily
from finetune.family import Family, ModelFacts, Shipped
from finetune.settings.parts import setting
from finetune.tasks import REGRESSION, Task

if TYPE_CHECKING:
    import torch
    from datasets import DatasetDict

    from finetune.data.cutting import TextConfig
    from finetune.models.answers import TextClassifier
    from finetune.run.run import Run
    from finetune.settings.arguments import Arguments

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
    """The cosine of a text's vector and those of the labels' descriptions, computed by a sentence encoder as it is.

    A model of natural language inference in place of the encoder is asked whether the text entails each description.
    """

    library_name: ClassVar[str] = "finetune"
    settings: ClassVar[type] = ZeroShotSettings
    is_deterministic: ClassVar[bool] = True

    def settle(self, arguments: Arguments, num_rows: int) -> None:
        """Refuse windows, and to train the encoder of a model of inference under its head."""
        super().settle(arguments, num_rows)
        if arguments.model.pretrain_epochs:
            from finetune.families.zero_shot.entailment import is_inference_model

            if is_inference_model(arguments.model):
                raise FinetuneError(
                    f"Expected an encoder for --pretrain_epochs with --method {arguments.method.method}, but "
                    f"{arguments.model.model_name_or_path} is a model of inference, whose head reads its encoder as it "
                    "is. Leave it out."
                )

    def fit(self, run: Run, splits: DatasetDict, task: Task) -> tuple[Any, Any]:
        """Compute the vectors of the descriptions; of the training rows the names of their labels are all that counts.

        Raises:
            FinetuneError: For numbers to predict, for pairs, and for descriptions of labels that the data doesn't have.
        """
        from finetune.families.embeddings.fit import record_tokens
        from finetune.families.embeddings.vectors import load_pooled_encoder
        from finetune.families.zero_shot.descriptions import describe_by_vectors, read_descriptions
        from finetune.families.zero_shot.entailment import load_inference_model

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
        given = read_descriptions(run.arguments.family.label_descriptions, task.label_names)
        tokenizer = self.load_tokenizer(run.arguments, splits["train"])
        record_tokens(run, splits, tokenizer)
        inference = load_inference_model(run.arguments.model, tokenizer, task, given)
        if inference is not None:
            with run.measure_costs():
                return inference, tokenizer  # it answers as it is
        model = load_pooled_encoder(run.arguments.model, tokenizer, task, False)
        descriptions = {name: given.get(name, name) for name in task.label_names}
        with run.measure_costs():
            describe_by_vectors(model, tokenizer, list(descriptions.values()), run.text_config)
        model.config.label_descriptions = descriptions
        return model, tokenizer

    def build_predictor(
        self,
        model: Any,
        tokenizer: Any,
        text_config: TextConfig | None = None,
        dtype: torch.dtype | None = None,
        accelerated: bool = True,
    ) -> TextClassifier:
        """Build what compares vectors, or what asks a model of inference of each label."""
        if not _is_of_inference(model):
            return super().build_predictor(model, tokenizer, text_config, dtype, accelerated)
        from finetune.families.zero_shot.entailment import EntailmentPredictor
        from finetune.models.predictor import Predictor

        return EntailmentPredictor(Predictor(model, tokenizer, text_config, dtype, accelerated=accelerated))

    def task_of(self, model: Any) -> Task:
        """Return what is predicted; of a model of inference that is not what its own outputs are."""
        if not _is_of_inference(model):
            return super().task_of(model)
        return Task(model.config.zero_shot_problem_type, list(model.config.hypotheses))

    def describe(self, model: Any) -> ModelFacts:
        """Return the class of the encoder or the model, and that nothing was trained."""
        by_cosine = f"{type(model.base_model).__name__} + cosine similarity"
        architecture = f"{type(model).__name__} + entailment" if _is_of_inference(model) else by_cosine
        return super().describe(model)._replace(architecture=architecture, trainable_parameters=0)

    def check_exportable(self, model: Any) -> None:
        """Refuse a model of inference, which reads a text once for each label."""
        if _is_of_inference(model):
            raise FinetuneError(
                "Expected a model that reads a text once to export, but this one reads it once for each label. Use it "
                "as it is."
            )

    def write_snippet(self, shipped: Shipped) -> str:
        """Write lines for finetune, which knows what is asked of each label."""
        return Family.write_snippet(self, shipped)


def _is_of_inference(model: Any) -> bool:
    return hasattr(model.config, "hypotheses")
