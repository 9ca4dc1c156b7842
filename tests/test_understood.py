"""Data as people have it is understood, or refused in a line: labels, encodings, formats and columns, kind by kind.

pytest tests/test_understood.py
python tests/test_understood.py --files 5000     generated files, each read exactly or refused
"""

import argparse
import csv
import io
import itertools
import json
import pickle
import random
import sqlite3
import sys
import tempfile
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_reviews
from datasets import ClassLabel, Dataset, Features, Value
from sklearn.feature_extraction.text import TfidfVectorizer

from finetune.cli import main as finetune_command
from finetune.data.encoding import choose_encoding
from finetune.data.load import load_given_splits, load_splits, read_examples
from finetune.data.stream import Shards
from finetune.data.understood import describe_understanding
from finetune.data.words import WORD, compose
from finetune.data_doctor.examine import examine
from finetune.errors import FinetuneError
from finetune.families.textcnn.vocabulary import train_word_tokenizer
from finetune.families.tfidf.fit import fit_floor, fit_tfidf
from finetune.settings.parts import DataArguments

TEXTS = [text for text, _ in make_reviews(60)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return str(path)


def table(path, labels, texts=TEXTS, names=("text", "label"), encoding="utf-8"):
    """Write texts with their labels as CSV, or JSON Lines by the ending."""
    rows = list(zip(texts, labels, strict=False))
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n" for row in rows]
        return write(path, "".join(lines), encoding)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([names, *rows])
    return write(path, text.getvalue(), encoding)


def given(train, **arguments):
    return load_given_splits(DataArguments(train_file=str(train), **arguments))


def refusal(call, *arguments, **named):
    with pytest.raises(FinetuneError) as caught:
        call(*arguments, **named)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def rows_of(examples):
    feature = examples.features["label"]
    if isinstance(feature, ClassLabel):
        labels = [feature.names[number] for number in examples["label"]]
    elif isinstance(feature, Value):
        labels = examples["label"][:]
    else:
        labels = [[feature.feature.names[number] for number in one] for one in examples["label"]]
    return list(zip(examples["text"], labels, strict=True))


def findings_of(splits):
    return {finding.name: finding for finding in examine(splits)}


# What was understood is said


def test_the_task_its_classes_and_how_files_were_read_are_said(tmp_path):
    train = table(tmp_path / "train.csv", ["ham", "ham", "spam"] * 20)
    test = table(tmp_path / "test.jsonl", ["spam", "ham"])
    assert describe_understanding(given(train, test_file=test)) == [
        "task: one of 2 classes: ham 40, spam 20",
        "train: 60 rows of file train.csv, text from column 'text', label from column 'label', separated by commas, "
        "read as utf-8",
        "test: 2 rows of file test.jsonl, text from column 'text', label from column 'label', an object a line, "
        "read as utf-8",
    ]
    numbers = table(tmp_path / "numbers.csv", [3.1, 3.9, 3.5] * 20)
    assert describe_understanding(given(numbers))[0] == "task: a number, 3.1 to 3.9"
    several = table(tmp_path / "several.jsonl", [["a"], ["a", "b"], []] * 20)
    assert describe_understanding(given(several))[0] == "task: any of 2 labels: a 40, b 20; 20 rows with none"


def test_a_recipe_says_it_before_it_trains(classify, tmp_path, capsys):
    train = table(tmp_path / "train.csv", ["neg", "pos"] * 30)
    classify.main(["--train_file", train, "--method", "tfidf", "--output_dir", str(tmp_path / "run")])
    assert "task: one of 2 classes: neg 30, pos 30\ntrain: 60 rows of file train.csv, " in capsys.readouterr().err
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["data"]["understood"][0] == "task: one of 2 classes: neg 30, pos 30"


# Labels are joined by name


@pytest.mark.parametrize("split", ["test_file", "validation_file"])
@pytest.mark.parametrize("numbers", [["0", "1", "2"], [0, 2, 1], ["1.0", "2.0", "0.0"], ["-1", "0", "1"]])
def test_numbers_are_not_joined_to_names_by_position(tmp_path, split, numbers):
    train = table(tmp_path / "train.csv", ["entailment", "contradiction", "neutral"] * 20)
    other = table(tmp_path / "other.jsonl", numbers * 3)
    message = refusal(given, train, **{split: other})
    assert "Expected the labels ['contradiction', 'entailment', 'neutral'] in column 'label' of" in message
    assert "numbers can't be joined to names by their position. Write the same names" in message


def with_class_names(path, names, numbers):
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    Dataset.from_dict({"text": TEXTS[: len(numbers)], "label": numbers}, features).to_parquet(path)
    return str(path)


def test_numbers_stand_for_class_names_of_the_source(tmp_path):
    train = with_class_names(tmp_path / "train.parquet", ["worse", "better"], [0, 1] * 20)
    splits = given(train, test_file=table(tmp_path / "test.csv", ["1", "0", "1"]))
    assert splits["test"]["label"][:] == [1, 0, 1]
    assert "numbers stand for train's class names: 0 worse, 1 better" in describe_understanding(splits)[2]
    assert "found ['2'] too" in refusal(given, train, test_file=table(tmp_path / "two.csv", ["1", "2"]))


def test_evaluate_follows_the_same_rule(classify, tmp_path, capsys):
    named = table(tmp_path / "names.csv", ["neg", "pos"] * 30)
    noted = with_class_names(tmp_path / "noted.parquet", ["pos", "neg"], [1, 0] * 30)
    ids = table(tmp_path / "ids.csv", [1, 0] * 30)  # of `noted`
    for train, status in ((named, 2), (noted, 0)):
        run = str(tmp_path / Path(train).stem)
        classify.main(["--train_file", train, "--method", "tfidf", "--output_dir", run])
        capsys.readouterr()
        if status == 2:
            with pytest.raises(SystemExit):
                finetune_command(["evaluate", run, "--test_file", ids])
            assert "numbers can't be joined to names by their position" in capsys.readouterr().err
        else:
            finetune_command(["evaluate", run, "--test_file", ids])
            line = capsys.readouterr().out.splitlines()[0].split()
            assert line[0] == "accuracy"
            assert float(line[1]) > 0.8  # joined the wrong way round, it would be 0.2 at most


def test_class_names_of_shards_are_joined_by_name_or_refused(tmp_path):
    for name, names, labels in (("a", ["neg", "pos"], [0, 1]), ("b", ["pos", "neg"], [0, 1])):
        (tmp_path / "shards").mkdir(exist_ok=True)
        with_class_names(tmp_path / f"shards/{name}.parquet", names, labels * 10)
    shards = Shards(tmp_path / "shards")
    shards.check_labels("label")
    assert [row["label"] for row in shards.sample(100, ["label"])] == ["neg", "pos"] * 10 + ["pos", "neg"] * 10
    splits = given(tmp_path / "shards", streaming=True)
    assert Counter(splits["train"]["label"]) == {0: 20, 1: 20}
    assert splits["train"].features["label"].names == ["neg", "pos"]
    with_class_names(tmp_path / "shards/c.parquet", ["neg", "neutral"], [0, 1])
    assert "but c.parquet has ['neg', 'neutral']" in refusal(given, tmp_path / "shards", streaming=True)
    pq.write_table(pa.table({"text": ["x"], "label": [1]}), tmp_path / "shards/c.parquet")
    assert "but c.parquet has []. Write all shards with the same names" in refusal(
        given, tmp_path / "shards", streaming=True
    )


def test_class_names_of_a_local_data_set_are_compared(tmp_path):
    (tmp_path / "set").mkdir()
    for number, names in enumerate((["neg", "pos"], ["pos", "neg"])):
        with_class_names(tmp_path / f"set/train-{number}-of-2.parquet", names, [0, 1] * 10)
    message = refusal(load_splits, DataArguments(dataset_name=str(tmp_path / "set")))
    assert "but train-1-of-2.parquet has ['pos', 'neg']" in message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("café", "cafe\u0301"),
        ("pos", "pos\u200b"),
        ("❤️", "❤"),
        ("pos", "\ufeffpos"),
        ("sport", "spo\u00adrt"),
        ("so so", "so\u00a0so"),
        ("한국", unicodedata.normalize("NFD", "한국")),
    ],
)
def test_spellings_that_look_the_same_are_one_label_and_a_finding(tmp_path, one, other):
    train = table(tmp_path / "train.csv", [one, "bar", other, "bar", one, "bar"] * 10)
    test = table(tmp_path / "test.csv", [other, "bar"])
    splits = given(train, test_file=test)
    assert sorted(splits["train"].features["label"].names) == sorted(["bar", one])
    assert rows_of(splits["test"])[0][1] == one
    assert "taken for one" in findings_of(splits)["label_spellings"].message


