"""The vectors of texts by a frozen encoder: pooled as it was made for, and kept, so that they are computed once.

How an encoder pools stands in its `1_Pooling/config.json`, as sentence-transformers (Reimers and Gurevych 2019) writes
it. Encoders that don't say are pooled by the mean of their token vectors.
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from finetune.accelerated.precision import autocast
from finetune.data.batch import MicroBatchCollator
from finetune.data.cutting import TextConfig, cut_by_tokens, group_equal
from finetune.data.tokenize import find_cache, tokenize_dataset
from finetune.errors import FinetuneError
from finetune.families.embeddings import pooled_encoder
from finetune.families.embeddings.pooled_encoder import (
    POOLINGS,
    PooledEncoderConfig,
    PooledEncoderForSequenceClassification,
    leave_out_pooler,
)
from finetune.files import read_json, write_aside
from finetune.models.inputs import add_embeddings, fit_model, needs_equal_lengths, shortest_input
from finetune.models.load import (
    load_weights,
    read_config,
    refuse_spoilt_weights,
    resolve_model,
    set_attention_dropout,
)
from finetune.models.logits import compute_rows
from finetune.settings.parts import ModelArguments
from finetune.tasks import Task

__all__ = [
    "MAX_TOKENS",
    "compute_vectors",
    "find_pooling",
    "find_vectors_file",
    "load_pooled_encoder",
    "read_beside",
    "read_poolings",
    "read_vectors",
    "tokenize_texts",
    "wrap_encoder",
    "write_vectors",
]

MAX_TOKENS = 4_096  # computed at once, padding included, as in prediction
# The keys of sentence-transformers' pooling config; later ones have `pooling_mode` and a name.
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def find_pooling(arguments: ModelArguments) -> str | None:
    """Find how an encoder pools, as it was made for.

    Args:
        arguments: Which encoder.

    Returns:
        A pooling of `PooledEncoderConfig`; None if the encoder doesn't say.

    Raises:
        FinetuneError: If it can't be had, or pools in a way that isn't known here, or in several at once.
    """
    chosen = read_poolings(arguments)
    if chosen is None:
        return None
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise FinetuneError(
            f"Expected 1_Pooling/config.json of {arguments.model_name_or_path} to name one of {', '.join(POOLINGS)}, "
            f"but it has {' and '.join(chosen) or 'none'}. Take an encoder that pools in one of these ways."
        )
    modules = read_beside(arguments, "modules.json") or []
    more = [str(one.get("type", "")).rpartition(".")[2] for one in modules if isinstance(one, dict)]
    left_out = [name for name in more if name not in ("Transformer", "Pooling", "Normalize")]
    if left_out:
        warnings.warn(
            f"of {arguments.model_name_or_path} the encoder and its pooling are used, and not its "
            f"{' and '.join(left_out)}",
            stacklevel=2,
        )
    return chosen[0]


def read_poolings(arguments: ModelArguments) -> list[str] | None:
    """Read how an encoder was made to be pooled, whether or not that is known here; None if it doesn't say."""
    content = read_beside(arguments, "1_Pooling/config.json")
    if not isinstance(content, dict):
        return None
    if "pooling_mode" in content:
        named = content["pooling_mode"]
        return [str(one) for one in named] if isinstance(named, list) else [str(named)]
    return [name for key, name in POOLING_KEYS.items() if content.get(key)]


def load_pooled_encoder(
    arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, task: Task, is_paired: bool
) -> PooledEncoderForSequenceClassification:
    """Load a pretrained encoder in float32, with its pooling and a linear layer of zeros.

    Args:
        arguments: Which encoder.
        tokenizer: Its tokenizer, after `finetune.models.load.load_tokenizer`.
        task: The kind of task and the names of its labels.
        is_paired: Whether the linear layer reads two texts.

    Raises:
        FinetuneError: If it can't be had, or also has a decoder.
    """
    name = arguments.model_name_or_path
    pooling = find_pooling(arguments) or "mean"
    config = read_config(arguments)
    if config.is_encoder_decoder:
        raise FinetuneError(
            f"Expected an encoder, but {name} is of an encoder and a decoder ({config.model_type}), which has no "
            "vectors of a text alone. Take an encoder, or --method full."
        )
    set_attention_dropout(config, arguments)
    encoder, info = load_weights(AutoModel, arguments, config, **leave_out_pooler(config))
    missing = sorted(info["missing_keys"])
    if missing:
        raise FinetuneError(
            f"Expected pretrained weights in {name}, but it lacks {len(missing)} of those of "
            f"{type(encoder).__name__}, such as {missing[0]!r}. Is it a checkpoint of another architecture?"
        )
    refuse_spoilt_weights(encoder, name)
    add_embeddings(encoder, tokenizer, name)
    model = wrap_encoder(encoder, task, pooling=pooling, is_paired=is_paired)
    fit_model(model, tokenizer, name)
    return model.eval()


