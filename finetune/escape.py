"""Names from outside are data: how they are shown in a terminal, in Markdown and in HTML, and that no token is.

A label, a file, a column, a model or a run can be called anything. One function for each place where such a name is
read by a person; what programs read (JSON, CSV, Parquet) has the name as it is. Cheap to import.
"""

import html
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

__all__ = [
    "blank_tokens",
    "holds_token",
    "say",
    "show_hidden",
    "to_html",
    "to_markdown",
    "to_markdown_code",
    "to_terminal",
]

# What moves a cursor, changes colours, turns the direction of writing, or is not seen: controls, marks of direction,
# signs without width, line and paragraph separators, halves of characters, tags.
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
    # Joiners spell Persian, Hindi and families of emoji; beside letters of ours they only hide.
    "|(?<![^\x00-\u02ff])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\u02ff])"
)
NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# What Markdown takes for its own, and what it would make a link of.
MARKDOWN = re.compile(r"([\\`*_\[\]<>|~#&$!@]|(?<=\w):(?=//)|(?<=www)\.)")
FLAGGED = re.compile(r"^([-+]|\d+[.)])(?=\s)")  # what begins a list at the beginning of a line
# Tokens of the Hub, which begin so, and of others by what they follow: a name in a URL, a password in a query.
TOKEN = re.compile(r"(?:hf|api_org)_[A-Za-z0-9]{16,}")
IN_URL = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]+@")
IN_QUERY = re.compile(r"(?P<name>[?&](?:access_|auth_|api_?)?(?:token|key|password|secret)=)[^\s&#'\"]+", re.IGNORECASE)
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
BLANK = "[token]"


def show_hidden(text: str) -> str:
    r"""Return text with what can't be seen, or would act on a terminal, as Python would write it.

    Example:
        >>> show_hidden("neg\x1b[31m\n")
        'neg\\x1b[31m\\n'
        >>> show_hidden("\u202egood") == "\\u202egood"
        True
    """
    return HIDDEN.sub(lambda match: NAMED.get(match[0], ascii(match[0])[1:-1]), text)


def holds_token(text: str) -> bool:
    """Return whether a part of a text looks like a token, a password in a URL, or is one of this process's tokens."""
    return blank_tokens(text) != text


def blank_tokens(content: Any) -> Any:
    """Replace tokens in a text, and in all texts of a JSON document, keys excepted.

    Tokens of the Hub, `user:password@` and `?token=…` in URLs, and what `HF_TOKEN` and its like hold.

    Example:
        >>> blank_tokens("https://me:secret@example.org/reviews.csv")
        'https://[token]@example.org/reviews.csv'
        >>> blank_tokens(["--run_name", "hf_0123456789abcdefghij"])
        ['--run_name', '[token]']
    """
    if isinstance(content, str):
        for name in SECRETS:
            if len(secret := os.environ.get(name, "").strip()) >= 8:
                content = content.replace(secret, BLANK)
        content = IN_URL.sub(rf"\g<scheme>{BLANK}@", TOKEN.sub(BLANK, content))
        return IN_QUERY.sub(rf"\g<name>{BLANK}", content)
    if isinstance(content, os.PathLike):
        return blank_tokens(os.fspath(content))
    if isinstance(content, Mapping):
        return {name: blank_tokens(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [blank_tokens(value) for value in content]
    return content


def to_terminal(text: str) -> str:
    """Return text as one line for a terminal or a log: hidden characters are shown, not sent, and tokens blanked."""
    return show_hidden(blank_tokens(text))


def to_markdown(text: str) -> str:
    r"""Return text such that Markdown shows it as it is, in one line, also in a table.

    Example:
        >>> to_markdown("a|b <img src=x>")
        'a\\|b \\<img src=x\\>'
    """
    line = MARKDOWN.sub(r"\\\1", to_terminal(" ".join(text.split())))
    return FLAGGED.sub(lambda match: f"{match[1][:-1]}\\{match[1][-1]}", line)


def to_markdown_code(text: str, in_table: bool = False) -> str:
    """Return text as a span of code in Markdown; in a table a bar would end the cell, in code too.

    Example:
        >>> to_markdown_code("positive"), to_markdown_code("a`b")
        ('`positive`', '`` a`b ``')
    """
    text = to_terminal(text) or " "
    text = text.replace("|", r"\|") if in_table else text
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest or text[0] == " " == text[-1] else ""
    return f"{fence}{space}{text}{space}{fence}"


def to_html(text: str) -> str:
    """Return text such that HTML shows it as it is, between tags and in attributes."""
    return html.escape(to_terminal(text), quote=True)


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines for a person, on standard error if nothing else is said; each stays one line, whatever is in it."""
    for line in lines:
        print(to_terminal(line), file=file or sys.stderr, flush=True)