@pytest.mark.parametrize(("one", "other"), [("pos", "рos"), ("So-so", "so so"), ("Ａ", "A"), ("x‑ray", "x-ray")])
def test_look_alikes_stay_apart_and_are_a_finding(tmp_path, one, other):
    splits = given(table(tmp_path / "train.csv", [one, other, "else"] * 20))
    assert len(splits["train"].features["label"].names) == 3
    assert "go by several names" in findings_of(splits)["similar_label_names"].message


VECTORS = [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]
SPELLINGS = {
    "list": str,
    "spaces": lambda bits: " ".join(map(str, bits)),
    "commas": lambda bits: ",".join(map(str, bits)),
    "semicolons": lambda bits: "; ".join(map(str, bits)),
    "bars": lambda bits: "|".join(map(str, bits)),
    "tuple": lambda bits: str(tuple(bits)),
    "numpy": lambda bits: f"[{' '.join(map(str, bits))}]",
    "floats": lambda bits: f"[{' '.join(f'{bit}.' for bit in bits)}]",
    "array": lambda bits: f"array({bits})",
    "typed": lambda bits: f"array({[float(bit) for bit in bits]}, dtype=float32)",
    "tensor": lambda bits: f"tensor({bits})",
    "booleans": lambda bits: str([bool(bit) for bit in bits]),
    "lines": lambda bits: "[" + "\n ".join(map(str, bits)) + "]",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("delimiter", [None, ","])
def test_vectors_of_0_and_1_are_understood_in_every_spelling(tmp_path, spelling, delimiter):
    labels = [SPELLINGS[spelling](bits) for bits in VECTORS] * 5
    examples = read_examples(table(tmp_path / "a.csv", labels), DataArguments(label_delimiter=delimiter))
    assert examples.features["label"].feature.names == ["label_0", "label_1", "label_2"]
    assert examples["label"][:4] == [[1, 2], [0], [], [0, 1]]


@pytest.mark.parametrize(
    "make", [list, lambda bits: [float(bit) for bit in bits], lambda bits: [bool(b) for b in bits]]
)
def test_vectors_are_lists_of_json_too(tmp_path, make):
    labels = [make(bits) for bits in VECTORS] * 5 + [[]]
    assert read_examples(table(tmp_path / "a.jsonl", labels))["label"][:4] == [[1, 2], [0], [], [0, 1]]
    two = read_examples(table(tmp_path / "two.jsonl", [make([0, 1]), make([1, 0])] * 10))
    assert two["label"][:2] == [[1], [0]]
    assert "row 1 has" in refusal(
        given, tmp_path / "a.jsonl", test_file=table(tmp_path / "short.jsonl", [make([1, 0]), make([0, 1])])
    )


def test_digits_that_may_be_a_vector_or_a_name_are_refused(tmp_path):
    path = table(tmp_path / "a.csv", ["0101", "1010", "0011"] * 5)
    assert "'0101' is a name or a vector of 0 and 1. Put spaces between" in refusal(given, path)
    names = given(path, problem_type="single_label_classification")["train"].features["label"].names
    assert names == ["0011", "0101", "1010"]


def test_lists_written_as_text_are_lists(tmp_path):
    labels = ['["R;D"]', "['R', 'D']", "[]", "{'D'}"] * 5
    assert [one for _, one in rows_of(read_examples(table(tmp_path / "a.csv", labels)))[:4]] == [
        ["R;D"], ["D", "R"], [], ["D"]]  # fmt: skip


def test_columns_of_0_and_1_are_labels(tmp_path):
    lines = ["id,comment_text,toxic,obscene,threat"]
    lines += [f"{row},{text},{row % 2},{int(row % 3 == 0)},0" for row, text in enumerate(TEXTS)]
    path = write(tmp_path / "train.csv", "\n".join(lines))
    assert "Columns of 0 and 1 are read with --label_columns toxic,obscene,threat." in refusal(given, path)
    examples = given(path, label_columns="toxic, obscene,threat")["train"]
    assert examples.features["label"].feature.names == ["toxic", "obscene", "threat"]
    assert [one for _, one in rows_of(examples)[:4]] == [["obscene"], ["toxic"], [], ["toxic", "obscene"]]
    hidden = write(tmp_path / "test.csv", "\n".join([lines[0], *(f"{row},text {row},-1,-1,-1" for row in range(3))]))
    bare = write(tmp_path / "bare.csv", "id,comment_text\n1,x\n")
    for test in (hidden, bare):
        assert "label" not in given(path, label_columns="toxic,obscene,threat", test_file=test)["test"].column_names
    assert "Expected columns ['rude']" in refusal(given, path, label_columns="toxic,rude")
    assert "got both" in refusal(given, path, label_columns="toxic,threat", label_column="obscene")
    wrong = write(tmp_path / "wrong.csv", "text,a,b\nx,1,0\ny,2,0\n")
    assert "column 'a' at line 3 has '2'" in refusal(given, wrong, label_columns="a,b")


def test_decimal_commas_are_numbers(tmp_path):
    labels = ["0,65", "1,2", "-3,5", "4"] * 5
    assert read_examples(table(tmp_path / "a.csv", labels))["label"][:4] == pytest.approx([0.65, 1.2, -3.5, 4])


# Encodings need evidence


@pytest.mark.parametrize(
    "text",
    ["call now for £750", "only £5 or ¥500", "a “good” film — it’s £2", "½ price, 20 °C, 5 m³", "© 2020 Acme® 5 €",
     "see §5, ±3 µm", "no. 5º, 3² = 9", "«Yes», he said"],
)  # fmt: skip
def test_signs_without_letters_are_western(text):
    sample = f"ham,see you\nspam,{text} now\n".encode("cp1252")
    assert choose_encoding(sample) == "cp1252"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("książka jest świetna, będę polecał", "cp1250"),
     ("příliš žluťoučký kůň", "cp1250"), ("çok güzel, ığdır", "cp1254"),
     ("¿por qué? ¡hola!", "cp1252"), ("è così perché non c'è più qualità", "cp1252"), ("die Größe ist gut", "cp1252")],
)  # fmt: skip
def test_letters_tell(text, encoding):
    sample = text.encode(encoding)
    assert sample.decode(choose_encoding(sample)) == text


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("sign", ["", " 5 €", " – “so”", " ¿?"])
def test_two_letters_alone_are_turkish_by_their_words(sign, count):
    """İ and ı are Ý and ý of Icelandic."""
    sample = "".join(f"İki gün sonra bozuldu, yazık oldu{sign} {row}\n" for row in range(count)).encode("cp1254")
    chosen = choose_encoding(sample)
    assert chosen is None or sample.decode(chosen) == sample.decode("cp1254")


