"""Load what a run starts from: an encoder with a fresh head, and its tokenizer.

The seed is set before any weight is drawn, so that a head depends on the seed alone.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from finetune.data.embedded import EMBEDDED_MODEL_ID, find_embedded_model
from finetune.data.labels import Task
from finetune.errors import FinetuneError
from finetune.hub import find_commit
from finetune.models.quantization import four_bit_settings
from finetune.quiet import quiet_loading
from finetune.settings.parts import ModelArguments

__all__ = [
    "HEADS",
    "SAFE_LOADING",
    "count_positions",
    "fingerprint_model",
    "hub_commit_of",
    "limit_length",
    "load_encoder",
    "load_model",
    "load_padding_tokenizer",
    "load_pretrained_tokenizer",
    "load_tokenizer",
    "loading",
    "locate_checkpoint",
    "longest_input",
    "newly_initialised_modules",
    "note_origin",
    "resolve_model",
]

# Heads that a fine-tuned checkpoint brings along; PEFT trains and saves `classifier` and `score` in full by itself.
HEADS = ["classifier", "score"]
# Nothing that comes with a model is run: neither its code nor a pickle.
SAFE_LOADING: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}


def resolve_model(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Find where a model lies: 'embedded' in the installed package, a folder where it is, else the Hub.

    Returns:
        What `from_pretrained` takes as name and as `revision`: a folder and None, or `user/name` and its commit.

    Raises:
        FinetuneError: If the embedded model is not installed, a folder has no `config.json`, or the Hub has no such
            model or revision.
    """
    if name == "embedded":
        return str(find_embedded_model()), None
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise FinetuneError(f"Expected a model folder with a config.json, but {name!r} has none. Check the path.")
        return str(Path(name).resolve()), None  # an adapter names its base by this, and may be used from elsewhere
    if name.startswith((".", "/")) or name.count("/") > 1:
        raise FinetuneError(f"Expected a model folder, but {name!r} does not exist. Check the path.")
    return name, find_commit(name, revision)


def fingerprint_model(name: str, revision: str | None = None) -> str:
    """Return what changes when a pretrained model does: its commit on the Hub, or a hash of a folder's files.

    Raises:
        FinetuneError: If it can't be had.
    """
    path, commit = resolve_model(name, revision)
    if commit is not None:
        return commit
    total = hashlib.sha256()
    for file in sorted([*Path(path).glob("*.json"), *Path(path).glob("*.safetensors")]):
        with file.open("rb") as opened:
            total.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def locate_checkpoint(arguments: ModelArguments, model_class: type[PreTrainedModel]) -> tuple[str, str | None]:
    """Find where a pretrained model lies, and check that it is one for `model_class`, which would load any.

    Args:
        arguments: Which model.
        model_class: A class of one architecture, such as `BertForSequenceClassification`.

    Returns:
        What `model_class.from_pretrained` takes as name and as `revision`; see `resolve_model`.

    Raises:
        FinetuneError: If it can't be had, or is of another architecture.
    """
    path, commit = resolve_model(arguments.model_name_or_path, arguments.model_revision)
    with loading(arguments):
        found = AutoConfig.from_pretrained(path, revision=commit, trust_remote_code=False).model_type
    wanted: Any = model_class.config_class
    if found != wanted.model_type:
        raise FinetuneError(
            f"Expected a checkpoint of model_type {wanted.model_type!r} for {model_class.__name__}, but "
            f"{arguments.model_name_or_path!r} is of {found!r}. Take AutoModelForSequenceClassification in its place, "
            "or `finetune train`, which does."
        )
    return path, commit


@contextlib.contextmanager
def loading(arguments: ModelArguments) -> Iterator[None]:
    """Load with `from_pretrained`, without its bars and its report of the head's new weights.

    Args:
        arguments: Which model.

    Raises:
        FinetuneError: For what `from_pretrained` raises, in one line.
    """
    try:
        with quiet_loading():
            yield
    except FinetuneError:
        raise
    except (OSError, ValueError) as error:
        raise _not_loaded("model", arguments.model_name_or_path, error) from error


