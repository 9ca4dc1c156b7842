"""Write a model with its adapter merged, which everything loads."""

from pathlib import Path

from finetune.errors import FinetuneError
from finetune.families.save import write_model
from finetune.inference.load import find_model_folder, find_saved_family, load
from finetune.methods.merging import merge_adapter
from finetune.models.finetune_config import read_finetune_config

__all__ = ["merge_folder"]


def merge_folder(path: str | Path, output: str | Path) -> Path:
    """Write the model of a run with its adapter merged.

    Args:
        path: A run directory or folder with an adapter.
        output: The folder to write; must not exist.

    Raises:
        FinetuneError: If there is no adapter, or it does not merge.
    """
    folder, output = find_model_folder(path), Path(output)
    if not (folder / "adapter_config.json").is_file():
        raise FinetuneError(f"Expected an adapter in {str(folder)!r}, but it is a whole model. Use it as it is.")
    if output.exists():
        raise FinetuneError(f"Expected a new folder to write to, but {str(output)!r} exists. Pass another one.")
    model, tokenizer = load(folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    config = read_finetune_config(folder)
    told = {name: getattr(config, name) for name in ("is_paired", "encoding", "is_numbered")}
    family = find_saved_family(folder, config)
    write_model(
        output, family, merge_adapter(model), tokenizer, config.text, config.thresholds, rules_from=folder, **told
    )
    return output
