"""Static word vectors as an encoder: a text's vector is the mean of those of its words."""

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from finetune.data.split import iterate_texts
from finetune.errors import FinetuneError
from finetune.families.embeddings.pooled_encoder import (
    PooledEncoderForSequenceClassification,
    StaticEncoder,
    StaticEncoderConfig,
)
from finetune.families.embeddings.vectors import wrap_encoder
from finetune.families.textcnn.vocabulary import SPECIAL_TOKENS, build_splitter, build_word_tokenizer
from finetune.models.word_vectors import (
    StaticModel,
    WordCoverage,
    is_static_model,
    load_static_model,
    read_word_vectors,
)
from finetune.tasks import Task

__all__ = ["MOST_OTHER_WORDS", "load_static_encoder"]

# Beside the words of the training texts: the most frequent ones of the file, which new texts are made of. With 300
# numbers each they take 240 MB.
MOST_OTHER_WORDS = 200_000


def load_static_encoder(
    path: str, train: Dataset, max_length: int, task: Task, is_paired: bool
) -> tuple[PooledEncoderForSequenceClassification, PreTrainedTokenizerBase]:
    """Load word vectors as an encoder, with a linear layer of zeros, and its tokenizer.

    Of a text file the words of the training texts are kept and the first `MOST_OTHER_WORDS` others; `word_coverage` of
    the tokenizer says how many. Of a model2vec folder everything is, and its config says whether vectors of texts have
    length one.

    Args:
        path: A file, or a folder of model2vec.
        train: The training split.
        max_length: Tokens that a text is cut to.
        task: The kind of task and the names of its labels.
        is_paired: Whether the linear layer reads two texts.

    Raises:
        FinetuneError: If it can't be read, or has none of the words of the training texts.
    """
    read = load_static_model(path, max_length) if is_static_model(path) else _read_file(path, train, max_length)
    config = StaticEncoderConfig(
        vocab_size=len(read.vectors),
        hidden_size=read.vectors.shape[1],
        unknown_token_id=read.unknown,
        pad_token_id=read.tokenizer.pad_token_id,
    )
    encoder = StaticEncoder(config)
    with torch.no_grad():
        encoder.embeddings.weight.copy_(torch.from_numpy(read.vectors))
    model = wrap_encoder(encoder, task, is_paired=is_paired, normalize=read.normalize)
    return model.eval(), read.tokenizer


def _read_file(path: str, train: Dataset, max_length: int) -> StaticModel:
    split = build_splitter()
    texts = ((text or "").replace("\0", " ") for text in iterate_texts(train))  # which stands between those of a pair
    wanted = {word for text in texts for word in split(text)}
    found = read_word_vectors(path, wanted, MOST_OTHER_WORDS, lambda word: split(word) == [word])
    coverage = WordCoverage(len(wanted & set(found.words)), len(wanted), len(found.words))
    if coverage.found == 0:
        raise FinetuneError(
            f"Expected vectors of words in the training texts, but {path!r} has none of their {len(wanted):,} words. "
            "Is it of another language?"
        )
    tokenizer = build_word_tokenizer(found.words, max_length)
    tokenizer.word_coverage = coverage  # type: ignore[attr-defined]
    nothing = np.zeros((len(SPECIAL_TOKENS), found.vectors.shape[1]), dtype=np.float32)
    return StaticModel(tokenizer, np.concatenate([nothing, found.vectors]), tokenizer.unk_token_id, normalize=True)
