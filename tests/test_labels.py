"""Labels of every kind, told and numbered, with values worked by hand."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.labels import Task, find_task, is_hidden, label_matrix, natural_order, number_labels, task_of
from finetune.data.load import load_given_splits, load_splits, read_examples
from finetune.errors import FinetuneError
from finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from finetune.settings.parts import DataArguments


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def write_labels(path: Path, labels: list) -> str:
    """Write a text with each label, as JSON Lines or, by the ending, as Parquet or CSV."""
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path, labels: list, **arguments) -> Dataset:
    return read_examples(write_labels(path, labels), DataArguments(**arguments))


def refusal(call, *arguments, **named) -> str:
    with pytest.raises(FinetuneError) as caught:
        call(*arguments, **named)
    assert len(str(caught.value).splitlines()) == 1
    assert not [file for file in datasets.config.HF_DATASETS_CACHE.rglob("*") if file.is_file()]
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["pos", "neg", "pos"], ["neg", "pos"], [1, 0, 1]),
        ([" pos", "neg ", "pos"], ["neg", "pos"], [1, 0, 1]),
        ([3, 1, 1], ["1", "3"], [1, 0, 0]),
        ([True, False, True], ["False", "True"], [1, 0, 1]),
        ([2.0, 1.0, 2.0], ["1", "2"], [1, 0, 1]),
        ([2, 1.0, 2.0], ["1", "2"], [1, 0, 1]),
        (["2.0", "1.00", "2"], ["1", "2"], [1, 0, 1]),
        (["v2.0", "1.0.0", "v2.0"], ["1.0.0", "v2.0"], [1, 0, 1]),
        (["NA", "null", "NA"], ["NA", "null"], [0, 1, 0]),
        ([10**400, 1, 1], ["1", str(10**400)], [1, 0, 0]),
        (["good 10", "good 9", "good 10"], ["good 9", "good 10"], [1, 0, 1]),
    ],
)
def test_classes_are_named_as_a_person_would(tmp_path, labels, names, numbers):
    examples = read(tmp_path / "a.jsonl", labels)
    assert task_of(examples.features) == Task(SINGLE_LABEL, names)
    assert examples["label"][:] == numbers


def test_numbers_of_a_csv_are_classes(tmp_path):
    examples = read(tmp_path / "a.csv", [10, 9, 2, 10, 9, 2])
    assert examples.features["label"].names == ["2", "9", "10"]
    assert examples["label"][:] == [2, 1, 0, 2, 1, 0]


@pytest.mark.parametrize(
    "order",
    [
        ["0", "1", "2", "9", "10", "11", "100"],
        ["07", "7", "8", "08a", "8b"],
        ["a", "a1", "a2", "a10", "a10b", "b"],
        ["1-9", "1-10", "2-1"],
        ["9" * 5_000, "1" + "0" * 5_000],
    ],
)
def test_natural_order_compares_numbers_as_numbers(order):
    assert sorted(set(order), key=natural_order) == order


@settings(max_examples=100, deadline=None, database=None)
@given(st.sets(st.text("0129a٣-", max_size=6), min_size=2))
def test_natural_order_is_the_same_whatever_it_begins_with(names):
    assert sorted(sorted(names), key=natural_order) == sorted(sorted(names, reverse=True), key=natural_order)


def test_lists_are_several_labels(tmp_path):
    examples = read(tmp_path / "a.jsonl", [["b", "a"], [], ["c", "c"], ["b"], "a"])
    assert task_of(examples.features) == Task(MULTI_LABEL, ["a", "b", "c"])
    assert examples["label"][:] == [[0, 1], [], [2], [1], [0]]
    assert label_matrix(examples["label"], task_of(examples.features)).tolist() == [
        [1, 1, 0],
        [0, 0, 0],
        [0, 0, 1],
        [0, 1, 0],
        [1, 0, 0],
    ]


def test_lists_of_numbers_are_several_labels(tmp_path):
    examples = read(tmp_path / "a.parquet", [[10, 2], [2], [10]])
    assert examples.features["label"].feature.names == ["2", "10"]
    assert examples["label"][:] == [[0, 1], [0], [1]]


def test_a_delimiter_parts_several_labels(tmp_path):
    examples = read(tmp_path / "a.csv", ["joy|fear", "fear | 1.0|", "", "joy"], label_delimiter="|")
    assert task_of(examples.features) == Task(MULTI_LABEL, ["1", "fear", "joy"])
    assert examples["label"][:] == [[1, 2], [0, 1], [], [2]]


def test_several_labels_may_be_asked_for(tmp_path):
    examples = read(tmp_path / "a.csv", ["a", "b", "c"], problem_type=MULTI_LABEL)
    assert examples["label"][:] == [[0], [1], [2]]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_fractions_are_numbers_to_predict(tmp_path, ending):
    examples = read(tmp_path / f"a{ending}", [0.5, -3.0, 2.25])
    assert task_of(examples.features) == Task(REGRESSION, ["value"])
    assert examples["label"][:] == [0.5, -3.0, 2.25]
    assert label_matrix(examples["label"], task_of(examples.features)).tolist() == [0.5, -3.0, 2.25]


def test_whole_numbers_may_be_predicted(tmp_path):
    examples = read(tmp_path / "a.csv", [5, 3, 4], problem_type=REGRESSION)
    assert examples["label"][:] == [5.0, 3.0, 4.0]


def test_fractions_may_be_classes(tmp_path):
    examples = read(tmp_path / "a.csv", [0.5, 1.0, 0.5], problem_type=SINGLE_LABEL)
    assert examples.features["label"].names == ["0.5", "1"]


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (["a", None, "b"], {}, "a label in every row of column 'label' of 'a.jsonl', but row 2 lacks one"),
        (["a", "  ", "b"], {}, "row 2 lacks one"),
        ([1.0, float("nan")], {}, "row 2 lacks one"),
        ([["a"], None], {}, "row 2 lacks one"),
        ([["a"], ["b", None]], {}, "row 2 lacks one"),
        ([["a"], [""]], {}, "row 2 lacks one"),
        ([0.5, None], {}, "row 2 lacks one"),
        ([None, None], {}, "row 1 lacks one"),
        (["a", "b", "nan"], {}, "row 3 has 'nan', which stands for a missing one. Remove or complete the row"),
        ([["a"], ["b", " NaN"]], {}, "row 2 has ['b', ' NaN'], which stands for a missing one"),
        (["a|b", "<NA>"], {"label_delimiter": "|"}, "row 2 has '<NA>'"),
        (["1", "0", "#N/A"], {}, "row 3 has '#N/A'"),
        (["1", "0", "none"], {}, "Expected a number in every row of column 'label' of 'a.jsonl', but row 3 has 'none'"),
        (["0.5", "NA"], {"problem_type": REGRESSION}, "row 2 has 'NA' where others have numbers"),
        (["a", "b"], {"label_delimiter": ""}, "Expected a sign --label_delimiter for column 'label' of 'a.jsonl'"),
        (["a", "b"], {"label_delimiter": "|", "problem_type": SINGLE_LABEL}, "one label each, but got '|'. Leave it"),
        ([0.5, 1.5], {"label_delimiter": "|", "problem_type": REGRESSION}, "one label each, but got '|'. Leave it out"),
        (["a|b", None], {"label_delimiter": "|"}, "row 2 lacks one"),
        ([1, "b"], {}, "Expected labels of one type in column 'label' of 'a.jsonl', but found a number and str"),
        ([1, True], {}, "found a number and bool. Write all as strings"),
        ([["a", 1], ["b"]], {}, "found a number and str. Write all as strings"),
        ([[1], [True]], {}, "found a number and bool. Write all as strings"),
        (
            ["1", "2", "positive"] * 2,
            {},
            "Expected numbers or words as labels in column 'label' of 'a.jsonl', but found",
        ),
        (["inf", "1.5", "1.5"], {}, "row 2 has '1.5' and row 1 has 'inf'"),
        (["True", "0", "0", "True"], {}, "found both: row 2 has '0' and row 1 has 'True'. Write all in one way"),
        (["a", ["b"]], {"problem_type": SINGLE_LABEL}, "found list and str"),
        ([["a"], ["b"]], {"problem_type": SINGLE_LABEL}, "Expected strings, numbers or booleans as labels"),
        (["a", "b", "c"], {}, "found 3 distinct labels in 3 rows. Is it an id or free text?"),
        ([[], []], {}, "Expected labels in column 'label' of 'a.jsonl', but found none"),
        (["['a']", "['a', 'b']"], {"label_delimiter": ","}, "found lists written as text"),
        ([[0, 1, 0], [1, 1]], {}, "found vectors of 0 and 1 of [2, 3] places. Write one for each label in every row"),
        (
            ["0,1", "1,0"],
            {},
            "'0,1' is a number with a decimal comma or two labels. Pass --problem_type regression, or",
        ),
        ([[0.2, 0.8], [0.7, 0.3]], {}, "found numbers with fractions in them, such as 0.2. Write the names of the"),
        (
            ["1,000", "2,500"],
            {},
            "but the comma in '1,000' may part decimals or thousands. Write decimals with a point",
        ),
        ([0.5, "much"], {"problem_type": REGRESSION}, "Expected a number to predict in every row of column 'label' of"),
        ([0.5, "much"], {"problem_type": REGRESSION}, "row 2 has 'much'. Write it with"),
        ([0.5, [1]], {"problem_type": REGRESSION}, "row 2 has '[1]'"),
        ([0.5, "inf"], {"problem_type": REGRESSION}, "row 2 has 'inf'"),
        ([0.5, 1e39], {}, "row 2 has '1e+39'"),
        ([0.5, 10**400], {"problem_type": REGRESSION}, "row 2 has '1000"),
    ],
)
def test_bad_labels_are_refused_in_a_line_and_leave_nothing(tmp_path, monkeypatch, labels, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(read, Path("a.jsonl"), labels, **arguments)


def test_numbers_and_words_may_be_classes_if_that_is_said(tmp_path):
    labels = ["1", "2", "positive", "1", "2.0", "positive"]
    assert "row 1 has '1' and row 3 has 'positive'" in refusal(read, tmp_path / "a.csv", labels)
    examples = read(tmp_path / "a.csv", labels, problem_type=SINGLE_LABEL)
    assert examples.features["label"].names == ["1", "2", "positive"]


def test_missing_numbers_of_parquet_are_refused(tmp_path):
    assert "row 2 lacks one" in refusal(read, tmp_path / "a.parquet", [1.0, float("nan"), 0.0])
    assert "row 3 lacks one" in refusal(read, tmp_path / "a.parquet", [1, 0, None])


def test_a_class_of_one_is_refused(tmp_path):
    path = write_labels(tmp_path / "a.jsonl", ["a"] * 60)
    with pytest.raises(FinetuneError, match=r"two classes in split 'train', but found only 'a' in its 48 rows"):
        load_splits(DataArguments(train_file=path))


def test_one_row_of_each_class_is_refused(tmp_path):
    path = write_labels(tmp_path / "a.jsonl", ["a", "b"])
    with pytest.raises(FinetuneError, match=r"more than 2 training rows to carve test, validation from, .* found 0"):
        load_splits(DataArguments(train_file=path))


def given_splits(folder: Path, train: list, test: list, ending: str = ".jsonl", **arguments) -> datasets.DatasetDict:
    return load_given_splits(
        DataArguments(
            train_file=write_labels(folder / f"train{ending}", train),
            test_file=write_labels(folder / f"test{ending}", test),
            **arguments,
        )
    )


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([0, 1, 0, 1], [-1, -1]),
        (["no", "yes"], ["-1", "-1"]),
        (["no", "yes"], ["", ""]),
        (["no", "yes"], [None, None]),
        ([0.5, 1.5], [-1.0, -1.0]),
        ([0.0, 1.0], [float("nan"), float("nan")]),
        (["no", "yes"], ["nan", "nan"]),
        ([["a"], ["b"]], [None, None]),
        (["no", "yes"], [-1, None]),
    ],
)
def test_labels_withheld_from_test_leave_it_without_the_column(tmp_path, train, test):
    splits = given_splits(tmp_path, train, test)
    assert splits["test"].column_names == ["id", "text"]
    assert splits["test"].info.description.endswith("labels withheld")
    assert splits["train"].column_names == ["id", "text", "label"]


@pytest.mark.parametrize(("ending", "content"), [(".tsv", "index\tsentence\n0\tx\n1\ty\n"), (".csv", ",text\n0,x\n")])
def test_a_test_file_without_labels_leaves_it_without_the_column(tmp_path, ending, content):
    train, test = write_labels(tmp_path / "train.csv", ["no", "yes"]), tmp_path / f"test{ending}"
    test.write_text(content)
    splits = load_given_splits(DataArguments(train_file=train, test_file=str(test)))
    assert splits["test"].column_names == ["id", "text"]
    assert splits["test"]["text"][0] == "x"


def test_minus_one_is_a_class_where_train_has_it(tmp_path):
    splits = given_splits(tmp_path, [-1, 1, -1, 1], [-1, -1])
    assert splits["train"].features["label"].names == ["1", "-1"]
    assert splits["test"]["label"][:] == [1, 1]


def test_train_without_labels_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,kind,date\nx,y,z\n")
    message = refusal(load_given_splits, DataArguments(train_file=str(tmp_path / "a.csv")))
    assert "Expected labels in columns ['text', 'kind', 'date'] of" in message
    assert "but found no column that holds them. Pass --label_column" in message


def test_labels_withheld_from_validation_are_refused(tmp_path):
    train, hidden = write_labels(tmp_path / "train.jsonl", [0, 1]), write_labels(tmp_path / "hidden.jsonl", [-1, -1])
    with pytest.raises(FinetuneError, match=r"only the labels \['0', '1'\] in column 'label' .*, but found \['-1'\]"):
        load_given_splits(DataArguments(train_file=train, validation_file=hidden))
    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text('{"text": "x"}\n')
    with pytest.raises(FinetuneError, match=r"Expected labels in columns \['text'\] of .*, which models are chosen by"):
        load_given_splits(DataArguments(train_file=train, validation_file=str(unlabelled)))


@pytest.mark.parametrize(
    ("train", "test", "shown"),
    [
        (["a", "b"], ["a", "c", "b"], r"['a', 'b'] in column 'label' of"),
        (["a", "b"], ["a", "c", "b"], r"but found ['c'] too. Rename or remove them"),
        (
            ["a", "b"],
            ["0", "2"],
            r"but found ['0', '2']: numbers can't be joined to names by their position. Write the",
        ),
        (["0", "1"], ["a", "b"], r"but found ['a', 'b']: numbers can't be joined to names by their position"),
        (["1", "2"], ["0", "0"], r"but found ['0'] too"),
        ([["a"], ["b"]], [["c", "a"]], r"but found ['c'] too"),
        (["a", "b"], ["a", "x" * 5_000], r"but found ['" + "x" * 80 + "'] too"),
    ],
)
def test_a_label_that_only_test_has_is_refused(tmp_path, train, test, shown):
    with pytest.raises(FinetuneError) as caught:
        given_splits(tmp_path, train, test)
    assert shown in str(caught.value)


def test_labels_are_numbered_as_in_train_whatever_their_type(tmp_path):
    assert given_splits(tmp_path, ["1", "2", "10"] * 2, [10, 2.0, 1])["test"]["label"][:] == [2, 1, 0]
    assert given_splits(tmp_path, [1, 2, 1], ["2.0", "1.0"])["test"]["label"][:] == [1, 0]
    assert given_splits(tmp_path, [["b"], ["a"]], [["b", "a"], []])["test"]["label"][:] == [[0, 1], []]
    assert given_splits(tmp_path, [0.5, 1], ["0.25", 3])["test"]["label"][:] == [0.25, 3.0]


def test_names_of_classes_that_are_numbers_do_not_stand_for_other_numbers():
    assert number_labels(["1", "0"], ["neg", "pos"], "it", is_numbered=True) == [1, 0]
    with pytest.raises(FinetuneError, match=r"\['neg', 'pos'\] in it, but found \['1', '0'\]: numbers can't be joined"):
        number_labels(["1", "0"], ["neg", "pos"], "it")
    assert number_labels(["2"], ["1", "2"], "it") == [1]
    with pytest.raises(FinetuneError, match=r"only the labels \['1', '2'\] in it, but found \['0'\] too"):
        number_labels(["0"], ["1", "2"], "it")


def test_numbers_of_another_list_of_class_names_are_matched_by_name(tmp_path):
    for split, names in (("train", ["neg", "pos"]), ("test", ["pos", "neg"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features).to_parquet(tmp_path / f"{split}.parquet")
    splits = load_given_splits(
        DataArguments(train_file=str(tmp_path / "train.parquet"), test_file=str(tmp_path / "test.parquet"))
    )
    assert splits["train"]["label"][:] == [0, 1]
    assert splits["test"]["label"][:] == [1, 0]


def test_pairs_carry_their_labels(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence1\tsentence2\tlabel\nx\ty\t0\nz\tw\t1\n")
    (tmp_path / "test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n")
    splits = load_given_splits(
        DataArguments(train_file=str(tmp_path / "train.tsv"), test_file=str(tmp_path / "test.tsv"))
    )
    assert splits["train"].to_list() == [
        {"id": "train.tsv-0", "text": "x", "text_pair": "y", "label": 0},
        {"id": "train.tsv-1", "text": "z", "text_pair": "w", "label": 1},
    ]
    assert splits["test"].to_list() == [{"id": "test.tsv-0", "text": "a", "text_pair": "b"}]


def test_pairs_beside_single_texts_are_refused(tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("sentence1,sentence2,label\nx,y,a\nz,w,b\n")
    single = write_labels(tmp_path / "single.csv", ["a", "b"])
    for train, test in ((pairs, single), (single, pairs)):
        with pytest.raises(FinetuneError, match=r"found two in .*pairs\.csv' and one in .*single\.csv'"):
            load_given_splits(DataArguments(train_file=str(train), test_file=str(test)))


def test_hidden_is_a_matter_of_every_row():
    assert is_hidden([-1, "-1", -1.0, None, "", float("nan")])
    assert not is_hidden([-1, 0])
    assert not is_hidden([["-1"]])
    assert not is_hidden([False, True])


def test_class_names_of_the_source_are_the_task():
    assert find_task([0, 0, 0], ["neg", "pos"], None, None, "it") == Task(SINGLE_LABEL, ["neg", "pos"])
    assert find_task([[0], []], ["neg", "pos"], None, None, "it") == Task(MULTI_LABEL, ["neg", "pos"])


@settings(max_examples=50, deadline=None, database=None)
@given(st.lists(st.sampled_from(["a", "b", "10", "9", "x y"]), min_size=10, max_size=40))
def test_every_number_names_the_label_it_came_from(labels):
    task = find_task(labels, None, SINGLE_LABEL, None, "it")
    assert [task.label_names[n] for n in np.array(number_labels(labels, task.label_names, "it"))] == labels
