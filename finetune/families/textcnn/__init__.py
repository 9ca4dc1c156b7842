"""TextCNN (Kim 2014): filters over word vectors that are learnt from scratch, or taken from a file or an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from finetune.families.network import NetworkFamily, write_pipeline_snippet
from finetune.family import Shipped
from finetune.files import read_json
from finetune.settings.declaration import Setting, Values
from finetune.settings.parts import setting

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from finetune.models.finetune_config import FinetuneConfig
    from finetune.settings.arguments import Arguments
    from finetune.settings.parts import ModelArguments
    from finetune.tasks import Task

__all__ = ["TextCNN", "TextCNNSettings", "build_textcnn", "load_textcnn_tokenizer", "load_word_vectors"]


def _learns_vectors(settings: Values) -> bool:
    return settings.textcnn_variant == "rand"


def _has_own_tokens(settings: Values) -> bool:
    """Return whether tokens are words of the training texts, not those of an encoder."""
    return settings.textcnn_tokenizer == "own" if _learns_vectors(settings) else settings.word_vectors is not None


@dataclass
class TextCNNSettings:
    """The sizes of a TextCNN, and where its word vectors are from."""

    _argument_group_name = "TextCNN"

    textcnn_variant: str = setting(
        "rand",
        "Kim 2014: word vectors from scratch, or those of --word_vectors or else of --model_name_or_path, kept, tuned, "
        "or both. With --word_vectors the default is non-static.",
        choices=["rand", "static", "non-static", "multichannel"],
    )
    textcnn_tokenizer: Annotated[str, Setting(used_when=_learns_vectors)] = setting(
        "own",
        "TextCNN's tokens: words of the training texts, or the tokenizer of --model_name_or_path. "
        "With vectors of a model it is always the model's, with --word_vectors always its own.",
        choices=["own", "model"],
    )
    textcnn_embedding_dim: Annotated[int, Setting(at_least=1, used_when=_learns_vectors)] = setting(
        300, "Size of TextCNN's word vectors when learnt from scratch."
    )
    textcnn_vocabulary_size: Annotated[int, Setting(at_least=3, used_when=_has_own_tokens)] = setting(
        30_000, "Most words that TextCNN's own tokenizer keeps."
    )
    textcnn_dropout: Annotated[float, Setting(at_least=0, below=1)] = setting(
        0.5, "Dropout before TextCNN's linear head."
    )


class TextCNN(NetworkFamily):
    """A convolutional network. `textcnn.py` is copied beside its weights, so that transformers alone can load it."""

    settings: ClassVar[type] = TextCNNSettings
    library_name: ClassVar[str] = "transformers"
    files: ClassVar[tuple[str, ...]] = ("textcnn.py",)
    fewest_steps: ClassVar[int] = 1_000  # from scratch
    most_epochs: ClassVar[int] = 20
    # What is needed for so many tokens stays in the processor's caches: 4,276 sentences a second of processor time,
    # where 4,096 at once gave 3,518 (one core of an Intel Xeon with AMX; the logits are equal).
    max_tokens: ClassVar[int] = 1_024

    def starts_from_pretrained(self, settings: Values) -> bool:
        """Return whether vectors or tokens are those of an encoder."""
        return not _has_own_tokens(settings)

    def takes_word_vectors(self, settings: Values) -> bool:
        """Return whether vectors are not learnt from scratch."""
        return not _learns_vectors(settings)

    def fill_in(self, arguments: Arguments) -> None:
        """Tune the vectors that were given, unless a variant was chosen."""
        if arguments.model.word_vectors is not None and "textcnn_variant" not in arguments.given:
            arguments.family.textcnn_variant = "non-static"

    def learns_tokens(self, settings: Values) -> bool:
        """Return whether the vocabulary is of the training texts."""
        return _has_own_tokens(settings)

    def load_tokenizer(self, arguments: Arguments, train: Dataset) -> PreTrainedTokenizerBase:
        """Learn the words of the training texts, or load an encoder's tokenizer."""
        return load_textcnn_tokenizer(arguments.model, arguments.family, train, arguments.data.max_length)

    def build_model(self, arguments: Arguments, tokenizer: PreTrainedTokenizerBase, task: Task) -> Any:
        """Draw the weights, or take word vectors."""
        return build_textcnn(arguments.model, arguments.family, tokenizer, task, arguments.training.seed)

    def load_model(self, folder: Path, config: FinetuneConfig, trust_remote_code: bool) -> Any:
        """Load it by the code of this package, not by the copy that lies beside its weights."""
        import finetune.families.textcnn.textcnn  # noqa: F401  registers it with the Auto classes

        return super().load_model(folder, config, trust_remote_code)

    def recognises(self, folder: Path) -> bool:
        """Return whether its config is there."""
        content = read_json(folder / "config.json")
        return isinstance(content, dict) and content.get("model_type") == "textcnn"

    def write_snippet(self, shipped: Shipped) -> str:
        """Write lines for transformers alone, which runs the code beside the weights."""
        return write_pipeline_snippet(shipped, code=True)


