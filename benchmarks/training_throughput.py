"""Training throughput of the toolkit's `Trainer` against transformers' own, side by side in one run.

    python benchmarks/training_throughput.py --output_json benchmarks/results/training_throughput.json

Same embedded encoder, same reviews, same examples a step, same optimizer and threads. The plain `Trainer` is set up as
transformers' `run_classification.py`: (a) by default, every text padded to the maximum length; (b) with dynamic
padding. The settings take turns in processes of their own, and each one's figure is the median over its turns; the
toolkit's turn is two whole epochs, so that short and long texts have their share. Beside it: the share of the
processor's best matrix product that the work on real tokens, padding not counted, amounts to.

    python benchmarks/training_throughput.py --bf16 --steps 60

trains transformers' own `Trainer` in bfloat16 too, as one would on a GPU, and every setting for an epoch of 60 steps to
warm up and one that is timed.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.trainer_callback import PrinterCallback
from turns import build_parser, take_turns, write_results

from finetune.accelerated import enable
from finetune.accelerated.precision import DTYPES
from finetune.data.cutting import TextConfig
from finetune.data.labels import task_of
from finetune.data.load import load_splits
from finetune.data.tokenize import tokenize_dataset
from finetune.hardware import fastest_precision, peak_memory_bytes, use_processor
from finetune.metrics import compute_metrics
from finetune.models.load import load_encoder, load_model, load_tokenizer
from finetune.quiet import quiet_program
from finetune.settings.parts import DataArguments, ModelArguments
from finetune.training.trainer import FineTuningTrainer

LABELS = ["negative", "positive"]
STEPS_PER_EPOCH = 7
PADDED, DYNAMIC, OURS, COMPILED = "padded to the maximum", "dynamic padding", "finetune", "finetune, compiled"
STEPS = {PADDED: 2, DYNAMIC: 4, OURS: 2 * STEPS_PER_EPOCH, COMPILED: 2 * STEPS_PER_EPOCH}


class Stopwatch(TrainerCallback):
    """Seconds from the beginning of the first step to the end of the last; those of steps before are `warm_up`."""

    def __init__(self, num_before: int = 0):
        self.num_before = num_before
        self.warm_up = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.num_before:
            self.start = now()
            self.warm_up = self.start - self.begin

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            self.seconds = now() - self.start


def now() -> float:
    """Return the time in seconds at which all work that was handed to a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def best_matrix_product(dtype: torch.dtype, size: int | None = None) -> float:
    """Measure the best of five square products, in floating-point operations a second.

    Args:
        dtype: A floating-point format.
        size: Rows; by default 4,096 on a processor and 8,192 on a GPU, where fewer are done before they are timed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = size or (8_192 if device == "cuda" else 4_096)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        start = now()
        (left @ right)[0, 0].item()
        times.append(now() - start)
    return 2 * size**3 / min(times[1:])


def training_operations(model: Any, lengths: list[int]) -> float:
    """Count the matrix-product operations of a training step on texts of these lengths: three times the forward pass.

    A linear layer costs 2 x its weights a token; attention's two products 4 x length x hidden size a token and layer.
    """
    weights = sum(
        m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layer." in n
    )
    config = model.config
    attention = 4 * config.hidden_size * config.num_hidden_layers
    return 3 * sum(length * (2 * weights + attention * length) for length in lengths)


def build_trainer(name: str, options: Any) -> tuple[Trainer, Stopwatch, Any]:
    """Build a setting's `Trainer`, with a stopwatch on its timed steps.

    Returns:
        The `Trainer`, the stopwatch and the tokenized reviews.
    """
    ours = name in (OURS, COMPILED)
    if ours:
        use_processor(options.num_threads)
    else:
        torch.set_num_threads(options.num_threads)
    quiet_program()

    # As many reviews as an epoch takes; the plain settings draw theirs from them at random.
    steps_per_epoch = options.steps or STEPS_PER_EPOCH
    data = DataArguments(dataset_name="embedded", max_train_samples=steps_per_epoch * options.batch_size)
    train = load_splits(data)["train"]
    model_arguments = ModelArguments(model_name_or_path=options.model)
    tokenizer = load_tokenizer(model_arguments, options.max_length)
    tokenized = tokenize_dataset(train, tokenizer, TextConfig(options.max_length))
    half = fastest_precision() if ours or options.bf16 else "fp32"
    first = steps_per_epoch if name == COMPILED or options.steps else 0  # an epoch to compile in, or to warm up
    args = TrainingArguments(
        output_dir="unused",
        max_steps=first + (options.steps or STEPS[name]),
        per_device_train_batch_size=options.batch_size,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
        bf16=half == "bf16",
        fp16=half == "fp16",
        torch_compile=name == COMPILED,
    )
    trainer: Trainer
    if ours:
        trainer = FineTuningTrainer(
            model=enable(load_model(model_arguments, "full", tokenizer, task_of(train.features), seed=0)),
            args=args,
            train_dataset=tokenized,
            eval_dataset=tokenized,
            processing_class=tokenizer,
            compute_metrics=lambda prediction: compute_metrics(*prediction),
            max_tokens_per_micro_batch=options.max_tokens_per_micro_batch,
        )
    else:
        plain = tokenized.select_columns([c for c in tokenized.column_names if c not in ("length", "is_truncated")])
        if name == PADDED:
            pad = {"padding": "max_length", "max_length": options.max_length}
            plain = plain.map(lambda batch: tokenizer.pad(batch, **pad), batched=True)
        labels = {"id2label": dict(enumerate(LABELS)), "problem_type": "single_label_classification"}
        trainer = Trainer(
            model=load_encoder(ModelArguments(model_name_or_path=options.model, attention_dropout=0.1), labels),
            args=args,
            train_dataset=plain,
            data_collator=default_data_collator if name == PADDED else DataCollatorWithPadding(tokenizer),
        )
    stopwatch = Stopwatch(first)
    trainer.add_callback(stopwatch)
    trainer.remove_callback(PrinterCallback)
    return trainer, stopwatch, tokenized


def measure(name: str, options: Any) -> dict[str, float]:
    """Train a few steps under one setting."""
    trainer, stopwatch, tokenized = build_trainer(name, options)
    trainer.train()
    return {
        "texts_per_second": (options.steps or STEPS[name]) * options.batch_size / stopwatch.seconds,
        "warm_up_seconds": stopwatch.warm_up if stopwatch.num_before else 0.0,
        "peak_memory_bytes": peak_memory_bytes(),
        "operations_per_text": training_operations(trainer.model, tokenized["length"]) / len(tokenized),
        "best_matrix_product_per_second": best_matrix_product(DTYPES[fastest_precision()], options.product_size),
    }


def summarise(results: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Compare the toolkit with the other settings, and its work with the best matrix product, by medians over turns."""
    medians = {name: statistics.median(turn["texts_per_second"] for turn in turns) for name, turns in results.items()}
    peak = max(turn["best_matrix_product_per_second"] for turns in results.values() for turn in turns)
    operations = results[OURS][0]["operations_per_text"]
    return {
        "texts_per_second": medians,
        "ratios": {name: medians[OURS] / median for name, median in medians.items()},
        "share_of_peak": medians[OURS] * operations / peak,
        "shares_of_peak": {name: median * operations / peak for name, median in medians.items()},
    }


