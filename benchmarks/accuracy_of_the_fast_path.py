"""The fast path against upstream's arithmetic: the same accuracy?

    python benchmarks/accuracy_of_the_fast_path.py --train_file rt-polarity.all

Both fine-tune the embedded encoder on the same sentences, in the same order, in the same steps. The fast path computes
in bfloat16, draws its hidden dropout cheaply, drops no attention weights, and cuts steps by tokens. The other computes
in float32 with torch's dropout, on hidden states and attention weights, a whole step at once. One run of each for each
seed; the 95 % interval of the mean difference over seeds is Student's, of the paired differences.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel
from scipy.stats import t as student_t
from textcnn_sentences import read_sentences
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback
from turns import build_parser, take_turns, write_results

from finetune.accelerated import enable
from finetune.catalogue import METHOD_DEFAULTS
from finetune.data.cutting import TextConfig
from finetune.data.labels import task_of
from finetune.data.split import carve_splits, drop_duplicates
from finetune.data.tokenize import tokenize_splits
from finetune.hardware import fastest_precision, use_processor
from finetune.metrics import compute_metrics
from finetune.models.load import load_model, load_tokenizer
from finetune.quiet import quiet_program
from finetune.settings.parts import ModelArguments
from finetune.training.trainer import FineTuningTrainer

FAST, UPSTREAM = "fast path", "float32, torch's dropout"
TEST_SIZE = 3_000


def measure(name: str, seed: int, options: Any) -> dict[str, float]:
    """Fine-tune once and measure on the test sentences."""
    quiet_program()
    use_processor(options.num_threads)
    sentences = read_sentences(Path(options.train_file))
    assert isinstance(sentences.features["label"], ClassLabel)
    splits = carve_splits(drop_duplicates(sentences), {"test": TEST_SIZE}, seed=0)
    fast = name == FAST
    model_arguments = ModelArguments(attention_dropout=0.0 if fast else 0.1)
    tokenizer = load_tokenizer(model_arguments, 128)
    tokenized = tokenize_splits(splits, tokenizer, TextConfig(128))
    model = load_model(model_arguments, "full", tokenizer, task_of(splits["train"].features), seed)
    if fast:
        enable(model)
    precision = fastest_precision() if fast else "fp32"
    trainer = FineTuningTrainer(
        model=model,
        args=TrainingArguments(
            output_dir="unused",
            num_train_epochs=options.num_train_epochs,
            learning_rate=METHOD_DEFAULTS["full"]["learning_rate"],
            per_device_train_batch_size=16,
            warmup_steps=0.1,
            weight_decay=0.01,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
        ),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["test"],
        processing_class=tokenizer,
        compute_metrics=lambda prediction: compute_metrics(*prediction),
        max_tokens_per_micro_batch=3_072 if fast else 16 * 128,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {
        "test_accuracy": 100 * trainer.evaluate()["eval_accuracy"],
        "train_seconds": trainer.costs.train_seconds,
        "attention_dropout": model.config.attention_probs_dropout_prob,
    }


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.set_defaults(turns=5)
    parser.add_argument("--train_file", required=True, help="lines of 'label text', as MR has them")
    parser.add_argument("--num_train_epochs", type=float, default=2)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]), options)))
        return

    results = take_turns(__file__, [FAST, UPSTREAM], options.turns)
    accuracies = {name: [turn["test_accuracy"] for turn in turns] for name, turns in results.items()}
    differences = [fast - upstream for fast, upstream in zip(*accuracies.values(), strict=True)]
    mean = statistics.mean(differences)
    half = student_t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    print(f"\n{len(differences)} seeds, {TEST_SIZE:,} test sentences")
    for name, values in accuracies.items():
        print(f"{name:<28} {statistics.mean(values):.2f} %")
    print(f"fast - upstream: {mean:+.2f} points (95 % interval {mean - half:+.2f} to {mean + half:+.2f})")
    summary = {"difference": mean, "interval": [mean - half, mean + half], "test_accuracy": accuracies}
    write_results(options.output_json, options, {**summary, "turns_measured": results})


if __name__ == "__main__":
    main()
