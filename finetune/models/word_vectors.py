"""Static word vectors: a text file of word2vec or GloVe, read line by line, or a folder of model2vec.

word2vec (Mikolov et al. 2013) and GloVe (Pennington et al. 2014) write a word and its numbers in each line, word2vec
after a line with how many words and numbers there are. model2vec (Tulkens and van Dongen 2024) writes a tokenizer and
a row for each of its tokens. All of them are read here without the packages that write them.
"""

import gzip
import hashlib
import itertools
import json
import re
import statistics
import unicodedata
import warnings
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from finetune.errors import FinetuneError
from finetune.examination.tokenizers import check_tokenizer
from finetune.files import read_json
from finetune.models.inputs import NO_LIMIT

__all__ = [
    "StaticModel",
    "WordCoverage",
    "WordVectors",
    "find_word_vectors",
    "fingerprint_word_vectors",
    "is_static_model",
    "load_static_model",
    "read_word_vectors",
]

TENSORS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"
HEADER = re.compile(rb"\s*(\d+)\s+(\d+)\s*")
TABLE = re.compile(r"embeddings|embedding\.weight")  # by model2vec and by sentence-transformers
PEEKED_LINES, PEEKED_BYTES = 20, 1 << 16
CONTROL = bytes({*range(32)} - {*b"\t\n\v\f\r"})


class WordCoverage(NamedTuple):
    """How far word vectors cover the training texts.

    Attributes:
        found: Distinct words of the training texts that have a vector.
        words: Distinct words of the training texts, as far as the vocabulary goes.
        kept: Words whose vectors are in the model, those of other texts too.
    """

    found: int
    words: int
    kept: int


class WordVectors(NamedTuple):
    """Vectors of lower-cased words.

    Attributes:
        words: Each once.
        vectors: float32, `(words, dim)`.
    """

    words: list[str]
    vectors: np.ndarray


class StaticModel(NamedTuple):
    """A vector for each token of a tokenizer, as model2vec has them; a text's vector is their mean.

    Attributes:
        tokenizer: Adds no special tokens, and has one for padding.
        vectors: float32, `(tokens, dim)`, with the tokens' weights in them; zero for padding.
        unknown: The token of what the tokenizer does not know, which has no part in a text's vector; None if it has
            none.
        normalize: Whether the vectors of texts have length one.
    """

    tokenizer: PreTrainedTokenizerFast
    vectors: np.ndarray
    unknown: int | None
    normalize: bool


def is_static_model(path: str) -> bool:
    """Return whether a path is that of a model2vec folder, not of a file of word vectors."""
    return Path(path).is_dir()


def fingerprint_word_vectors(path: str) -> str:
    """Return the SHA-256 of a file, or one of the three files of a model2vec folder.

    Raises:
        FinetuneError: If it can't be read.
    """
    if not is_static_model(path):
        return _hash(Path(path))
    files = [Path(path) / name for name in (CONFIG, TENSORS, TOKENIZER) if (Path(path) / name).is_file()]
    return hashlib.sha256("".join(f"{file.name} {_hash(file)}\n" for file in files).encode()).hexdigest()


def read_word_vectors(
    path: str, wanted: Collection[str], most_others: int = 0, is_word: Callable[[str], bool] = bool
) -> WordVectors:
    """Read the vectors of some words from a text file, whose other lines take no memory.

    Words are matched in lower case. Of a word in several spellings the one in lower case counts, else the first, which
    in these files is the most frequent one.

    Args:
        path: The file, as it is or as .gz.
        wanted: Lower-cased words, wherever they stand in the file.
        most_others: So many other words are read too, the first ones.
        is_word: Whether a lower-cased word can be one of these.

    Raises:
        FinetuneError: If it can't be read, is binary, empty, cut off, or a line is not a word and its numbers.
    """
    reader = _Reader(path, wanted, most_others, is_word)
    try:
        with Path(path).open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if packed else raw as opened:
                start = opened.read(PEEKED_BYTES)
                if len(start.translate(None, CONTROL)) < 0.99 * len(start):
                    raise FinetuneError(
                        f"Expected --word_vectors as text, a word and its numbers a line, but {path!r} is binary. "
                        "Unpack an archive; word2vec's binary format is written as text by gensim: "
                        "KeyedVectors.load_word2vec_format(FILE, binary=True).save_word2vec_format(NEW_FILE)."
                    )
                opened.seek(0)
                return reader.read(opened)
    except (OSError, EOFError, zlib.error) as error:  # also of a .gz that is cut off
        raise _unreadable(path, error) from error


