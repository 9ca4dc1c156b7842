"""Bulk prediction that is killed at every step, and outputs that somebody else's files are in the way of.

pytest tests/test_unfinished.py                     one kill before each of its steps
python tests/test_unfinished.py --kills 60          the table in docs/explanations/faults.md
"""

import argparse
import collections
import contextlib
import csv
import errno
import gc
import gzip
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_reviews

from finetune.errors import FinetuneError
from finetune.families.tfidf.fit import fit_tfidf
from finetune.inference import bulk, unfinished
from finetune.inference.predict import load_predictor
from finetune.inference.unfinished import JOURNAL, ROWS, WHOLE, Unfinished
from finetune.models.answers import TextClassifier

COUNT, AT_ONCE = 11, 4
COLUMNS = {"text_column": "text", "text_pair_column": None, "encoding": None}
INPUTS = ["in.csv", "in.jsonl.gz", "in.parquet", "in.tsv.zst", "in.csv.gz", "in.jsonl", "zstd.parquet"]
AUDITED = {"open", "os.mkdir", "os.link", "os.remove", "os.rmdir", "os.rename", "os.truncate", "fcntl.flock"}
STATES = ["no folder", "no journal", "nothing counts", "rows count", "rows beyond those", "all rows count",
          "the whole is written", "placing", "placed", "done"]  # fmt: skip


def write_input(path, count=COUNT):
    rows = [{"id": str(number), "text": f"{text}\r{number}"} for number, (text, _) in enumerate(make_reviews(count))]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd" if path.stem == "zstd" else "snappy")
        return
    text = io.StringIO()
    if ".jsonl" in path.suffixes:
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        writer = csv.DictWriter(
            text, rows[0], delimiter="\t" if ".tsv" in path.suffixes else ",", quoting=csv.QUOTE_ALL
        )
        writer.writeheader()
        writer.writerows(rows)
    content = text.getvalue().encode()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = pa.Codec("zstd").compress(content, asbytes=True)
    path.write_bytes(content)


def output_of(source):
    return source.with_suffix("") if source.suffix in (".gz", ".zst") else source


class Steps:
    """Counts the steps that change files, and ends the process with SIGKILL before one of them; in a child alone."""

    def __init__(self, kill_at, log):
        self.kill_at, self.log, self.number = kill_at, log, 0

    def take(self, what):
        self.number += 1
        if self.number == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(self.log, f"{what}\n".encode())

    def install(self):
        def audit(event, args):
            if event in AUDITED and (not isinstance(args[0], str | os.PathLike) or "out" in os.fspath(args[0])):
                self.take(event)

        sys.addaudithook(audit)
        for owner, name in ((os, "fsync"), (pq.ParquetWriter, "write_table"), (pq.ParquetWriter, "close")):
            setattr(owner, name, self._before(getattr(owner, name), name))
        for name in ("_lock", "_open_rows"):
            setattr(Unfinished, name, self._in_halves(getattr(Unfinished, name)))

    def _before(self, function, name):
        def call(*args, **kwargs):
            self.take(name)
            return function(*args, **kwargs)

        return call

    def _in_halves(self, function):
        return lambda *args, **kwargs: Halves(function(*args, **kwargs), self)


class Halves:
    """A file of which each write takes place in two."""

    def __init__(self, file, steps):
        self.file, self.steps = file, steps

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            self.steps.take("write")
            self.file.write(half)
            self.file.flush()


