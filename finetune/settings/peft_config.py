"""The YAML file behind `--peft_config`."""

from pathlib import Path
from typing import Any

import yaml

from finetune.errors import FinetuneError

__all__ = ["read_peft_config"]


def read_peft_config(path: str) -> dict[str, Any]:
    """Read the fields of a PEFT config from a YAML file.

    Raises:
        FinetuneError: If it is not a file of names and values.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise FinetuneError(
            f"Expected a YAML file after --peft_config, but {path!r} can't be read: {reason}"
        ) from error
    if not isinstance(content, dict):
        raise FinetuneError(f"Expected 'name: value' lines in {path!r}, but found a {type(content).__name__}.")
    return content
