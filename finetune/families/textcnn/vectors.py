"""The vectors that a TextCNN starts from: those of a file or a model2vec folder, and drawn ones for all other words."""

import torch
from transformers import PreTrainedTokenizerBase

from finetune.families.textcnn.vocabulary import SPECIAL_TOKENS
from finetune.models.word_vectors import WordCoverage, find_word_vectors

__all__ = ["draw_missing_vectors"]


def draw_missing_vectors(path: str, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Load the vectors of a vocabulary, and draw those that are missing.

    These are of the same variance: from U(-a, a) with a² = 3 times the variance of the others (Kim 2014, section 4.3).

    Args:
        path: A file of word vectors, or a folder of model2vec.
        tokenizer: Of whole words; `word_coverage` is noted on it.

    Returns:
        `(vocab_size, dim)`.

    Raises:
        FinetuneError: If it can't be read, or has none of the words.
    """
    places = tokenizer.get_vocab()
    words = [word for word in places if word not in SPECIAL_TOKENS]
    found = find_word_vectors(path, words)
    tokenizer.word_coverage = WordCoverage(len(found.words), len(words), len(found.words))  # type: ignore[attr-defined]
    known = torch.from_numpy(found.vectors)
    bound = float(3 * known.var(correction=0)) ** 0.5
    vectors = torch.empty(len(places), known.shape[1]).uniform_(-bound, bound)
    vectors[[places[word] for word in found.words]] = known
    return vectors