def fork(model, source, target, kill_at=None, kill_after=None):
    """Predict in a process of its own, which may be killed.

    Args:
        model: A folder.
        source: The input.
        target: The output.
        kill_at: Before which step, from 1.
        kill_after: After how many seconds.

    Returns:
        Its exit status, minus a signal's number, and the steps that it took.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if kill_after is None:
                Steps(kill_at, writing).install()
            bulk.predict_file(model, source, target, COLUMNS)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reading) as log:
        steps = log.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), steps


def find_state(target, count=COUNT):
    """Name the state that a killed run has left, as docs/how-to/delivery.md does, and the number of rows that count."""
    folder = Path(f"{target}.unfinished")
    if not folder.exists():
        return ("done", count) if target.exists() else ("no folder", 0)
    if not (folder / JOURNAL).exists():
        return ("done", count) if target.exists() else ("no journal", 0)
    content = (folder / JOURNAL).read_bytes()
    noted = {}
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        noted |= json.loads(line)
    rows = noted.get("rows", 0)
    if "placing" in noted:
        return ("placed" if target.exists() else "placing"), rows
    if (folder / WHOLE).exists():
        return "the whole is written", rows
    if (folder / ROWS).exists() and (folder / ROWS).stat().st_size > noted.get("bytes", 0):
        return "rows beyond those", rows
    return ("all rows count" if rows == count else "rows count" if rows else "nothing counts"), rows


def go_on(model, source, target):
    """Give the same command again in this process; returns how many texts it has answered."""
    answered = []
    compute = TextClassifier.compute_probabilities

    def counted(self, texts, pairs=None):
        answered.extend(texts)
        return compute(self, texts, pairs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextClassifier, "compute_probabilities", counted)
        assert bulk.predict_file(model, source, target, COLUMNS) is not None
    return len(answered)


def make_model(folder):
    """A TF-IDF model, which is loaded once."""
    texts, labels = zip(*make_reviews(40), strict=True)
    numbers = np.array([["neg", "pos"].index(label) for label in labels])
    fit_tfidf(list(texts), numbers, ["neg", "pos"], seed=0).save_pretrained(folder)
    predictor = load_predictor(folder)
    bulk.load_predictor = lambda *_, **__: predictor
    bulk.ROWS_AT_ONCE = AT_ONCE
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "load_predictor", None)
        patch.setattr(bulk, "ROWS_AT_ONCE", None)
        yield make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def whole(model, tmp_path):
    """From the name of an input to its path and the bytes of an output that nothing happened to."""

    def predict(name):
        (tmp_path / "whole").mkdir()
        write_input(source := tmp_path / name)
        target = tmp_path / "whole" / output_of(source).name
        bulk.predict_file(model, source, target, COLUMNS)
        return source, target.read_bytes()

    return predict


@pytest.mark.parametrize("name", [*INPUTS[:3], *(pytest.param(name, marks=pytest.mark.slow) for name in INPUTS[3:])])
def test_killed_before_any_step_it_is_continued_exactly(model, whole, tmp_path, name):
    source, expected = whole(name)
    folder = tmp_path / "out"
    target = folder / output_of(source).name
    folder.mkdir()
    status, steps = fork(model, source, target)
    assert (status, target.read_bytes()) == (0, expected)
    seen = collections.Counter()
    for number in range(1, len(steps) + 1):
        target.unlink()
        status, taken = fork(model, source, target, number)
        assert (status, taken) == (-signal.SIGKILL, steps[: number - 1])
        state, rows = find_state(target)
        seen[state] += 1
        if state == "done":
            assert target.read_bytes() == expected
            with pytest.raises(FinetuneError, match="exists"):
                go_on(model, source, target)
        else:
            assert go_on(model, source, target) == COUNT - rows, (number, steps[number - 1], state)
        assert target.read_bytes() == expected
        assert set(folder.iterdir()) - {target} <= ({Path(f"{target}.unfinished")} if state == "done" else set())
        for left in folder.glob("*.unfinished"):
            left.rmdir()  # which is empty
    expected_states = set(STATES) - (set() if name.endswith("parquet") else {"the whole is written"})
    assert set(seen) == expected_states, seen


@pytest.mark.parametrize("name", INPUTS[:3])
def test_killed_again_and_again_it_ends_with_the_same_bytes(model, whole, tmp_path, name):
    source, expected = whole(name)
    target = tmp_path / f"out{output_of(source).suffix}"
    kills = 0
    while (status := fork(model, source, target, 15 + kills)[0]) != 0:
        assert status == -signal.SIGKILL
        kills += 1
        assert kills < 40
    assert kills > 2
    assert target.read_bytes() == expected


# Files of others in the way


@pytest.fixture
def paths(model, tmp_path):
    write_input(tmp_path / "in.csv")
    return tmp_path / "in.csv", tmp_path / "out.csv"


def put_file(path):
    path.write_text("mine")


def put_empty_file(path):
    path.touch()


def put_link(path):
    path.symlink_to("nowhere")


def put_folder(path):
    path.mkdir()
    (path / "mine").write_text("mine")


def list_all(folder):
    """Names, kinds and contents of everything in a folder."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.parquet"])
