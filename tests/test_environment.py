"""Bad surroundings: closed streams, ASCII terminals, limits, folders that can't be written to or go away.

pytest tests/test_environment.py                                     a few of each kind
python tests/test_environment.py --output_json environment.json      every command: docs/explanations/faults.md
"""

import argparse
import collections
import errno
import hashlib
import itertools
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, make_reviews, write_csv, write_tiny_bert
from safetensors import SafetensorError
from surroundings import PATIENCE_SECONDS, UNKNOWN_USER, Surroundings
from transformers import AutoModelForSequenceClassification

from finetune.errors import FinetuneError, explain_failure, failures_explained
from finetune.examination import patterns
from finetune.methods.adapters import add_adapter, fitting_adapter, lora_over
from finetune.settings.parts import MethodArguments

QUICK = ["--max_length", "24", "--num_train_epochs", "1", "--bf16", "false", "--num_threads", "1", "--no_floor"]
LABELS = {"pos": "gut \N{GRINNING FACE}", "neg": "schl\N{LATIN SMALL LETTER E WITH ACUTE}cht"}
TEXT = "a caf\N{LATIN SMALL LETTER E WITH ACUTE} of \N{GRINNING FACE}"
STEP = "finetune.training.trainer:FineTuningTrainer.training_step"


def prepare(folder, surroundings):
    """Write reviews and a tiny encoder, and train a model of each kind; gives the words that commands are made of."""
    place = folder / "Pl\N{LATIN SMALL LETTER A WITH DIAERESIS}tze"
    if (place / "words.json").exists():  # of an earlier start
        return json.loads((place / "words.json").read_text())
    place.mkdir()
    rows = {name: make_reviews(count, offset) for name, count, offset in (("train", 60, 0), ("validation", 20, 100), ("test", 30, 200))}  # fmt: skip # noqa: E501
    words = {"bert": write_tiny_bert(place / "bert"), "text": TEXT}
    for name, reviews in rows.items():
        spelled = [(f"{text} {TEXT}" if number % 9 == 0 else text, LABELS[label]) for number, (text, label) in enumerate(reviews)]  # fmt: skip # noqa: E501
        words[name] = write_csv(place / f"{name}.csv", spelled)
    (place / "lines.txt").write_text(f"good film\n{TEXT}\n", encoding="utf-8")
    words["lines"] = str(place / "lines.txt")
    for method in ("tfidf", "full", "lora", "textcnn"):
        words[method] = str(place / "runs" / method)
        fill = {**words, "out": str(place / "runs"), "method": method}
        argv = [word.format_map(fill) for word in [*TRAIN, "--method", method, "--output_dir", "{out}/{method}"]]
        assert surroundings.run(argv, folder / "log", cache=str(folder / "cache")) == 0, read_log(folder / "log")
    words |= {"onnx": str(place / "onnx"), "runs": str(place / "runs")}
    argv = ["export", words["full"], words["onnx"], "--format", "onnx", "--num_threads", "1"]
    assert surroundings.run(argv, folder / "log", patience=600, cache=str(folder / "cache")) == 0, read_log(
        folder / "log"
    )
    (place / "words.json").write_text(json.dumps(words))
    return words


