"""What encoding bytes that are not UTF-8 are most likely in.

charset_normalizer tells scripts apart, but takes Hungarian, Czech or Croatian for Western European text as often as
not, and French with few accents for Central European. Between Latin alphabets the letters themselves decide here.
"""

import re
from collections import Counter

from charset_normalizer import from_bytes

from finetune.data.scripts import choose_script, looks_right

__all__ = ["choose_encoding"]

# Of those that fit equally well the first is taken: English with few accents could be cp1252 or cp1250.
ENCODINGS = [
    "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1251", "koi8_r", "cp1252", "cp1250", "iso8859_2", "cp1253",
    "cp1254", "cp1255", "cp1256", "latin_1",
]  # fmt: skip
# The letters beyond ASCII of languages: French, German, Spanish, Portuguese, Italian, Catalan, Dutch, English with loan
# words, Swedish and Finnish, Danish and Norwegian, Icelandic, Estonian; Polish, Czech, Slovak, Hungarian, Romanian,
# Croatian and Slovene; Turkish; Latvian, Lithuanian and, in their code page too, Polish.
WESTERN = ("àâæçéèêëîïôœùûüÿ", "äöüß", "áéíñóúü", "áâãàçéêíóôõúü", "àèéìíîòóùú", "àçéèíïóòúü", "éèëïöüáíóú",
           "éèêëñçïôöüáí", "äåéöšž", "æøåéèòóô", "áéíóúýþæöð", "äöõüšž")  # fmt: skip
CENTRAL = ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţșț", "čćđšž")
ALPHABETS = {"cp1252": WESTERN, "cp1250": CENTRAL, "iso8859_2": CENTRAL, "cp1254": ("çğıöşüâîû",), "latin_1": WESTERN,
             "cp1257": ("āčēģīķļņšūž", "ąčęėįšųūž", "ąćęłńóśźż")}  # fmt: skip

# Frequent words of the languages whose letters those are, as far as they are ASCII: they tell where few letters do.
WORDS = {
    "cp1252": "the and is was of to it for in this that with you not but have le la les et est des une que pas pour "
    "dans der die das und ist nicht ein eine mit auf den von zu el los las y es un por con para no muy pero il di che "
    "non per de het een van voor niet zijn maar met som och att det en ett inte med og ikke er til av jeg ja ei se on",
    "cp1250": "nie jest na do to z w i po co ale jak od za tak a je ne se v s ze si pro jako byl by jsem az egy nem "
    "volt hogy meg ez is mint csak van de nu este cu la pe din mai sau dar su u da sam bio",
    "cp1254": "bir ve bu da de ne ile gibi ama daha en var o kadar iki sonra ben sen biz mi mu",
    "cp1257": "un ir uz ar no par ka kas bet man vai es tas tikai ja labi buvo tai su kad nuo iki bei yra labai kaip",
}

SURE = 0.9  # share of an alphabet
LIKELY = 0.5  # the same, where texts hold names and words of many languages
LEAST_BYTES = 16  # beyond ASCII, to tell scripts other than Latin: of fewer, a guess would be as often wrong
MIXED = 0.5  # share of the letters beyond ASCII that stand beside one of ASCII: in Latin alphabets most do
LETTER = r"[^\W\d_]"
# Letters, control characters, and signs next to a letter, none of them ASCII.
FOREIGN = re.compile(rf"(?![\x00-\x7f])(?:{LETTER}|[\x80-\x9f]|(?<={LETTER}).|.(?={LETTER}))")
# What is in no word, and so tells nothing: a letter next to a digit or by itself, or a capital behind a small letter.
UNTOLD = re.compile(rf"(?![\x00-\x7f])(?:(?<=\d){LETTER}|{LETTER}(?=\d)|(?<!{LETTER}){LETTER}(?!{LETTER}))")
# Signs of Western text that another code page has letters for: pounds, yen, fractions, ordinals, powers, questions.
WESTERN_SIGNS = re.compile(
    r"[£¥¢]\s?(?=[\d.,]|[A-Za-z]\b)|(?<=[\d.,])\s?[£¥¢]|(?<!\w)[£¥¢](?!\w)|[¼½¾]|°\s?(?=[CFK]\b)|(?<=[\dnN])[ºª°]|(?<=\d)[¹²³]"
    r"|(?<=m)[²³](?![a-zA-Z])|(?<!\w)[¿¡](?=\S)|µ(?=[mglsAVF]\b)|[©®](?!\w)|§\s?(?=\d)|[÷×±·•]|(?<![a-zA-Z])[“„‘‚«»–—…]"
    r"|[”“’»«–—…](?![a-zA-Z])|(?<=[a-zA-Z])[’–—…](?=[a-zA-Z])|€|™|†|‰"
)


