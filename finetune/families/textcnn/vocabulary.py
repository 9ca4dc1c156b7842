"""Tokenizers of whole words: TextCNN's own, of the training texts' words, and those of word vectors."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import datasets
import tokenizers
from datasets import Dataset
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast

from finetune.data.split import iterate_texts
from finetune.data.words import UNSPACED
from finetune.errors import failures_explained
from finetune.files import write_aside

__all__ = ["SPECIAL_TOKENS", "build_splitter", "build_word_tokenizer", "load_word_tokenizer", "train_word_tokenizer"]

SPECIAL_TOKENS = ["[PAD]", "[UNK]"]


def load_word_tokenizer(train: Dataset, vocabulary_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of the training texts, or take what was learnt of the same texts before, out of the cache.

    Args:
        train: The training split, and that alone.
        vocabulary_size: As for `train_word_tokenizer`.
        max_length: Likewise.
    """
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(f"{tokenizers.__version__} {UNSPACED} {vocabulary_size}".encode())
    for text in iterate_texts(train):
        digest.update(f"{len(text or '')} {text}".encode("utf-8", "replace"))
    file = Path(datasets.config.HF_DATASETS_CACHE) / "finetune" / f"vocabulary-{digest.hexdigest()}.json"
    with contextlib.suppress(Exception):  # tokenizers has nothing narrower for a file that is missing or cut short
        return _wrap(Tokenizer.from_file(str(file)), max_length)
    tokenizer = train_word_tokenizer((text or "" for text in iterate_texts(train)), vocabulary_size, max_length)
    file.parent.mkdir(parents=True, exist_ok=True)
    with failures_explained(file), write_aside(file) as aside:
        tokenizer.backend_tokenizer.save(str(aside))
    return tokenizer


def train_word_tokenizer(texts: Iterable[str], vocabulary_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of lower-cased words, punctuation marks, and the signs of scripts without spaces.

    Args:
        texts: The training texts, and those alone.
        vocabulary_size: Most tokens to keep, `[PAD]` and `[UNK]` included.
        max_length: Tokens that a text is cut to, saved with the tokenizer.

    Returns:
        A tokenizer that `AutoTokenizer` reloads; it adds no special tokens.
    """
    tokenizer = _build(WordLevel(unk_token="[UNK]"))
    trainer = WordLevelTrainer(
        vocab_size=vocabulary_size, min_frequency=1, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, max_length)


def build_word_tokenizer(words: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer of the same kind for words that are known; their numbers follow those of `SPECIAL_TOKENS`.

    Args:
        words: As `build_splitter` gives them, each once.
        max_length: Tokens that a text is cut to, saved with the tokenizer.
    """
    vocabulary = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *words])}
    return _wrap(_build(WordLevel(vocabulary, unk_token="[UNK]")), max_length)


def build_splitter() -> Callable[[str], list[str]]:
    """Return what splits a text into the words that these tokenizers see."""
    tokenizer = _build(WordLevel(unk_token="[UNK]"))
    normalize, split = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
    return lambda text: [word for word, _ in split(normalize(text))]


def _build(model: WordLevel) -> Tokenizer:
    tokenizer = Tokenizer(model)
    # Composed first: an accent is one sign however it was typed.
    bert = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), bert])
    signs = pre_tokenizers.Split(Regex(f"[{UNSPACED}]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), signs])
    return tokenizer


def _wrap(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
    )
