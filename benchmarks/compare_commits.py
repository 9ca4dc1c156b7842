"""Do two commits give the same results, and as fast?

    python benchmarks/compare_commits.py BASE
    python benchmarks/compare_commits.py BASE HEAD --throughput

Checks BASE out beside this one (or beside HEAD, if it is named) and trains the same tiny models with both: each method,
task, way of cutting texts, loss and schedule, a run that is cut off and resumed, shards on disk, and two processes. All
in float32 on one thread, where the same arithmetic gives the same bits. It prints the runs whose weights, predictions
or metrics differ and ends with status 1 if there is one; a change of results has to be explained in the changelog. Runs
that BASE refuses are named, and not compared.

With `--throughput` both commits train and evaluate a larger model in turns, and the ratios of their medians are
printed: tokens a second in training, texts a second in evaluation.
"""

import argparse
import csv
import hashlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["the", "a", "film", "plot", "actor", "was", "is", "very", "and", "of", "!", ".", "story", "scene", "this"]
OPINIONS = {"bad": ["bad", "awful", "dull", "poor"], "good": ["good", "great", "fine", "lovely"], "odd": ["odd", "new"]}
NUM_ROWS = {"train": 60, "validation": 20, "test": 30}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LARGER = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1024}

METHODS = ["full", "head", "last_layers", "bitfit", "lora", "rslora", "dora", "pissa", "lora_plus", "adalora", "ia3",
           "prefix", "prompt", "p_tuning", "vera", "oft", "textcnn", "tfidf", "embeddings", "contrastive",
           "zero-shot"]  # fmt: skip
TASKS = {"several labels": ["--label_delimiter", ";"], "a number": [], "pairs": []}
SETTINGS = {
    "full, steps": ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "5", "--save_steps", "5"],
    "full, accumulation": ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "4"],
    "full, tail": ["--truncation", "tail"],
    "full, head+tail": ["--truncation", "head+tail"],
    "full, windows": ["--truncation", "window"],
    "full, windows that vote": ["--truncation", "window", "--window_pooling", "vote", "--window_stride", "2"],
    "full, class weights": ["--class_weights", "balanced"],
    "full, focal loss": ["--focal_gamma", "2"],
    "full, oversampling": ["--oversample"],
    "full, layer decay": ["--layer_decay", "0.8", "--head_learning_rate", "0.01"],
    "full, unfreezing": ["--unfreeze_every", "0.5"],
    "full, reinitialised": ["--reinit_layers", "1"],
    "full, triangles": ["--lr_schedule", "triangular2"],
    "full, attention dropout": ["--attention_dropout", "0.1"],
    "full, sampled": ["--max_train_samples", "30", "--max_eval_samples", "15"],
    "lora, rank and dropout": ["--method", "lora", "--lora_r", "4", "--lora_dropout", "0.1"],
    "peft, loha": ["--method", "peft", "--peft_config", "loha.yaml"],
    "textcnn, static": ["--method", "textcnn", "--textcnn_variant", "static"],
    "textcnn, model's tokens": ["--method", "textcnn", "--textcnn_tokenizer", "model"],
}
# More than fits into 12 tokens, so that something is cut.
SHORT = ["--max_length", "12"]
THROUGHPUT = {"full": ["--method", "full"], "lora": ["--method", "lora"], "textcnn": ["--method", "textcnn"]}


