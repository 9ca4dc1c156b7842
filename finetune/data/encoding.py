"""What encoding bytes that are not UTF-8 are most likely in.

charset_normalizer tells scripts apart, but takes Hungarian, Czech or Croatian for Western European text as often as
not, and French with few accents for Central European. Between Latin alphabets the letters themselves decide here.
"""

import re
from collections import Counter

from charset_normalizer import from_bytes

__all__ = ["choose_encoding"]

# Of those that fit equally well the first is taken: English with few accents could be cp1252 or cp1250.
ENCODINGS = [
    "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1251", "koi8_r", "cp1252", "cp1250", "iso8859_2", "cp1253",
    "cp1254", "cp1255", "cp1256", "latin_1",
]  # fmt: skip
# The letters beyond ASCII of languages: French, German, Spanish, Portuguese, Italian, Catalan, Dutch, English with loan
# words, Swedish and Finnish, Danish and Norwegian, Icelandic, Estonian; Polish, Czech, Slovak, Hungarian, Romanian,
# Croatian and Slovene; Turkish.
WESTERN = ("àâæçéèêëîïôœùûüÿ", "äöüß", "áéíñóúü", "áâãàçéêíóôõúü", "àèéìíîòóùú", "àçéèíïóòúü", "éèëïöüáíóú",
           "éèêëñçïôöüáí", "äåéöšž", "æøåéèòóô", "áéíóúýþæöð", "äöõüšž")  # fmt: skip
CENTRAL = ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţșț", "čćđšž")
ALPHABETS = {"cp1252": WESTERN, "cp1250": CENTRAL, "iso8859_2": CENTRAL, "cp1254": ("çğıöşüâîû",), "latin_1": WESTERN}

SURE = 0.9  # share of an alphabet
# Letters, control characters, and signs next to a letter, none of them ASCII.
FOREIGN = re.compile(r"(?![\x00-\x7f])(?:[^\W\d_]|[\x80-\x9f]|(?<=[^\W\d_]).|.(?=[^\W\d_]))")


def choose_encoding(sample: bytes) -> str | None:
    """Choose the encoding of a sample of text, none of it UTF-8; None if it looks like text in none that is known."""
    shares = {name: _share_of_an_alphabet(sample, name) for name in ALPHABETS}
    latin = max(shares, key=lambda name: shares[name])
    matches = from_bytes(sample, cp_isolation=ENCODINGS, enable_fallback=False)
    best = matches.best()
    if best is None:  # as of the same few words with accents in every line
        return latin if shares[latin] > SURE else None
    equal = [match for match in matches if (match.chaos, match.coherence) == (best.chaos, best.coherence)]
    names = {name for match in equal for name in match.could_be_from_charset}
    return latin if names & ALPHABETS.keys() else min(names, key=ENCODINGS.index)


def _share_of_an_alphabet(sample: bytes, encoding: str) -> float:
    """Tell what share of the signs beyond ASCII that are in words, or of no use, belong to one language's alphabet."""
    try:
        counts = Counter(FOREIGN.findall(sample.decode(encoding).lower()))
    except UnicodeDecodeError:
        return -1.0
    most = max(sum(counts[letter] for letter in alphabet) for alphabet in ALPHABETS[encoding])
    return most / max(1, counts.total())
