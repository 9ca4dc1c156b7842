"""Load what a run starts from: an encoder with a fresh head, and its tokenizer.

The seed is set before any weight is drawn, so that a head depends on the seed alone.
"""

import contextlib
import functools
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from finetune.data.embedded import EMBEDDED_MODEL_ID, find_embedded_model
from finetune.errors import FinetuneError, explain_shortage
from finetune.examination.configs import check_config
from finetune.examination.documents import read_object
from finetune.examination.folder import examine_pretrained
from finetune.examination.weights import INDEX_FILE, WEIGHTS_FILE
from finetune.hub_client import HUB_ERRORS, explain, find_commit, retry
from finetune.models.inputs import (
    add_embeddings,
    fit_model,
    fit_padding_token,
    fit_tokenizer,
    refuse_wrong_length,
    require_fast,
    sketch_model,
)
from finetune.models.quantization import four_bit_settings
from finetune.quiet import quiet_loading
from finetune.settings.parts import ModelArguments
from finetune.tasks import Task

__all__ = [
    "HEADS",
    "SAFE_LOADING",
    "UNLOADABLE",
    "check_loaded",
    "fingerprint_model",
    "fit_to_checkpoint",
    "hash_folder",
    "hub_commit_of",
    "load_encoder",
    "load_model",
    "load_padding_tokenizer",
    "load_pretrained_tokenizer",
    "load_sketch",
    "load_tokenizer",
    "load_weights",
    "loading",
    "locate_checkpoint",
    "newly_initialised_modules",
    "note_origin",
    "read_config",
    "refuse_spoilt_weights",
    "resolve_model",
    "set_attention_dropout",
]

# Heads that a fine-tuned checkpoint brings along; PEFT trains and saves `classifier` and `score` in full by itself.
HEADS = ["classifier", "score"]
# Nothing that comes with a model is run: neither its code nor a pickle.
SAFE_LOADING: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}


# What transformers raises on files and configs that no model can be made of.
UNLOADABLE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError,
    SafetensorError,
)  # fmt: skip