@pytest.mark.parametrize("put", [put_file, put_empty_file, put_link, put_folder])
@pytest.mark.parametrize("has_links", [True, False])
def test_what_comes_into_being_meanwhile_is_never_destroyed(model, whole, tmp_path, monkeypatch, name, put, has_links):
    source, expected = whole(name)
    target = tmp_path / f"out{source.suffix}"
    if not has_links:
        monkeypatch.setattr(os, "link", refuse_links)
    flush = unfinished.flush

    def put_and_flush(path):  # after the output is seen not to be there, before it gets its name
        put(target)
        monkeypatch.setattr(unfinished, "flush", flush)
        flush(path)

    monkeypatch.setattr(unfinished, "flush", put_and_flush)
    with pytest.raises(FinetuneError, match=f"all {COUNT} rows are kept"):
        go_on(model, source, target)
    put(tmp_path / "like")
    kept = list_all(tmp_path)
    for path, content in list_all(tmp_path).items():
        if path.startswith("like"):
            assert kept[path.replace("like", target.name, 1)] == content
    with pytest.raises(FinetuneError, match="exists"):
        go_on(model, source, target)
    assert list_all(tmp_path) == kept
    target.rename(tmp_path / "moved")
    assert go_on(model, source, target) == 0  # no text is answered twice
    assert target.read_bytes() == expected
    assert not list(tmp_path.glob("*.unfinished"))