def load_pretrained_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a pretrained model.

    Raises:
        FinetuneError: If it can't be had.
    """
    path, commit = resolve_model(name, revision)
    try:
        return AutoTokenizer.from_pretrained(path, revision=commit, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _not_loaded("tokenizer", name, error) from error


def load_padding_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the pretrained model that is named, with a padding token.

    Raises:
        FinetuneError: If it can't be had, or has no padding token.
    """
    tokenizer = load_pretrained_tokenizer(arguments.model_name_or_path, arguments.model_revision)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # decoders such as GPT-2: it stands behind a text, as padding does
    if tokenizer.pad_token is None:
        raise FinetuneError(
            f"Expected a tokenizer with a padding token, but that of {arguments.model_name_or_path} has none. "
            "Set one and save the tokenizer with the model."
        )
    return tokenizer


def load_tokenizer(arguments: ModelArguments, max_length: int) -> PreTrainedTokenizerBase:
    """Load the encoder's tokenizer.

    Returns:
        A tokenizer whose `model_max_length` is `max_length`, so that this is saved with the model.

    Raises:
        FinetuneError: If it can't be had, has no padding token, or `max_length` is more than the encoder reads.
    """
    tokenizer = load_padding_tokenizer(arguments)
    limit_length(tokenizer, arguments, max_length)
    return tokenizer


def limit_length(tokenizer: PreTrainedTokenizerBase, arguments: ModelArguments, max_length: int) -> None:
    """Set the length that texts are cut to, which is saved with the tokenizer.

    Raises:
        FinetuneError: If `max_length` is more than the model reads.
    """
    most = longest_input(arguments.model_name_or_path, tokenizer, arguments.model_revision)
    if max_length > most:
        raise FinetuneError(
            f"Expected --max_length of at most {most}, which {arguments.model_name_or_path} was built for, "
            f"but got {max_length}. Pass --max_length {most}."
        )
    tokenizer.model_max_length = max_length


def longest_input(name: str, tokenizer: PreTrainedTokenizerBase, revision: str | None = None) -> int:
    """Give the most tokens that a pretrained model reads, by its tokenizer and by its number of positions."""
    path, commit = resolve_model(name, revision)
    config = AutoConfig.from_pretrained(path, revision=commit, trust_remote_code=False)
    positions = count_positions(config)
    return tokenizer.model_max_length if positions is None else min(tokenizer.model_max_length, positions)