@pytest.mark.parametrize(("sign", "encoding"), [("©", "koi8_r"), ("©", "cp850"), ("°", "cp437")])
def test_signs_that_stand_where_no_other_encoding_has_them_are_not_guessed(sign, encoding):
    sample = "".join(f"ham,the film was good, they say {sign} {number}\n" for number in range(40)).encode(encoding)
    assert choose_encoding(sample) is None


def test_one_encoding_is_chosen_for_a_run_and_kept_for_prediction(classify, tmp_path):
    texts = [f"call now for £{row * 5}" if row % 2 else f"see you at {row}" for row in range(60)]
    labels = ["ham", "spam"] * 30
    train = table(tmp_path / "train.csv", labels, texts, encoding="cp1252")
    test = table(tmp_path / "test.csv", labels[:20], [f"{text} café" for text in texts], encoding="cp1252")
    splits = given(train, test_file=test)
    assert [reading.encoding for reading in splits.readings.values()] == ["cp1252", "cp1252"]
    assert splits["train"]["text"][1] == "call now for £5"
    classify.main(["--train_file", train, "--test_file", test, "--method", "tfidf", "--output_dir",
                   str(tmp_path / "run")])  # fmt: skip
    assert json.loads((tmp_path / "run/model/finetune_config.json").read_text())["encoding"] == "cp1252"
    source = write(tmp_path / "in.csv", "text\nmaña kña\n", "cp1252")  # by itself it could be Polish
    finetune_command(["predict", str(tmp_path / "run"), "--input_file", source, "--output_file",
                      str(tmp_path / "out.csv")])  # fmt: skip
    assert "maña kña" in (tmp_path / "out.csv").read_text(encoding="utf-8")


