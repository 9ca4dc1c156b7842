"""Reload what a run saved, from this machine or from the Hub, by the family that saved it. No torch is imported here.

Of the Hub's files only safetensors, JSON and the tokenizer's are fetched: nothing that could run.
"""

import functools
from pathlib import Path
from typing import Any

from finetune.catalogue import FAMILIES
from finetune.errors import FinetuneError, explain_shortage
from finetune.examination.folder import examine_saved
from finetune.family import Family
from finetune.inference.exported import is_exported
from finetune.lookup import find_family, import_family
from finetune.models.finetune_config import FINETUNE_CONFIG_FILE, FinetuneConfig, read_finetune_config
from finetune.run.record import has_record

__all__ = ["download_model", "find_model_folder", "find_saved_family", "load", "uses_torch"]

FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


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
    from huggingface_hub import HfApi

    from finetune.hub_client import HUB_ERRORS, explain, reach_hub, retry

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
    if not folder.exists():
        from finetune.hub_client import parse_hub_id

        on_hub = parse_hub_id(str(path))
        if on_hub is not None:
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
    if not is_exported(folder):  # which is examined as it is loaded
        examine_saved(folder)
    says = (folder / FINETUNE_CONFIG_FILE).is_file() and read_finetune_config(folder).family is not None
    if not says and not any(import_family(name).recognises(folder) for name in FAMILIES):
        raise FinetuneError(
            f"Expected a saved model in {str(folder)!r}, but found none of config.json, adapter_config.json and what "
            "else finetune writes. Pass the folder of a run or of a saved model."
        )
    return folder


def find_saved_family(folder: Path, config: FinetuneConfig) -> Family:
    """Return the family that reads a model folder.

    A folder never makes this process import a module: a family that is not finetune's own has to be imported already.

    Args:
        folder: A model folder.
        config: What its `finetune_config.json` says; of folders that don't say it is told from their files.

    Raises:
        FinetuneError: If it is of a family that is not known here.
    """
    if config.family is None:
        listed = [import_family(name) for name in reversed(FAMILIES)]  # the first takes all that transformers does
        return next(family for family in listed if family.recognises(folder))
    family = find_family(config.family)
    if family is None:
        module = config.family.partition(":")[0]
        raise FinetuneError(
            f"Expected a model of a family that is known here, but {str(folder)!r} is of {config.family!r}, whose code "
            f"would have to be run. If you trust it, `import {module}` first, or pass --family {config.family}."
        )
    knows = type(family).recognises is not Family.recognises
    if config.family in FAMILIES and knows and not family.recognises(folder):
        raise FinetuneError(
            f"Expected a model of the family {config.family!r} in {str(folder)!r}, as its {FINETUNE_CONFIG_FILE} says, "
            "but its files are of another. Save the model again."
        )
    return family


def uses_torch(path: str | Path) -> bool:
    """Return whether what lies at a path has to be computed with torch; True of what is not here yet.

    Raises:
        FinetuneError: If it is a folder without a model.
    """
    if is_exported(str(path)):
        return False
    if not Path(path).exists():
        return True
    folder = find_model_folder(path)
    return find_saved_family(folder, read_finetune_config(folder)).uses_torch


def load(path: str | Path, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load model and tokenizer; `finetune.load` documents it."""
    folder = find_model_folder(path, trust_remote_code)
    config = read_finetune_config(folder)
    family = find_saved_family(folder, config)
    try:
        return family.load(folder, config, trust_remote_code)
    except (FinetuneError, MemoryError):
        raise
    except Exception as error:  # transformers and PEFT raise whatever they come upon in a config that lies
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise explain_shortage(error) or FinetuneError(
            f"Expected a loadable model in {str(folder)!r}, but got: {reason}. Fetch it again, or save it again."
        ) from error
