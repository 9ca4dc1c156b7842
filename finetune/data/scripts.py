"""What text in other scripts than Latin looks like when it is decoded rightly: everyday signs, and whole words.

Bytes of Japanese, Korean and Chinese are text in one another's encodings too, of rare signs; so are those of Cyrillic
code pages, with capitals within words. A detector that knows how often letters are used can be fooled by few rows.
"""

import re

__all__ = ["choose_script", "looks_right"]

# Narrow ones first: Korean is everyday Chinese too, when read as such, but Chinese is no everyday Korean.
EAST_ASIAN = ("cp949", "euc_jp", "cp932", "big5", "gb18030")
CYRILLIC = ("cp1251", "koi8_r", "koi8_u", "cp866", "iso8859_5", "mac_cyrillic")
EVERYDAY = 0.85  # share of signs beyond ASCII that are in common use
KANA = 0.3  # share of the signs beyond ASCII in Japanese, and more
FREQUENT = 0.4  # share of signs beyond ASCII that are among the most frequent letters; in Russian it is 0.6
FREQUENT_LETTERS = set("оеаинтсрвлкіОЕАИНТСРВЛКІ")
ODD = 0.01  # share of letters that stand where they don't: a capital behind a small one, or beside a Latin letter
LETTER = r"[^\W\d_]"


def looks_right(sample: bytes, encoding: str) -> bool:
    """Return whether a sample, decoded so, is of everyday signs, or of whole words of one script."""
    if encoding in EAST_ASIAN:
        # Japanese in GB18030 is taken for anything: kana are where EUC-JP has them, and the other signs are not.
        hides_kana = _share_of_kana(sample, "gb18030") > KANA > _share_of_kana(sample, encoding)
        return _share_of_everyday_signs(sample, encoding) >= EVERYDAY and not hides_kana
    return _share_of_odd_letters(sample, encoding) < ODD


def choose_script(sample: bytes) -> str | None:
    """Choose the encoding of East Asia or of Cyrillic in which a sample looks right; None if there is none."""
    for encoding in EAST_ASIAN:
        if looks_right(sample, encoding):
            return encoding
    shares = {name: _share_of_frequent_letters(sample, name) for name in CYRILLIC if looks_right(sample, name)}
    best = max(shares, key=lambda name: shares[name], default=None)
    return best if best is not None and shares[best] >= FREQUENT else None


def _decode(sample: bytes, encoding: str) -> str:
    try:
        return sample.decode(encoding)
    except UnicodeDecodeError:
        return ""


def _share_of_everyday_signs(sample: bytes, encoding: str) -> float:
    signs = [sign for sign in _decode(sample, encoding) if sign.isalpha() and not sign.isascii()]
    return sum(_is_everyday(sign, encoding) for sign in signs) / max(1, len(signs))


def _share_of_kana(sample: bytes, encoding: str) -> float:
    signs = [sign for sign in _decode(sample, encoding) if sign.isalpha() and not sign.isascii()]
    return sum("\u3041" <= sign <= "\u30ff" for sign in signs) / max(1, len(signs))


def _is_everyday(sign: str, encoding: str) -> bool:
    """Return whether a sign is in common use, by the row of its national standard, which orders them so."""
    if "\u3000" <= sign <= "\u303f" or "\uff01" <= sign <= "\uff5e":  # signs of repetition, and wide forms of ASCII
        return True
    if encoding == "cp949":
        return 0xB0 <= _first_byte(sign, "euc_kr") <= 0xC8
    if encoding in ("euc_jp", "cp932"):
        return "\u3041" <= sign <= "\u30ff" or 0xB0 <= _first_byte(sign, "euc_jp") <= 0xCF
    if encoding == "big5":
        return 0xA4 <= _first_byte(sign, "big5") <= 0xC6
    return 0xB0 <= _first_byte(sign, "gb2312") <= 0xD7 or "\u0391" <= sign <= "\u0451"  # it has Greek and Cyrillic too


def _first_byte(sign: str, encoding: str) -> int:
    try:
        return sign.encode(encoding)[0]
    except UnicodeEncodeError:
        return 0


def _share_of_odd_letters(sample: bytes, encoding: str) -> float:
    """Compute the share of letters beyond ASCII that are capitals within a word, or beside a Latin letter or a sign."""
    text = _decode(sample, encoding)
    letters = re.findall(rf"(?![\x00-\x7f]){LETTER}", text)
    if not letters:
        return 1.0
    pairs = re.findall(rf"(?![\x00-\x7f])({LETTER})(?=(?![\x00-\x7f])(\S))", text)
    odd = sum(first.islower() and second.isupper() for first, second in pairs)
    odd += sum("\u2500" <= second <= "\u259f" for _, second in pairs)  # lines and blocks of old consoles
    odd += len(re.findall(rf"[A-Za-z](?![\x00-\x7f]){LETTER}|(?![\x00-\x7f]){LETTER}[A-Za-z]", text))
    return odd / len(letters)


def _share_of_frequent_letters(sample: bytes, encoding: str) -> float:
    """Compute the share of frequent letters, in words of at least two: one by itself is a sign of another encoding."""
    signs = re.findall(r"[^\x00-\x7f]", text := _decode(sample, encoding))
    words = re.findall(rf"(?:(?![\x00-\x7f]){LETTER}){{2,}}", text)
    return sum(letter in FREQUENT_LETTERS for word in words for letter in word) / max(1, len(signs))