def test_splits_in_different_encodings_are_a_finding(tmp_path):
    train = table(tmp_path / "train.csv", ["a", "b"] * 30, [f"{text} été" for text in TEXTS])
    test = table(tmp_path / "test.csv", ["a", "b"], ["x été là", "déjà y"], encoding="cp1252")
    finding = findings_of(given(train, test_file=test))["encodings_differ"]
    assert finding.message == "splits were read in different encodings: train as utf-8, test as cp1252"


def test_own_vocabularies_read_composed_and_decomposed_letters_alike(tmp_path):
    texts = [f"{'café' if row % 2 else 'thé'} {row % 5}" for row in range(40)]
    model = fit_floor(given(table(tmp_path / "a.csv", ["a", "b"] * 20, texts))["train"], seed=0)
    apart = [unicodedata.normalize("NFD", text) for text in texts]
    assert (model.compute_logits(texts) == model.compute_logits(apart)).all()
    tokenizer = train_word_tokenizer(texts, 50, max_length=8)
    assert tokenizer(texts)["input_ids"] == tokenizer(apart)["input_ids"]


# Formats people have


def test_vertical_bars_separate_also_where_texts_are_predicted(classify, tmp_path):
    rows = [f"{text}|{'ab'[row % 2]}" for row, text in enumerate(TEXTS)]
    train = write(tmp_path / "a.csv", "\n".join(["text|label", *rows]))
    assert rows_of(read_examples(train)) == [tuple(row.split("|")) for row in rows]
    tabless = write(tmp_path / "a.tsv", "\n".join(["text|label", *rows]))
    assert rows_of(read_examples(tabless)) == rows_of(read_examples(train))
    classify.main(["--train_file", train, "--method", "tfidf", "--output_dir", str(tmp_path / "run")])
    source = write(tmp_path / "in.csv", "id|text\n0|good film\n")
    finetune_command(["predict", str(tmp_path / "run"), "--input_file", source, "--output_file",
                      str(tmp_path / "out.csv")])  # fmt: skip
    assert (tmp_path / "out.csv").read_text().startswith("id,text,predicted_label,")


@pytest.mark.parametrize("header", ["text^label", "text~label", "text::label", "text\x1flabel", "text:label"])
def test_other_separators_are_refused_with_those_that_are_read(tmp_path, header):
    sign = header[4:-5]
    path = write(tmp_path / "a.csv", "\n".join([header, *(f"{text}{sign}a" for text in TEXTS)]))
    assert "Expected columns separated by commas, semicolons, tabs, vertical bars" in refusal(given, path)


def test_unnamed_columns_are_left_out_and_values_in_them_are_a_finding(tmp_path):
    rows = [f'{"ab"[row % 2]},"{text}",,,' for row, text in enumerate(TEXTS)]
    path = write(tmp_path / "spam.csv", "\r\n".join(["v1,v2,,,", *rows]))
    splits = given(path)
    assert rows_of(splits["train"]) == [(text, "ab"[row % 2]) for row, text in enumerate(TEXTS)]
    assert "without 3 columns without a name, which are empty" in describe_understanding(splits)[1]
    rows[7] = "b,cut here, and here,,"
    splits = given(write(tmp_path / "cut.csv", "\n".join(["v1,v2,,,", *rows])))
    assert "which hold values in 1 rows" in findings_of(splits)["unnamed_columns"].message
    saved = write(tmp_path / "saved.csv", "\n".join(["v1,v2,Unnamed: 2,Unnamed: 3", *(row[:-1] for row in rows[:7])]))
    assert read_examples(saved)["text"][0] == TEXTS[0]


