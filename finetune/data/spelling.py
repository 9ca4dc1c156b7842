"""When two names of a label are one: written with other code points, or with signs that nobody sees, or in look-alikes.

Names are equal if they are after Unicode's composition (NFC) and without invisible signs. Look-alikes, such as a Latin
and a Cyrillic "a", stay names of their own: the data doctor points them out.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

__all__ = ["MINUS", "compare_spelling", "find_spellings", "looks_like"]

# Beside format characters (zero-width signs, byte order marks, soft hyphens, marks of direction): variation selectors,
# the grapheme joiner, and fillers.
INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
MINUS = "\u2212"  # the sign of mathematics, which some programs write before numbers
# Greek and Cyrillic letters that look like Latin ones, in lower case.
CONFUSABLE = str.maketrans("аеорсухіјѕһԁԛԝкмтвнαορνυικτ", "aeopcyxijshdqwkmtbhaopvuikt")


def compare_spelling(name: str) -> str:
    r"""Return what two spellings of a name have in common: composed, without invisible signs, with single spaces.

    Example:
        >>> compare_spelling("cafe\u0301\u200b ") == compare_spelling("caf\u00e9")
        True
    """
    if name.isascii():
        return " ".join(name.split())
    visible = "".join(sign for sign in name if unicodedata.category(sign) != "Cf")
    return " ".join(INVISIBLE.sub("", unicodedata.normalize("NFC", visible)).split()) or name


def find_spellings(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the spellings of each name, by what they have in common: the most frequent first, then the plainest."""
    found: dict[str, Counter[str]] = {}
    for name, count in Counter(names).items():
        found.setdefault(compare_spelling(name), Counter())[name] += count
    return {
        key: sorted(spellings, key=lambda name: (-spellings[name], name != key, name))
        for key, spellings in found.items()
    }


def looks_like(name: str) -> str:
    r"""Return what names that look alike have in common: case, compatibility forms, alphabets, spaces, hyphens, quotes.

    Numbers look alike if they are equal.

    Example:
        >>> looks_like("So-so") == looks_like("so so") == looks_like("s\u043e so")
        True
        >>> looks_like("01") == looks_like("1") != looks_like("-1")
        True
    """
    plain = unicodedata.normalize("NFKC", compare_spelling(name)).casefold().translate(CONFUSABLE).strip()
    if re.fullmatch(r"[-+\u2212]?[0-9]{1,15}([.,][0-9]+)?", plain):
        return f"{float(plain.replace(',', '.').replace(MINUS, '-')):.15g}"
    return re.sub(r"[\s_\u2010-\u2015\u2212\"'`\u00ab\u00bb\u2018-\u201f-]+", "", plain) or plain
