"""Train a list of runs one after the other, or predict, in each process that the launcher started.

    accelerate launch --config_file accelerate_configs/cpu_two_processes.yaml tests/train_in_processes.py runs.json

`runs.json` is a list of lists: the recipe's flags, or the words of `finetune predict`.
"""

import importlib.util
import json
import sys
from pathlib import Path

from finetune.cli import main as finetune_command
from finetune.errors import exit_on_error

RECIPE = Path(__file__).parent.parent / "recipes/classify.py"

if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("classify", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with exit_on_error():
        for flags in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
            (finetune_command if flags[0] == "predict" else recipe.main)(flags)
