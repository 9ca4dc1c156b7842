"""The command `finetune`. Libraries are imported by the command that needs them, so that `--help` is immediate."""

import argparse
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from finetune import __version__
from finetune.errors import FinetuneError, exit_on_error, show_warning
from finetune.escape import say, show_hidden

if TYPE_CHECKING:
    from finetune.comparison.reasons import Reasons
    from finetune.comparison.report import Report
    from finetune.decisions.rules import Wishes
    from finetune.models.answers import Prediction, TextClassifier

__all__ = [
    "build_parser",
    "main",
    "run_compare",
    "run_doctor",
    "run_evaluate",
    "run_export",
    "run_merge",
    "run_methods",
    "run_predict",
    "run_push",
    "run_report",
    "run_serve",
    "run_train",
]


TRAIN_HELP = """usage: finetune train DATA [--method NAME] [--name value ...]

Fit a text classifier, save it, reload it, and measure it once on a test split that nothing else has seen.

  finetune train reviews.csv
  finetune train reviews.csv --method lora --output_dir runs/lora
  finetune train train.csv --validation_file dev.csv --test_file test.csv --max_length 128
  accelerate launch -m finetune train reviews.csv          on several processes

data
  DATA                     a file (.csv, .tsv, .jsonl, .json, .parquet, or lines "label text"), a folder, "embedded",
                           or a data set on the Hub
  --validation_file FILE   to choose the best checkpoint by; carved from DATA if left out
  --test_file FILE         to measure on; carved from DATA if left out
  --text_column NAME       and --label_column, --text_pair_column, --id_column, if their names don't tell
  --label_delimiter ";"    what separates several labels of a text
  --max_length 256         tokens a text is cut to

method
  --method full            how the model is fitted; `finetune methods` lists all: full, lora, head, textcnn, tfidf, ...
  --learning_rate          by default the method's own
  --num_train_epochs 3     passes over the training texts
  --seed 42                of new weights, the order of examples, and dropout

model
  --model_name_or_path     a model on the Hub, a folder, or "embedded", the default
  --pretrain_epochs 0      passes over the training texts, without their labels, before the method begins

output
  --output_dir             the run directory; runs/{method}-seed{seed} by default
  --push_to_hub true --hub_model_id user/name
  --config FILE.yaml       settings from a file; flags win

--help-all lists every setting; docs/reference/settings.md is the same as a page.
"""


NUM_TRIALS = 20  # of `finetune tune`
TUNE_HELP = f"""usage: finetune tune DATA [--method NAME] [--trials {NUM_TRIALS}] [--budget TIME] [--name value ...]

Try settings of a method, the defaults first, and then train with those that are best on validation rows. The test
split is used once, at the end. Started again after it was cut off, it goes on after the last trial.

  finetune tune reviews.csv --method lora
  finetune tune reviews.csv --method textcnn --budget 10m

  --trials {NUM_TRIALS}              settings to try; `finetune methods` says what is tried for each method
  --budget 10m             time for trying; with --trials whichever ends first

What is set by a flag is not tried. All flags of `finetune train` hold; see finetune train --help.
"""


class _Parser(argparse.ArgumentParser):
    """Raises one-line errors instead of printing the usage.

    Attributes:
        takes_many: Whether any number of words may stand before and behind flags: argparse by itself takes those behind
            the first flag for unknown.
    """

    takes_many = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def, override]
        if not self.takes_many:
            return super().parse_known_args(args, namespace)
        self.takes_many = False  # argparse calls this method for the flags, and again for the words
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.takes_many = True

    def error(self, message: str):
        raise FinetuneError(f"{message}. See {self.prog} --help.")