def refuse_links(*args, **kwargs):
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize(
    "files",
    [
        {"out.csv.partial": "mine", "out.csv.state.json": "mine", "out.csv.rows": "mine"},
        {"out.csv.unfinished": "mine"},
        {"out.csv.unfinished/rows": "mine"},
        {"out.csv.unfinished/mine": "mine"},
        {"out.csv.unfinished/journal.jsonl": "mine"},
        {"out.csv.unfinished/journal.jsonl": "{}\n"},
        {"out.csv.unfinished/journal.jsonl": "[]\n"},
        {"out.csv.unfinished/journal.jsonl": '{"unfinished', "out.csv.unfinished/rows": "mine"},
        {"out.csv.unfinished/journal.jsonl/mine": "mine"},
    ],
)  # fmt: skip
def test_files_of_others_are_left_as_they_are(model, paths, tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(content)
    before = list_all(tmp_path)
    if "out.csv.partial" in files:
        assert go_on(model, *paths) == COUNT
    else:
        with pytest.raises(FinetuneError, match="to be free, or what an earlier run left there"):
            go_on(model, *paths)
        assert list_all(tmp_path) == before
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_links_and_pipes_in_the_place_of_our_files_are_not_followed(model, paths, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "out.csv.unfinished").symlink_to("mine")
    with pytest.raises(FinetuneError, match="to be free"):
        go_on(model, *paths)
    (tmp_path / "out.csv.unfinished").unlink()
    (tmp_path / "out.csv.unfinished").mkdir()
    os.mkfifo(tmp_path / "out.csv.unfinished/journal.jsonl")
    with pytest.raises(FinetuneError, match="to be free"):
        go_on(model, *paths)
    (tmp_path / "out.csv.unfinished/journal.jsonl").unlink()
    (tmp_path / "kept").write_text("")
    (tmp_path / "out.csv.unfinished/journal.jsonl").symlink_to(tmp_path / "kept")
    with pytest.raises(FinetuneError, match="to be free"):
        go_on(model, *paths)
    assert (tmp_path / "kept").read_text() == ""
    (tmp_path / "out.csv.unfinished/journal.jsonl").unlink()
    paths[1].symlink_to("nowhere")
    with pytest.raises(FinetuneError, match="exists"):
        go_on(model, *paths)


def test_what_somebody_puts_into_our_folder_stays(model, paths, tmp_path, monkeypatch):
    move_new = unfinished.move_new

    def put_and_move(*args):
        (tmp_path / "out.csv.unfinished/mine").write_text("mine")
        move_new(*args)

    monkeypatch.setattr(unfinished, "move_new", put_and_move)
    assert go_on(model, *paths) == COUNT
    assert [path.name for path in (tmp_path / "out.csv.unfinished").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["in.csv", "in.parquet"])
def test_a_full_disk_is_said_of_the_file_that_it_befell(model, whole, tmp_path, monkeypatch, name):
    source, _ = whole(name)
    target = tmp_path / f"out{source.suffix}"
    open_rows = Unfinished._open_rows

    def open_full(self, is_new):
        open_rows(self, is_new).close()
        return Path("/dev/full").open("wb")

    monkeypatch.setattr(Unfinished, "_open_rows", open_full)
    with pytest.raises(FinetuneError) as refusal:
        go_on(model, source, target)
    file = target.with_name(f"{target.name}.unfinished") / ROWS
    assert str(refusal.value).startswith(f"No space left on device: {file}. Make room")


def test_a_second_process_is_refused(model, paths, tmp_path):
    with Unfinished(paths[1], {}), pytest.raises(FinetuneError, match="another process is at it"):
        go_on(model, *paths)
    assert go_on(model, *paths) == COUNT


def test_an_output_that_was_moved_away_while_it_was_tidied_up_is_made_anew(model, whole, tmp_path):
    source, expected = whole("in.parquet")
    target = tmp_path / "out.parquet"
    _, steps = fork(model, source, target)
    target.unlink()
    fork(model, source, target, len(steps) - 1)  # before the journal is removed
    assert find_state(target)[0] == "placed"
    target.rename(tmp_path / "moved")
    assert go_on(model, source, target) == COUNT
    assert target.read_bytes() == (tmp_path / "moved").read_bytes() == expected


def test_rows_that_were_changed_are_not_gone_on_with(model, paths, tmp_path):
    _, steps = fork(model, *paths)
    paths[1].unlink()
    fork(model, *paths, kill_at=len(steps) - 8)
    rows = tmp_path / "out.csv.unfinished" / ROWS
    rows.write_bytes(rows.read_bytes()[:-1])
    before = list_all(tmp_path)
    with pytest.raises(FinetuneError, match="one of them was changed"):
        go_on(model, *paths)
    assert list_all(tmp_path) == before


# The record in docs/explanations/faults.md


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=60, help="of each format in each of its states, and at any moment")
    parser.add_argument("--rows", type=int, default=COUNT)
    parser.add_argument("--inputs", nargs="+", default=INPUTS, choices=INPUTS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        model = make_model(folder / "model")
        print("| input |", " | ".join(STATES), "| any moment | kills | rows lost | rows twice | other bytes |")
        gc.collect()
        gc.freeze()  # else each child's first collection copies all that it shares
        for source in arguments.inputs:
            write_input(folder / source, arguments.rows)
            print(f"| {source} |", count_kills(model, folder / source, folder / f"out.{source}", arguments), flush=True)


def count_kills(model, source, folder, arguments):
    """Kill it so often in each state, and at random moments; returns cells of the table."""
    folder.mkdir()
    target = folder / output_of(source).name
    started = time.monotonic()
    status, steps = fork(model, source, target)
    seconds, expected = time.monotonic() - started, target.read_bytes()
    assert status == 0
    seen, wrong = collections.Counter(), collections.Counter()
    leading_to = collections.defaultdict(list)  # steps by the state that a kill before them leaves
    moments = [*range(1, len(steps) + 1), *range(-1, -arguments.kills - 1, -1)]
    while moments:
        for moment in moments:
            target.unlink()
            by = {"kill_at": moment} if moment > 0 else {"kill_after": random.uniform(0, seconds)}
            assert fork(model, source, target, **by)[0] in (-signal.SIGKILL, 0)
            state, rows = find_state(target, arguments.rows)
            seen[state if moment > 0 else "any moment"] += 1
            if moment > 0 and moment not in leading_to[state]:
                leading_to[state].append(moment)
            if state != "done":
                with contextlib.redirect_stdout(None):
                    answered = go_on(model, source, target)
                wrong["rows twice"] += max(0, answered + rows - arguments.rows)
                wrong["rows lost"] += max(0, arguments.rows - answered - rows)
            wrong["other bytes"] += target.read_bytes() != expected
        moments = [
            random.choice(known) for state, known in leading_to.items() for _ in range(arguments.kills - seen[state])
        ]
    cells = [*(str(seen[state] or "") for state in [*STATES, "any moment"]), str(seen.total())]
    return " | ".join([*cells, *(str(wrong[what]) for what in ("rows lost", "rows twice", "other bytes"))]) + " |"


if __name__ == "__main__":
    main()