LABELS = ["0", "1", "1", "0"] * 15
LINES = {
    "text first": lambda text, label: f"{text}\t{label}",
    "label first": lambda text, label: f"{label}\t{text}",
    "fastText": lambda text, label: f"__label__{label} {text}",
    "fastText behind": lambda text, label: f"{text} __label__{label}",
    "fastText, comma": lambda text, label: f"__label__{label},{text}",
    "fastText, tab": lambda text, label: f"__label__{label}\t{text}",
    "fastText, behind a comma": lambda text, label: f"{text},__label__{label}",
    "text, bar": lambda text, label: f"{text}|{label}",
    "text, semicolon": lambda text, label: f"{text};{label}",
    "text, comma": lambda text, label: f"{text}, {label}",
    "text, spaces": lambda text, label: f"{text}   {label}",
    "label, comma": lambda text, label: f"{label},{text}",
    "label, bar": lambda text, label: f"{label}|{text}",
    "label of two words": lambda text, label: f"so {label}\t{text}",
}


@pytest.mark.parametrize("layout", LINES)
def test_lines_of_labels_and_texts_are_read_in_either_order(tmp_path, layout):
    path = write(tmp_path / "a.txt", "".join(LINES[layout](*row) + "\n" for row in zip(TEXTS, LABELS, strict=True)))
    prefix = "so " if layout == "label of two words" else ""
    assert rows_of(read_examples(path)) == [(text, prefix + label) for text, label in zip(TEXTS, LABELS, strict=True)]


def test_first_and_last_words_that_could_be_labels_are_refused(tmp_path):
    first = ["The", "A", "One", "Some"]
    lines = [f"{first[row % 4]} {text} {row % 2}\n" for row, text in enumerate(TEXTS)]
    path = write(tmp_path / "a.txt", "".join(lines))
    assert "both the first and the last words of its lines could be labels" in refusal(given, path)


@pytest.mark.parametrize(
    "line", ["__label__A, __label__B text here", "__label__A __label__B text here", "text here __label__A __label__B",
             "__label__A text here __label__B", "__label__A,__label__B text here"],
)  # fmt: skip
def test_several_labels_may_stand_anywhere_in_a_line(tmp_path, line):
    other = line.replace("A", "C").replace("here", "there")
    found = rows_of(read_examples(write(tmp_path / "a.txt", f"{line}\n{other}\n" * 4)))
    assert found[:2] == [("text here", ["A", "B"]), ("text there", ["B", "C"])]


@pytest.mark.parametrize(
    "files",
    [{"pos.txt": 0, "neg.txt": 1}, {"pos/all.txt": 0, "neg/all.txt": 1}, {"rt.pos": 0, "rt.neg": 1},
     {"pos.txt": 0, "neg.txt": 1, "README.txt": 2}],
)  # fmt: skip
def test_a_folder_may_hold_one_text_a_line(tmp_path, files):
    parts = [TEXTS[:20], TEXTS[20:40], ["Reviews of films.", "Made in a test."]]
    for name, part in files.items():
        write(tmp_path / "data" / name, "\n".join(parts[part]) + "\n\n")
    found = dict(rows_of(read_examples(str(tmp_path / "data"))))
    assert found == {**dict.fromkeys(parts[0], "pos"), **dict.fromkeys(parts[1], "neg")}


