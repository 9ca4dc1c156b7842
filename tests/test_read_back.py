"""What `finetune predict` writes for others reads back exactly: with csv, json, pandas, pyarrow and DuckDB."""

import csv
import decimal
import functools
import json
import math
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import make_reviews
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finetune.data.read import open_table
from finetune.families.tfidf.fit import fit_tfidf
from finetune.inference import bulk
from finetune.inference.predict import load_predictor

QUICK = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
PROBABILITIES = ["probability_neg", "probability_pos"]
# Whatever some reader takes for more than a character; each stands alone, at an end, and within quotes.
DELICATE = [
    "\r", "\n", "\r\n", "\0", "\x0b", "\x0c", "\x1a", "\x1c", "\x7f", "\x85", "\u2028", "\u2029", "\ufeff", "\u200b",
    '"', '""', "'", ",", ";", "|", "\t", "\\", "\\N", " ", "\xa0", "#", "=", "+", "-", "@", "NA", "null", "NaN", "007",
    "1e5", "true", "2020-01-01", "é", "字", "😀",
]  # fmt: skip
VALUES = st.lists(st.one_of(st.sampled_from(DELICATE), st.text(max_size=3)), max_size=4).map("".join)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A TF-IDF model, loaded once, in place of each loading."""
    texts, labels = zip(*make_reviews(40), strict=True)
    folder = tmp_path_factory.mktemp("model")
    names = ["neg", "pos"]
    fit_tfidf(list(texts), np.array([names.index(label) for label in labels]), names, seed=0).save_pretrained(folder)
    predictor = load_predictor(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "load_predictor", lambda *_, **__: predictor)
        patch.setattr(bulk, "ROWS_AT_ONCE", 4)
        yield folder


@pytest.fixture
def predict(model, tmp_path):
    """From an input's name to the path of its output."""

    def run(source, target, **columns):
        (tmp_path / target).unlink(missing_ok=True)
        columns = {"text_column": "text", "text_pair_column": None, "encoding": None} | columns
        bulk.predict_file(model, tmp_path / source, tmp_path / target, columns)
        assert not list(tmp_path.glob("*.unfinished"))
        return tmp_path / target

    return run


@functools.cache
def connect_duckdb():
    return pytest.importorskip("duckdb").connect(config={"threads": 1})


def read_with_duckdb(query):
    return connect_duckdb().sql(query).fetchall()


def write_quoted(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)


# CSV


def assert_separated_values_are(path, rows):
    """Every reader finds these rows, header included, before the answers."""
    separator = "\t" if path.suffix == ".tsv" else ","
    width, (header, *rest) = len(rows[0]), [list(row) for row in rows]
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.reader(file, delimiter=separator, strict=True))
    assert [row[:width] for row in found] == [header, *rest]
    assert all(len(row) == width + 3 and row[width] in ("predicted_label", "neg", "pos") for row in found)

    frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False)
    assert frame.iloc[:, :width].to_numpy().tolist() == rest
    assert list(frame.columns[:width]) == header

    table = pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys([*header, "predicted_label"], pa.string())
        ),
    )
    assert [list(row.values())[:width] for row in table.to_pylist()] == rest
    assert table.schema.types[-2:] == [pa.float64(), pa.float64()]

    query = (
        f"SELECT * FROM read_csv('{path}', all_varchar=true, header=true, delim='{separator}', quote='\"', escape='\"')"
    )
    assert [[value or "" for value in row[:width]] for row in read_with_duckdb(query)] == rest  # "" is NULL to it

    own = open_table(path)
    assert [list(row.values.values())[:width] for row in own.rows] == rest


@QUICK
@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=9))
@example([("a\rb good film", "x"), ("bad", "y")])
@example([(value, value) for value in DELICATE if value != "\0"])
def test_separated_values_read_back_exactly(predict, tmp_path, pairs):
    rows = [("text", "a note"), *((text.replace("\0", ""), note.replace("\0", "")) for text, note in pairs)]
    write_quoted(tmp_path / "in.csv", rows)
    assert_separated_values_are(predict("in.csv", "out.csv"), rows)


