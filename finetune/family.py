"""What a family of models says of itself, so that nothing else has to ask which one it is.

A family is a class: facts, the settings that are its own, and the steps from rows to a model and back from a folder.
Those of the package stand in `finetune.families`; `docs/tutorials/add-a-family.md` shows how to add one. Cheap to
import, and so is each family's module: what needs torch is imported by the step that needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict

    from finetune.data.cutting import TextConfig
    from finetune.models.answers import TextClassifier
    from finetune.models.finetune_config import FinetuneConfig
    from finetune.run.run import Run
    from finetune.settings.arguments import Arguments
    from finetune.settings.declaration import Values
    from finetune.tasks import Task

__all__ = ["Family", "ModelFacts", "Shipped"]


class ModelFacts(NamedTuple):
    """What a model is: its class or its parts, and how many of its parameters were trained, and are there."""

    architecture: str
    trainable_parameters: int
    total_parameters: int


@dataclass(frozen=True)
class Shipped:
    """What goes to the Hub.

    Attributes:
        name: `user/name`.
        revision: The branch; None for main.
        family: Of the model.
        label_names: In the order of their numbers.
        config: How texts are cut, the task, thresholds.
        base: Id and revision of the pretrained model on the Hub; None if there is none, or it is not there.
        is_adapter: Whether it is an adapter of PEFT, without the weights of its base.
        merged: Whether an adapter was merged into the weights.
    """

    name: str
    revision: str | None
    family: Family
    label_names: list[str]
    config: FinetuneConfig
    base: tuple[str, str | None] | None = None
    is_adapter: bool = False
    merged: bool = False

    @property
    def path(self) -> str:
        """What finetune's functions and commands take: `user/name` or `user/name@revision`."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


