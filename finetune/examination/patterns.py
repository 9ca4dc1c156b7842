"""Regular expressions that come with a model: those that may take for ever are refused.

PEFT matches the names of modules with Python's `re`, which has no limit; here the same is done first, in a process that
is ended after a while. A tokenizer's are Oniguruma's, whose search gives up after ten million steps with a panic.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.examination.documents import refusal, show

__all__ = ["refuse_endless_patterns", "repeats_repetitions"]

LIMIT_SECONDS = 5
REPEATED = re.compile(r"[*+]|\{\d*,\}|\{\d*,?\d{4,}\}")
FIRST = re.compile(r"[^\\.(\[^$]|\\[rnt]")  # the one sign that an alternative begins with
PLAIN = re.compile(r"[\w.\-|()^$\\]*")  # nothing in it is repeated
# As PEFT uses them: of modules in full, of layers and of ranks at the end.
MATCH = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    re.compile(pattern)
    for form in (pattern, rf"(.*\.)?({pattern})$", rf".*\.{pattern}\.(\d+)\."):
        for name in names:
            re.match(form, name)
            re.fullmatch(form, name)
"""
FIELDS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern")
PATTERN_FIELDS = ("rank_pattern", "alpha_pattern", "lambda_pattern", "block_size_pattern", "n_frequency_pattern")


def refuse_endless_patterns(content: Mapping[str, Any], names: Sequence[str], file: Path) -> None:
    """Refuse an adapter whose patterns take for ever on the names of a model's modules.

    Args:
        content: Of its config.
        names: Of the modules.
        file: The config's.

    Raises:
        FinetuneError: If one takes longer than five seconds, or is no regular expression.
    """
    patterns = [value for name in FIELDS for value in _words(content.get(name))]
    patterns += [key for name in PATTERN_FIELDS for key in (content.get(name) or {})]
    asked = [pattern for pattern in patterns if not PLAIN.fullmatch(pattern)]
    if not asked:
        return
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", MATCH],
            input=json.dumps([asked, list(names)]),
            text=True,
            capture_output=True,
            timeout=LIMIT_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        longest = max(asked, key=len)
        raise refusal(
            file, "patterns of module names that end", f"{show(longest)}, which takes longer than {LIMIT_SECONDS} s",
            "List the names of the modules.",
        ) from None  # fmt: skip
    except (subprocess.CalledProcessError, RecursionError, OverflowError) as error:
        raise refusal(file, "patterns of module names", f"{show(asked[0])}, which is none") from error


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def repeats_repetitions(pattern: str) -> bool:
    r"""Return whether a group is repeated without a limit that holds an open repetition, or a choice that may overlap.

    Such as `(a+)+` and `(a|a)*`, which Oniguruma tries in more ways than it may. Classes and escapes are passed over.

    Example:
        >>> repeats_repetitions(r"(\w+\s?)*$"), repeats_repetitions(r"\s*[\r\n]+|\p{N}{1,3}| ?[^\s]+")
        (True, False)
    """
    starts, holds = [0], [False]  # of each group that is open: where it begins, and whether something in it is repeated
    position, closed = 0, False
    while position < len(pattern):
        sign, after = pattern[position], position + 1
        many = REPEATED.match(pattern, position)
        is_ambiguous = False
        if sign == "\\":
            after = _end_of_escape(pattern, position)
        elif sign == "[":
            after = _end_of_class(pattern, position)
        elif sign == "(":
            starts.append(after)
            holds.append(False)
        elif sign == ")" and len(holds) > 1:
            is_ambiguous = holds.pop() or _may_overlap(pattern[starts.pop() : position])
            holds[-1] = holds[-1] or is_ambiguous
        elif many is not None:
            if closed:
                return True
            holds[-1], after = True, many.end()
        position, closed = after, is_ambiguous
    return False


def _may_overlap(group: str) -> bool:
    """Return whether a text may begin several alternatives of a group, unless these begin with different signs."""
    if "|" not in group:
        return False
    firsts = [FIRST.match(one) for one in group.removeprefix("?:").split("|")]
    known = [one[0] for one in firsts if one is not None]
    return len(set(known)) < len(firsts)


def _end_of_escape(pattern: str, start: int) -> int:
    r"""Return where `\d`, `\p{Lu}` or `\x{20}` ends."""
    if pattern[start + 1 : start + 3] in ("p{", "P{", "x{"):
        return pattern.find("}", start) + 1 or len(pattern)
    return start + 2


def _end_of_class(pattern: str, start: int) -> int:
    """Return where a class of characters ends, which may hold others."""
    depth, position = 0, start
    while position < len(pattern):
        if pattern[position] == "\\":
            position += 1
        elif pattern[position] == "[":
            depth += 1
        elif pattern[position] == "]" and position > start + 1:
            depth -= 1
            if depth == 0:
                return position + 1
        position += 1
    return len(pattern)
