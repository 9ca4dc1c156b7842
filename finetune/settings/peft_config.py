"""The YAML file behind `--peft_config`."""

from typing import Any

from finetune.errors import FinetuneError
from finetune.files import read_yaml

__all__ = ["read_peft_config"]


def read_peft_config(path: str) -> dict[str, Any]:
    """Read the fields of a PEFT config from a YAML file.

    Raises:
        FinetuneError: If it is not a file of names and values.
    """
    content = read_yaml(path, "--peft_config")
    if not isinstance(content, dict):
        raise FinetuneError(f"Expected 'name: value' lines in {path!r}, but found a {type(content).__name__}.")
    return content
