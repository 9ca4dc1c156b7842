"""What all networks have in common that the `Trainer` trains: tokens, steps, saving, loading, prediction."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from finetune.errors import FinetuneError
from finetune.family import Family, ModelFacts, Shipped
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

    from finetune.data.cutting import TextConfig
    from finetune.models.answers import TextClassifier
    from finetune.models.finetune_config import FinetuneConfig
    from finetune.run.run import Run
    from finetune.settings.arguments import Arguments

__all__ = ["NetworkFamily", "write_pipeline_snippet"]

SHORT_EPOCHS = 20  # so many of them are evaluated and saved one by one


class NetworkFamily(Family):
    """A family of `PreTrainedModel`s that the `Trainer` trains; it adds how tokenizer and model are made.

    A model takes `input_ids`, `attention_mask` and `labels`, and gives `logits`. It is loaded through the Auto classes,
    with which a class of one's own is registered.

    Attributes:
        max_tokens: Computed at once in prediction, padding included.
        fewest_steps: Small data gets as many epochs as make so many steps, unless their number was chosen.
        most_epochs: Though not more than these.
    """

    trains_network: ClassVar[bool] = True
    learns_from_teacher: ClassVar[bool] = True
    can_stream: ClassVar[bool] = True
    max_tokens: ClassVar[int] = 4_096
    # In three epochs of 16 rows nothing is learnt. More steps mend that (Mosbach et al. 2021, Zhang et al. 2021);
    # `benchmarks/few_rows.py` measures it.
    fewest_steps: ClassVar[int] = 200
    most_epochs: ClassVar[int] = 40

    def settle(self, arguments: Arguments, num_rows: int) -> None:
        """Add epochs to small data, unless their number was chosen."""
        from transformers.trainer_utils import IntervalStrategy, SaveStrategy

        if {"num_train_epochs", "max_steps"} & arguments.given:
            return
        training = arguments.training
        step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
        wanted = min(math.ceil(self.fewest_steps * step / num_rows), self.most_epochs)
        if wanted <= training.num_train_epochs:
            return
        training.num_train_epochs = wanted
        if wanted > SHORT_EPOCHS and not {"eval_strategy", "save_strategy"} & arguments.given:
            steps = math.ceil(wanted * math.ceil(num_rows / step) / SHORT_EPOCHS)  # a checkpoint costs more than a step
            training.eval_strategy, training.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
            training.eval_steps = training.save_steps = steps

    def load_tokenizer(self, arguments: Arguments, train: Dataset) -> PreTrainedTokenizerBase:
        """Load a tokenizer, or learn one of the training texts.

        Returns:
            A tokenizer with a padding token, whose `model_max_length` is `arguments.data.max_length`, so that this is
            saved with the model.
        """
        raise NotImplementedError

    def build_model(self, arguments: Arguments, tokenizer: PreTrainedTokenizerBase, task: Task) -> Any:
        """Build or load a `PreTrainedModel` or `PeftModel` to train, in float32; the seed has been set.

        `**task.to_config()` gives its config the names of the labels.
        """
        raise NotImplementedError

    def fit(self, run: Run, splits: DatasetDict, task: Task) -> tuple[Any, Any]:
        """Train in steps; the best checkpoint by the validation split is kept."""
        import evaluate
        from transformers import set_seed

        from finetune.accelerated import enable
        from finetune.data.tokenize import tokenize_splits
        from finetune.evaluate_metrics import list_metrics
        from finetune.training.trainer import FineTuningTrainer

        arguments = run.arguments
        tokenizer = self.load_tokenizer(arguments, splits["train"])
        with run.main_process_first():
            tokenized = tokenize_splits(splits, tokenizer, run.text_config)
        run.record_tokens(tokenized)
        set_seed(arguments.training.seed)  # so that new weights depend on the seed alone
        model = self.build_model(arguments, tokenizer, task)
        metrics = evaluate.combine(list_metrics(task.problem_type))
        trainer = FineTuningTrainer(
            model=enable(model) if arguments.run.accelerated else model,
            args=arguments.training,
            train_dataset=run.training_rows(tokenized, tokenizer, task),
            eval_dataset=tokenized["validation"],
            processing_class=tokenizer,
            compute_metrics=lambda found: metrics.compute(predictions=found.predictions, references=found.label_ids),
            max_tokens_per_micro_batch=arguments.run.max_tokens_per_micro_batch or 0,
            example_loss=run.build_loss(tokenized["train"]),
            max_train_windows=arguments.data.max_train_windows,
            tuning=arguments.tuning,
            callbacks=run.callbacks(),
        )
        with run.record_training(trainer):
            trainer.train(resume_from_checkpoint=run.resume_from)
        return trainer.model, tokenizer

    def save(self, model: Any, tokenizer: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
        """Write weights, config and tokenizer as transformers does."""
        model.save_pretrained(str(folder), **({} if weights is None else {"state_dict": weights}))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))

    def load(self, folder: Path, config: FinetuneConfig, trust_remote_code: bool = False) -> tuple[Any, Any]:
        """Load a whole model and its tokenizer through the Auto classes, in float32 and in evaluation mode."""
        from transformers import AutoTokenizer

        from finetune.models.inputs import fit_model, fit_tokenizer
        from finetune.quiet import quiet_loading

        with quiet_loading():
            model = self.load_model(folder, config, trust_remote_code)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        fit_tokenizer(tokenizer, model, repr(str(folder)))
        fit_model(model, tokenizer, repr(str(folder)))
        return model.eval(), tokenizer

    def load_model(self, folder: Path, config: FinetuneConfig, trust_remote_code: bool) -> Any:
        """Load the model alone; see `load`."""
        import torch
        from transformers import AutoModelForSequenceClassification

        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
        if loading["missing_keys"]:
            raise FinetuneError(
                f"Expected a trained classifier in {str(folder)!r}, but its weights lack "
                f"{sorted(loading['missing_keys'])}. Pass the folder of a fine-tuned model."
            )
        if loading["unexpected_keys"]:
            left = sorted(loading["unexpected_keys"])
            warnings.warn(
                f"{len(left)} weights in {str(folder)!r}, such as {left[0]!r}, have no place in the network that its "
                "config describes, and are left out: is the config that of these weights?",
                stacklevel=2,
            )
        return model

    def build_predictor(
        self,
        model: Any,
        tokenizer: Any,
        text_config: TextConfig | None = None,
        dtype: torch.dtype | None = None,
        accelerated: bool = True,
    ) -> TextClassifier:
        """Build what tokenizes and computes without gradients; the model itself is changed if `accelerated`."""
        from finetune.models.predictor import Predictor

        return Predictor(model, tokenizer, text_config, dtype, accelerated=accelerated, max_tokens=self.max_tokens)

    def task_of(self, model: Any) -> Task:
        """Return the task that the model's config says."""
        config = model.config
        names = [config.id2label[number] for number in range(config.num_labels)]
        return Task(config.problem_type or SINGLE_LABEL, names)

    def describe(self, model: Any) -> ModelFacts:
        """Return the model's class and its numbers of parameters."""
        from finetune.methods import count_parameters

        architecture = type(model).__name__.removeprefix("FSDP")  # which fully_shard puts before a class's name
        return ModelFacts(architecture, *count_parameters(model))

    def count_bytes(self, model: Any) -> int:
        """Count the bytes of the weights."""
        from finetune.methods import count_bytes

        return count_bytes(model)