@pytest.mark.parametrize("ending", [".tab", ".tsv"])
@pytest.mark.parametrize("head", [("text\tmood", "string\tdiscrete", "meta\tclass"), ("mood\ttext", "d\ts", "c\tm")])
def test_orange_s_three_lines_of_header_are_no_rows(tmp_path, ending, head):
    first = head[0].startswith("mood")
    rows = [f"{label}\t{text}" if first else f"{text}\t{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    path = write(tmp_path / f"a{ending}", "\n".join([*head, *rows]))
    assert rows_of(read_examples(path)) == list(zip(TEXTS, LABELS, strict=True))


OBJECTS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
JSONS = {
    "under data": {"data": OBJECTS},
    "with more": {"version": "1.0", "rows": OBJECTS},
    "columns of lists": {"text": TEXTS, "label": LABELS},
    "pandas": {"text": dict(enumerate(TEXTS)), "label": dict(enumerate(LABELS))},
    "pandas, split": {"columns": ["text", "label"], "index": [0], "data": [list(one.values()) for one in OBJECTS]},
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("layout", JSONS)
def test_objects_within_json_are_found(tmp_path, layout, indent):
    path = write(tmp_path / "a.json", json.dumps(JSONS[layout], indent=indent))
    assert rows_of(read_examples(path)) == list(zip(TEXTS, LABELS, strict=True))


def test_nested_values_are_named_with_dots(tmp_path):
    rows = [{"data": {"text": text, "more": [text]}, "meta": {"label": label}, "n": 1} for text, label in
            zip(TEXTS, LABELS, strict=True)]  # fmt: skip
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert "inside of them ['data.text', 'meta.label']" in refusal(given, path)
    for name in ("data.text", "data.more.0"):
        examples = read_examples(path, DataArguments(text_column=name, label_column="meta.label"))
        assert rows_of(examples) == list(zip(TEXTS, LABELS, strict=True))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    arguments = DataArguments(text_column="data.text", label_column="meta.label")
    assert rows_of(read_examples(str(tmp_path / "a.parquet"), arguments)) == list(zip(TEXTS, LABELS, strict=True))


def test_a_sheet_of_excel_is_read(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [("id", "text", "label"), *((row, *one) for row, one in enumerate(zip(TEXTS, LABELS, strict=True)))]:
        book.active.append(row)
    book.create_sheet("empty")
    book.save(tmp_path / "a.xlsx")
    assert rows_of(read_examples(str(tmp_path / "a.xlsx"))) == list(zip(TEXTS, LABELS, strict=True))
    book.active["A1"] = None  # as pandas writes its index
    book.save(tmp_path / "indexed.xlsx")
    assert rows_of(read_examples(str(tmp_path / "indexed.xlsx"))) == list(zip(TEXTS, LABELS, strict=True))
    book.active["A3"] = "a word"
    book.save(tmp_path / "unnamed.xlsx")
    assert "Expected a name above every column" in refusal(given, tmp_path / "unnamed.xlsx")
    book["empty"].append(["text", "label"])
    book.save(tmp_path / "two.xlsx")
    assert "Expected one sheet with rows" in refusal(given, tmp_path / "two.xlsx")
    (tmp_path / "a.csv").write_bytes((tmp_path / "a.xlsx").read_bytes())
    assert "but it is an Excel file. Rename it to a.xlsx" in refusal(given, tmp_path / "a.csv")
    assert "Expected a workbook of Excel" in refusal(given, write(tmp_path / "bad.xlsx", b"PK\x03\x04 no"))


def of_sqlite(path):
    with sqlite3.connect(path) as base:
        base.execute("create table a (text, label)")
    return path.read_bytes()


def of_zip(*names):
    with zipfile.ZipFile(sink := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return sink.getvalue()


@pytest.mark.parametrize("ending", [".db", ".csv", ""])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it is a SQLite data base. Save a table of it: sqlite3 -header -csv"),
        (b"%PDF-1.7\n\x00\xff", "it is a PDF document. Save its texts"),
        (of_zip("a.csv"), "it is a zip archive. Unpack it with: unzip"),
        (of_zip("word/document.xml"), "it is a Word document"),
        (of_zip("content.xml"), "it is a file of LibreOffice"),
        (pickle.dumps(OBJECTS), "it is a pickle, which can run code when it is read"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "it is an old Excel or Word file (.xls, .doc)"),
        (b"<!DOCTYPE html>\n<html></html>", "it is a web page. Download the data itself"),
        (b"<?xml version='1.0'?>", "it is XML. Convert it with pandas"),
        (b"7z\xbc\xaf\x27\x1c\x00", "it is a 7-Zip archive"),
        (b"ARROW1\x00\x00", "it is an Arrow or Feather file"),
    ],
)
def test_what_is_not_read_is_named_with_the_way_to_get_there(tmp_path, ending, content, message):
    path = tmp_path / f"a{ending}"
    assert message in refusal(given, write(path, content or of_sqlite(tmp_path / "base")))


def test_one_label_with_a_separator_in_it_can_be_told_from_two(classify, tmp_path):
    train = table(tmp_path / "semi.jsonl", [["R;D"], ["R", "D"]] * 30)
    classify.main(["--train_file", train, "--method", "tfidf", "--output_dir", str(tmp_path / "run")])
    source = table(tmp_path / "in.csv", [0] * 20, names=("text", "row"))
    finetune_command(["predict", str(tmp_path / "run"), "--input_file", source, "--output_file",
                      str(tmp_path / "out.csv")])  # fmt: skip
    with (tmp_path / "out.csv").open(newline="") as file:
        found = [json.loads(row["predicted_labels"]) for row in csv.DictReader(file)]
    assert ["R;D"] in found
    assert ["D", "R"] in found


# Columns


@pytest.mark.parametrize(
    ("header", "row", "text", "label"),
    [
        ("utterance,label,label_text", "a long text,1,praise", "utterance", "label"),
        ("category_name,utterance,category", "praise,a long text,1", "utterance", "category"),
        ("labelText,utterance,label", "praise,a long text,1", "utterance", "label"),
        ("class_title,body,class", "praise,a text,1", "body", "class"),
        ("text,intent,confidence_score", "a text,praise,0.25", "text", "intent"),
        ("text,intent,score", "a text,praise,0.25", "text", "intent"),
        ("text,emotion,confidence", "a text,praise,0.25", "text", "emotion"),
        ("text,score", "a text,0.25", "text", "score"),
    ],
)
def test_no_column_that_tells_the_label_once_more_is_the_text(tmp_path, header, row, text, label):
    other = row.replace("praise", "blame").replace("0.25", "0.75").replace(",1", ",0")
    path = write(tmp_path / "a.csv", "\n".join([header, row, other, row, other, row, other]))
    columns = given(path).readings["train"].columns
    assert columns == f"text from column {text!r}, label from column {label!r}"


def test_a_column_that_tells_the_label_is_not_the_text_even_alone(tmp_path):
    path = write(tmp_path / "a.csv", "label,label_text\n1,praise\n0,blame\n")
    assert "Expected to tell the text column of" in refusal(given, path)


@pytest.mark.parametrize("missing", ["", "nan", "NULL"])
def test_rows_without_a_group_are_groups_of_their_own(tmp_path, missing):
    lines = [
        f"{text},{'ab'[row % 2]},{f'author {row}' if row % 10 == 0 else missing}" for row, text in enumerate(TEXTS)
    ]
    path = write(tmp_path / "a.csv", "\n".join(["text,label,author", *lines]))
    splits = given(path, group_column="author")
    finding = findings_of(splits)["rows_without_group"]
    assert (finding.severity, finding.num_rows) == ("warning", 54)
    assert len(set(splits["train"]["group"])) == 60
    carved = load_splits(DataArguments(train_file=path, group_column="author"))
    assert {name: len(split) for name, split in carved.items()} == {"train": 48, "validation": 6, "test": 6}


@pytest.mark.parametrize("max_ngram", [1, 2, 3])
def test_terms_weigh_as_scikit_learn_weighs_them(max_ngram):
    texts, words = zip(*make_reviews(300), strict=True)
    labels = np.array([word == "pos" for word in words], dtype=int)
    model = fit_tfidf(texts, labels, ["neg", "pos"], seed=0, max_ngram=max_ngram)
    vectorizer = TfidfVectorizer(
        ngram_range=(1, max_ngram), sublinear_tf=True, token_pattern=WORD, preprocessor=compose, min_df=2
    ).fit(texts)
    new = [*texts[:50], "", "!?", "nothing known", f"{texts[0]} {texts[1]} {texts[0]}"]
    expected, found = vectorizer.transform(new), model.compute_features(new)
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))


