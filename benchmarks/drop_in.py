"""A plain transformers script under transformers' `Trainer` and under ours, in turns: only the import differs.

    python benchmarks/drop_in.py --output_json benchmarks/results/drop_in.json

The script is a `run_classification.py` in short: the embedded encoder with its dropout, in float32, on the embedded
reviews, one epoch, and an evaluation of as many; padded to the maximum length, or by a `DataCollatorWithPadding` in
random order or grouped by length. Both Trainers draw every review once. Printed are the medians over the turns, and
their ratios.
"""

import json
import statistics
import tempfile
from typing import Any

import torch
import transformers
from transformers import DataCollatorWithPadding, TrainingArguments, default_data_collator
from turns import build_parser, take_turns, write_results

import finetune.training.trainer
from finetune.data.embedded import find_embedded_model
from finetune.data.load import load_splits
from finetune.models.load import load_tokenizer
from finetune.settings.parts import DataArguments, ModelArguments

TRAINERS = {"transformers": transformers.Trainer, "finetune": finetune.training.trainer.Trainer}
SCRIPTS = ["padded to the maximum, random", "dynamic padding, random", "dynamic padding, group_by_length"]
FIGURES = {"train_samples_per_second": "reviews a second in training", "eval_samples_per_second": "in evaluation"}


def measure(name: str, options: Any) -> dict[str, float]:
    """Run the script with one Trainer."""
    library, padding, order = name.split(", ")
    torch.set_num_threads(options.num_threads)
    splits = load_splits(
        DataArguments(
            dataset_name="embedded", max_train_samples=options.num_reviews, max_eval_samples=options.num_reviews
        )
    )
    tokenizer = load_tokenizer(ModelArguments(), options.max_length)
    is_padded = padding == "padded to the maximum"

    def tokenize(batch: dict[str, Any]) -> Any:
        tokens = tokenizer(
            batch["text"], padding="max_length" if is_padded else False, max_length=options.max_length, truncation=True
        )
        return {**tokens, "label": batch["label"]}

    tokenized = splits.map(tokenize, batched=True, remove_columns=splits["train"].column_names)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(find_embedded_model(), num_labels=2)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TRAINERS[library](
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=options.batch_size,
                per_device_eval_batch_size=options.batch_size,
                train_sampling_strategy=order,
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=tokenized["train"],
            eval_dataset=tokenized["validation"],
            processing_class=tokenizer,
            data_collator=default_data_collator if is_padded else DataCollatorWithPadding(tokenizer),
        )
        trained, evaluated = trainer.train().metrics, trainer.evaluate()
    return {figure: {**trained, **evaluated}[figure] for figure in FIGURES}


def main() -> None:
    """Take turns and print the ratios."""
    parser = build_parser(__doc__)
    parser.add_argument("--num_reviews", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=512)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], options)))
        return
    results = take_turns(
        __file__, [f"{library}, {script}" for script in SCRIPTS for library in TRAINERS], options.turns
    )
    medians = {
        name: {figure: statistics.median(turn[figure] for turn in turns) for figure in FIGURES}
        for name, turns in results.items()
    }
    ratios = {}
    for script in SCRIPTS:
        theirs, ours = (medians[f"{library}, {script}"] for library in TRAINERS)
        ratios[script] = {figure: ours[figure] / theirs[figure] for figure in FIGURES}
        shown = ", ".join(
            f"{theirs[figure]:.2f} and {ours[figure]:.2f} {words} ({ratios[script][figure]:.2f} times)"
            for figure, words in FIGURES.items()
        )
        print(f"{script}: {shown}")
    write_results(options.output_json, options, {"medians": medians, "ratios": ratios})


if __name__ == "__main__":
    main()