def test_texts_in_tsv_and_of_other_formats_read_back_exactly(predict, tmp_path):
    values = [value for value in DELICATE if value != "\0"]
    rows = [("text", "note"), *((f"{value}x{value}", value) for value in values)]
    with (tmp_path / "in.tsv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    assert_separated_values_are(predict("in.tsv", "out.tsv"), rows)
    lines = [f"{value}x{value}" for value in values if "\n" not in value and value not in ("\r", "\ufeff")]
    (tmp_path / "in.txt").write_bytes("".join(f"{line}\n" for line in lines).encode())
    assert_separated_values_are(predict("in.txt", "out.csv"), [["text"], *([line] for line in lines)])
    for number, value in enumerate(values):
        (tmp_path / f"folder/{'neg' if number % 2 else 'pos'}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"folder/{'neg' if number % 2 else 'pos'}/{number:02}.txt").write_bytes(f"x{value}x".encode())
    out = predict("folder", "out.csv")
    with out.open(newline="", encoding="utf-8") as file:
        assert sorted(row["text"] for row in csv.DictReader(file)) == sorted(f"x{value}x" for value in values)


@pytest.mark.parametrize(
    "header",
    [["text", " a note "], ["text", "a;b;c|d"], ["text", ""], ["text", "", ""], ["#text", "text"], ["text", "a\rb\nc"],
     ["'text'", "'b'"], ["text", 'say "b"'], ["text", "é\u2028"]],
)  # fmt: skip
def test_names_of_columns_stay_what_they_are(predict, tmp_path, header):
    rows = [header, ["good film", *"x" * (len(header) - 1)], ["bad", *"y" * (len(header) - 1)]]
    write_quoted(tmp_path / "in.csv", rows)
    text = "'text'" if "'text'" in header else "text"
    with predict("in.csv", "out.csv", text_column=text).open(newline="", encoding="utf-8") as file:
        assert [row[: len(header)] for row in csv.reader(file)] == rows


def test_a_zero_byte_in_separated_values_is_kept_where_its_encoding_is_told(predict, tmp_path):
    write_quoted(tmp_path / "in.csv", [("text", "note"), ("a\0b", "\0")])
    with predict("in.csv", "out.csv", encoding="utf-8").open(newline="", encoding="utf-8") as file:
        assert [row[:2] for row in csv.reader(file)][1:] == [["a\0b", "\0"]]


def test_half_of_a_character_is_refused_in_one_line(predict, tmp_path):
    (tmp_path / "in.csv").write_text("text,note\ngood,+2AA-\n")  # which UTF-7 has
    with pytest.raises(bulk.FinetuneError, match="half of one"):
        predict("in.csv", "out.csv", encoding="utf-7")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


# JSON Lines


def refuse_constant(name):
    raise AssertionError(name)


def parse(text):
    """Parse strictly, keeping the digits of numbers and every member."""
    return json.loads(
        text, parse_constant=refuse_constant, parse_float=str, parse_int=str, object_pairs_hook=lambda pairs: pairs
    )


NUMBERS = ["1e999", "-1e999", "1" * 400, "-0.0", "0.1000000000000000055511151231257827", "1E+2", "1.10",
           "12345678901234567890", "5e-324", "1e-999", "7" * 5000]  # fmt: skip


@QUICK
@given(
    st.lists(
        st.dictionaries(
            VALUES.filter(lambda name: name != "text"),
            st.recursive(
                st.one_of(
                    st.sampled_from(NUMBERS), VALUES.map(json.dumps), st.sampled_from(["null", "true", '"\\ud800"'])
                ),
                lambda inner: st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
                max_leaves=4,
            ),
            max_size=3,
        ),
        min_size=1,
        max_size=9,
    ),
    st.booleans(),
)
@example([{"n": number} for number in NUMBERS], False)
def test_json_lines_read_back_exactly(predict, tmp_path, rows, ascii_alone):
    lines = []
    for number, row in enumerate(rows):
        members = [f'"text": "film {number}"']
        members += [f"{json.dumps(name, ensure_ascii=ascii_alone)}: {value}" for name, value in row.items()]
        lines.append(f"{{{', '.join(members)}}}")
    (tmp_path / "in.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode())
    text = predict("in.jsonl", "out.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(rows)  # which also ends lines at U+0085 and U+2028
    for before, after in zip(lines, text.splitlines(), strict=True):
        own, added = parse(after)[:-3], parse(after)[-3:]
        assert own == parse(before)
        assert [name for name, _ in added] == ["predicted_label", *PROBABILITIES]
    if "1" * 400 not in text and "7" * 5000 not in text:  # which pandas refuses
        assert pd.read_json(tmp_path / "out.jsonl", lines=True)["predicted_label"].isin(["neg", "pos"]).all()
    query = f"SELECT predicted_label FROM read_json('{tmp_path / 'out.jsonl'}', format='newline_delimited', " \
            "columns={text: 'VARCHAR', predicted_label: 'VARCHAR'})"  # fmt: skip
    if "\\ud800" not in text:  # which DuckDB refuses
        assert len(read_with_duckdb(query)) == len(rows)


def test_what_json_lacks_becomes_null_and_is_said(predict, tmp_path):
    lines = [
        '{"text": NaN, "n": NaN, "m": [-Infinity, "NaN, -Infinity", "\\"NaN"]}',
        '{"text": "good", "NaN": Infinity}',
        '{"text": "NaN"}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="null stands for NaN and Infinity in 2 rows"):
        out = predict("in.jsonl", "out.jsonl")
    found = [dict(parse(line)[:-3]) for line in out.read_text().splitlines()]
    assert found == [
        {"text": None, "n": None, "m": [None, "NaN, -Infinity", '"NaN']},
        {"text": "good", "NaN": None},
        {"text": "NaN"},
    ]


OBJECT = '{ "text": "good",\r\n "n": 1e999, "n": 1.10, "m": [1, {"a": 0.10}] }'


@pytest.mark.parametrize(
    "content",
    ["{0}\n", "\ufeff{0}", "[{0}]", "[\n{0},\n{0}\n]\n", "{0}\n\n{1}\n"],
    ids=["one", "mark", "list", "lines", "blank"],
)
def test_objects_keep_their_members_in_every_layout(predict, tmp_path, content):
    one, line = OBJECT, OBJECT.replace("\r\n", "")
    is_list = "[" in content.partition("{")[0]
    content = content.replace("{0}", one if is_list else line).replace("{1}", '{"text": "bad"}')
    (tmp_path / "in.json").write_bytes(content.encode())
    found = [parse(text) for text in predict("in.json", "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found[0][:-3] == parse(OBJECT)
    assert all(len(members) > 3 for members in found)


@pytest.mark.parametrize("layout", ["records under a name", "columns", "split"])
def test_json_that_pandas_writes_keeps_its_values(predict, tmp_path, layout):
    frame = pd.DataFrame(
        {
            "text": list("abcde"),
            "n": [1.5, None] * 2 + [-0.0],
            "whole": [10**17 + 1, 2] * 2 + [3],
            "s": ["NaN\u2028", "😀"] * 2 + [""],
        }
    )
    records = json.loads(frame.to_json(orient="records"))
    content = {"data": records} if layout == "records under a name" else json.loads(
        frame.to_json(orient="split" if layout == "split" else "columns"))  # fmt: skip
    (tmp_path / "in.json").write_text(json.dumps(content))
    found = predict("in.json", "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [dict(list(json.loads(line).items())[:-3]) for line in found] == records


@pytest.mark.parametrize("place", [0, 99, 100, 150, 199])
@pytest.mark.parametrize("name", ["predicted_label", "Probability_POS", "predicted\\u005flabel"])
def test_a_column_of_the_users_is_never_overwritten_wherever_it_first_appears(predict, tmp_path, place, name):
    lines = ['{"text": "good"}'] * 200
    lines[place] = f'{{"text": "good", "{name}": "mine"}}'
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with pytest.raises(bulk.FinetuneError, match=f"without the columns .'{json.loads(f'{chr(34)}{name}{chr(34)}')}'"):
        predict("in.jsonl", "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# Parquet


TEXTS = ["good film", "bad", None, "", "fine\r\0\u2028"] * 3
COUNT = len(TEXTS)
NESTED = pa.struct([("a", pa.time64("ns")), ("b", pa.list_(pa.decimal128(5, 2)))])
COLUMNS = {
    "time ns": pa.array(range(1, COUNT + 1), pa.time64("ns")),
    "time ms": pa.array(range(COUNT), pa.time32("ms")),
    "timestamp ns": pa.array([1, None, -1] * 5, pa.timestamp("ns", "Europe/Berlin")),
    "timestamp of nowhere": pa.array(range(COUNT), pa.timestamp("us", "Nowhere/At_All")),
    "timestamp far": pa.array([2**60] * COUNT, pa.timestamp("ms")),
    "date far": pa.array([2**30] * COUNT, pa.date32()),
    "duration": pa.array([2**62] * COUNT, pa.duration("ns")),
    "decimal": pa.array([decimal.Decimal("1.10")] * COUNT, pa.decimal128(38, 2)),
    "decimal256": pa.array([decimal.Decimal("1." + "1" * 60)] * COUNT, pa.decimal256(70, 60)),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1, None] * 5, pa.int8()), pa.array(["x", "y"])),
    "list": pa.array([[1, None], [], None] * 5, pa.list_(pa.int8())),
    "large list": pa.array([[1.5], None, []] * 5, pa.large_list(pa.float32())),
    "fixed list": pa.array([[1, 2]] * COUNT, pa.list_(pa.int16(), 2)),
    "struct": pa.array([{"a": None, "b": [decimal.Decimal("1.10")]}, None, {"a": None, "b": None}] * 5, NESTED),
    "map": pa.array([[("k", 1), ("k", 2)], None, []] * 5, pa.map_(pa.string(), pa.int64())),
    "binary": pa.array([b"\xff\0", None, b""] * 5, pa.binary()),
    "fixed binary": pa.array([b"abc"] * COUNT, pa.binary(3)),
    "large binary": pa.array([b"\xff"] * COUNT, pa.large_binary()),
    "large text": pa.array(["\ufeff", None, "\0"] * 5, pa.large_string()),
    "text view": pa.array(["x", None, "y" * 20] * 5, pa.string_view()),
    "null": pa.nulls(COUNT),
    "bool": pa.array([True, None, False] * 5),
    "uint64": pa.array([2**64 - 1] * COUNT, pa.uint64()),
    "half": pa.array([np.float16(0.1)] * COUNT, pa.float16()),
    "double": pa.array([math.nan, -0.0, math.inf] * 5, pa.float64()),
    "float32": pa.array([0.1, None, math.nan] * 5, pa.float32()),
    "uuid": pa.array([uuid.UUID(int=2**127 + 5).bytes] * COUNT, pa.uuid()),
    "json": pa.array(['{"a": 1e999}'] * COUNT, pa.json_()),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2]), pa.array([[1, 2]] * COUNT, pa.list_(pa.int32(), 2))
    ),
    "predicted": pa.array(["mine"] * COUNT),
}  # fmt: skip


def as_lists(column):
    """The storage of a column, by which NaN and -0.0 can be compared too."""
    chunks = column.combine_chunks()
    return chunks.storage if isinstance(chunks.type, pa.ExtensionType) else chunks


def assert_parquet_is(path, before):
    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    width = len(before.schema)
    for number, field in enumerate(before.schema):
        assert schema.field(number).equals(field, check_metadata=True), field
    assert schema.metadata == before.schema.metadata
    assert schema.names[width:] == ["predicted_label", *PROBABILITIES]
    after = file.read().select(range(width))
    for name in before.column_names:
        one, other = as_lists(before[name]), as_lists(after[name])
        assert one.type == other.type
        assert pa.table([one], ["x"]).equals(pa.table([other], ["x"])) or repr(one.to_pylist()) == repr(
            other.to_pylist()
        ), name


@QUICK
@given(st.lists(st.sampled_from(list(COLUMNS)), unique=True, min_size=1, max_size=5), st.integers(0, 5), st.booleans())
@example(list(COLUMNS), 1, True)
def test_parquet_reads_back_exactly(predict, tmp_path, names, place, is_large):
    columns = {name: COLUMNS[name] for name in names}
    text = pa.array(TEXTS, pa.large_string() if is_large else pa.string())
    fields = [pa.field(name, column.type, metadata={"unit": name}) for name, column in columns.items()]
    fields.insert(place, pa.field("text", text.type, metadata={"language": "en"}))
    fields.append(pa.field("number", pa.int64(), nullable=False))
    arrays = {**columns, "text": text, "number": pa.array(range(COUNT))}
    schema = pa.schema(fields, metadata={"who": "me\0\xff", "empty": ""})
    pq.write_table(
        pa.table([arrays[field.name] for field in fields], schema=schema), tmp_path / "in.parquet", row_group_size=6
    )
    before = pq.read_table(tmp_path / "in.parquet")
    out = predict("in.parquet", "out.parquet")
    assert_parquet_is(out, before)
    counted = f"SELECT count(*), sum(number), count(DISTINCT predicted_label) FROM read_parquet('{out}')"
    assert read_with_duckdb(counted)[0][:2] == (COUNT, sum(range(COUNT)))


def test_parquet_of_pandas_and_of_datasets_reads_back_as_such(predict, tmp_path):
    import datasets

    index = pd.date_range("2020-01-01", periods=COUNT, tz="Asia/Tokyo", name="when")
    frame = pd.DataFrame(
        {"text": TEXTS, "kind": pd.Categorical(["a", "b", "a"] * 5, ["b", "a"], ordered=True)}, index=index
    )
    frame.to_parquet(tmp_path / "in.parquet")
    found = pd.read_parquet(predict("in.parquet", "out.parquet"))
    pd.testing.assert_frame_equal(found[["text", "kind"]], pd.read_parquet(tmp_path / "in.parquet"))
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 1] * 5}, features)
    rows.to_parquet(tmp_path / "in.parquet")
    kept = datasets.Dataset.from_parquet(str(predict("in.parquet", "out.parquet")), cache_dir=str(tmp_path / "cache"))
    assert {name: kept.features[name] for name in features} == features
    assert kept["label"][:] == [0, 1, 1] * 5