def test_emoji_are_words_to_the_floor_and_texts_without_any_are_said(tmp_path):
    texts = [("😡 💔 👨‍👩‍👧" if row % 2 else "❤️ 👍🏽 😀") + " 🎬" * (row % 4) for row in range(40)]
    model = fit_floor(given(table(tmp_path / "a.csv", ["a", "b"] * 20, texts))["train"], seed=0)
    assert {"👨‍👩‍👧", "👍🏽", "😡"} <= set(model.columns)
    assert (model.compute_logits(texts).argmax(axis=1) == [row % 2 for row in range(40)]).all()
    dots = given(table(tmp_path / "dots.csv", ["a", "b"] * 20, ["...!" * (1 + row % 3) for row in range(40)]))["train"]
    with pytest.warns(UserWarning, match="TF-IDF reads nothing of 40 of the 40 training texts"):
        fit_floor(dots, seed=0)


# Every combination: read exactly, or refused in a line

SENTENCES = {
    "English": ["The film was good, they say", "Nobody liked the plot of it", "I won £500 at the café"],
    "French": ["Le film était très réussi", "Ça n'a pas plu à Noël", "Déçu, où est l'œuvre pour 5 € ?"],
    "German": ["Das Gerät ist völlig in Ordnung", "Größe und Qualität sind mäßig", "Für 20 € ist es schön"],
    "Spanish": ["La película llegó rápido", "¿Por qué es así, señor?", "El niño está aquí ½ hora"],
    "Polish": ["Książka jest świetna, będę polecał", "Zepsuł się po dwóch dniach", "Pokój był przeciętny, choć niezły"],
    "Czech": ["Tento film je výborný, doporučuji", "Rozbil se po dvou dnech, škoda peněz", "Příliš žluťoučký kůň"],
    "Turkish": ["Çok güzel bir film, tavsiye ederim", "İki gün sonra bozuldu, yazık oldu", "Sıkıcı ve küçük, şaşırdım"],
    "Russian": ["Очень понравился, всем советую", "Ужасного качества, сломался", "Обычный фильм, ничего особенного"],
    "Chinese": ["这个手机很好用，非常满意", "质量太差了，用了两天就坏了", "一般，价格便宜，但是不一样"],
    "Japanese": ["とても良いです。また買いたい", "期待したほどではなかった", "普通です。値段は安いです"],
    "Ukrainian": ["Дуже сподобався фільм, усім раджу", "Жахливої якості, зламався", "Їжа була смачною, є недоліки"],
    "Korean": ["정말 재미있는 영화였어요", "품질이 너무 나빠서 고장났어요", "보통이에요, 가격은 싸요"],
    "Latvian": ["Ļoti laba filma, iesaku visiem", "Šausmīga kvalitāte, salūza", "Parasta filma, nekā īpaša"],
    "Greek": ["Μου άρεσε πολύ η ταινία", "Πολύ κακή ποιότητα, χάλασε", "Συνηθισμένη ταινία, τίποτα ιδιαίτερο"],
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "cp1252", "cp1250", "cp1251", "cp1254", "gb18030", "koi8_r", "cp866",
             "cp932", "euc_kr", "big5", "iso8859_15", "cp1253", "cp850"]  # fmt: skip
OF_ONE_LANGUAGE = {"cp932": "Japanese", "euc_kr": "Korean", "big5": "Chinese"}
SIGNS = ["", " £750", " – “so”", " 5 €", " 20 °C", " ©", " ¿?", ' say "no"', " a;b", " x|y", " a,b"]
NAMES = [("0", "1"), ("neg", "pos"), ("Nie", "Tak"), ("-1", "1"), ("so so", "good!"), ("False", "True"), ("1.0", "2.0")]
LAYOUTS = [",", ";", "\t", "|", "jsonl", "json", "data", "by row", "joined", "lines", "tab lines", "fastText",
           "fastText behind"]  # fmt: skip
