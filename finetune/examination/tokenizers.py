"""A tokenizer's files: numbers that a vocabulary can have, patterns that end, names that are no paths."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.examination.documents import PLAIN_NAME, is_whole, read_object, refusal, show
from finetune.examination.patterns import repeats_repetitions

__all__ = ["check_tokenizer"]

MOST_BYTES = 512 * 2**20
MOST_TOKENS = 2**24
MOST_GROWTH = 1_000  # of a text; known tokenizers put one sign or two in the place of another
ADDED = ("content", "prepend", "replacement")
TOKENIZER_FILE, SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"
SIDES = ("padding_side", "truncation_side")
NEEDS_UNKNOWN = ("WordLevel", "WordPiece")  # which stop at a word that they don't know
ANOTHER = "Take the tokenizer that belongs to it."
# transformers takes this path from nowhere: the file beside it is read.
HARMLESS = {"special_tokens_map_file"}


def check_tokenizer(folder: Path, num_rows: int | None = None) -> None:
    """Refuse a tokenizer that would read other files, take for ever, or give numbers that are no tokens'.

    Args:
        folder: Where its files are; those that are missing are not looked for.
        num_rows: How many tokens the network knows; None where that is not known, or more are given a row.

    Raises:
        FinetuneError: Naming the first entry that is wrong.
    """
    numbers: dict[str, int] | None = None
    if (folder / TOKENIZER_FILE).exists():
        numbers = _check_fast(folder / TOKENIZER_FILE, num_rows)
    if (folder / SETTINGS_FILE).exists():
        _check_settings(folder / SETTINGS_FILE, numbers)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        file = folder / name
        if file.exists():
            odd = [one for one in read_object(file).values() if is_whole(one) and not 0 <= one < MOST_TOKENS]
            if odd:
                raise refusal(file, f"numbers of tokens below {MOST_TOKENS:,}", show(odd[0]))


def _check_fast(file: Path, num_rows: int | None) -> dict[str, int]:
    """Check `tokenizer.json`, and return the numbers of its tokens."""
    content = read_object(file, MOST_BYTES)
    model = content.get("model")
    if not isinstance(model, dict):
        raise refusal(file, "a model with a vocabulary", show(model))
    numbers = _read_vocabulary(model, file)
    _check_numbers(numbers, file)
    unknown = model.get("unk_token")
    if model.get("type") in NEEDS_UNKNOWN and (not isinstance(unknown, str) or unknown not in numbers):
        raise refusal(
            file, "a tokenizer that reads any text", f"none for words that it does not know ({show(unknown)})",
            "Give it an unknown token, and save it with the model.",
        )  # fmt: skip
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(one, dict) for one in added):
        raise refusal(file, "a list of added_tokens", show(added))
    for one in added:
        token, number = one.get("content"), one.get("id")
        if not isinstance(token, str) or not token:
            raise refusal(file, "added_tokens that are texts", show(token))
        numbers[token] = number  # type: ignore[assignment]
    _check_numbers(numbers, file)
    _check_ends(content.get("post_processor"), set(numbers.values()), file)
    if num_rows is not None:
        beyond = next((token for token, number in numbers.items() if number >= num_rows), None)
        if beyond is not None:
            raise refusal(
                file, f"token numbers below {num_rows}, since the network has that many embeddings",
                f"{numbers[beyond]} of {show(beyond)}", ANOTHER,
            )  # fmt: skip
    for key in ("normalizer", "pre_tokenizer"):
        growth = 1
        for step in _steps(content.get(key)):
            pattern = step.get("Regex")
            if isinstance(pattern, str) and repeats_repetitions(pattern):
                raise refusal(file, f"a {key} whose patterns end", f"{show(pattern)}, which may try for ever")
            growth *= math.prod(max(1, len(step[name])) for name in ADDED if isinstance(step.get(name), str))
        if growth > MOST_GROWTH:
            raise refusal(file, f"a {key} that makes a text at most {MOST_GROWTH:,} times as long", f"{growth:,} times")
    return numbers


def _check_numbers(numbers: dict[str, int], file: Path) -> None:
    for token, number in numbers.items():
        if not is_whole(number) or not 0 <= number < MOST_TOKENS:
            raise refusal(file, f"token numbers below {MOST_TOKENS:,}", f"{show(number)} of {show(token)}", ANOTHER)


def _read_vocabulary(model: dict[str, Any], file: Path) -> dict[str, int]:
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    if isinstance(vocabulary, list) and all(
        isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in vocabulary
    ):
        return {one[0]: number for number, one in enumerate(vocabulary)}  # of Unigram, each with its log-probability
    raise refusal(file, "a vocabulary of tokens and their numbers", show(vocabulary))


def _check_ends(processor: Any, known: set[int], file: Path) -> None:
    """Refuse special tokens that a post-processor puts around a text and the vocabulary lacks."""
    steps = processor.get("processors") if isinstance(processor, dict) else None
    for step in steps if isinstance(steps, list) else [processor]:
        if not isinstance(step, dict):
            continue
        pairs = [step.get(name) for name in ("sep", "cls")]
        used = [one[1] for one in pairs if isinstance(one, list) and len(one) == 2]
        tokens = step.get("special_tokens")
        for token in tokens.values() if isinstance(tokens, dict) else []:
            used += (token.get("ids") or []) if isinstance(token, dict) else []
        odd = [number for number in used if number not in known]
        if odd:
            raise refusal(file, "a post_processor that adds tokens of its vocabulary", show(odd[0]))


def _steps(step: Any) -> Iterator[dict[str, Any]]:
    """Yield the parts of a normalizer or a pre-tokenizer, and their patterns, however deep they stand."""
    layer = [step]
    while layer:
        inner = layer.pop()
        if isinstance(inner, dict):
            yield inner
            layer += inner.values()
        elif isinstance(inner, list):
            layer += inner


def _check_settings(file: Path, numbers: dict[str, int] | None) -> None:
    content = read_object(file)
    for name, value in content.items():
        if name.endswith("_file") and name not in HARMLESS and value is not None:
            raise refusal(file, f"no {name}, since the files beside it are read", show(value), "Take the entry out.")
    if content.get("init_inputs"):
        raise refusal(file, "no init_inputs", show(content["init_inputs"]), "Take the entry out.")
    files = content.get("fast_tokenizer_files") or []
    if not isinstance(files, list) or not all(isinstance(one, str) and PLAIN_NAME.fullmatch(one) for one in files):
        raise refusal(file, "names of files beside it as fast_tokenizer_files", show(files), "Take the entry out.")
    for name in SIDES:
        if content.get(name) not in (None, "left", "right"):
            raise refusal(file, f"{name} left or right", show(content[name]))
    longest = content.get("model_max_length")
    if longest is not None and (not isinstance(longest, int | float) or isinstance(longest, bool)):
        raise refusal(file, "a number as model_max_length", show(longest))
    name_of_class = content.get("tokenizer_class")
    if name_of_class is not None and not (isinstance(name_of_class, str) and name_of_class.isidentifier()):
        raise refusal(file, "the name of a class as tokenizer_class", show(name_of_class))
    added = content.get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise refusal(file, "tokens by their numbers as added_tokens_decoder", show(added))
    for number, token in added.items():
        is_number = number.isdecimal() and number.isascii() and len(number) < 9 and int(number) < MOST_TOKENS
        if not is_number or not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise refusal(file, "tokens by their numbers as added_tokens_decoder", f"{show(token)} as {show(number)}")
    if numbers is None:
        return
    for name in ("pad_token", "unk_token", "cls_token", "sep_token", "bos_token", "eos_token"):
        value = content.get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if token is None:
            continue
        if not isinstance(token, str) or not token:
            raise refusal(file, f"{name} to be a token", show(value))
