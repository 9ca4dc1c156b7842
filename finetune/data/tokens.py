"""Turn texts into token numbers, and cut those that are longer than the model reads, without `datasets`."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from finetune.data.cutting import TextConfig, cut_contents, type_tokens

__all__ = ["count_special_tokens", "encode_texts"]


def encode_texts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: TextConfig,
    pairs: Sequence[str] | None = None,
) -> dict[str, list]:
    """Tokenize texts without padding them: batches pad to their own longest text.

    Args:
        texts: Any number of them.
        tokenizer: A fast tokenizer.
        config: How long texts are cut.
        pairs: A second text for each; then the longer one of a pair is cut at its end.

    Returns:
        `input_ids`, for each text a list of token numbers, with `window` a list of such lists; `token_type_ids` too
        if the model takes them and not all are 0, as those of pairs and of XLNet; `length`, the number of tokens;
        `is_truncated`, whether tokens were left out. A text without any token becomes one of padding.
    """
    special = _special_tokens(tokenizer)
    takes_types = "token_type_ids" in tokenizer.model_input_names
    if config.truncation == "head" or pairs is not None:
        encoded = tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=config.max_length,
            return_attention_mask=False,
            return_token_type_ids=takes_types and (pairs is not None or special.has_types),
        )
        columns = dict(encoded)
        for name, nothing in (("input_ids", tokenizer.pad_token_id), ("token_type_ids", 0)):
            if name in columns:
                columns[name] = [row or [nothing] for row in columns[name]]
        columns["length"] = [len(tokens) for tokens in columns["input_ids"]]
        columns["is_truncated"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
        return columns
    contents = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    if not special.prefix + special.suffix:
        contents = [content or [tokenizer.pad_token_id] for content in contents]
    columns = cut_contents(contents, special.prefix, special.suffix, config)
    if takes_types and special.has_types:
        rows, types = columns["input_ids"], (special.prefix_types, special.content_type, special.suffix_types)
        if config.truncation == "window":
            columns["token_type_ids"] = [type_tokens(windows, *types) for windows in rows]
        else:
            columns["token_type_ids"] = type_tokens(rows, *types)
    return columns


def count_special_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many special tokens a tokenizer adds to a text."""
    special = _special_tokens(tokenizer)
    return len(special.prefix) + len(special.suffix)


@dataclass(frozen=True)
class _SpecialTokens:
    """What a tokenizer puts before and after a text, and the types that it gives to its tokens."""

    prefix: list[int]
    suffix: list[int]
    prefix_types: list[int]
    content_type: int
    suffix_types: list[int]

    @property
    def has_types(self) -> bool:
        """Whether any type is not 0, as that of XLNet's and Funnel's [CLS]."""
        return any([*self.prefix_types, self.content_type, *self.suffix_types])


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> _SpecialTokens:
    """Find what the tokenizer puts before and after a text.

    Asked through transformers, since a tokenizer.json may ask for padding, as that of all-MiniLM-L6-v2 does to 128.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True, return_token_type_ids=True, verbose=False)
    ids, types, mask = encoded["input_ids"], encoded["token_type_ids"], encoded["special_tokens_mask"]
    if 0 not in mask:  # no token for an "a"
        return _SpecialTokens([], ids, [], 0, types)
    first, last = mask.index(0), len(ids) - mask[::-1].index(0)
    return _SpecialTokens(ids[:first], ids[last:], types[:first], types[first], types[last:])