def find_word_vectors(path: str, words: Collection[str]) -> WordVectors:
    """Find the vectors of words: in a text file, or by a model2vec folder as it computes those of texts.

    Args:
        path: A file, or a folder of model2vec.
        words: Lower-cased words.

    Returns:
        Those that have a vector.

    Raises:
        FinetuneError: If none has, or it can't be read.
    """
    if is_static_model(path):
        model = load_static_model(path, NO_LIMIT)
        numbers = model.tokenizer(list(words), add_special_tokens=False)["input_ids"]
        known = [[number for number in row if number != model.unknown] for row in numbers]
        rows = [model.vectors[row].mean(axis=0) for row in known if row]
        found = WordVectors(
            [word for word, row in zip(words, known, strict=True) if row],
            np.stack(rows) if rows else np.zeros((0, model.vectors.shape[1]), dtype=np.float32),
        )
    else:
        found = read_word_vectors(path, words)
    if not found.words:
        raise FinetuneError(
            f"Expected vectors of words in the training texts, but {path!r} has none of their {len(words):,} words. Is "
            "it of another language?"
        )
    return found


def load_static_model(folder: str, max_length: int) -> StaticModel:
    """Load a folder of model2vec: `model.safetensors`, `tokenizer.json` and `config.json`.

    Args:
        folder: Its path.
        max_length: Tokens that a text is cut to, saved with the tokenizer.

    Raises:
        FinetuneError: If a file is missing or not as model2vec writes it.
    """
    path = Path(folder)
    missing = [name for name in (TENSORS, TOKENIZER, CONFIG) if not (path / name).is_file()]
    if missing:
        raise FinetuneError(
            f"Expected {TENSORS}, {TOKENIZER} and {CONFIG}, as model2vec writes them, in --word_vectors {folder!r}, "
            f"but there is no {' and no '.join(missing)}. Pass such a folder, or a text file of word2vec or GloVe."
        )
    check_tokenizer(path)
    try:
        tensors = load_file(path / TENSORS)
        tokenizer, unknown = _read_tokenizer(path / TOKENIZER, max_length)
    except SafetensorError as error:
        raise _unreadable(str(path / TENSORS), error) from error
    except Exception as error:  # the tokenizers library raises Exception itself
        raise _unreadable(str(path / TOKENIZER), error) from error
    rows = next((tensor for name, tensor in tensors.items() if TABLE.fullmatch(name)), None)
    if rows is None or rows.ndim != 2:
        raise FinetuneError(
            f"Expected a table 'embeddings' in {str(path / TENSORS)!r}, as model2vec writes it, but found "
            f"{', '.join(sorted(tensors)[:3]) or 'nothing'}. An encoder is named by --model_name_or_path."
        )
    numbers = torch.arange(len(rows)) if "mapping" not in tensors else tensors["mapping"].long()
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    weights = tensors.get("weights", torch.ones(len(numbers)))
    if last >= len(numbers) or len(weights) < len(numbers) or (len(numbers) and int(numbers.max()) >= len(rows)):
        raise FinetuneError(
            f"Expected a vector for each of the {last + 1:,} tokens of {str(path / TOKENIZER)!r}, but "
            f"{str(path / TENSORS)!r} has {len(rows):,}. Fetch the folder again."
        )
    vectors = rows.float()[numbers] * weights[: len(numbers), None].float()
    if not torch.isfinite(vectors).all():
        raise FinetuneError(
            f"Expected vectors of numbers in {str(path / TENSORS)!r}, but it has NaN or infinite ones. Fetch the "
            "folder again."
        )
    wrapped, padding = _wrap(tokenizer, unknown, max_length)
    vectors = torch.cat([vectors, vectors.new_zeros(max(0, padding + 1 - len(vectors)), vectors.shape[1])])
    vectors[padding] = 0
    if unknown is not None:
        vectors[unknown] = 0
    config = read_json(path / CONFIG)
    normalize = isinstance(config, dict) and bool(config.get("normalize", False))
    return StaticModel(wrapped, vectors.numpy(), unknown, normalize)


