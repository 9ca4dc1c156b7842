"""What a model reads: how many tokens, of which vocabulary, with padding on which side, and beside which inputs.

The one definition for training, prediction, evaluation, serving and export. All of it is found from the model itself,
or before its weights are loaded from `sketch_model`, and the tokenizer is made to fit where that changes no answer.
"""

from __future__ import annotations

import inspect
import json
import warnings
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import normalizers
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from finetune.adapted import has_adapter, without_adapter
from finetune.data.tokens import count_special_tokens
from finetune.errors import FinetuneError, explain_shortage
from finetune.quiet import quiet_loading

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "NO_LIMIT",
    "add_embeddings",
    "count_positions",
    "count_rows",
    "fit_model",
    "fit_padding_token",
    "fit_tokenizer",
    "longest_input",
    "make_sample",
    "needs_equal_lengths",
    "refuse_wrong_length",
    "require_fast",
    "shortest_input",
    "sketch_model",
]

NO_LIMIT = 1_000_000  # tokens: how long texts are cut for a model of relative positions whose tokenizer knows no limit
# Padding belongs at the end, where it moves no token from its position. XLNet's positions are relative, and it
# classifies by whatever token is the last.
READ_THE_LAST_TOKEN = {"xlnet"}
# These classify by the last end-of-text token, and want as many of them in each text of a batch.
READ_THE_END_TOKEN = {"bart", "bigbird_pegasus", "mbart", "mt5", "mvp", "plbart", "t5", "umt5"}
# Padding changes what these compute, mask or no mask: they pool tokens, mix them with their neighbours, by blocks,
# landmarks or hashes, or have no mask.
MIX_BY_LENGTH = {"canine", "convbert", "fnet", "funnel", "mobilebert", "mra", "nystromformer", "reformer", "yoso"}


def sketch_model(config: Any) -> PreTrainedModel:
    """Build the classifier of a config without memory for its weights, to look at its parts.

    Raises:
        ValueError: If transformers has no sequence classifier for it.
    """
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def count_positions(model: PreTrainedModel | PeftModel) -> int | None:
    """Return the most tokens of a text that a model was built for; None if its positions have no limit.

    RoBERTa and its kin count positions from the padding token's number on: 514 positions read 512 tokens. They are told
    by their table of positions, which has a row for padding. Virtual tokens of prompt learning take up positions.
    """
    whole: Any = _without_adapter(model)
    positions = _read_positions(whole.config)
    if positions is None:
        return None
    padding = _find_padding_position(whole, positions)
    if padding is not None:
        positions -= padding + 1
    if has_adapter(model) and model.active_peft_config.is_prompt_learning:
        positions -= model.active_peft_config.num_virtual_tokens
    return positions


def _read_positions(config: Any) -> int | None:
    """Return the number of positions that a config gives; None if it gives none, or XLNet's -1."""
    config = config.get_text_config()
    # MPT only adds to attention weights, up to a distance. T5 and Funnel say nothing.
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def _find_padding_position(model: PreTrainedModel, positions: int | None) -> int | None:
    """Find the row of padding in the table of positions; None if it has none."""
    words = _find_embeddings(model)
    if words is None:
        return None
    for module in model.modules():
        padding, table = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if padding is not None and module is not words and table is not None and len(table) == positions:
            return int(padding)
    return None