class Family:
    """A kind of model: what is true of it, and how it is fitted, saved, loaded and shown.

    A family that learns from all rows at once has `fit_rows`; one that the `Trainer` trains derives from
    `finetune.families.network.NetworkFamily`. Both need `save`, `load`, `build_predictor`, `task_of` and `describe`.

    Attributes:
        trains_network: Whether it trains a network in steps, with the `Trainer` and its settings.
        trains_encoder: Whether it trains a pretrained encoder, or a part of one.
        is_deterministic: Whether another seed changes nothing.
        learns_from_teacher: Whether its fit follows the answers of another model where training rows have a column
            `teacher` (`finetune.data.soft_labels`).
        can_stream: Whether it can train on rows that don't fit into memory.
        uses_torch: Whether it computes with torch, or a library that is built on it.
        precision: Number format that it computes in, whatever the settings; None if they say.
        library_name: By the Hub's name what loads it.
        files: Names of files, other than weights and the tokenizer's, that it writes beside them.
        settings: A dataclass of the settings that are its own, declared like those of `finetune.settings.parts`.
        also_uses: Names of settings that it has a use for although they are declared for networks that train, such as
            "max_length" of a frozen encoder.
    """

    trains_network: ClassVar[bool] = False
    trains_encoder: ClassVar[bool] = False
    is_deterministic: ClassVar[bool] = False
    learns_from_teacher: ClassVar[bool] = False
    can_stream: ClassVar[bool] = False
    uses_torch: ClassVar[bool] = True
    precision: ClassVar[str | None] = None
    library_name: ClassVar[str] = "finetune"
    files: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[type | None] = None
    also_uses: ClassVar[frozenset[str]] = frozenset()

    def starts_from_pretrained(self, settings: Values) -> bool:
        """Return whether, by the settings, something of `--model_name_or_path` is read."""
        return False

    def takes_word_vectors(self, settings: Values) -> bool:
        """Return whether, by the settings, `--word_vectors` has a use."""
        return False

    def can_pretrain(self, settings: Values) -> bool:
        """Return whether, by the settings, a pretrained model computes in it that texts alone can train before."""
        return False

    def learns_tokens(self, settings: Values) -> bool:
        """Return whether, by the settings, the tokens are learnt of the training rows, which then can't change."""
        return False

    def fill_in(self, arguments: Arguments) -> None:
        """Set what depends on other settings, unless it was chosen (`arguments.given`)."""

    def settle(self, arguments: Arguments, num_rows: int) -> None:
        """Set what depends on the number of training rows, unless it was chosen (`arguments.given`)."""

    def fit(self, run: Run, splits: DatasetDict, task: Task) -> tuple[Any, Any]:
        """Fit a model, and note in the run what that costs.

        Args:
            run: Its settings are `run.arguments`.
            splits: `train`, `validation` and `test`, which is not to be looked at.
            task: What is predicted.

        Returns:
            The model, and its tokenizer if it has one.
        """
        with run.measure_costs():
            return self.fit_rows(splits["train"], run.arguments), None

    def fit_rows(self, train: Dataset, arguments: Arguments) -> Any:
        """Fit a model to all rows at once, with the columns `text`, `label` and in pairs `text_pair`."""
        raise NotImplementedError

    def save(self, model: Any, tokenizer: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
        """Write a model into an existing folder, as safetensors and JSON.

        Args:
            model: What `fit` returned.
            tokenizer: Likewise.
            folder: An empty folder.
            weights: The whole ones of a model that is divided over processes.
        """
        raise NotImplementedError

    def load(self, folder: Path, config: FinetuneConfig, trust_remote_code: bool = False) -> tuple[Any, Any]:
        """Load what `save` wrote.

        Args:
            folder: A model folder.
            config: What its `finetune_config.json` says.
            trust_remote_code: Whether Python code beside the weights may run.

        Raises:
            FinetuneError: If it is not whole. What the libraries raise is put into one line by whoever calls this.
        """
        raise NotImplementedError

    def recognises(self, folder: Path) -> bool:
        """Return whether a folder that doesn't say its family is of this one; not for families that are not listed."""
        return False

    def build_predictor(
        self,
        model: Any,
        tokenizer: Any,
        text_config: TextConfig | None = None,
        dtype: torch.dtype | None = None,
        accelerated: bool = True,
    ) -> TextClassifier:
        """Build what takes texts.

        Args:
            model: What `fit` or `load` returned.
            tokenizer: Likewise.
            text_config: How long texts are cut.
            dtype: Number format of the computation; by default what the machine does fast.
            accelerated: Whether to compute with `finetune.accelerated`.
        """
        raise NotImplementedError

    def task_of(self, model: Any) -> Task:
        """Return what a model predicts."""
        raise NotImplementedError

    def describe(self, model: Any) -> ModelFacts:
        """Return what a model is."""
        raise NotImplementedError

    def count_bytes(self, model: Any) -> int:
        """Count the bytes that `save` will write, about."""
        raise NotImplementedError

    def count_base_bytes(self, model: Any) -> int:
        """Count the bytes of what a saved model needs besides its folder: of an adapter its base, else none."""
        return 0

    def is_four_bit(self, model: Any) -> bool:
        """Return whether a model's weights are held in four bits, so that those of its base have to be again."""
        return False

    def check_exportable(self, model: Any) -> None:
        """Refuse a model whose answers are not computed from one row of tokens, as what `finetune export` writes does.

        Raises:
            FinetuneError: If it is one.
        """

    def write_snippet(self, shipped: Shipped) -> str:
        """Write the lines of Python that a stranger types; they print what the model says of one text, or of a pair."""
        module = type(self).__module__
        own = "" if module.startswith("finetune.") else f"import {module}  # the family of this model\n"
        pair = ', ["Its second text."]' if shipped.config.is_paired else ""
        return (
            f"import finetune\n{own}\n"
            f'classifier = finetune.load_classifier("{shipped.path}")\n'
            f'print(classifier.predict(["A text to classify."]{pair}))'
        )