def test_parquet_of_other_writers_reads_back_exactly(predict, tmp_path):
    duckdb = pytest.importorskip("duckdb")
    source = tmp_path / "in.parquet"
    held = "i::DECIMAL(9, 3) AS n, uuid() AS u, TIME_NS '01:02:03.123456789' AS t, MAP {i: [i]} AS m, {'a': i} AS s, "
    held += "[NULL, i] AS l, '{\"a\": 1e999}'::JSON AS j"
    duckdb.sql(f"SELECT 'film ' || i AS text, {held} FROM range(9) r(i)").write_parquet(str(source))
    out = predict("in.parquet", "out.parquet")
    kept = "SELECT text, n, u, t::VARCHAR, m, s, l, j FROM '{}'"
    assert read_with_duckdb(kept.format(out)) == read_with_duckdb(kept.format(source))
    duckdb.sql("SELECT 'film' AS text, INTERVAL 1 DAY AS day").write_parquet(str(source))
    with pytest.warns(UserWarning, match="plain bytes what these columns hold: {'day': 'INTERVAL'}"):
        predict("in.parquet", "out.parquet")


def test_a_parquet_file_without_rows_gets_the_columns(predict, tmp_path):
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "t": pa.array([], pa.time64("ns"))}), tmp_path / "in.parquet"
    )
    found = pq.read_table(predict("in.parquet", "out.parquet"))
    assert found.column_names == ["text", "t", "predicted_label", *PROBABILITIES]
    assert len(found) == 0