def longest_input(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the most tokens of a text that a model reads, special tokens included; None if nothing limits them.

    The smaller of the model's own limit and the tokenizer's. A tokenizer that knows none says 10^30.
    """
    limits = [count_positions(model), tokenizer.model_max_length]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < NO_LIMIT]
    return min(known, default=None)


def refuse_wrong_length(
    max_length: int, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """Refuse a `max_length` beyond what a model reads, or with no room for a token beside the special ones.

    Raises:
        FinetuneError: Naming the number to pass.
    """
    longest = longest_input(model, tokenizer)
    if longest is not None and max_length > longest:
        raise FinetuneError(
            f"Expected --max_length of at most {longest}, which {name} was built for, but got {max_length}. "
            f"Pass --max_length {longest}."
        )
    special = count_special_tokens(tokenizer)
    if max_length <= special:
        raise FinetuneError(
            f"Expected --max_length of at least {special + 1}, since the tokenizer of {name} adds {special} special "
            f"tokens to a text, but got {max_length}. Pass a larger one."
        )


def make_sample(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a few tokens that a model takes, `input_ids` of shape `(1, n)` and what goes with them, to try it on."""
    tokens = torch.ones((1, max(4, shortest_input(model))), dtype=torch.long, device=model.device)
    if _name_architecture(model) in READ_THE_END_TOKEN:
        tokens[0, -1] = model.config.eos_token_id
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    return {"input_ids": tokens, **({"attention_mask": torch.ones_like(tokens)} if takes_mask else {})}


def shortest_input(model: PreTrainedModel | PeftModel) -> int:
    """Return the fewest tokens that a model can compute; a shorter text is padded up to them.

    Funnel halves a text after each of its blocks but the last, and wants a token beside the first one to be left.
    """
    if _name_architecture(model) != "funnel":
        return 1
    config = _without_adapter(model).config.get_text_config()
    return 2 ** (len(config.block_sizes) - 1) + 1


def needs_equal_lengths(model: nn.Module) -> bool:
    """Return whether padding changes a model's answers, so that only texts of one length can share a batch."""
    return _name_architecture(model) in MIX_BY_LENGTH


def fit_padding_token(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Let a tokenizer without a padding token pad with its end-of-text token, as decoders such as GPT-2 do.

    Raises:
        FinetuneError: If it has neither.
    """
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # it stands behind a text, as padding does
    if tokenizer.pad_token is None:
        raise FinetuneError(
            f"Expected a tokenizer with a padding token, but that of {name} has none. "
            "Set one and save the tokenizer with the model."
        )


def require_fast(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that has no Rust backend or no vocabulary, and texts on which it fails.

    Raises:
        FinetuneError: If it is written in Python, as CANINE's is, knows no word, or has no token for what it does not
            know.
    """
    if not tokenizer.is_fast:
        raise FinetuneError(
            f"Expected a fast tokenizer (a tokenizer.json), but that of {name} is {type(tokenizer).__name__}, which is "
            "written in Python. Convert it with transformers' convert_slow_tokenizer, or take another model."
        )
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers makes one up without its file
        raise FinetuneError(
            f"Expected a tokenizer with a vocabulary, but that of {name} knows its special tokens alone. Put its "
            "tokenizer.json (or vocab.txt, vocab.json and merges.txt, spiece.model) beside config.json."
        )
    try:
        tokenizer("\u2603 \U0010fffd")  # in no vocabulary
    except Exception as error:  # the tokenizers library raises Exception itself
        reason = str(error).strip().splitlines()[0]
        raise explain_shortage(error) or FinetuneError(
            f"Expected a tokenizer that reads any text, but that of {name} fails on unknown characters: {reason}. "
            "Give it an unknown token, and save it with the model."
        ) from error


def fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | PeftModel, name: str, may_add: bool = False
) -> None:
    """Let a tokenizer make what a model reads: padding on its side, and inputs that it takes.

    What is changed is saved with the tokenizer, so that others who load it get the same answers.

    Args:
        tokenizer: Changed in place.
        model: As it was loaded, or a sketch.
        name: What messages call the model.
        may_add: Whether tokens that were added to its vocabulary may lack an embedding, since they get one.

    Raises:
        FinetuneError: If it is no fast tokenizer, has tokens without embeddings or nothing to pad with, fails on
            unknown characters, or does not end texts with the token that the model classifies by.
    """
    whole: Any = _without_adapter(model)
    config = whole.config
    require_fast(tokenizer, name)
    _refuse_foreign_tokens(tokenizer, model, name, may_add)
    fit_padding_token(tokenizer, name)
    _set(tokenizer, "padding_side", "left" if _name_architecture(whole) in READ_THE_LAST_TOKEN else "right")
    _set(tokenizer, "model_input_names", _name_inputs(whole, tokenizer))
    if _name_architecture(whole) in READ_THE_END_TOKEN:
        _end_no_text_early(tokenizer)
        if config.eos_token_id not in tokenizer("a")["input_ids"]:
            raise FinetuneError(
                f"Expected a tokenizer that ends texts with token {config.eos_token_id}, by which "
                f"{type(whole).__name__} classifies, but that of {name} doesn't. Set its post_processor, and save it "
                "with the model."
            )
        if tokenizer.eos_token_id is None:  # which the Trainer of older transformers puts into the model's config
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)


def _end_no_text_early(tokenizer: Any) -> None:
    """Let a text that has "</s>" in it not end there: as a special token it is not looked for, as a word left out."""
    _set(tokenizer, "split_special_tokens", True)
    end, backend = tokenizer.eos_token, tokenizer.backend_tokenizer
    known = json.loads(backend.to_str())["normalizer"]
    if end is not None and {"type": "Replace", "pattern": {"String": end}, "content": " "} != _first_step(known):
        steps = [normalizers.Replace(end, " "), *([] if backend.normalizer is None else [backend.normalizer])]
        backend.normalizer = normalizers.Sequence(steps)


