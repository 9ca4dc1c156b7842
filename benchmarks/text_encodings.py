"""How often an encoding is found out: translated sentences in the code pages of their languages.

    apt-get download coreutils bash grep sed dpkg gnupg-l10n wget
    for one in *.deb; do dpkg -x $one translations; done
    python benchmarks/encodings.py --locale_dir translations/usr/share/locale

Lines are drawn from the catalogues of programs, which are real sentences in forty languages, and encoded as people's
files are. What comes back is counted: the same text, a refusal, or another text.
"""

import argparse
import gettext
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from finetune.data.encoding import choose_encoding

ENCODINGS = {
    "cp1252 latin-1 iso8859-15 cp850 mac-roman": "da de es fi fr ga gl it nb nn nl pt pt_BR sv ca eu id af oc",
    "cp1250 iso8859-2 cp852": "cs hr hu pl ro sk sl",
    "cp1254 cp857": "tr",
    "cp1257": "lt et",
    "cp1251 koi8-r cp866": "ru bg",
    "cp1251 koi8-u": "uk be",
    "cp1251 cp855": "sr",
    "cp1253 iso8859-7 cp737": "el",
    "cp1255 cp862": "he",
    "cp874": "th",
    "cp1258": "vi",
    "gb18030": "zh_CN",
    "big5": "zh_TW",
    "cp932 euc-jp": "ja",
    "cp949": "ko",
}
NUM_LINES = (1, 3, 6, 10, 40, 200)


def read_sentences(folder: Path) -> list[str]:
    """Read the translated lines of a language, without the placeholders of programs."""
    sentences = set()
    for file in sorted(folder.glob("LC_MESSAGES/*.mo")):
        try:
            catalogue = gettext.GNUTranslations(file.open("rb"))._catalog  # type: ignore[attr-defined]
        except UnicodeDecodeError:
            continue  # a catalogue in a code page of its own
        for message in (message for key, message in catalogue.items() if key and isinstance(message, str)):
            lines = (re.sub(r"%[-\d.*]*l?[a-z]|[%`]", "", line).strip() for line in message.split("\n"))
            sentences |= {line for line in lines if 15 < len(line) < 160 and not line.startswith("-")}
    return sorted(sentences)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the shares by number of lines, and what is misread most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--locale_dir", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=15, help="samples a language, encoding and number of lines")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draw, counts, misread = random.Random(options.seed), Counter[tuple[int, str]](), Counter[str]()
    for encodings, languages in ENCODINGS.items():
        for language in languages.split():
            sentences = read_sentences(options.locale_dir / language)
            for encoding, num_lines, _ in [
                (encoding, num_lines, number)
                for encoding in encodings.split()
                for num_lines in NUM_LINES
                for number in range(options.draws)
            ]:
                lines = [draw.choice(sentences).encode(encoding, "ignore") for _ in range(num_lines)]
                sample = b"\n".join(line for line in lines if not line.isascii())
                if not sample:
                    continue
                found = choose_encoding(sample)
                what = "refused" if found is None else "read"
                if found is not None and sample.decode(found, "replace") != sample.decode(encoding):
                    what = "misread"
                    misread[f"{language} in {encoding} as {found}"] += num_lines >= 6
                counts[num_lines, what] += 1
    print("lines        samples    read  refused  misread")
    for num_lines in NUM_LINES:
        read, refused, wrong = (counts[num_lines, what] for what in ("read", "refused", "misread"))
        total = read + refused + wrong
        print(f"{num_lines:5} {total:14,} {read / total:7.1%} {refused / total:8.1%} {wrong / total:8.1%}")
    print("misread most, of 6 lines and more:", ", ".join(f"{what} {count}" for what, count in misread.most_common(12)))


if __name__ == "__main__":
    main()