DATA = ["--validation_file", "{validation}", "--test_file", "{test}"]
TRAIN = ["train", "{train}", *DATA, "--model_name_or_path", "{bert}", *QUICK]
COMMANDS = {
    "help": ["--help"],
    "train help": ["train", "--help-all"],
    "methods": ["methods"],
    "doctor": ["doctor", "--train_file", "{train}", "--test_file", "{test}", "--output_json", "{out}/findings.json"],
    "train tfidf": [*TRAIN, "--method", "tfidf", "--output_dir", "{out}/run"],
    "train textcnn": [*TRAIN, "--method", "textcnn", "--textcnn_embedding_dim", "16", "--output_dir", "{out}/run"],
    "train full": [*TRAIN, "--method", "full", "--output_dir", "{out}/run"],
    "train lora": [*TRAIN, "--method", "lora", "--output_dir", "{out}/run"],
    "train embeddings": [*TRAIN, "--method", "embeddings", "--output_dir", "{out}/run"],
    "tune": ["tune", "{train}", *DATA, *QUICK, "--method", "tfidf", "--trials", "2", "--output_dir", "{out}/run"],
    "recipe": ["imdb.py", "--train_file", "{train}", *TRAIN[2:], "--output_dir", "{out}/run"],
    "predict texts": ["predict", "{full}", "good film", "{text}", "--num_threads", "1"],
    "predict lines": ["predict", "{tfidf}"],
    "predict file": ["predict", "{full}", "--input_file", "{train}", "--output_file", "{out}/answers.csv"],
    "predict export": ["predict", "{onnx}", "--input_file", "{train}", "--output_file", "{out}/answers.csv"],
    "evaluate": ["evaluate", "{textcnn}", "--test_file", "{test}", "--output_json", "{out}/metrics.json"],
    "push": ["push", "{full}", "me/reviews"],
    "merge": ["merge", "{lora}", "{out}/merged"],
    "export": ["export", "{full}", "{out}/onnx", "--format", "onnx", "--num_threads", "1"],
    "serve": ["serve", "{tfidf}", "--port", "0"],
    "report": ["report", "{runs}", "--output_dir", "{out}/report"],
}
TRAINS = ("train tfidf", "train textcnn", "train full", "train lora", "tune", "recipe")
WRITES = (
    "doctor",
    *TRAINS,
    "train embeddings",
    "predict file",
    "predict export",
    "evaluate",
    "merge",
    "export",
    "report",
)
# What befalls whom; the words {out}, {disk} and those of `prepare` are filled in.
PLACES = {
    "nothing": {},
    **{f"without {' '.join(names)}": {"closed": [("stdin", "stdout", "stderr").index(name) for name in names]}
       for names in (("stdin",), ("stdout",), ("stderr",), ("stdin", "stdout"), ("stdin", "stderr"),
                     ("stdout", "stderr"), ("stdin", "stdout", "stderr"))},
    "stdin is a pipe without end": {"stdin": "broken"},
    "stdout is full": {"stdout": "full"},
    "stderr is full": {"stderr": "full"},
    "stdout and stderr are full": {"stdout": "full", "stderr": "full"},
    "nobody reads stdout": {"stdout": "broken"},
    "nobody reads stderr": {"stderr": "broken"},
    "an ASCII terminal": {"encoding": "ascii"},
    "a Latin-1 terminal": {"encoding": "latin-1"},
    "a terminal without width": {"environ": {"TERM": "dumb", "COLUMNS": "1", "LINES": "1"}},
    "a terminal of absurd width": {"environ": {"TERM": None, "COLUMNS": "99999999999", "LINES": "-3"}},
    **{f"files of at most {size:,} bytes": {"limits": {"FSIZE": size}} for size in (0, 1_000, 20_000, 60_000)},
    **{f"{size:,} bytes of addresses more": {"limits": {"AS": f"+{size}"}}
       for size in (0, 2_000_000, 30_000_000, 150_000_000)},
    **{f"{count} descriptors more": {"limits": {"NOFILE": f"+{count}"}} for count in (0, 2, 6, 20)},
    "no thread or process more": {"limits": {"NPROC": 1}, "uid": UNKNOWN_USER},
    "a second of processor time": {"limits": {"CPU": "+1"}},
    "an unknown user without a home": {"environ": {"HOME": "/nowhere", "USER": None, "LOGNAME": None},
                                       "uid": UNKNOWN_USER},
    "an unknown user without HOME": {"environ": dict.fromkeys(("HOME", "USER", "LOGNAME")), "uid": UNKNOWN_USER},
    "a home that is a file": {"environ": {"HOME": "{train}"}},
    "no folder for temporary files": {"environ": {"TMPDIR": "/nowhere"}, "uid": UNKNOWN_USER},
    "temporary folders of no use": {"environ": {"TMPDIR": "{train}"}},
    "a cache that is a file": {"cache": "{train}"},
    "a cache that can't be written to": {"cache": "/proc"},
    "a cache of somebody else": {"cache": "{closed}", "uid": UNKNOWN_USER},
    "an output folder of somebody else": {"uid": UNKNOWN_USER, "out": "{closed}"},
    "an output folder on a full disk": {"out": "/dev/full/sub"},
    "a working folder that was deleted": {"cwd": "deleted"},
    "a working folder of somebody else": {"cwd": "{closed}", "uid": UNKNOWN_USER},
    "a umask of 777": {"umask": 0o777, "uid": UNKNOWN_USER},
    "a umask of 077": {"umask": 0o077},
}  # fmt: skip
# Likewise, of what befalls the directory of a training run at a moment of it.
PLACES |= {
    f"a run directory that {what} {when}": {"moment": [function, number, what, "{out}/run"]}
    for what in ("vanishes", "becomes a file")
    for when, function, number in (
        ("at the second step", STEP, 2),
        ("while a checkpoint is written", "finetune.training.resume:commit_checkpoint", 1),
        ("before the model is saved", "finetune.run.run:write_model", 1),
        ("while the saved model is measured", "finetune.inference.evaluate:write_predictions", 1),
    )
} | {"no processor time left at the second step": {"moment": [STEP, 2, "SIGXCPU", ""]}}