def write_inputs(folder: Path) -> None:
    """Write the models, the data of each task, and shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    opinions = [word for words in OPINIONS.values() for word in words]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *opinions, *WORDS]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}, model_max_length=64)
    for name, sizes in {"model": TINY, "larger-model": LARGER}.items():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "loha.yaml").write_text("peft_type: LOHA\nr: 4\ntarget_modules: [query, value]\n")
    offset = 0
    for split, count in NUM_ROWS.items():
        rows = [_make_row(number) for number in range(offset, offset + count)]
        offset += 100
        _write_csv(folder / f"{split}.csv", ["text", "label"], [(text, labels[0]) for text, labels in rows])
        _write_csv(folder / f"{split}-several labels.csv", ["text", "label"], [(t, ";".join(ls)) for t, ls in rows])
        _write_csv(folder / f"{split}-a number.csv", ["text", "label"], [(t, len(t) / 7 + 0.25) for t, _ in rows])
        pairs = [(text, rows[number - 1][0], labels[0]) for number, (text, labels) in enumerate(rows)]
        _write_csv(folder / f"{split}-pairs.csv", ["sentence1", "sentence2", "label"], pairs)
    (folder / "shards").mkdir()
    rows = [_make_row(number) for number in range(NUM_ROWS["train"])]
    for number, part in enumerate((rows[:15], rows[15:])):
        table = pa.table({"text": [text for text, _ in part], "label": [labels[0] for _, labels in part]})
        pq.write_table(table, folder / f"shards/{number}.parquet")


def _make_row(number: int) -> tuple[str, list[str]]:
    labels = [list(OPINIONS)[number % 3], *(["odd"] if number % 4 == 0 and number % 3 != 2 else [])]
    words = [WORDS[(number * 7 + position * (number % 5 + 1)) % len(WORDS)] for position in range(5 + number % 13)]
    for label in labels:
        words.insert(number % len(words), OPINIONS[label][number // 3 % len(OPINIONS[label])])
    return " ".join([*words, WORDS[number % 15], WORDS[number // 15 % 15]]), labels


def _write_csv(path: Path, header: list[str], rows: list[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def build_runs() -> dict[str, list[str]]:
    """Name the runs, each with its flags; paths are relative to the folder of inputs."""
    runs = {method: ["--method", method] for method in METHODS}
    runs |= {name: [*flags, *(SHORT if "trunc" in " ".join(flags) else [])] for name, flags in SETTINGS.items()}
    for task, flags in TASKS.items():
        for method in ("full", "head", "lora", "textcnn", "tfidf", "embeddings"):
            files = [word for split in NUM_ROWS for word in (f"--{split}_file", f"{split}-{task}.csv")]
            runs[f"{method}, {task}"] = ["--method", method, *files, *flags]
    runs["full, carved"] = ["--validation_file", "", "--test_file", ""]
    for method in ("full", "lora", "textcnn"):
        runs[f"{method}, resumed"] = ["--method", method, "--num_train_epochs", "8"]
        runs[f"{method}, shards"] = ["--method", method, "--streaming", "true", "--train_file", "shards"]
        runs[f"{method}, two processes"] = ["--method", method, "--per_device_train_batch_size", "4"]
    return runs


def complete(flags: list[str], directory: Path, model: str = "model") -> list[str]:
    """Add the flags that all runs have; later ones win, and an empty value drops a flag."""
    ours = [word for split in NUM_ROWS for word in (f"--{split}_file", f"{split}.csv")]
    ours += ["--model_name_or_path", model, "--max_length", "32", "--num_train_epochs", "2", "--learning_rate", "5e-3"]
    ours += ["--per_device_train_batch_size", "8", "--bf16", "false", "--num_threads", "1", "--no_floor"]
    # Named, since what is chosen by so few validation rows is not the default of every commit.
    ours += ["--load_best_model_at_end", "true", "--output_dir", str(directory)]
    given: dict[str, list[str]] = {}
    words = iter([*ours, *flags])
    flag = ""
    for word in words:
        if word.startswith("--"):
            given[flag := word] = []
        else:
            given[flag].append(word)
    return [word for name, values in given.items() if values != [""] for word in (name, *values)]


def load_main(checkout: Path) -> Callable[[list[str]], None]:
    """Load what trains on files of one's own in a checkout: the recipe, or the command that took its place."""
    recipe = checkout / "recipes/classify.py"
    if not recipe.exists():
        from finetune.cli import main

        return lambda flags: main(["train", *flags])
    spec = importlib.util.spec_from_file_location("classify", recipe)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def run_all(checkout: Path, runs: dict[str, list[str]], outputs: Path) -> None:
    """Train the runs one after the other in this process, which imports the package of `checkout`."""
    import finetune

    assert Path(finetune.__file__).is_relative_to(checkout), f"imported {finetune.__file__}, not that of {checkout}"
    main = load_main(checkout)
    is_alone = "WORLD_SIZE" not in os.environ
    for name, flags in runs.items():
        if ("two processes" in name) == is_alone:
            continue
        directory = outputs / name
        words = complete(flags, directory)
        try:
            if "resumed" in name:
                _run_until_checkpoint(main, words, directory)
            main(words)
        except (Exception, SystemExit) as error:
            print(f"{name}: {type(error).__name__} {error}", file=sys.stderr)