def _first_step(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    steps = (normalizer or {}).get("normalizers")
    return steps[0] if steps else normalizer


def count_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many rows of embeddings a tokenizer needs: its largest token number and one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def fit_model(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Let a model answer alike in any company, in place, and save what that takes in its config.

    It gets to know the token that its tokenizer pads with: decoders classify by the last one that is another. RoBERTa
    and its kin keep the number that their config gives, since they count positions by it; another one in the tokenizer
    is a sign of a foreign tokenizer, and warned of. BigBird attends to everything at every length, where it would go
    over to that, for good, at the first short batch.
    """
    whole = _without_adapter(model)
    config, padding = whole.config, tokenizer.pad_token_id
    text_config = config.get_text_config()
    if config.pad_token_id is None or _find_padding_position(whole, _read_positions(config)) is None:
        config.pad_token_id = text_config.pad_token_id = padding
    elif config.pad_token_id != padding:
        warnings.warn(
            f"the model {name} pads with token {config.pad_token_id} and its tokenizer with {padding}: if the "
            "tokenizer is of another model, its tokens are too",
            stacklevel=2,
        )
    if getattr(config, "attention_type", None) == "block_sparse":
        for module in list(whole.modules()):
            if hasattr(module, "set_attention_type"):
                module.set_attention_type("original_full")
        config.attention_type = "original_full"


def add_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Initialize the embeddings of tokens that were added to a tokenizer, drawn around those of the others, in place.

    Raises:
        FinetuneError: If other tokens than added ones lack an embedding.
    """
    _refuse_foreign_tokens(tokenizer, model, name, may_add=True)
    rows = _count_embeddings(model)
    missing = 0 if rows is None else count_rows(tokenizer) - rows
    if missing > 0:
        warnings.warn(
            f"{missing} of the tokens that were added to the tokenizer of {name} have no embedding, which is drawn "
            "around the mean of the others",
            stacklevel=2,
        )
        with quiet_loading():
            model.resize_token_embeddings(count_rows(tokenizer))


def _refuse_foreign_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | PeftModel, name: str, may_add: bool
) -> None:
    """Refuse a tokenizer with tokens for which a model has no embedding, be it its own or another model's."""
    rows = _count_embeddings(model)
    if rows is None:
        return
    extra = tokenizer.get_added_vocab() if may_add else {}
    beyond = [token for token, number in tokenizer.get_vocab().items() if number >= rows and token not in extra]
    if beyond:
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise FinetuneError(
            f"Expected token numbers below {rows}, since {name} has that many embeddings, but those of its tokenizer "
            f"go up to {count_rows(tokenizer) - 1} ({beyond[0]!r}{more}). Take the tokenizer that belongs to it; if "
            "these were added, pass --method full, or save the model after resize_token_embeddings(len(tokenizer))."
        )


def _count_embeddings(model: PreTrainedModel | PeftModel) -> int | None:
    """Count the tokens that a model has embeddings for; None if it does not say, as a model of one's own may not."""
    embeddings = _find_embeddings(_without_adapter(model))
    return None if embeddings is None else int(embeddings.weight.shape[0])


def _find_embeddings(model: PreTrainedModel) -> Any:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _name_architecture(model: nn.Module) -> str | None:
    """Name the architecture that reads the tokens, also where it stands inside of another model; None if none is said.

    That of models that are no `PreTrainedModel`, which may have a config of any kind, is not looked for inside.
    """
    config: Any = getattr(_without_adapter(model), "config", None)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text_config, "model_type", None)


def _without_adapter(model: Any) -> Any:
    return without_adapter(model)


def _name_inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Name the tensors that a model is to get: a mask if it takes one, types of tokens if it has as many."""
    taken = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in taken]
    if "attention_mask" in taken and "attention_mask" not in names:
        names.append("attention_mask")
    # XLNet compares types and has no table of them; GPT-2 would take them for words.
    config = model.config.get_text_config()
    known = getattr(config, "type_vocab_size", 4 if config.model_type == "xlnet" else 0)
    types = tokenizer("a", "a", return_token_type_ids=True)["token_type_ids"]
    if max(types, default=0) >= known and "token_type_ids" in names:
        names.remove("token_type_ids")
    return names


def _set(tokenizer: PreTrainedTokenizerBase, name: str, value: Any) -> None:
    """Set what is saved only if the tokenizer was loaded with it."""
    if getattr(tokenizer, name) != value:
        setattr(tokenizer, name, value)
        tokenizer.init_kwargs[name] = value