def wrap_encoder(encoder: PreTrainedModel, task: Task, **settings: Any) -> PooledEncoderForSequenceClassification:
    """Wrap an encoder for the vectors of texts, with a linear layer of zeros.

    Args:
        encoder: With its weights.
        task: The kind of task and the names of its labels.
        **settings: Of `PooledEncoderConfig`.
    """
    whole = PooledEncoderConfig(encoder.config, **settings, **task.to_config())
    with torch.device("meta"):
        model = PooledEncoderForSequenceClassification(whole)
    model.encoder = encoder
    model.classifier.to_empty(device="cpu")
    for parameter in model.classifier.parameters():
        torch.nn.init.zeros_(parameter)
    return model


def tokenize_texts(dataset: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> Dataset:
    """Tokenize one column of texts by itself, without the labels; see `tokenize_dataset`."""
    return tokenize_dataset(_select(dataset, column), tokenizer, config)


def compute_vectors(
    model: PooledEncoderForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[dict[str, Any]],
    lengths: Sequence[int],
    dtype: torch.dtype,
    on_batch: Callable[[int], None] = lambda num_examples: None,
) -> np.ndarray:
    """Compute the vectors of tokenized texts, sorted by length and batched by tokens, in the order of the input.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        examples: Each has `input_ids`; a list, or a data set of `tokenize_texts`.
        lengths: Tokens of each example.
        dtype: Number format of the matrix products, by autocast.
        on_batch: Called with the number of examples after each batch.

    Returns:
        float32, `(len(examples), width)`.
    """
    device = next(model.parameters()).device
    collate = MicroBatchCollator(tokenizer, MAX_TOKENS, min_length=shortest_input(model)).collate

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast(device, dtype):
            return model.embed(**inputs)

    cut = group_equal if needs_equal_lengths(model) else cut_by_tokens
    width = model.config.text_config.hidden_size
    return compute_rows(forward, width, examples, lengths, collate, MAX_TOKENS, device, on_batch, cut)


def find_vectors_file(
    dataset: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, config: TextConfig, facts: Sequence[str]
) -> Path:
    """Name the file that the vectors of a column of texts are kept in, by all that they depend on.

    Args:
        dataset: Has the column.
        column: Of texts.
        tokenizer: The encoder's.
        config: How texts are cut.
        facts: What else the vectors depend on: which weights, how they are pooled, the number format.
    """
    digest = hashlib.sha256(find_cache(_select(dataset, column), tokenizer, config).encode())
    for code in (__file__, pooled_encoder.__file__):
        digest.update(Path(code).read_bytes())
    digest.update(f"{transformers.__version__} {torch.__version__} {list(facts)}".encode())
    return Path(datasets.config.HF_DATASETS_CACHE) / "finetune" / f"vectors-{digest.hexdigest()}.safetensors"


def read_vectors(file: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Read vectors that were kept, and the wall and CPU seconds that they took; None if they are not there or whole."""
    try:
        with safe_open(file, "numpy") as opened:
            vectors, seconds = opened.get_tensor("vectors"), opened.get_tensor("seconds")
    except (OSError, SafetensorError):
        return None
    return (vectors, seconds) if (len(vectors), len(seconds)) == (count, 2) else None


def write_vectors(file: Path, vectors: np.ndarray, seconds: np.ndarray) -> None:
    """Keep vectors, and the wall and CPU seconds they took; on a full disk they are computed again the next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(file) as aside:
            save_file({"vectors": vectors, "seconds": seconds}, aside)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the vectors could not be kept for the next fit: {error}", stacklevel=2)


def _select(dataset: Dataset, column: str) -> Dataset:
    texts = dataset.select_columns([column])
    return texts if column == "text" else texts.rename_column(column, "text")


def read_beside(arguments: ModelArguments, name: str) -> Any:
    """Read a JSON file beside an encoder's weights, or on the Hub; None if there is none."""
    path, commit = resolve_model(arguments.model_name_or_path, arguments.model_revision)
    file = cached_file(
        path,
        name,
        revision=commit,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if file is None else read_json(Path(file))