class _Reader:
    """Reads the lines of a file of word vectors."""

    def __init__(self, path: str, wanted: Collection[str], most_others: int, is_word: Callable[[str], bool]):
        self.path = path
        self.wanted = wanted
        self.room = most_others
        self.is_word = is_word
        self.dim = 0
        self.places: dict[str, int] = {}
        self.spellings: dict[str, str] = {}
        self.numbers = array("f")
        self.twice: set[str] = set()

    def read(self, lines: Iterable[bytes]) -> WordVectors:
        """Read all lines."""
        numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        peeked = list(itertools.islice(numbered, PEEKED_LINES))
        if not peeked:
            raise FinetuneError(f"Expected word vectors, but {self.path!r} is empty. Fetch it again.")
        peeked[0] = (1, peeked[0][1].removeprefix(b"\xef\xbb\xbf"))
        declared = None
        if header := HEADER.fullmatch(peeked[0][1]):
            declared, self.dim = int(header[1]), int(header[2])
            peeked = peeked[1:]
        else:
            self.dim = statistics.mode(len(line.split()) - 1 for _, line in peeked)
        if not peeked or self.dim < 1:
            raise FinetuneError(
                f"Expected a word and its numbers, separated by blanks, in each line, but {self.path!r} has no such "
                "line. Pass a text file of word2vec or GloVe."
            )
        found = self._read_all(itertools.chain(peeked, numbered), b"\t" if b"\t" in peeked[0][1] else b" ")
        if declared is not None and found != declared:
            raise FinetuneError(
                f"Expected the {declared:,} words that the first line of {self.path!r} says, but it has {found:,}. "
                "Fetch it again."
            )
        if self.twice:
            warnings.warn(
                f"{len(self.twice):,} of the words in {Path(self.path).name} that are needed stand there twice, such "
                f"as {min(self.twice)!r}: the first vector counts",
                stacklevel=2,
            )
        return WordVectors(list(self.places), np.frombuffer(self.numbers, np.float32).reshape(-1, self.dim))

    def _read_all(self, lines: Iterator[tuple[int, bytes]], separator: bytes) -> int:
        count = 0
        for number, line in lines:
            count += 1
            content = line.strip()
            spelled, _, rest = content.partition(separator)
            fields = None
            if rest.count(separator) != self.dim - 1:
                spelled, fields = self._split(line, number)
            written = spelled.decode("utf-8", "replace")
            word = written.lower()
            if not word.isascii():
                word = unicodedata.normalize("NFC", word)
            place = self.places.get(word)
            if place is not None:
                if written == self.spellings[word]:
                    self.twice.add(word)
                if written != word or self.spellings[word] == word:
                    continue
            elif word not in self.wanted:
                if self.room == 0 or not self.is_word(word):
                    continue
                self.room -= 1
            self._keep(word, written, rest.split(separator) if fields is None else fields, number)
        return count

    def _keep(self, word: str, written: str, fields: list[bytes], number: int) -> None:
        try:
            with np.errstate(over="ignore"):
                vector = np.array([float(field) for field in fields]).astype(np.float32)
        except ValueError:
            other = next(field for field in fields if not _is_number(field))
            raise self._refuse(number, f"{other[:20].decode('utf-8', 'replace')!r} among them") from None
        if not np.isfinite(vector).all():
            raise FinetuneError(
                f"Expected vectors of numbers in {self.path!r}, but line {number:,} ({written[:40]!r}) has NaN or "
                "infinite ones. Mend the line, or take it out."
            )
        place = self.places.setdefault(word, len(self.places))
        self.spellings[word] = written
        self.numbers[place * self.dim : (place + 1) * self.dim] = array("f", vector.tobytes())

    def _split(self, line: bytes, number: int) -> tuple[bytes, list[bytes]]:
        """Divide a line whose word has blanks in it, as some of GloVe's have, or whose separators vary."""
        fields = line.rsplit(None, self.dim)
        if len(fields) == self.dim and line[:1].isspace():
            return b"", fields  # a blank in place of a word
        if len(fields) <= self.dim:
            raise self._refuse(number, f"{max(0, len(fields) - 1)}")
        word = fields[0].split()
        between = next((place for place, part in enumerate(word[1:]) if _is_number(part)), None)
        if between is not None:
            raise self._refuse(number, f"{len(word) - 1 - between + self.dim}")
        return fields[0].strip(), fields[1:]

    def _refuse(self, number: int, found: str) -> FinetuneError:
        return FinetuneError(
            f"Expected {self.dim} numbers after the word in line {number:,} of {self.path!r}, but found {found}. Each "
            "line is a word and its vector, separated by blanks."
        )


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _read_tokenizer(file: Path, max_length: int) -> tuple[Tokenizer, int | None]:
    """Read a tokenizer that adds nothing to a text, and the number of its unknown token."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_str(json.dumps({**content, "post_processor": None, "truncation": None, "padding": None}))
    model = content["model"]
    if model.get("unk_token") is not None:
        return tokenizer, tokenizer.token_to_id(model["unk_token"])
    return tokenizer, model.get("unk_id")


def _wrap(tokenizer: Tokenizer, unknown: int | None, max_length: int) -> tuple[PreTrainedTokenizerFast, int]:
    """Make a tokenizer of transformers, with a token for padding, and return that token's number."""
    padding = next((token for token in ("[PAD]", "<pad>") if tokenizer.token_to_id(token) is not None), "[PAD]")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=padding,  # is added behind the others where there is none
        **({} if unknown is None else {"unk_token": tokenizer.id_to_token(unknown)}),
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
    )
    return wrapped, wrapped.get_vocab()[padding]


def _hash(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(str(file), error) from error


def _unreadable(path: str, error: Exception) -> FinetuneError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return FinetuneError(f"Expected word vectors in {path!r}, but reading it gave: {reason}. Fetch it again.")
