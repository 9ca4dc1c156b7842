"""What a word is where words are counted: in every script, with emoji, however accents were typed."""

import re
import unicodedata

__all__ = ["MARKS", "UNSPACED", "WORD", "compose", "find_terms"]

# Scripts that put no spaces between words: Chinese, Japanese, Thai, Lao, Burmese, Khmer. Each sign is a word there.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# Vowel signs and accents that are characters of their own, as in Hindi: they belong to the letter before them.
MARKS = "".join(sign for sign in map(chr, range(0x300, 0x10000)) if unicodedata.category(sign).startswith("M"))
# Words and pairs of neighbours (Wang and Manning 2012 found pairs to help sentiment), also one-letter words.
# Emoji, each a word with its skin tone, and those that are joined to one; flags are two signs.
PICTURE = "[\u2600-\u27bf\u2b50\u2b55\U0001f300-\U0001f5ff\U0001f600-\U0001faff]"
EMOJI = rf"{PICTURE}[\ufe0f\U0001f3fb-\U0001f3ff]*(?:\u200d{PICTURE}[\ufe0f\U0001f3fb-\U0001f3ff]*)*"
FLAG = "[\U0001f1e6-\U0001f1ff]{2}"
WORD = rf"(?u){EMOJI}|{FLAG}|[{UNSPACED}]|[^\W{UNSPACED}]+(?:[{MARKS}]+[^\W{UNSPACED}]*)*"


def compose(text: str) -> str:
    """Return a text in lower case, its letters composed (NFC), so that an accent is one sign however it was typed."""
    return unicodedata.normalize("NFC", text).lower()


def find_terms(text: str, max_ngram: int = 2) -> list[str]:
    """Return the words of a text, composed, then its runs of 2 to `max_ngram` neighbouring words.

    Examples:
        >>> find_terms("Not bad at all", max_ngram=2)
        ['not', 'bad', 'at', 'all', 'not bad', 'bad at', 'at all']
    """
    words = re.findall(WORD, compose(text))
    lengths = range(2, min(max_ngram, len(words)) + 1)
    return words + [" ".join(words[at : at + n]) for n in lengths for at in range(len(words) - n + 1)]
