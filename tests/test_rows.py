"""No row ever gets another row's label: tables of every kind, written in every format, come back value by value."""

import csv
import gzip
import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st

from finetune.data.load import load_splits, read_examples
from finetune.data.split import iterate_texts
from finetune.errors import FinetuneError
from finetune.settings.parts import DataArguments

ANY_TABLE = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Surrogates alone are no characters, and zero bytes mark binary files.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20) | st.text(
    "\"',;|\t\n\r\\ab é好", max_size=12
)
NAMES = st.sampled_from(["a", "B b", "10", "9", "é,è", 'say "c"', "好"])
ENDINGS = [".csv", ".tsv", ".jsonl", ".json", ".parquet"]
COMPRESSION = {"": bytes, ".gz": gzip.compress, ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, rows, columns, encoding="utf-8"):
    """Write rows, which are dictionaries, with their columns in the given order."""
    ending = next(one for one in ENDINGS if one in path.name)
    rows = [{name: row[name] for name in columns} for row in rows]
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), sink := io.BytesIO())
        content = sink.getvalue()
    elif ending in (".csv", ".tsv"):
        text = io.StringIO(newline="")
        quoting = csv.QUOTE_ALL if ending == ".tsv" else csv.QUOTE_MINIMAL
        writer = csv.writer(text, delimiter="\t" if ending == ".tsv" else ",", quoting=quoting)
        writer.writerows([columns, *(row.values() for row in rows)])
        content = text.getvalue().encode(encoding)
    elif ending == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding)
    else:
        content = json.dumps(rows, ensure_ascii=False, indent=1).encode(encoding)
    path.write_bytes(COMPRESSION[path.suffix if path.suffix in COMPRESSION else ""](content))
    return str(path)


@st.composite
def tables(draw):
    """Draw rows with a label or several, maybe a second text, a group and an id; the columns' order; and the flags."""
    columns = draw(st.permutations(["text", "label", *draw(st.sets(st.sampled_from(["pair", "by", "key"])))]))
    several = draw(st.booleans())
    labels = st.lists(NAMES, min_size=1, max_size=3, unique=True) if several else NAMES
    rows = draw(
        st.lists(
            st.fixed_dictionaries(
                {"text": TEXTS, "label": labels, "pair": TEXTS, "by": st.text("ab;,", min_size=1, max_size=3)}
            ),
            min_size=1,
            max_size=10,
        )
    )
    rows = [{**row, "key": f"key {number}"} for number, row in enumerate(rows)]
    flags = {"text_column": "text", "label_column": "label"}
    named = {"pair": "text_pair_column", "by": "group_column", "key": "id_column"}
    flags |= {flag: name for name, flag in named.items() if name in columns}
    return rows, list(columns), flags, several


@ANY_TABLE
@given(table=tables(), ending=st.sampled_from(ENDINGS), packed=st.sampled_from(list(COMPRESSION)), data=st.data())
def test_every_value_comes_back_in_its_row(tmp_path, table, ending, packed, data):
    rows, columns, flags, several = table
    if several and ending in (".csv", ".tsv"):
        written = [{**row, "label": "|".join(row["label"])} for row in rows]
        flags = {**flags, "label_delimiter": "|"}
    else:
        written = rows
        if not several:  # the doctor of labels refuses a column of unique values
            flags = {**flags, "problem_type": "single_label_classification"}
            names = {row["label"] for row in rows}
            assume(2 * len(names) <= len(rows) or len(names) <= 2)
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    examples = read_examples(write(tmp_path / f"a{ending}{packed}", written, columns, encoding), DataArguments(**flags))
    assert examples["text"][:] == [row["text"] for row in rows]
    for column, part in (("pair", "text_pair"), ("by", "group"), ("key", "id")):
        if column in columns:
            assert examples[part][:] == [row[column] for row in rows]
    feature = examples.features["label"]
    if several:
        found = [{feature.feature.names[number] for number in one} for one in examples["label"]]
        assert found == [set(row["label"]) for row in rows]
    else:
        assert [feature.names[number] for number in examples["label"]] == [row["label"] for row in rows]


@st.composite
def corpora(draw):
    """Draw enough rows to carve from; texts repeat, under other labels too, and a class may be rare."""
    count = draw(st.integers(30, 90))
    names = draw(st.lists(st.sampled_from("aaabbbc"), min_size=count, max_size=count))
    texts = draw(st.lists(st.integers(0, 2 * count), min_size=count, max_size=count))
    groups = draw(st.lists(st.integers(0, draw(st.integers(12, 60))), min_size=count, max_size=count))
    return [
        {"text": f"text {text}", "label": label, "by": f"group {group}"}
        for text, label, group in zip(texts, names, groups, strict=True)
    ]


EVEN = [{"text": f"text {row}", "label": "ab"[row % 2], "by": f"group {row // 2}"} for row in range(80)]


@settings(ANY_TABLE, max_examples=30)
@given(rows=corpora(), kind=st.sampled_from(["single", "several", "pairs"]), grouped=st.booleans())
@example(rows=EVEN, kind="single", grouped=True)
@example(rows=EVEN, kind="several", grouped=False)
@example(rows=EVEN, kind="pairs", grouped=True)
def test_carved_rows_keep_their_labels_and_share_no_text_or_group(tmp_path, rows, kind, grouped):
    must_carve, refused = rows is EVEN, None
    if kind == "several":
        rows = [{**row, "label": f"{row['label']};{'long' if len(row['text']) > 6 else 'short'}"} for row in rows]
    elif kind == "pairs":
        rows = [{**row, "pair": f"other {row['text']}"} for row in rows]
    flags = {"label_delimiter": ";"} if kind == "several" else {"text_pair_column": "pair"} if kind == "pairs" else {}
    flags |= {"group_column": "by"} if grouped else {}
    path = write(tmp_path / "a.csv.gz", rows, list(rows[0]))
    try:
        splits = load_splits(DataArguments(train_file=path, text_column="text", **flags))
    except FinetuneError as error:
        refused = str(error)
    event("refused" if refused else "carved")
    if refused is not None:
        assert not must_carve
        assert len(refused.splitlines()) == 1
        return
    seen = {"ids": [], "texts": [], "groups": []}
    for split in splits.values():
        numbers = [int(name.rpartition("-")[2]) for name in split["id"]]
        feature = split.features["label"]
        for number, text, label in zip(numbers, split["text"], split["label"], strict=True):
            assert text == rows[number]["text"]
            names = [feature.feature.names[one] for one in label] if kind == "several" else [feature.names[label]]
            assert sorted(names) == sorted(rows[number]["label"].split(";"))
        seen["ids"].append(set(numbers))
        seen["texts"].append(set(iterate_texts(split)))
        seen["groups"].append({rows[number]["by"] for number in numbers} if grouped else set())
    for sets in seen.values():
        assert len(set().union(*sets)) == sum(map(len, sets))  # no two splits share one
    assert len(set().union(*seen["texts"])) == len({row["text"] for row in rows})  # and none is lost