@pytest.fixture(scope="module")
def surroundings():
    with Surroundings(exports=False) as started:
        yield started


@pytest.fixture(scope="module")
def place(runs, reviews, tmp_path_factory):
    """Two models where everybody may read them, with label names and texts beyond ASCII."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name in ("tfidf", "full"):
        shutil.copytree(runs / name / "model", folder / name)
    (folder / "lines.txt").write_text(f"good film\n{TEXT}\n", encoding="utf-8")
    shutil.copy(reviews["--train_file"], folder / "train.csv")
    yield folder
    shutil.rmtree(folder)


NAMES = ("stdin", "stdout", "stderr")
CLOSED = [closed for count in (1, 2, 3) for closed in itertools.combinations(range(3), count)]


@pytest.mark.parametrize("closed", CLOSED, ids=lambda closed: " ".join(NAMES[number] for number in closed))
def test_closed_streams_count_as_empty(surroundings, place, tmp_path, closed):
    log = tmp_path / "log"
    output = tmp_path / "answers.csv"
    commands = (
        ["predict", str(place / "tfidf"), TEXT],
        ["predict", str(place / "tfidf"), "--input_file", str(place / "train.csv"), "--output_file", str(output)],
        ["doctor", "--train_file", str(place / "train.csv")],
    )
    for command in commands:
        assert surroundings.run(command, log, closed=closed, cache=str(tmp_path)) == 0, read_log(log)
        assert "Traceback" not in read_log(log)
        if closed == (0,):
            assert log.read_text()
    assert len(output.read_text().splitlines()) == 61
    status = surroundings.run(["predict", str(place / "tfidf")], log, closed=closed)
    assert status == (2 if 0 in closed else 0)
    if closed == (0,):
        assert "standard input, but it is closed" in read_log(log)


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"a caf\\xe9 of \\U0001f600"), ("latin-1", b"a caf\xe9 of \\U0001f600")])  # fmt: skip # noqa: E501
def test_characters_that_a_terminal_lacks_are_shown_as_escapes(surroundings, place, tmp_path, encoding, shown):
    log = tmp_path / "log"
    command = ["predict", str(place / "tfidf")]
    assert surroundings.run([*command, TEXT], log, encoding=encoding) == 0, read_log(log)
    assert shown in log.read_bytes()
    if encoding == "ascii":  # and so UTF-8, of which it is a part, is what comes in
        assert surroundings.run(command, log, encoding=encoding, stdin=str(place / "lines.txt")) == 0, read_log(log)
        assert shown in log.read_bytes()
    assert surroundings.run(["predict", "\u65e5\u672c", TEXT], log, encoding=encoding) == 2
    assert b"\\u65e5\\u672c' does not exist" in log.read_bytes()


STARVED = {
    "output on a full disk": (["methods"], {"stdout": "full"}, "No space left on device: standard output."),
    "large files": (["doctor", "--train_file", "{place}/train.csv"], {"limits": {"FSIZE": 100}}, "(ulimit -f)"),
    "memory": (["predict", "{place}/full", TEXT], {"limits": {"AS": "+0"}}, "Expected more memory"),
    "open files": (["predict", "{place}/full", TEXT], {"limits": {"NOFILE": "+0"}}, "(ulimit -n)"),
    "a working folder": (["predict", "full", TEXT], {"cwd": "deleted"}, "does not exist"),
    "launchers": (
        ["train", "{place}/train.csv", "--method", "textcnn"],
        {"environ": {"WORLD_SIZE": "2"}},
        "variables that launchers set for 2 processes",
    ),
    "a launcher's other processes": (
        ["predict", "{place}/full", "--input_file", "{place}/train.csv", "--output_file", "out.csv"],
        {"environ": {"WORLD_SIZE": "2"}},
        "variables that launchers set for 2 processes",
    ),
    "a cache": (["doctor", "--train_file", "{place}/train.csv"], {"cache": "/proc"}, "/proc/finetune."),
    "processor time": (
        ["-c", "from finetune.errors import exit_on_error\nwith exit_on_error():\n    while True: pass"],
        {"limits": {"CPU": "+1"}},
        "(ulimit -t)",
    ),
}


@pytest.mark.parametrize("what", STARVED)
def test_too_little_is_said_in_one_line(surroundings, place, tmp_path, what):
    (tmp_path / "work").mkdir()
    argv, found, said = STARVED[what]
    argv = [word.replace("{place}", str(place)) for word in argv]
    here = {"cache": str(tmp_path), "cwd": str(tmp_path / "work"), **found}
    assert surroundings.run(argv, tmp_path / "log", **here) == 2, read_log(tmp_path / "log")
    (line,) = read_log(tmp_path / "log").splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", ["imdb", "textcnn", "classify"])
def test_a_recipe_without_memory_for_its_libraries_says_so(name):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))

    command = [sys.executable, str(ROOT / f"recipes/{name}.py")]
    ended = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: Expected more memory")


def test_a_thread_without_memory_is_not_waited_for(surroundings, tmp_path):
    code = """
