"""Compute logits in a fresh process, which has nothing but a folder: `python -m finetune.inference.reload FOLDER`.

A family that is not finetune's own is named after the folder, for it to be imported.

It reads `{"texts": [...], "pairs": [...] or null}` from standard input and writes float32 logits as JSON lists.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from finetune.catalogue import FAMILIES
from finetune.errors import FinetuneError, exit_on_error
from finetune.lookup import import_family
from finetune.models.finetune_config import read_finetune_config

__all__ = ["compute_logits_elsewhere", "main"]


def compute_logits_elsewhere(folder: Path, texts: Sequence[str], pairs: Sequence[str] | None) -> np.ndarray:
    """Load a model folder in a fresh process and compute logits, `(len(texts), num_labels)`, in float32.

    Raises:
        FinetuneError: If the folder does not load there.
    """
    family = read_finetune_config(folder).family
    own = [] if family is None or family in FAMILIES else [family]  # imported here already, by whoever named it
    command = [sys.executable, "-m", "finetune.inference.reload", str(folder), *own]
    asked = json.dumps({"texts": list(texts), "pairs": None if pairs is None else list(pairs)})
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1].removeprefix("error: ")
        raise FinetuneError(f"Expected {str(folder)!r} to load in a fresh process, but got: {reason}")
    return np.asarray(json.loads(done.stdout.splitlines()[-1]), dtype=np.float32)


def main(argv: Sequence[str]) -> None:
    """Answer the texts of standard input."""
    from finetune.inference.predict import load_predictor
    from finetune.quiet import quiet_program

    quiet_program()
    for family in argv[1:]:
        import_family(family)
    asked = json.load(sys.stdin)
    logits, _ = load_predictor(argv[0], torch.float32).compute_logits(asked["texts"], asked["pairs"])
    print(json.dumps(logits.tolist()))


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