def resolve_model(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Find where a model lies: 'embedded' in the installed package, a folder where it is, else the Hub.

    Returns:
        What `from_pretrained` takes as name and as `revision`: a folder and None, or `user/name` and its commit.

    Raises:
        FinetuneError: If the embedded model is not installed, a folder has no `config.json`, the Hub has no such model
            or revision, or what is there does not pass the examination.
    """
    if name == "embedded":
        return str(find_embedded_model()), None
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise FinetuneError(f"Expected a model folder with a config.json, but {name!r} has none. Check the path.")
        examine_pretrained(Path(name).resolve())
        return str(Path(name).resolve()), None  # an adapter names its base by this, and may be used from elsewhere
    if name.startswith((".", "/")) or name.count("/") > 1:
        what = "is a file" if Path(name).exists() else "does not exist"
        raise FinetuneError(f"Expected a model folder, but {name!r} {what}. Check the path.")
    commit = find_commit(name, revision)
    _examine_on_hub(name, commit)
    return name, commit


@functools.cache
def _examine_on_hub(name: str, commit: str) -> None:
    """Fetch what transformers is about to read of a model on the Hub, and examine it; first what is not weights.

    Raises:
        FinetuneError: If it does not pass, or can't be had.
    """
    fetch = functools.partial(HfApi().snapshot_download, name, revision=commit, ignore_patterns=["*/*"], max_workers=1)
    try:
        folder = Path(retry(functools.partial(fetch, allow_patterns=["*.json", "*.txt", "*.model"])))
        check_config(read_object(folder / "config.json"), folder / "config.json")
        index = folder / INDEX_FILE
        shards = read_object(index).get("weight_map") if index.is_file() else None
        wanted = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else [WEIGHTS_FILE]
        folder = Path(retry(functools.partial(fetch, allow_patterns=wanted)))
    except HUB_ERRORS as error:
        raise explain(error, name) from None
    examine_pretrained(folder)


def fingerprint_model(name: str, revision: str | None = None) -> str:
    """Return what changes when a pretrained model does: its commit on the Hub, or a hash of a folder's files.

    Raises:
        FinetuneError: If it can't be had.
    """
    path, commit = resolve_model(name, revision)
    return hash_folder(Path(path)) if commit is None else commit


def hash_folder(folder: Path) -> str:
    """Compute a SHA-256 of the JSON and safetensors files of a model folder."""
    total = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
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
    except UNLOADABLE as error:
        raise _not_loaded("model", arguments.model_name_or_path, error) from error


def load_pretrained_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a pretrained model.

    Raises:
        FinetuneError: If it can't be had.
    """
    path, commit = resolve_model(name, revision)
    try:
        return AutoTokenizer.from_pretrained(path, revision=commit, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise _not_loaded("tokenizer", name, error) from error


def load_padding_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the pretrained model that is named, with a padding token.

    Raises:
        FinetuneError: If it can't be had, is no fast one, or has no padding token.
    """
    tokenizer = load_pretrained_tokenizer(arguments.model_name_or_path, arguments.model_revision)
    require_fast(tokenizer, arguments.model_name_or_path)
    fit_padding_token(tokenizer, arguments.model_name_or_path)
    return tokenizer


def load_tokenizer(
    arguments: ModelArguments, max_length: int, saves_embeddings: bool = True
) -> PreTrainedTokenizerBase:
    """Load the encoder's tokenizer, and make it fit.

    Args:
        arguments: Which model.
        max_length: Most tokens of a text.
        saves_embeddings: Whether the embeddings will be saved, so that tokens that were added get some; no adapter's
            are.

    Returns:
        A tokenizer whose `model_max_length` is `max_length`, so that this is saved with the model.

    Raises:
        FinetuneError: If it can't be had, does not fit the model, or `max_length` is more than the encoder reads.
    """
    name = arguments.model_name_or_path
    tokenizer = load_pretrained_tokenizer(name, arguments.model_revision)
    fit_to_checkpoint(tokenizer, arguments, max_length, saves_embeddings)
    return tokenizer


def fit_to_checkpoint(
    tokenizer: PreTrainedTokenizerBase, arguments: ModelArguments, max_length: int, saves_embeddings: bool = True
) -> None:
    """Make a tokenizer fit its model, and set the length that texts are cut to; both are saved with it.

    Args:
        tokenizer: As it was loaded.
        arguments: Which model.
        max_length: Most tokens of a text.
        saves_embeddings: See `load_tokenizer`.

    Raises:
        FinetuneError: If it does not fit, or `max_length` is more than the model reads.
    """
    name, sketch = arguments.model_name_or_path, load_sketch(arguments)
    fit_tokenizer(tokenizer, sketch, name, may_add=saves_embeddings)
    refuse_wrong_length(max_length, sketch, tokenizer, name)
    tokenizer.model_max_length = max_length


def load_sketch(arguments: ModelArguments) -> PreTrainedModel:
    """Build the model without its weights; see `sketch_model`.

    Raises:
        FinetuneError: If it has no config that can be had, or is none for classifying texts.
    """
    path, commit = resolve_model(arguments.model_name_or_path, arguments.model_revision)
    try:
        with quiet_loading():
            return sketch_model(AutoConfig.from_pretrained(path, revision=commit, trust_remote_code=False))
    except UNLOADABLE as error:
        raise _not_loaded("model", arguments.model_name_or_path, error) from error


def load_model(
    arguments: ModelArguments, method: str, tokenizer: PreTrainedTokenizerBase, task: Task, seed: int
) -> PreTrainedModel:
    """Load the encoder with a classification head.

    The head is drawn at random, unless the checkpoint has one for as many classes: then it is kept, with a warning.

    Args:
        arguments: Which model.
        method: "qlora" holds its weights in four bits.
        tokenizer: Its padding token becomes the model's; tokens that were added to it get embeddings.
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
    check_loaded(model, tokenizer, arguments)
    return model


def check_loaded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: ModelArguments) -> list[str]:
    """Warn of what a checkpoint lacked beyond a head, or had of one, and make the model fit its tokenizer.

    Args:
        model: After `note_origin`; its padding token is set, and tokens that were added get embeddings.
        tokenizer: After `fit_to_checkpoint`.
        arguments: Which model.

    Returns:
        The modules that were drawn at random, as `newly_initialised_modules` names them; they have to train.

    Raises:
        FinetuneError: If other tokens than added ones lack an embedding, or weights are no numbers.
    """
    name = arguments.model_name_or_path
    _warn_of_kept_head(model, arguments)
    _warn_of_random_encoder(model, name)
    refuse_spoilt_weights(model, name)
    add_embeddings(model, tokenizer, name)
    fit_model(model, tokenizer, name)
    new_modules = newly_initialised_modules(model)
    model.new_modules = new_modules  # type: ignore[assignment]
    return new_modules


def _warn_of_random_encoder(model: PreTrainedModel, name: str) -> None:
    """Warn if more than a head, and a pooler before it, was drawn at random."""
    inside = {
        weight: parameter.numel()
        for weight, parameter in model.named_parameters()
        if weight.startswith(f"{model.base_model_prefix}.") and "pooler" not in weight
    }
    drawn: list[str] = [weight for weight in model.missing_weights if weight in inside]  # type: ignore[union-attr]
    if drawn:
        share = sum(inside[weight] for weight in drawn) / sum(inside.values())
        warnings.warn(
            f"{name} lacks {len(drawn)} of the {len(inside)} weights of {type(model.base_model).__name__}, such as "
            f"{drawn[0]!r}: more than a head, {share:.0%} of the encoder, is drawn at random, not pretrained. Is it a "
            "checkpoint of another architecture?",
            stacklevel=3,
        )


def refuse_spoilt_weights(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that are no numbers, as of a training that went astray or a file that was damaged.

    Raises:
        FinetuneError: Naming the first of them.
    """
    held = ((weight, one) for weight, one in model.named_parameters() if not one.is_meta)
    spoilt = next((weight for weight, one in held if not torch.isfinite(one).all()), None)
    if spoilt is not None:
        raise FinetuneError(
            f"Expected weights that are numbers in {name}, but {spoilt!r} has NaN or infinite ones. Fetch the model "
            "again."
        )


def set_attention_dropout(config: Any, arguments: ModelArguments) -> None:
    """Set the dropout of attention weights in a config, by whichever name its architecture has for it."""
    for name in ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, arguments.attention_dropout)


def read_config(arguments: ModelArguments, **settings: Any) -> Any:
    """Read the config of the model that is named."""
    path, commit = resolve_model(arguments.model_name_or_path, arguments.model_revision)
    with loading(arguments):
        return AutoConfig.from_pretrained(path, revision=commit, trust_remote_code=False, **settings)


def load_weights(
    auto_class: Any, arguments: ModelArguments, config: Any, **settings: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the weights of the model that is named in float32, and say what was missing.

    Args:
        auto_class: What takes them.
        arguments: Which model.
        config: Its config, of `read_config`.
        **settings: More of what `from_pretrained` takes.
    """
    path, commit = resolve_model(arguments.model_name_or_path, arguments.model_revision)
    with loading(arguments):
        return auto_class.from_pretrained(
            path,
            config=config,
            revision=commit,
            dtype=torch.float32,
            output_loading_info=True,
            **SAFE_LOADING,
            **settings,
        )


def load_encoder(
    arguments: ModelArguments, labels: dict, quantization: dict[str, Any] | None = None
) -> PreTrainedModel:
    """Load `BertForSequenceClassification`, or what the Auto class makes of another encoder or a decoder, in float32.

    Args:
        arguments: Which model.
        labels: `id2label`, `label2id` and `problem_type`.
        quantization: What `four_bit_settings` gives, for linear layers in four bits.
    """
    _, commit = resolve_model(arguments.model_name_or_path, arguments.model_revision)
    config = read_config(arguments, **labels)
    set_attention_dropout(config, arguments)
    model, loading_info = load_weights(
        AutoModelForSequenceClassification,
        arguments,
        config,
        ignore_mismatched_sizes=True,  # a head for another number of classes is drawn anew, and trained
        **(quantization or {}),
    )
    note_origin(model, arguments, commit, loading_info)
    return model


def note_origin(
    model: PreTrainedModel, arguments: ModelArguments, commit: str | None, loading_info: dict[str, Any]
) -> None:
    """Note on a model where it is from, which its adapters name as their base, and what its checkpoint lacked.

    Args:
        model: As `from_pretrained` gives it.
        arguments: Which model.
        commit: Of the Hub.
        loading_info: What `from_pretrained(..., output_loading_info=True)` gives beside the model.
    """
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
    or a projection before it. A list of modules computes nothing itself, and PEFT can't save it: its modules are named.
    """
    missing = set(getattr(model, "missing_weights", ()))
    complete: list[str] = []
    for name, module in model.named_modules():
        own = [f"{name}.{weight}" for weight, _ in module.named_parameters()]
        under_another = any(name.startswith(f"{other}.") for other in complete) or isinstance(module, nn.ModuleList)
        if name and own and not under_another and missing.intersection(own) and missing.issuperset(own):
            complete.append(name)
    return complete


def _not_loaded(what: str, name: str, error: Exception) -> FinetuneError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return explain_shortage(error) or FinetuneError(
        f"Expected to load the {what} {name!r}, but got: {reason} "
        "Without the Hub, pass --model_name_or_path embedded or a folder."
    )