def write_pipeline_snippet(shipped: Shipped, code: bool = False) -> str:
    """Write the lines of Python that load a whole model by transformers' `pipeline`.

    Args:
        shipped: The model.
        code: Whether it needs the Python file beside its weights.
    """
    options = {MULTI_LABEL: ", top_k=None", REGRESSION: ', function_to_apply="none"'}.get(
        shipped.config.problem_type, ""
    )
    revision = f', revision="{shipped.revision}"' if shipped.revision else ""
    trusting = ", trust_remote_code=True" if code else ""
    is_paired = shipped.config.is_paired
    text = '{"text": "A text to classify.", "text_pair": "Its second text."}' if is_paired else '"A text to classify."'
    use = f"print(classify({text}, truncation=True))"
    if shipped.is_adapter:
        names = repr(dict(enumerate(shipped.label_names)))
        task = shipped.config.problem_type
        problem = f', problem_type="{task}"' if task != SINGLE_LABEL else ""
        return (
            "from peft import AutoPeftModelForSequenceClassification\n"
            "from transformers import AutoTokenizer, pipeline\n\n"
            f"id2label = {names}\n"
            "label2id = {name: number for number, name in id2label.items()}\n"
            "model = AutoPeftModelForSequenceClassification.from_pretrained(\n"
            f'    "{shipped.name}"{revision}, id2label=id2label, label2id=label2id{problem}\n'
            ")\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{shipped.name}"{revision})\n'
            f'classify = pipeline("text-classification", model=model, tokenizer=tokenizer{options})\n{use}'
        )
    return (
        "from transformers import pipeline\n\n"
        f'classify = pipeline("text-classification", model="{shipped.name}"{revision}{trusting}{options})\n{use}'
    )