def _run_until_checkpoint(main: Callable[[list[str]], None], words: list[str], directory: Path) -> None:
    """Run until there is a checkpoint, and end it with the signal that a scheduler sends."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            if any(directory.glob("checkpoints/checkpoint-*")):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        main(words)
    except (KeyboardInterrupt, SystemExit):
        return
    finally:
        is_over.set()
        watcher.join()
    raise RuntimeError("the run ended before the signal came")


def start(checkout: Path, arguments: list[str], folder: Path, launcher: list[str] | None = None) -> None:
    """Run this script in a process of its own, in the folder of inputs, with the package of `checkout`."""
    command = [*(launcher or [sys.executable]), str(Path(__file__).resolve()), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    environment |= {"HF_DATASETS_CACHE": str(folder / f"cache-{checkout.name}"), "OMP_NUM_THREADS": "1"}
    log = folder / f"{checkout.name}.log"
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=file, stderr=file)
    if done.returncode:
        sys.exit(f"{checkout.name} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")


def fingerprint(directory: Path) -> dict[str, str]:
    """Hash what came out of a run: every tensor that was saved, the predictions, the metrics."""
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    def digest(parts: Iterator[bytes]) -> str:
        total = hashlib.sha256()
        for part in parts:
            total.update(part)
        return total.hexdigest()[:12]

    def tensors() -> Iterator[bytes]:
        files = set((directory / "model").glob("*.safetensors")) - {directory / "model/validation.safetensors"}
        for file in sorted(files):
            for name, tensor in sorted(load_file(file).items()):
                yield f"{file.name} {name} {tensor.dtype} {tensor.shape}".encode()
                yield tensor.tobytes()

    def predictions() -> Iterator[bytes]:
        for split in ("validation", "test"):
            table = pq.read_table(directory / f"predictions/{split}.parquet")
            for column in sorted(set(table.column_names)):
                values = table[column].combine_chunks()
                yield f"{column} {values.to_pylist()}".encode()

    try:
        record = json.loads((directory / "run.json").read_text(encoding="utf-8"))
        if record["status"] != "complete":
            return {"status": record["status"]}
        metrics = json.dumps(record["metrics"], sort_keys=True).encode()
        return {"weights": digest(tensors()), "predictions": digest(predictions()), "metrics": digest(iter([metrics]))}
    except FileNotFoundError as error:
        return {"status": f"no {Path(str(error.filename)).name}"}


def compare_results(base: Path, head: Path, folder: Path, only: str) -> int:
    """Train with both commits and print what differs; return how many runs do."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    names = [name for name in build_runs() if only in name]
    for checkout in (base, head):
        begin = time.perf_counter()
        for number, how in enumerate((None, launcher)):
            if any(("two processes" in name) == bool(number) for name in names):
                start(checkout, ["--results_of", str(checkout), only], folder, how)
        print(f"{checkout.name}: {len(names)} runs in {time.perf_counter() - begin:.0f} s", flush=True)
    different, new = 0, []
    for name in names:
        results = [fingerprint(folder / f"outputs-{checkout.name}" / name) for checkout in (base, head)]
        if results[0] == results[1] and "weights" in results[0]:
            continue
        if "weights" in results[1] and results[0] == {"status": "no run.json"}:
            new.append(name)
            continue
        different += 1
        parts = [part for part in {**results[0], **results[1]} if results[0].get(part) != results[1].get(part)]
        shown = ", ".join(f"{part} {results[0].get(part)} | {results[1].get(part)}" for part in parts) or results[0]
        print(f"differs: {name}: {shown}")
    if new:
        print(f"refused by {base.name}: {', '.join(new)}")
    common = len(names) - len(new)
    print(f"{common - different} of {common} runs are the same, bit by bit")
    return different


