"""TextCNN's own tokenizer: the words of the training texts, most frequent first."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast

from finetune.models.tfidf import UNSPACED

__all__ = ["train_word_tokenizer"]


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
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True
    )
    signs = pre_tokenizers.Split(Regex(f"[{UNSPACED}]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), signs])
    trainer = WordLevelTrainer(
        vocab_size=vocabulary_size, min_frequency=1, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
    )
