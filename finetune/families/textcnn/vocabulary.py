"""TextCNN's own tokenizer: the words of the training texts, most frequent first."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
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
from finetune.files import flush

__all__ = ["load_word_tokenizer", "train_word_tokenizer"]


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
    aside = file.with_suffix(f".{os.getpid()}.partial")
    tokenizer.backend_tokenizer.save(str(aside))
    flush(aside)
    aside.rename(file)
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
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))
    # Composed first: an accent is one sign however it was typed.
    bert = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), bert])
    signs = pre_tokenizers.Split(Regex(f"[{UNSPACED}]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), signs])
    trainer = WordLevelTrainer(
        vocab_size=vocabulary_size, min_frequency=1, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, max_length)


def _wrap(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
    )