def build_parser() -> argparse.ArgumentParser:
    """Declare the commands and their flags."""
    parser = _Parser(
        prog="finetune", description="Fit text classifiers, compare them, and use them.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"finetune {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor", help="examine labelled texts before they are trusted", allow_abbrev=False, add_help=False
    )
    doctor.set_defaults(run=run_doctor)

    train = commands.add_parser(
        "train", help="fit a text classifier, and measure it", allow_abbrev=False, add_help=False
    )
    train.set_defaults(run=run_train)

    tune = commands.add_parser(
        "tune", help="try settings of a method, then fit with the best", allow_abbrev=False, add_help=False
    )
    tune.set_defaults(run=run_train)

    methods = commands.add_parser("methods", help="list the ways to fit a classifier", allow_abbrev=False)
    methods.set_defaults(run=run_methods)

    predict = commands.add_parser("predict", help="label texts with a trained model", allow_abbrev=False)
    predict.add_argument(
        "path", metavar="PATH", help="a run directory, a model folder, or user/name[@revision] on the Hub"
    )
    predict.add_argument("texts", metavar="TEXT", nargs="*", help="texts to label (default: the lines of the input)")
    predict.add_argument("--pairs", metavar="TEXT", nargs="+", help="a second text for each, for models of pairs")
    predict.add_argument("--input_file", help="texts to label, of any size: what training reads, or lines")
    predict.add_argument("--output_file", help="gets the rows of --input_file, with label and probabilities added")
    predict.add_argument("--explain", action="store_true", help="also print what each word contributed")
    _add_text_flags(predict)
    _add_prediction_flags(predict)
    predict.set_defaults(run=run_predict)
    predict.takes_many = True

    evaluate = commands.add_parser("evaluate", help="measure a trained model on labelled texts", allow_abbrev=False)
    evaluate.add_argument(
        "path", metavar="PATH", help="a run directory, a model folder, or user/name[@revision] on the Hub"
    )
    evaluate.add_argument("--test_file", required=True, help="labelled texts, in any format that recipes take")
    _add_text_flags(evaluate)
    _add_label_flags(evaluate)
    evaluate.add_argument("--output_json", help="also write the metrics to this file")
    _add_prediction_flags(evaluate)
    evaluate.set_defaults(run=run_evaluate)

    push = commands.add_parser("push", help="put a model on the Hub, and make sure it works there", allow_abbrev=False)
    push.add_argument("path", metavar="PATH", help="a run directory or a model folder")
    push.add_argument("name", metavar="USER/NAME", help="the repository, made if it does not exist")
    push.add_argument("--public", action="store_true", help="let everybody see it (default: a private repository)")
    push.add_argument("--revision", help="the branch to push to, made if it does not exist (default: main)")
    push.add_argument("--adapter", action="store_true", help="ship an adapter as it is (default: merged into its base)")
    push.add_argument("--message", help="the commit's message")
    push.add_argument("--card", help="a file with a model card (default: one is drawn from the run)")
    _add_family_flag(push)
    push.set_defaults(run=run_push)

    merge = commands.add_parser("merge", help="fold an adapter into the weights of its base", allow_abbrev=False)
    merge.add_argument("path", metavar="RUN", help="a run directory, or a folder with an adapter")
    merge.add_argument("output", metavar="OUTPUT", help="the folder to write")
    merge.set_defaults(run=run_merge)

    export = commands.add_parser("export", help="write a model as ONNX, and measure what it lost", allow_abbrev=False)
    export.add_argument("path", metavar="RUN", help="a run directory or a model folder; an adapter is merged")
    export.add_argument("output", metavar="OUTPUT", help="the folder to write")
    export.add_argument("--format", choices=["onnx"], required=True, help="what to write")
    export.add_argument("--int8", action="store_true", help="weights and matrix products in 8 bits")
    export.add_argument(
        "--tolerance", type=float, default=0.5, help="points that may be lost on the validation split (default: 0.5)"
    )
    export.add_argument("--validation_file", help="labelled texts to measure on (default: the run's validation split)")
    _add_text_flags(export)
    _add_label_flags(export)
    export.add_argument("--max_samples", type=_count, help="measure on so many of the texts (default: all)")
    export.add_argument("--num_threads", type=_count, help="threads (default: the physical cores)")
    _add_family_flag(export)
    export.set_defaults(run=run_export)

    serve = commands.add_parser("serve", help="answer over HTTP, with a page to try a model", allow_abbrev=False)
    serve.add_argument(
        "path", metavar="PATH", help="a run directory, a model folder, an export, or user/name[@revision] on the Hub"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    serve.add_argument("--port", type=int, default=8000, help="port; 0 takes any that is free (default: 8000)")
    serve.add_argument("--max_body_bytes", type=_count, default=2_000_000, help="of a request (default: 2,000,000)")
    serve.add_argument("--max_texts", type=_count, default=256, help="in a request (default: 256)")
    serve.add_argument("--max_characters", type=_count, default=100_000, help="of a text (default: 100,000)")
    serve.add_argument("--max_connections", type=_count, default=512, help="open at once (default: 512)")
    serve.add_argument(
        "--header_seconds", type=_count, default=10, help="in which a request's headers have to come (default: 10)"
    )
    serve.add_argument("--body_seconds", type=_count, default=30, help="in which its body has to come (default: 30)")
    serve.add_argument(
        "--allowed_hosts",
        help="names that a request may ask for, with commas between, or * (default: those of loopback there, else any)",
    )
    serve.add_argument(
        "--examples", metavar="FILE", help="texts that the page offers, one a line; a pair has a tab between"
    )
    _add_prediction_flags(serve)
    serve.set_defaults(run=run_serve)

    compare = commands.add_parser(
        "compare", help="fit methods x seeds on identical splits, and report", allow_abbrev=False
    )
    compare.add_argument(
        "recipe",
        metavar="DATA",
        help="labelled texts, as `finetune train` takes them, or a recipe such as recipes/imdb.py; flags come after --",
    )
    compare.add_argument(
        "--methods", required=True, help="names of `finetune methods`, or package.module:NAME, with commas between them"
    )
    compare.add_argument("--seeds", default="0,1,2", help="training seeds, with commas between them (default: 0,1,2)")
    compare.add_argument("--output_dir", required=True, help="gets a run directory for each run, and report/")
    compare.add_argument("--accelerate_config", help="a YAML file for `accelerate launch`")
    compare.add_argument("--trials", type=_count, help="also tune each method: so many settings are tried before a run")
    compare.add_argument("--budget", help="also tune each method: time for trying settings before a run, such as 10m")
    compare.add_argument("--total_budget", help="time for all runs, such as 1h: those that don't fit in are left out")
    _add_verdict_flags(compare)
    compare.set_defaults(run=run_compare)

    report = commands.add_parser("report", help="compare finished runs: quality, cost, verdict", allow_abbrev=False)
    report.add_argument("runs", metavar="RUNS", nargs="+", help="run directories, or folders that contain them")
    report.add_argument("--output_dir", default="report", help="where the report is written (default: report)")
    _add_verdict_flags(report)
    report.set_defaults(run=run_report)
    report.takes_many = True
    return parser


def _add_prediction_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_threads", type=_count, help="threads (default: the physical cores)")
    parser.add_argument("--no_accelerated", action="store_true", help="compute by transformers' own modules alone")
    parser.add_argument("--no_calibrate", action="store_true", help="show probabilities as the model gives them")
    parser.add_argument(
        "--abstain", type=_share, metavar="SHARE", help="answer only where this share of the answers is right: 0.98"
    )
    parser.add_argument(
        "--coverage", type=_share, metavar="SHARE", help="sets of labels that hold the right one for this share: 0.9"
    )
    parser.add_argument("--class_conditional", action="store_true", help="let --coverage hold for each class by itself")
    parser.add_argument("--cost_matrix", metavar="FILE", help="YAML of what mistakes cost: 'spam: {ham: 10}'")
    _add_family_flag(parser)


def _add_family_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--family",
        metavar="PACKAGE.MODULE:NAME",
        help="what the model is of, if it isn't finetune's own; its code is run",
    )


def _add_text_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text_column", help="column of the texts (default: by its name)")
    parser.add_argument("--text_pair_column", help="column of the second texts, for pairs")
    parser.add_argument("--encoding", help="how the file's bytes are read as text (default: it is found out)")


def _count(word: str) -> int:
    """Read the value of a flag that is a number of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"Expected a number of at least 1, but got {word!r}")
    return int(word)


def _share(word: str) -> float:
    """Read the value of a flag that is a share between 0 and 1."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"Expected a share between 0 and 1, such as 0.98, but got {word!r}")
    return value


def _add_label_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label_column", help="column of the labels (default: by its name)")
    parser.add_argument("--label_columns", help="columns of 0 and 1, one for each label, with commas between them")
    parser.add_argument("--label_delimiter", help="what separates several labels of a text")


def _add_verdict_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metric", help="what the verdict goes by (default: accuracy, micro_f1 or mae, by the task)")
    parser.add_argument(
        "--margin", type=float, default=1.0, help="the loss that doesn't matter, in points (default: 1)"
    )
    parser.add_argument(
        "--cost",
        choices=["train_cpu_seconds", "train_seconds", "latency_seconds", "bytes", "peak_memory_bytes"],
        help="what the verdict calls cheap (default: train_cpu_seconds; train_seconds where a GPU worked)",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="also load the models, and show the words that decide each class, and those of mistakes (minutes)",
    )
    parser.add_argument("--num_threads", type=_count, help="threads of --explain (default: the physical cores)")


def run_doctor(argv: Sequence[str]) -> None:
    """Print the findings on the splits that the data flags name; errors among them end it with status 1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from finetune.data_doctor.command import main as examine_data

    sys.exit(examine_data(argv))


def run_train(words: Sequence[str], tune: bool = False) -> None:
    """Fit a classifier on the data that the first word or the flags name; to tune is to try settings before."""
    if not words or {"-h", "--help"} & set(words):
        print(TUNE_HELP if tune else TRAIN_HELP, end="")
        return
    flags = ["--help" if word == "--help-all" else word for word in words]
    if not flags[0].startswith("-"):
        from finetune.data.given import name_data

        flags = [*(f"--{name}={value}" for name, value in name_data(flags[0]).items()), *flags[1:]]
    from finetune.engine import parse_training, run_training

    arguments = parse_training(flags)
    if tune and not {"trials", "budget"} & arguments.given:
        arguments = parse_training([*flags, "--trials", str(NUM_TRIALS)])
    run_training(arguments)


def run_methods(arguments: argparse.Namespace) -> None:
    """Print what each method moves, its paper, its learning rate, the share that trains, and whether it merges."""
    from finetune.catalogue import CATALOGUE

    print(f"{'method':<16} {'rate':>7} {'trains':>8}  {'merges':<6}  what moves (paper)")
    for name, method in CATALOGUE.items():
        rate = f"{method.defaults['learning_rate']:g}" if "learning_rate" in method.defaults else ""
        share = "" if method.trainable_share is None else f"{method.trainable_share:.2%}"
        if share == "0.00%":
            share = f"{method.trainable_share:.3%}"
        merges = {None: "", True: "yes", False: "no"}[method.merges]
        print(f"{name:<16} {rate:>7} {share:>8}  {merges:<6}  {method.what} ({method.paper})")


def run_predict(arguments: argparse.Namespace) -> None:
    """Print label, probability and text, or both of a pair, separated by tabs; for regression the number and text."""
    if (arguments.input_file is None) != (arguments.output_file is None) or (arguments.input_file and arguments.texts):
        raise FinetuneError("Expected texts, or --input_file with --output_file. Pass one or the other.")
    if arguments.pairs is not None and len(arguments.pairs) != len(arguments.texts):
        raise FinetuneError(
            f"Expected a second text for each of {len(arguments.texts)} texts after --pairs, but got "
            f"{len(arguments.pairs)}. Pass as many."
        )
    if arguments.input_file is not None:
        if arguments.explain:
            raise FinetuneError("Expected texts with --explain, but got --input_file. Leave one of them out.")
        from pathlib import Path

        _prepare_prediction(arguments)
        from finetune.inference.bulk import predict_file

        columns = {name: getattr(arguments, name) for name in ("text_column", "text_pair_column", "encoding")}
        files = Path(arguments.input_file), Path(arguments.output_file)
        count = predict_file(
            arguments.path,
            *files,
            columns,
            arguments.num_threads,
            accelerated=not arguments.no_accelerated,
            wishes=_read_wishes(arguments),
        )
        if count is not None:  # else the main process says it
            say(f"{count:,} rows in {arguments.output_file}", file=sys.stdout)
        return
    predictor = _load_predictor(arguments)
    chunks = [arguments.texts] if arguments.texts else _lines(sys.stdin)
    for texts in chunks:
        texts, pairs = _read_characters(texts), arguments.pairs and _read_characters(arguments.pairs)
        seconds = pairs or itertools.repeat(None)
        for text, second, prediction in zip(texts, seconds, predictor.predict(texts, pairs), strict=False):
            shown = [" ".join(one.split()) for one in (*_show(prediction), text, second) if one is not None]
            print("\t".join(map(show_hidden, shown) if sys.stdout.isatty() else shown))
            if arguments.explain:
                why = predictor.explain(text, second, prediction.label)[0]
                words = ", ".join(f"{word} {value:+.2f}" for word, value in why.top())
                say(f"  for {why.label} ({why.score:+.2f}): {words or 'no word'}", file=sys.stdout)
        sys.stdout.flush()


def _show(prediction: "Prediction") -> list[str]:
    """Return the columns that are printed of a prediction: label, probability, and the set if sets were asked for."""
    if prediction.value is not None:
        low, high = prediction.interval or (None, None)
        return [f"{prediction.value:.4f}", *([] if low is None else [f"{low:.4f} to {high:.4f}"])]
    sets = [] if prediction.label_set is None else [f"{{{', '.join(prediction.label_set)}}}"]
    if not prediction.is_given:
        return ["(not sure)", f"{max(prediction.all_probabilities.values()):.4f}", *sets]
    return [",".join(prediction.labels), ",".join(f"{p:.4f}" for p in prediction.probabilities), *sets]


def _load_predictor(arguments: argparse.Namespace) -> "TextClassifier":
    """Load the model that a command predicts with."""
    _prepare_prediction(arguments)
    from finetune.inference.predict import load_predictor

    return load_predictor(
        arguments.path,
        accelerated=not arguments.no_accelerated,
        num_threads=arguments.num_threads,
        wishes=_read_wishes(arguments),
    )


def _read_wishes(arguments: argparse.Namespace) -> "Wishes | None":
    """Read what is asked of answers; None where it is what was saved with the model."""
    asked = (arguments.abstain, arguments.coverage, arguments.cost_matrix)
    if not (arguments.no_calibrate or arguments.class_conditional or any(one is not None for one in asked)):
        return None
    from finetune.decisions.cost_matrix import read_cost_matrix
    from finetune.decisions.rules import Wishes

    costs = None if arguments.cost_matrix is None else read_cost_matrix(arguments.cost_matrix)
    return Wishes(not arguments.no_calibrate, arguments.abstain, arguments.coverage, arguments.class_conditional, costs)


def _lines(stream: TextIO | None) -> Iterator[list[str]]:
    """Yield the lines of a stream, one by one from a terminal, else many at once."""
    if stream is None:
        raise FinetuneError(
            "Expected texts, or lines on standard input, but it is closed. Pass texts, or --input_file with "
            "--output_file."
        )
    if stream.isatty():
        print("a text a line; Ctrl-D ends it", file=sys.stderr)
    count = 1 if stream.isatty() else 4096
    lines = (line.rstrip("\r\n") for line in stream)
    try:
        while chunk := list(itertools.islice(lines, count)):
            yield chunk
    except UnicodeDecodeError as error:
        raise FinetuneError(
            f"Expected lines in {error.encoding}, but got bytes that are not. Pass a file, with --encoding."
        ) from error


def _read_characters(texts: Sequence[str]) -> list[str]:
    """Read bytes that the system hands on as halves of characters as UTF-8, whatever the terminal's encoding is."""
    read = []
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            try:
                text = os.fsencode(text).decode()
            except UnicodeError:
                raise FinetuneError(
                    f"Expected texts in UTF-8, but got {text!r}. Pass them in a file, with --encoding."
                ) from None
        read.append(text)
    return read


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Print the metrics and the classification report."""
    _prepare(arguments)
    from pathlib import Path

    from finetune.files import is_replaced, write_json
    from finetune.inference.evaluate import evaluate_file

    output = Path(arguments.output_json) if arguments.output_json else None
    replaces = output is not None and is_replaced(output, "--output_json", [arguments.test_file])

    columns = {
        name: getattr(arguments, name)
        for name in ("text_column", "text_pair_column", "label_column", "label_columns", "label_delimiter", "encoding")
    }
    metrics, report = evaluate_file(_load_predictor(arguments), arguments.test_file, columns)
    for name, value in metrics.items():
        if isinstance(value, float | int):
            low, high = metrics.get(f"{name}_interval", (None, None))
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            print(f"{name:<18} {shown}" + (f" (95 % interval {low:.4f} to {high:.4f})" if low is not None else ""))
    if report:
        print(f"\n{report}")
    if output is not None:
        write_json(output, metrics, replaces)


def run_push(arguments: argparse.Namespace) -> None:
    """Push, and say what was checked."""
    _prepare(arguments)
    from finetune.hub.push import push

    push(
        arguments.path,
        arguments.name,
        private=not arguments.public,
        revision=arguments.revision,
        adapter=arguments.adapter,
        message=arguments.message,
        card=arguments.card,
    )


def run_merge(arguments: argparse.Namespace) -> None:
    """Write the merged model."""
    _prepare(arguments)
    from finetune.export.merge import merge_folder

    say(str(merge_folder(arguments.path, arguments.output)), file=sys.stdout)


def run_export(arguments: argparse.Namespace) -> None:
    """Export, and print what was measured."""
    _prepare(arguments)
    from finetune.export.onnx import describe, export

    names = ("text_column", "text_pair_column", "label_column", "label_columns", "label_delimiter", "encoding")
    measured = export(
        arguments.path,
        arguments.output,
        int8=arguments.int8,
        tolerance=arguments.tolerance,
        validation_file=arguments.validation_file,
        columns={name: getattr(arguments, name) for name in names},
        max_samples=arguments.max_samples,
    )
    say(*describe(measured).split("\n"), str(arguments.output), file=sys.stdout)


def run_serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from finetune.serve.signals import end_at_once, on_stop

    with on_stop(end_at_once):
        _serve(arguments)


def _serve(arguments: argparse.Namespace) -> None:
    import functools
    import importlib.util
    from pathlib import Path

    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        raise FinetuneError(
            "Expected fastapi and uvicorn to serve, but they are not installed. "
            "Install them: pip install -c constraints.txt -e '.[serve]'"
        )
    from finetune.serve.about import read_examples, read_facts
    from finetune.serve.service import Limits, serve

    limits = Limits(**{name: getattr(arguments, name) for name in Limits.__dataclass_fields__})
    name = Path(arguments.path).resolve().name if Path(arguments.path).exists() else arguments.path
    examples = [] if arguments.examples is None else read_examples(arguments.examples)
    load = functools.partial(_load_predictor, arguments)
    facts = read_facts(Path(arguments.path))
    serve(load, name, arguments.host, arguments.port, limits, arguments.allowed_hosts, facts, examples)


def run_compare(arguments: argparse.Namespace) -> None:
    """Run what is not finished yet, then write the report of all; failed runs end it with status 1."""
    from pathlib import Path

    from finetune.comparison.command import report_runs
    from finetune.comparison.compare import TRAIN, Plan, run_plan
    from finetune.data.given import name_data

    config = None if arguments.accelerate_config is None else Path(arguments.accelerate_config)
    recipe, flags = Path(arguments.recipe), arguments.recipe_flags
    if recipe.suffix != ".py":
        recipe, flags = TRAIN, [*(f"--{name}={value}" for name, value in name_data(arguments.recipe).items()), *flags]
    plan = Plan(
        recipe,
        _split(arguments.methods),
        _to_seeds(arguments.seeds),
        Path(arguments.output_dir),
        flags,
        config,
        search={name: value for name in ("trials", "budget") if (value := getattr(arguments, name)) is not None},
        total_budget=arguments.total_budget,
    )
    if recipe == TRAIN:
        from finetune.engine import check_training

        check_training(list(flags), plan.methods)
    failures = run_plan(plan)
    finished = [str(run.directory) for run in plan.runs if run.is_finished()]
    if finished:
        output = str(plan.output_directory / "report")
        report_runs(finished, output, arguments.metric, arguments.margin, arguments.cost, _explain_by(arguments))
    for failure in failures:
        say(failure)
    if failures:
        sys.exit(1)


def _split(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _to_seeds(words: str) -> list[int]:
    try:
        return [int(word) for word in _split(words)]
    except ValueError:
        raise FinetuneError(f"Expected --seeds to be numbers such as 0,1,2, but got {words!r}.") from None


def run_report(arguments: argparse.Namespace) -> None:
    """Write the report of the runs, and print its verdict and table."""
    from finetune.comparison.command import report_runs

    explain = _explain_by(arguments)
    report_runs(arguments.runs, arguments.output_dir, arguments.metric, arguments.margin, arguments.cost, explain)


def _explain_by(arguments: argparse.Namespace) -> "Callable[[Report], Reasons] | None":
    """Return what finds out why methods answer as they do, which loads their models; None unless it was asked for."""
    if not arguments.explain:
        return None
    _prepare(arguments)
    from finetune.inference.reasons import explain_report

    return explain_report


def _prepare(arguments: argparse.Namespace) -> None:
    """Set the threads and keep the libraries quiet."""
    import datasets

    datasets.disable_progress_bars()
    _prepare_torch(arguments)


def _prepare_torch(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from finetune.hardware import default_num_threads, use_processor
    from finetune.quiet import quiet_program

    quiet_program()
    use_processor(getattr(arguments, "num_threads", None) or default_num_threads())


def _prepare_prediction(arguments: argparse.Namespace) -> None:
    """Likewise for a prediction; for an export, or a model that needs no torch, none of these libraries is imported."""
    from finetune.inference.load import uses_torch

    if not uses_torch(arguments.path):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        warnings.showwarning = show_warning
    else:
        _prepare_torch(arguments)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake ends it with one line and status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    with exit_on_error():
        if words[:1] == ["doctor"]:  # its flags are those of the recipes, which are slow to import
            run_doctor(words[1:])
        if words[:1] in (["train"], ["tune"]):  # likewise
            return run_train(words[1:], tune=words[0] == "tune")
        ours, recipe_flags = words, []
        if words[:1] == ["compare"] and "--" in words:
            ours, recipe_flags = words[: words.index("--")], words[words.index("--") + 1 :]
        arguments = build_parser().parse_args(ours)
        arguments.recipe_flags = recipe_flags
        if getattr(arguments, "family", None) is not None:
            from finetune.lookup import import_family

            import_family(arguments.family)
        arguments.run(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
