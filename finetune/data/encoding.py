"""What encoding bytes that are not UTF-8 are most likely in.

chardet ranks the encodings by how often pairs of letters follow each other in each language; what it can't know of few
words, what stands where it never does in writing, is looked at here. Where two readings remain equally likely, none is
chosen: a refusal is read, a wrong letter is not.
"""

import re
import unicodedata
from functools import lru_cache

import chardet

__all__ = ["choose_encoding"]

WESTERN = ("cp1252", "iso8859-15")
ENCODINGS = (
    *WESTERN, "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "iso8859-2",
    "iso8859-4", "iso8859-5", "iso8859-7", "iso8859-13", "koi8-r", "koi8-u", "cp437", "cp720", "cp737", "cp775",
    "cp850", "cp852", "cp855", "cp857", "cp862", "cp866", "cp869", "cp874", "mac-roman", "mac-latin2", "mac-cyrillic",
    "mac-greek", "mac-turkish", "gb18030", "big5", "cp932", "euc-jp", "cp949", "johab",
)  # fmt: skip
COMMONNESS = 0.5  # how much more likely Western encodings are, per word beyond ASCII: a few such words tell less
MARGIN = 1.04  # how many times likelier than the next that reads otherwise
LEAST_SIGNS = 3  # different ones beyond ASCII; of fewer, an encoding that is not the commonest would be a guess
ROWS_OF_SIGNS = 0.6  # share of the bytes beyond ASCII; Chinese in Big5 has 0.3
MOST_PLACES = 2_000  # that are looked at
MOST_ODD = 0.2  # share of characters that may stand where they hardly do in writing
STRICTNESS = 4  # power of the share of characters that stand where they may
LETTER = r"[^\W\d_ªº¹²³¼½¾]"
IN_WORDS = re.compile(rf"(?![\x00-\x7f]){LETTER}(?={LETTER})|(?<={LETTER})(?![\x00-\x7f]){LETTER}")
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
ALPHABETS = {"LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC", "THAI"}
EAST_ASIAN = "EAST ASIAN"
ONE_LETTER_WORDS = "àáåèéêìíòóôöùúýавикоусяіїє"
# Signs of everyday writing, by where they stand; other ones are odd anywhere, as are controls.
APOSTROPHES = "’´"
OPENING = "“„‘‚«‹¿¡"
SIGNS = "£€¥¢©®™°½¼¾¹²³ºª§±×÷µ†‰"


def choose_encoding(sample: bytes) -> str | None:
    """Choose the encoding of a sample of lines, each of them with bytes beyond ASCII and none UTF-8.

    Returns:
        The name of a codec of Python; None if there is none in which it looks like text, or two that read differently
        and are about equally likely.
    """
    found = chardet.detect_all(sample, ignore_threshold=True, include_encodings=ENCODINGS, compat_names=False)
    words = len(set(re.findall(rb"[a-z]*[\x80-\xff]+[a-z\x80-\xff]*", sample.lower())))
    readings: dict[str, tuple[float, str]] = {}
    for encoding, confidence in ((one["encoding"], one["confidence"]) for one in found):
        try:
            text = sample.decode(encoding or "ascii")
        except UnicodeDecodeError:
            continue
        odd = _share_of_odd_characters(text)
        likelihood = (1 + COMMONNESS / words if encoding in WESTERN else 1) * confidence * (1 - odd) ** STRICTNESS
        if encoding is not None and odd < MOST_ODD and likelihood > readings.get(text, (0.0, ""))[0]:
            readings[text] = likelihood, encoding
    ranked = sorted(readings.values(), reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][0] < MARGIN * ranked[1][0]):
        return None
    chosen = ranked[0][1]
    if not chosen.startswith(("gb", "euc")) and _is_of_rows_of_signs(sample):
        return None
    text = sample.decode(chosen)
    if IN_WORDS.search(text):
        return chosen if chosen in WESTERN or len(set(BEYOND_ASCII.findall(text))) >= LEAST_SIGNS else None
    # Signs alone are commonest in Windows-1252, and letters by themselves tell of none.
    return chosen if chosen in WESTERN and not re.search(rf"(?![\x00-\x7f]){LETTER}", text) else None


def _is_of_rows_of_signs(sample: bytes) -> bool:
    """Return whether it is text of East Asia's rows 1 to 9, which hold signs, kana, Greek and Cyrillic, or of GB18030's
    four bytes a sign.
    """
    pairs = len(re.findall(rb"[\xa1-\xa9][\xa1-\xfe]|[\x81-\xfe][0-9][\x81-\xfe][0-9]", sample))
    return 2 * pairs > ROWS_OF_SIGNS * sum(byte > 0x7F for byte in sample)


def _share_of_odd_characters(text: str) -> float:
    places = [match.start() for match in BEYOND_ASCII.finditer(text)]
    places = places[:: len(places) // MOST_PLACES + 1]
    padded = f"  {text}  "
    return sum(_is_odd(*padded[place : place + 5]) for place in places) / max(1, len(places))


def _is_odd(second_before: str, before: str, character: str, after: str, second_after: str) -> bool:
    """Return whether a character beyond ASCII stands where it hardly does in any language's writing."""
    if character.isalpha() and character not in SIGNS:
        return _is_odd_letter(second_before, before, character, after, second_after)
    between_letters = before.isalpha() and after.isalpha()
    if character in APOSTROPHES or unicodedata.category(character) in ("Mn", "Mc"):
        return False
    if character in OPENING:
        return between_letters or (after.isspace() and character != "«")
    if character in "”»›":
        return between_letters
    if character in SIGNS:  # beside a single letter they may stand: km², °C, £m
        ends_word = second_before.isalpha() and before.isalpha() and character not in "™®©²³"
        begins_word = after.isalpha() and second_after.isalpha() and character != "©"
        return between_letters or ends_word or begins_word
    return _alphabet(character) != EAST_ASIAN and character not in "\xa0…—–·•"


def _is_odd_letter(second_before: str, before: str, letter: str, after: str, second_after: str) -> bool:
    alphabet = _alphabet(letter)
    if alphabet is None:
        return False
    if alphabet != EAST_ASIAN and (before.isdigit() or after.isdigit()):
        return True
    if not (before.isalpha() or after.isalpha()):  # a word of one letter: à, but no capital within a sentence
        in_sentence = second_before.islower() and before == " " == after and second_after.islower()
        return letter.lower() not in ONE_LETTER_WORDS or (letter.isupper() and in_sentence)
    return _is_odd_pair(before, letter) or _is_odd_pair(letter, after)


def _is_odd_pair(first: str, second: str) -> bool:
    """Return whether two letters don't follow each other: of two alphabets, or a capital behind a small one."""
    if not (first.isalpha() and second.isalpha()):
        return False
    alphabets = {_alphabet(first), _alphabet(second)} - {None, EAST_ASIAN}
    return len(alphabets) > 1 or (first.islower() and second.isupper())


@lru_cache(2**12)
def _alphabet(letter: str) -> str | None:
    """Return the alphabet of a letter or mark of punctuation; None for those that stand beside any."""
    name = unicodedata.name(letter, "").split(" ")[0]
    if name in ALPHABETS:
        return name
    return (
        EAST_ASIAN
        if name in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC", "FULLWIDTH")
        or ("\u3000" <= letter <= "\u30ff")
        else None
    )