def build_options() -> argparse.ArgumentParser:
    """Declare the flags."""
    parser = build_parser(__doc__)
    parser.add_argument("--model", default="embedded", help="an encoder's folder")
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_tokens_per_micro_batch", type=int, default=3_072)
    parser.add_argument("--compile", action="store_true", help="also measure --torch_compile, after its warm-up")
    parser.add_argument("--bf16", action="store_true", help="train transformers' own in bfloat16 too")
    parser.add_argument("--steps", type=int, help="of each of two epochs, the first one to warm up")
    parser.add_argument("--product_size", type=int, help="rows of the matrix product that is the ceiling")
    return parser


def main() -> None:
    """Measure and print."""
    options = build_options().parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], options)))
        return

    names = [name for name in STEPS if name != COMPILED or options.compile]
    if options.compile:
        os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "1"  # as --torch_compile sets it
    results = take_turns(__file__, names, options.turns)
    summary = summarise(results)
    print(f"\n{options.num_threads} threads, {options.max_length} tokens at most, {options.batch_size} reviews a step")
    for name, median in summary["texts_per_second"].items():
        ratio, share = summary["ratios"][name], summary["shares_of_peak"][name]
        print(f"{name:<28} {median:6.2f} reviews/s  finetune is {ratio:5.2f}x  {share:6.1%} of the peak")
    write_results(options.output_json, options, {**summary, "turns_measured": results})


if __name__ == "__main__":
    main()