TAILS = ["", "", "row numbers", "behind rows", "behind the header", "blanks"]  # how a table departs from what is usual


def draw_file(draw, folder):
    """Write a file of rows that are known; None where the encoding lacks one of their signs."""
    language, encoding, layout = draw.choice(sorted(SENTENCES)), draw.choice(ENCODINGS), draw.choice(LAYOUTS)
    if OF_ONE_LANGUAGE.get(encoding, language) != language:
        return None  # it could be written so, and never is
    names, quoting = draw.choice(NAMES), draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    signs, line_end = draw.sample(SIGNS, 3), draw.choice(["\n", "\r\n"])
    count = draw.choice([6, 12, 40])
    rows = []
    for number in range(count):
        text = f"{draw.choice(SENTENCES[language])}{draw.choice(signs)} {number}"
        try:
            text = text.encode(encoding).decode(encoding)  # Japanese encodings have another pound
        except UnicodeEncodeError:
            return None
        rows.append((text, names[number % 2] if number < 2 else draw.choice(names)))
    match layout:
        case "jsonl" | "json" | "data" | "by row" | "joined":
            objects = [{"text": text, "label": label} for text, label in rows]
            ending = ".jsonl" if layout in ("jsonl", "joined") else ".json"
            lines = [json.dumps(one, ensure_ascii=False) for one in objects]
            content = line_end.join(lines)
            if layout == "joined":  # of two files that begin with a byte order mark each
                content = "\ufeff" + line_end.join([*lines[:3], "\ufeff" + lines[3], *lines[4:]])
            if ending == ".json":
                by_row = {f"r{number}": one for number, one in enumerate(objects)}
                whole = {"json": objects, "data": {"data": objects}, "by row": by_row}[layout]
                content = json.dumps(whole, ensure_ascii=False, indent=draw.choice([None, 1]))
        case "lines" | "tab lines" | "fastText" | "fastText behind":
            ending = draw.choice([".txt", ".data", ""])
            form = {"lines": "{1} {0}", "tab lines": "{0}\t{1}", "fastText": "__label__{1} {0}",
                    "fastText behind": "{0} __label__{1}"}[layout]  # fmt: skip
            if layout != "tab lines":
                rows = [(text, label.replace(" ", "-")) for text, label in rows]
            content = line_end.join(form.format(*row) for row in rows)
        case _:
            ending, order = (".tsv" if layout == "\t" and draw.random() < 0.5 else ".csv"), draw.choice([1, -1])
            text = io.StringIO(newline="")
            writer = csv.writer(text, delimiter=layout, quoting=quoting, lineterminator=line_end)
            tail = draw.choice(TAILS)
            head, *body = ([*row[::order]] for row in [("text", "label"), *rows])
            if tail == "row numbers":
                body = [[str(number), *row] for number, row in enumerate(body, 1)]
            elif tail == "behind rows":
                body = [[*row, None] for row in body]
            elif tail == "behind the header":
                head = [*head, None]
            writer.writerows([head, *body])
            content = text.getvalue()
            if tail == "blanks" and quoting == csv.QUOTE_ALL:
                content = content.replace(f'"{layout}"', f'"{layout} "')
    try:
        return write(folder / f"a{ending}", content, encoding), rows, (language, encoding, layout)
    except UnicodeEncodeError:
        return None


def name_of(label):
    """Return the name that a label gets: whole numbers lose their decimals."""
    return label.removesuffix(".0") if label[:1].isdigit() else label


def check_file(draw, folder):
    """Return whether a generated file was "read" exactly or "refused" in a line; None if there is none.

    Raises:
        AssertionError: If it was read as something else.
    """
    drawn = draw_file(draw, folder)
    if drawn is None:
        return None
    path, rows, kind = drawn
    try:
        found = rows_of(read_examples(path))
    except FinetuneError as error:
        return "refused" if len(str(error).splitlines()) == 1 else "refused in several lines"
    expected = [(text, name_of(label)) for text, label in rows]
    wrong = next(((one, other) for one, other in zip(found, expected, strict=True) if one != other), None)
    assert wrong is None, (kind, wrong)
    return "read"


def test_generated_files_are_read_exactly_or_refused(tmp_path):
    draw = random.Random(18)
    counts = Counter(check_file(draw, tmp_path / str(number)) for number in range(400))
    assert set(counts) <= {"read", "refused", None}
    assert counts["read"] > 4 * counts["refused"]


def main():
    """Count how many generated files are read exactly, and how many refused; end with 1 if one is neither."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw, counts, failures = random.Random(arguments.seed), Counter(), 0
    with tempfile.TemporaryDirectory() as name:
        datasets.config.HF_DATASETS_CACHE = Path(name) / "cache"
        for number in itertools.count():
            if counts["read"] + counts["refused"] + failures >= arguments.files:
                break
            try:
                counts[check_file(draw, Path(name) / str(number))] += 1
            except AssertionError as error:
                failures += 1
                print(f"read as something else: {error}", flush=True)
    print(f"{counts['read']:,} read exactly, {counts['refused']:,} refused in a line, {failures:,} neither")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