import threading
from finetune.errors import exit_on_error
def fail(thread):
    raise MemoryError
threading.Thread._bootstrap_inner = fail
with exit_on_error():
    threading.Thread(target=print).start()
"""
    assert surroundings.run(["-c", code], tmp_path / "log", patience=20) == 2
    (line,) = read_log(tmp_path / "log").splitlines()
    assert line.startswith("error: Expected more memory: a thread could not begin")


@pytest.mark.skipif(os.getuid() != 0, reason="becoming somebody else takes root")
def test_somebody_unknown_without_a_home_uses_what_root_has_saved(surroundings, place, tmp_path):
    nobody = {"uid": UNKNOWN_USER, "environ": {"HOME": "/nowhere", "USER": None, "LOGNAME": None}}
    for name in ("tfidf", "full"):
        status = surroundings.run(["predict", str(place / name), TEXT], tmp_path / "log", **nobody)
        assert status == 0, read_log(tmp_path / "log")


def test_from_python_it_is_an_error_with_the_same_line_and_its_cause(surroundings, place, tmp_path):
    code = """
import finetune
from finetune.errors import FinetuneError
try:
    finetune.load_classifier(words[0]).predict("a film")
except FinetuneError as error:
    print(error, "|", type(error.__cause__).__name__)
"""
    status = surroundings.run(["-c", code, str(place / "full")], tmp_path / "log", limits={"AS": "+0"})
    assert status == 0, read_log(tmp_path / "log")
    message, cause = (tmp_path / "log").read_text().split(" | ")
    assert message.startswith("Expected more memory")
    assert cause.strip() in ("MemoryError", "RuntimeError", "FinetuneError")


def test_many_starts_at_once_on_one_empty_cache(surroundings, place, tmp_path):
    words = ["train", str(place / "train.csv"), "--method", "tfidf", "--no_floor", "--num_threads", "1"]
    commands = [[*words, "--output_dir", str(tmp_path / str(number))] for number in range(3)]
    commands += [["doctor", "--train_file", str(place / "train.csv")]] * 3
    logs = [tmp_path / f"log{number}" for number in range(6)]
    statuses = surroundings.run_at_once(commands, logs, cache=str(tmp_path / "cache"))
    assert statuses == [0] * 6, "\n".join(map(read_log, logs))
    assert len({(tmp_path / str(number) / "model/tfidf.safetensors").read_bytes() for number in range(3)}) == 1
    kept = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [name for name in kept if "partial" in name]


@pytest.mark.parametrize("what", ["vanishes", "becomes a file"])
def test_a_run_directory_that_goes_away_is_said(surroundings, place, tmp_path, what):
    run = tmp_path / "run"
    argv = ["train", str(place / "train.csv"), "--method", "tfidf", "--no_floor", "--output_dir", str(run)]
    moment = ["finetune.run.run:write_model", 1, what, str(run)]
    assert surroundings.run(argv, tmp_path / "log", moment=moment, cache=str(tmp_path / "cache")) == 2
    assert "Traceback" not in read_log(tmp_path / "log")
    assert f"{run}/" in read_log(tmp_path / "log").splitlines()[-1]


EXPLAINED = [
    (OSError(errno.ENOSPC, "No space left", "x/y"), "No space left on device: x/y. Make room, or pass another folder."),
    (
        OSError(errno.EFBIG, "", "x"),
        "File too large: x. Raise the limit of a file's size (ulimit -f)",
    ),
    (OSError(errno.ESTALE, "", "x"), "Stale file handle: x. Look after the disk, or pass another folder."),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left on"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "No space left on device: "),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), "Expected more memory: "),
    (RuntimeError("std::bad_alloc"), "Expected more memory: "),
    (MemoryError(), "Expected more memory: an allocation failed. Free some, raise the limit of memory (ulimit -v)"),
    (ImportError("libtorch.so: failed to map segment from shared object"), "Expected more memory: "),
    (RuntimeError("can't start new thread"), "Expected to start a thread or a process, but the system refused it."),
    (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "Expected a folder for"),
    (RuntimeError("Could not determine home directory."), "Expected a folder of yours, but found none. Set HOME."),
    (KeyError("getpwuid(): uid not found: 12345"), "Set HOME and USER."),
]


@pytest.mark.parametrize(("error", "said"), EXPLAINED, ids=lambda part: part if isinstance(part, str) else None)
def test_what_the_machine_refuses_is_explained(error, said):
    assert said in str(explain_failure(error))


@pytest.mark.parametrize(
    "error",
    [KeyError("No space left on device"), AttributeError("os error 28"), ValueError("x"), OSError("x"),
     RuntimeError("x"), OSError(errno.EINVAL, "Invalid argument", "x"), AssertionError(), KeyboardInterrupt(),
     SystemExit(1)],
)  # fmt: skip
def test_a_mistake_of_ours_keeps_its_traceback(error):
    assert explain_failure(error) is None
    with pytest.raises(type(error)) as raised, failures_explained():
        raise error
    assert raised.value is error


def test_a_cache_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/caches/hf")
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    inside = OSError(errno.EROFS, "", "/caches/hf/datasets/finetune/read.arrow")
    assert "Set HF_DATASETS_CACHE to a folder" in str(explain_failure(inside))
    assert "Set HF_HOME to a folder" in str(explain_failure(OSError(errno.EACCES, "", "/caches")))
    assert "HF_HOME" not in str(explain_failure(OSError(errno.EACCES, "", "/caches/runs")))


def test_a_pattern_that_matches_without_end_is_refused(monkeypatch, tmp_path, tiny_bert):
    monkeypatch.setattr(patterns, "LIMIT_SECONDS", 1)
    (tmp_path / "peft.yaml").write_text("target_modules: '(\\w+\\.?)+!'\n")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    settings = MethodArguments("lora", peft_config=str(tmp_path / "peft.yaml"))
    with pytest.raises(FinetuneError, match="which takes longer than 1 s"), fitting_adapter(model):
        lora_over(settings, model)
    with pytest.raises(FinetuneError, match="which takes longer than 1 s"):
        add_adapter(model, "peft", {"peft_type": "LORA", "target_modules": r"(\w+\.?)+!"}, [])


def test_files_of_a_model_have_the_rights_that_the_umask_gives(runs):
    modes = {path.name: stat.filemode(path.stat().st_mode) for path in (runs / "full/model").iterdir()}
    assert len(set(modes.values())) == 1, modes


def read_log(log):
    tracebacks = Path(f"{log}.traceback")
    shown = tracebacks.read_text(errors="replace") if tracebacks.exists() else ""
    return Path(log).read_text(errors="replace") + shown


def hash_files(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "looks.json")  # which reports count
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def judge(status, log, place):
    """Say how a command ended: "done", "a line", "killed", or what must not be."""
    text = read_log(log)
    if status is None:
        return "HANGS"
    if any(words in text for words in ("Traceback (most recent", "Exception ignored", "Fatal Python error")):
        return "TRACEBACK"
    if status == 0:
        return "done"
    if status < 0:
        return f"killed by {-status}"
    if 2 in place.get("closed", ()) or "stderr" in place or place.get("stdout") == "broken":
        return "its status alone"
    lines = [line for line in text.splitlines() if line.startswith(("error: ", "interrupted"))]
    return "a line" if len(lines) == 1 else "SILENT" if not lines else "LINES"


def fill(part, words):
    if isinstance(part, str):
        return part.format_map(words)
    if isinstance(part, dict):
        return {name: fill(value, words) for name, value in part.items()}
    return [fill(value, words) for value in part] if isinstance(part, list | tuple) else part


def run_matrix(folder, places, commands, output, quick, patience=PATIENCE_SECONDS):
    """Run every command in every place; nothing that was there may change."""
    counts = collections.defaultdict(collections.Counter)
    cells = []
    with Surroundings() as surroundings:
        words = prepare(folder, surroundings)
        closed = folder / "closed"
        closed.mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)
        before = hash_files(folder / "Pl\N{LATIN SMALL LETTER A WITH DIAERESIS}tze")
        for name, place in places.items():
            for command in commands:
                if "moment" in place and command not in TRAINS:
                    continue
                out = folder / "out"
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                out.chmod(0o777)
                cache = folder / "own-cache"
                shutil.rmtree(cache, ignore_errors=True)
                cache.mkdir()
                cache.chmod(0o777)
                here = {**words, "out": str(out), "closed": str(closed)}
                found = {"cache": str(cache), "cwd": str(out), **fill(place, here)}
                here["out"] = found.pop("out", here["out"])
                if command == "predict lines":
                    found.setdefault("stdin", words["lines"])
                if command == "serve":
                    found["ends_after"] = 2.0
                argv = fill(COMMANDS[command], here)
                log = folder / "log"
                for path in (log, Path(f"{log}.traceback")):
                    path.unlink(missing_ok=True)
                status = surroundings.run(argv, log, patience=patience, **found)
                how = judge(status, log, found)
                said = [line for line in read_log(log).splitlines() if line.startswith(("error: ", "interrupted"))]
                again = None
                if not quick and how not in ("done", "HANGS") and command in WRITES:
                    again = surroundings.run(fill(COMMANDS[command], {**here, "out": str(out)}), folder / "again",
                                             cache=str(folder / "cache"), cwd=str(folder))  # fmt: skip
                    if again != 0:
                        again = read_log(folder / "again").splitlines()[-1:]
                cell = {"place": name, "command": command, "how": how, "status": status, "said": said, "again": again,
                        "seconds": round(surroundings.seconds, 1)}  # fmt: skip
                if how.isupper() or how.startswith("killed") or again not in (None, 0):
                    cell["log"] = read_log(log)[-3000:]
                cells.append(cell)
                counts[name][how] += 1
                if output:
                    Path(output).write_text(json.dumps(cells, indent=1, ensure_ascii=False), encoding="utf-8")
                print(
                    json.dumps({key: value for key, value in cell.items() if key != "log"}, ensure_ascii=False),
                    flush=True,
                )
            changed = hash_files(folder / "Pl\N{LATIN SMALL LETTER A WITH DIAERESIS}tze") != before
            if changed:
                print(f"CHANGED by {name}", flush=True)
                before = hash_files(folder / "Pl\N{LATIN SMALL LETTER A WITH DIAERESIS}tze")
                counts[name]["CHANGED"] += 1
    for name, count in counts.items():
        print(f"| {name} | {', '.join(f'{number} {how}' for how, number in sorted(count.items()))} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", help="words in the names of places, with semicolons between them (default: all)")
    parser.add_argument("--commands", help="likewise for commands")
    parser.add_argument("--workplace", help="a folder to keep, where the models of an earlier start are used again")
    parser.add_argument("--quick", action="store_true", help="don't run what failed again without the fault")
    parser.add_argument("--patience", type=float, default=PATIENCE_SECONDS, help="seconds until a command hangs")
    parser.add_argument("--output_json")
    flags = parser.parse_args()

    def choose(names, wanted):
        return [name for name in names if wanted is None or any(word in name for word in wanted.split(";"))]

    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        where = Path(flags.workplace or folder)
        where.mkdir(exist_ok=True)
        places = {name: PLACES[name] for name in choose(PLACES, flags.places)}
        run_matrix(where, places, choose(COMMANDS, flags.commands), flags.output_json, flags.quick,
                   flags.patience)  # fmt: skip


if __name__ == "__main__":
    main()