def measure_throughput(base: Path, head: Path, folder: Path, turns: int) -> None:
    """Let both commits train in turns, and print the ratios of their medians."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for turn in range(turns):
        for checkout in (base, head):
            start(checkout, ["--throughput_of", str(checkout), str(turn)], folder)
            for name in THROUGHPUT:
                record = json.loads((folder / f"outputs-{checkout.name}/{name}-{turn}/run.json").read_text())
                for cost in ("tokens_per_second", "texts_per_second"):
                    found.setdefault((name, cost, checkout.name), []).append(record["costs"][cost])
    for name in THROUGHPUT:
        for cost in ("tokens_per_second", "texts_per_second"):
            medians = [statistics.median(found[name, cost, checkout.name]) for checkout in (base, head)]
            print(f"{name:<8} {cost:<18} {medians[0]:10.1f} {medians[1]:10.1f}  ratio {medians[1] / medians[0]:.2f}")


def train_for_throughput(checkout: Path, turn: str, outputs: Path) -> None:
    """Train the larger model on each of `THROUGHPUT`, in the number format that the processor does fast."""
    main = load_main(checkout)
    rows = [_make_row(number) for number in range(6_000)]
    distinct = list({text: (text, labels[0]) for text, labels in rows}.values())
    _write_csv(Path("many.csv"), ["text", "label"], distinct)
    for name, flags in THROUGHPUT.items():
        flags = [*flags, *(word for split in NUM_ROWS for word in (f"--{split}_file", "many.csv"))]
        words = complete([*flags, "--num_train_epochs", "1"], outputs / f"{name}-{turn}", "larger-model")
        del words[words.index("--bf16") : words.index("--bf16") + 2]
        main(words)


def _check_out(commit: str, folder: Path, name: str) -> Path:
    target = folder / name
    subprocess.run(["git", "worktree", "add", "--detach", "-q", str(target), commit], cwd=ROOT, check=True)
    return target


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="the commit whose results are the measure")
    parser.add_argument("head", nargs="?", help="the commit to compare with it; the files as they are here if left out")
    parser.add_argument("--only", default="", help="runs whose name has this in it")
    parser.add_argument("--throughput", action="store_true", help="measure speed instead of comparing results")
    parser.add_argument("--turns", type=int, default=3, help="how often each commit is measured")
    parser.add_argument("--results_of", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--throughput_of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.results_of:
        checkout = Path(options.results_of[0])
        runs = {name: flags for name, flags in build_runs().items() if options.results_of[1] in name}
        return run_all(checkout, runs, Path(f"outputs-{checkout.name}"))
    if options.throughput_of:
        checkout = Path(options.throughput_of[0])
        return train_for_throughput(checkout, options.throughput_of[1], Path(f"outputs-{checkout.name}"))
    if options.base is None:
        parser.error("name the commit to compare with")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            base = _check_out(options.base, folder, "base")
            head = ROOT if options.head is None else _check_out(options.head, folder, "head")
            write_inputs(folder)
            if options.throughput:
                return measure_throughput(base, head, folder, options.turns)
            different = compare_results(base, head, folder, options.only)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(folder / "base")], cwd=ROOT)
            if options.head is not None:
                subprocess.run(["git", "worktree", "remove", "--force", str(folder / "head")], cwd=ROOT)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