def load_textcnn_tokenizer(
    model: ModelArguments, settings: TextCNNSettings, train: Dataset, max_length: int
) -> PreTrainedTokenizerBase:
    """Learn a tokenizer of the training texts, or load an encoder's, which a TextCNN reads to any length.

    Raises:
        FinetuneError: If it can't be had, or has no padding token.
    """
    from finetune.families.textcnn.vocabulary import load_word_tokenizer
    from finetune.models.load import load_padding_tokenizer

    if _has_own_tokens(Values({**vars(model), **vars(settings)})):
        return load_word_tokenizer(train, settings.textcnn_vocabulary_size, max_length)
    tokenizer = load_padding_tokenizer(model)
    tokenizer.model_max_length = max_length
    return tokenizer


def build_textcnn(
    model: ModelArguments, settings: TextCNNSettings, tokenizer: PreTrainedTokenizerBase, task: Task, seed: int
) -> Any:
    """Build a TextCNN, with the word vectors of a file or of an encoder in the variants that want them.

    Args:
        model: Which vectors, or which encoder.
        settings: Its sizes and its variant.
        tokenizer: Its size is the vocabulary.
        task: The kind of task and the names of its labels.
        seed: Set before weights are drawn.
    """
    from transformers import set_seed

    from finetune.families.textcnn.textcnn import TextCNNConfig, TextCNNForSequenceClassification
    from finetune.models.inputs import count_rows

    set_seed(seed)
    vectors = load_word_vectors(model, settings, tokenizer, task)
    num_words, dim = (count_rows(tokenizer), settings.textcnn_embedding_dim) if vectors is None else vectors.shape
    config = TextCNNConfig(
        vocab_size=num_words,
        embedding_dim=dim,
        classifier_dropout=settings.textcnn_dropout,
        variant=settings.textcnn_variant,
        pad_token_id=tokenizer.pad_token_id,
        **task.to_config(),
    )
    built = TextCNNForSequenceClassification(config)
    if vectors is not None:
        built.set_word_vectors(vectors)
    return built


def load_word_vectors(
    model: ModelArguments, settings: TextCNNSettings, tokenizer: PreTrainedTokenizerBase, task: Task
) -> torch.Tensor | None:
    """Load the word vectors that the variants other than "rand" start from: of `--word_vectors`, else of an encoder.

    Args:
        model: Which vectors, or which encoder.
        settings: Which variant.
        tokenizer: After `load_textcnn_tokenizer`. An encoder's tokens that were added get vectors, and so do words that
            `--word_vectors` has none for; `word_coverage` then says how many those are not.
        task: The kind of task and the names of its labels.

    Returns:
        `(vocab_size, embedding_dim)`; None for "rand".

    Raises:
        FinetuneError: If they can't be had.
    """
    from torch import nn

    from finetune.families.textcnn.vectors import draw_missing_vectors
    from finetune.models.inputs import add_embeddings
    from finetune.models.load import load_encoder

    if settings.textcnn_variant == "rand":
        return None
    if model.word_vectors is not None:
        return draw_missing_vectors(model.word_vectors, tokenizer)
    encoder = load_encoder(model, task.to_config())
    add_embeddings(encoder, tokenizer, model.model_name_or_path)
    embeddings = encoder.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings.weight.detach()