def choose_encoding(sample: bytes) -> str | None:
    """Choose the encoding of a sample of text, none of it UTF-8; None if it looks like text in none that is known.

    Without letters that tell, it is Windows-1252: signs of currency and typography are in no alphabet.
    """
    found = _choose(sample)
    return "iso8859_15" if found in ("cp1252", "latin_1") and _has_latin_9(sample) else found


def _has_latin_9(sample: bytes) -> bool:
    """Return whether the euro or the letter œ stand where ISO 8859-15 has them, and nothing that it lacks is there."""
    return re.search(rb"[\x80-\x9f]", sample) is None and re.search(rb"\xa4|[A-Za-z]\xbd|\xbd[a-z]", sample) is not None


def _choose(sample: bytes) -> str | None:
    if _is_western(sample):
        return "cp1252"
    shares = {name: _share_of_an_alphabet(sample, name) for name in ALPHABETS}
    latin = _prefer_by_words(shares, sample)
    if shares[latin] > SURE and _is_mixed(sample, latin):
        return latin
    if sum(byte > 0x7F for byte in sample) < LEAST_BYTES:
        return None
    matches = from_bytes(sample, cp_isolation=ENCODINGS, enable_fallback=False)
    best = matches.best()
    if best is None:  # as of the same few words with accents in every line
        return latin if shares[latin] > SURE else choose_script(sample)
    equal = [match for match in matches if (match.chaos, match.coherence) == (best.chaos, best.coherence)]
    names = {name for match in equal for name in match.could_be_from_charset}
    if names & ALPHABETS.keys():
        return latin if shares[latin] > LIKELY else choose_script(sample)
    chosen = min(names, key=ENCODINGS.index)
    return chosen if looks_right(sample, chosen) else choose_script(sample)


def _is_western(sample: bytes) -> bool:
    """Return whether all that is not ASCII are signs, standing where Western text has them: no letter tells."""
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        return False
    rest = WESTERN_SIGNS.sub("", text)
    return rest.isascii() and not text.isascii()


def _is_mixed(sample: bytes, encoding: str) -> bool:
    """Return whether most letters beyond ASCII stand beside ASCII letters, as in Latin alphabets alone."""
    text = sample.decode(encoding)
    letters = len(re.findall(rf"(?![\x00-\x7f]){LETTER}", text))
    beside = len(re.findall(rf"(?<=[A-Za-z])(?![\x00-\x7f]){LETTER}|(?![\x00-\x7f]){LETTER}(?=[A-Za-z])", text))
    return beside >= MIXED * letters > 0


def _prefer_by_words(shares: dict[str, float], sample: bytes) -> str:
    """Choose the code page with the largest share; among nearly equal ones that whose languages' words are there."""
    largest = max(shares.values())
    near = [name for name in shares if shares[name] >= largest - 0.02]
    words = Counter(re.findall(rb"(?<![\x80-\xff\w])[a-z]+(?![\x80-\xff\w])", sample.lower()))
    known = {name: sum(words[word.encode()] for word in set(line.split())) for name, line in WORDS.items()}
    known["iso8859_2"], known["latin_1"] = known["cp1250"], known["cp1252"]
    best = max(shares, key=lambda name: shares[name])
    clearly = [name for name in near if known[name] > 2 * known[best] and known[name] > 2]
    return max(clearly, key=lambda name: (known[name], shares[name])) if clearly else best


def _share_of_an_alphabet(sample: bytes, encoding: str) -> float:
    """Compute what share of the signs beyond ASCII that are in words, or of no use, belong to a language's alphabet."""
    try:
        text = sample.decode(encoding)
    except UnicodeDecodeError:
        return -1.0
    told = UNTOLD.sub("", WESTERN_SIGNS.sub("", text) if encoding in ("cp1252", "latin_1") else text)
    counts = Counter(FOREIGN.findall(told.replace("İ", "ı").lower()))  # Python makes two signs of the former
    odd = sum(letter.isupper() for letter in re.findall(rf"(?<=[a-z])(?![\x00-\x7f]){LETTER}", told))
    odd += sum(letter.islower() for letter in re.findall(rf"(?<!{LETTER})(?![\x00-\x7f]){LETTER}(?=[A-Z])", told))
    if encoding in ("cp1250", "iso8859_2"):
        odd += len(re.findall(rf"(?<!{LETTER})[ŁĄĽ]\s?\d", text))  # amounts, of pounds or yen
    if encoding == "cp1254":
        odd += len(re.findall(rf"(?<!{LETTER})[ğĞ]", told))  # with which no Turkish word begins
    most = max(sum(counts[letter] for letter in alphabet) for alphabet in ALPHABETS[encoding])
    return max(0.0, most - odd) / max(1, counts.total())