def count_positions(config: Any) -> int | None:
    """Give the most positions that a model of this config was built for; None if it does not say."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and "roberta" in config.model_type:  # its positions are counted from the padding token's number on
        positions -= config.pad_token_id + 1
    return positions if positions and positions > 0 else None  # XLNet, whose positions are relative, says -1


def load_model(
    arguments: ModelArguments, method: str, tokenizer: PreTrainedTokenizerBase, task: Task, seed: int
) -> PreTrainedModel:
    """Load the encoder with a classification head.

    The head is drawn at random, unless the checkpoint has one for as many classes: then it is kept, with a warning.

    Args:
        arguments: Which model.
        method: "qlora" holds its weights in four bits.
        tokenizer: Its padding token is that of a model that has none.
        task: The kind of task and the names of its labels.
        seed: Set before weights are drawn.

    Returns:
        A model in float32 of plain transformers, one logit a label; see `newly_initialised_modules` for what was drawn.
    """
    labels = task.to_config()
    set_seed(seed)
    model = load_encoder(arguments, labels)
    if method == "qlora":
        new_modules = newly_initialised_modules(model)
        set_seed(seed)
        model = load_encoder(arguments, labels, four_bit_settings([*HEADS, *new_modules]))
    _warn_of_kept_head(model, arguments)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model


def load_encoder(
    arguments: ModelArguments, labels: dict, quantization: dict[str, Any] | None = None
) -> PreTrainedModel:
    """Load `BertForSequenceClassification`, or what the Auto class makes of another encoder or a decoder, in float32.

    Args:
        arguments: Which model.
        labels: `id2label`, `label2id` and `problem_type`.
        quantization: What `four_bit_settings` gives, for linear layers in four bits.
    """
    path, commit = resolve_model(arguments.model_name_or_path, arguments.model_revision)
    with loading(arguments):
        config = AutoConfig.from_pretrained(path, revision=commit, trust_remote_code=False, **labels)
        for name in ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"):
            if hasattr(config, name):
                setattr(config, name, arguments.attention_dropout)
        model, loading_info = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            revision=commit,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head for another number of classes is drawn anew, and trained
            **SAFE_LOADING,
            **(quantization or {}),
        )
    _note_origin(model, arguments, commit, loading_info)
    return model


def note_origin(
    model: PreTrainedModel, arguments: ModelArguments, commit: str | None, loading_info: dict[str, Any]
) -> list[str]:
    """Note on a model where it is from, which its adapters name as their base, and what its checkpoint lacked.

    Args:
        model: As `from_pretrained` gives it; a head that the checkpoint has is kept, with a warning.
        arguments: Which model.
        commit: Of the Hub.
        loading_info: What `from_pretrained(..., output_loading_info=True)` gives beside the model.

    Returns:
        The modules that were drawn at random, as `newly_initialised_modules` names them; they have to train.
    """
    _note_origin(model, arguments, commit, loading_info)
    _warn_of_kept_head(model, arguments)
    new_modules = newly_initialised_modules(model)
    model.new_modules = new_modules  # type: ignore[assignment]
    return new_modules


def _note_origin(
    model: PreTrainedModel, arguments: ModelArguments, commit: str | None, loading_info: dict[str, Any]
) -> None:
    if arguments.model_name_or_path == "embedded":
        model.name_or_path = EMBEDDED_MODEL_ID  # a path inside this machine's site-packages would load nowhere else
        model.config.name_or_path = EMBEDDED_MODEL_ID
    mismatched = {entry[0] for entry in loading_info["mismatched_keys"]}
    model.missing_weights = sorted(set(loading_info["missing_keys"]) | mismatched)  # type: ignore[assignment]
    model.hub_commit = commit  # type: ignore[assignment]  # which an adapter on it names


def _warn_of_kept_head(model: PreTrainedModel, arguments: ModelArguments) -> None:
    if not getattr(model, "missing_weights", ()):
        names = list((model.config.id2label or {}).values())
        warnings.warn(
            f"{arguments.model_name_or_path} has a head for as many classes already, which is trained further: "
            f"its classes must be {names}, in this order",
            stacklevel=3,
        )


def hub_commit_of(model: PreTrainedModel) -> str | None:
    """Return the commit on the Hub that a model was loaded at by this package; None if it is from elsewhere."""
    return vars(model).get("hub_commit")


def newly_initialised_modules(model: PreTrainedModel) -> list[str]:
    """Name the topmost modules whose weights the checkpoint lacked, so that they were drawn at random.

    These must be trained and saved by every method; for BERT that is `classifier`, for other encoders also a pooler
    or a projection before it.
    """
    missing = set(getattr(model, "missing_weights", ()))
    complete: list[str] = []
    for name, module in model.named_modules():
        own = [f"{name}.{weight}" for weight, _ in module.named_parameters()]
        under_another = any(name.startswith(f"{other}.") for other in complete)
        if name and own and not under_another and missing.intersection(own) and missing.issuperset(own):
            complete.append(name)
    return complete


def _not_loaded(what: str, name: str, error: Exception) -> FinetuneError:
    reason = str(error).strip().splitlines()[0]
    return FinetuneError(
        f"Expected to load the {what} {name!r}, but got: {reason} "
        "Without the Hub, pass --model_name_or_path embedded or a folder."
    )
