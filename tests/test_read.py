"""Files of every format and encoding, right and wrong, and what is told from their columns."""

import codecs
import csv
import gzip
import io
import itertools
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finetune.data.columns import choose_columns
from finetune.data.encoding import choose_encoding
from finetune.data.load import load_splits, read_examples
from finetune.data.read import Row, Table, detect_encoding
from finetune.errors import FinetuneError
from finetune.settings.parts import DataArguments

ROWS = [
    ('He said "no", twice', "neg"),
    ("two\nlines\r\nand a\ttab", "pos"),
    ("  spaces stay  ", "neg"),
    ("NA", "pos"),
    ("café 好 🎬", "neg"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return str(path)


def separated(rows, delimiter=",", **options) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, **options).writerows([("text", "label"), *rows])
    return text.getvalue().encode()


def json_lines(rows) -> bytes:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()


def json_list(rows) -> bytes:
    return json.dumps([{"text": text, "label": label} for text, label in rows], indent=1, ensure_ascii=False).encode()


def parquet(rows, metadata=None, **columns) -> bytes:
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows], **columns}
    pq.write_table(pa.table(table, metadata=metadata), sink := io.BytesIO())
    return sink.getvalue()


WRITERS = {
    ".csv": separated,
    ".tsv": lambda rows: separated(rows, "\t"),
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_list,
    ".parquet": parquet,
}
COMPRESSION = {"": bytes, ".gz": gzip.compress, ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True)}


def rows_of(examples: Dataset) -> list[tuple[str, str]]:
    names = examples.features["label"].names
    return [(text, names[label]) for text, label in zip(examples["text"], examples["label"], strict=True)]


def read_or_refuse(path: str) -> list[tuple[str, str]] | str:
    """Read a file, or give the line that says why not."""
    try:
        return rows_of(read_examples(path))
    except FinetuneError as error:
        return str(error)


def refusal(path: str | Path, arguments: DataArguments | None = None) -> str:
    """Read a file that must be refused in one line and leave no file in the cache; give that line."""
    with pytest.raises(FinetuneError) as caught:
        read_examples(str(path), arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1_000
    assert not [file for file in datasets.config.HF_DATASETS_CACHE.rglob("*") if file.is_file()]
    return message


@pytest.mark.parametrize("compressed", COMPRESSION)
@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_rows_that_were_written(tmp_path, ending, compressed):
    path = write(tmp_path / f"data{ending}{compressed}", COMPRESSION[compressed](WRITERS[ending](ROWS)))
    examples = read_examples(path)
    assert rows_of(examples) == ROWS
    assert examples["id"][:2] == [f"data{ending}{compressed}-0", f"data{ending}{compressed}-1"]


def test_endings_are_told_in_capitals(tmp_path):
    assert rows_of(read_examples(write(tmp_path / "DATA.CSV.GZ", gzip.compress(separated(ROWS))))) == ROWS
    assert rows_of(read_examples(write(tmp_path / "DATA.PARQUET", parquet(ROWS)))) == ROWS


def test_a_compressed_file_may_be_of_several_parts(tmp_path):
    first, second = separated(ROWS)[:50], separated(ROWS)[50:]
    for ending in (".gz", ".zst"):
        compress = COMPRESSION[ending]
        path = write(tmp_path / f"parts.csv{ending}", compress(first) + compress(second))
        assert rows_of(read_examples(path)) == ROWS


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_may_be_separated_by_semicolons_or_tabs(tmp_path, delimiter):
    assert rows_of(read_examples(write(tmp_path / "a.csv", separated(ROWS, delimiter)))) == ROWS


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_lines_of_csv_end_in_any_way_and_may_be_blank(tmp_path, line_end):
    path = write(tmp_path / "a.csv", line_end.join(["", "text,label", "one,a", "", '"t,wo",b', "", ""]))
    assert rows_of(read_examples(path)) == [("one", "a"), ("t,wo", "b")]


def test_the_separator_that_excel_declares_is_used(tmp_path):
    path = write(tmp_path / "a.csv", 'sep=|\ntext|label\n"one, two; three"|a\nsep=|b\n')
    assert rows_of(read_examples(path)) == [("one, two; three", "a"), ("sep=", "b")]


def test_quotes_of_a_tsv_are_characters_where_texts_are_not_quoted(tmp_path):
    """As in GLUE's files: a quotation may begin in one row, and end in another or nowhere."""
    path = write(tmp_path / "glue.tsv", 'sentence\tlabel\n"I like it.\t1\nReally, I do."\t0\nshe said "yes" twice\t1\n'
                 '"Never" again.\t0\n')  # fmt: skip
    assert rows_of(read_examples(path)) == [
        ('"I like it.', "1"),
        ('Really, I do."', "0"),
        ('she said "yes" twice', "1"),
        ('"Never" again.', "0"),
    ]


def test_a_tsv_whose_quotes_can_be_understood_in_two_ways_is_refused(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"I like it.\t1\nReally, I do."\t0\nfine\t1\n')
    assert "1 lines could also be within one that was opened above. Save the file as .csv or .jsonl" in refusal(path)


def test_json_lines_may_be_in_a_json_file_and_between_blank_lines(tmp_path):
    path = write(tmp_path / "a.json", b"\n" + json_lines(ROWS).replace(b"\n", b"\n\n"))
    assert rows_of(read_examples(path)) == ROWS


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    rows = [("one\u2028two\x85three\x0cfour", "a"), ("five", "b")]
    content = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\r\n" for text, label in rows)
    assert rows_of(read_examples(write(tmp_path / "a.jsonl", content))) == rows


def test_class_names_that_datasets_wrote_into_parquet_are_used(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["worse", "better"])})
    Dataset.from_dict({"text": ["x", "y", "z"], "label": [1, 0, 1]}, features).to_parquet(tmp_path / "a.parquet")
    examples = read_examples(str(tmp_path / "a.parquet"))
    assert examples.features["label"].names == ["worse", "better"]
    assert examples["label"][:] == [1, 0, 1]


def test_class_names_of_lists_of_labels_are_used(tmp_path):
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["joy", "fear", "anger"]))})
    Dataset.from_dict({"text": ["x", "y"], "labels": [[2, 0], [1]]}, features).to_parquet(tmp_path / "a.parquet")
    examples = read_examples(str(tmp_path / "a.parquet"))
    assert examples.features["label"].feature.names == ["joy", "fear", "anger"]
    assert examples["label"][:] == [[0, 2], [1]]


def test_numbers_beyond_the_class_names_are_refused(tmp_path):
    labels = Features({"text": Value("string"), "label": List(ClassLabel(names=["joy", "fear"]))})
    Dataset.from_dict({"text": ["x", "y"], "label": [[0], [1, -1]]}, labels).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(FinetuneError, match=r"found -1, which stands for a missing or hidden one"):
        read_examples(str(tmp_path / "a.parquet"))


def test_features_that_datasets_does_not_know_are_refused(tmp_path):
    noted = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": {"_type": "Novelty"}}}}
    table = pa.table({"text": ["x"], "label": ["a"]}).replace_schema_metadata({"huggingface": json.dumps(noted)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert "reading them gave: ValueError. Update `datasets`" in refusal(tmp_path / "a.parquet")


def test_a_folder_of_text_files_for_each_class_is_read(tmp_path):
    files = {
        "pos/10.txt": "fine\r\n",
        "pos/2.txt": "good",
        "neg/1.txt": "café",
        "neg/._1.txt": "of a Mac's archive",
        "neg/notes.md": "no text",
        "unsup/1.txt": "hidden",
        ".ipynb_checkpoints/1.txt": "copy",
    }
    for name, text in files.items():
        write(tmp_path / "train" / name, text)
    examples = read_examples(str(tmp_path / "train"))
    assert rows_of(examples) == [("café", "neg"), ("fine\r\n", "pos"), ("good", "pos")]
    assert examples["id"][:] == ["train-0", "train-1", "train-2"]


def test_files_of_a_folder_are_read_in_one_encoding(tmp_path):
    for number, line in enumerate(CHINESE):  # each too short to be told alone
        write(tmp_path / "train" / ("neg" if number % 2 else "pos") / f"{number}.txt", line[:8], "gb18030")
    assert sorted(read_examples(str(tmp_path / "train"))["text"]) == sorted(line[:8] for line in CHINESE)


def test_lines_may_begin_with_their_label(tmp_path):
    path = write(tmp_path / "reviews.txt", "pos  a fine\tfilm \nneg\tdull\n\npos\nneg so \x1c dull\n")
    assert rows_of(read_examples(path)) == [
        ("a fine\tfilm", "pos"),
        ("dull", "neg"),
        ("", "pos"),
        ("so \x1c dull", "neg"),
    ]


def test_lines_without_labels_are_refused(tmp_path):
    lines = ["The film was dull.", "My order never came.", "A fine place.", "On Monday it broke.", "Terrible."] * 3
    message = refusal(write(tmp_path / "flat.txt", "\n".join(lines)))
    assert "some begin with 'a', 'my', 'on', 'the', as texts without a label do" in message


def test_lines_of_fasttext_may_have_several_labels(tmp_path):
    path = write(tmp_path / "a.train", "__label__b __label__a one two\n__label__c\tthree\n")
    examples = read_examples(path)
    assert examples.features["label"].feature.names == ["a", "b", "c"]
    assert examples["label"][:] == [[0, 1], [2]]
    assert examples["text"][:] == ["one two", "three"]


def test_lines_of_fasttext_with_one_label_are_classes(tmp_path):
    path = write(tmp_path / "a.train", "__label__b one\n__label__a two\n")
    assert rows_of(read_examples(path)) == [("one", "b"), ("two", "a")]


def test_lines_with_and_without_the_prefix_of_fasttext_are_refused(tmp_path):
    path = write(tmp_path / "a.train", "__label__b one\na two\n")
    assert "line 2 is without __label__" in refusal(path)


@pytest.mark.parametrize(("name", "count", "labels"), [("rt-polarity.all", 10_662, 2), ("TREC.train.all", 5_452, 6)])
def test_the_sentence_benchmarks_are_read_whole(name, count, labels):
    path = ROOT.parent / "shared/data" / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    examples = read_examples(str(path))
    assert len(examples) == count
    assert examples.features["label"].names == [str(number) for number in range(labels)]
    lines = path.read_bytes().decode("cp1252").split("\n")
    assert rows_of(examples) == [(line[2:].strip(), line[0]) for line in lines if line.strip()]


def test_a_column_of_ids_is_taken(tmp_path):
    examples = read_examples(
        write(tmp_path / "a.csv", "text,label,key\nx,a,7\ny,b,8\n"), DataArguments(id_column="key")
    )
    assert examples["id"][:] == ["7", "8"]


def test_an_id_that_is_there_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "text,label,key\nx,a,7\ny,b,8\nz,b,7\n")
    assert "line 4 repeats '7'" in refusal(path, DataArguments(id_column="key"))


def test_a_column_of_groups_is_taken(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "x", "label": "a", "by": 1}\n{"text": "y", "label": "b", "by": null}')
    assert read_examples(path, DataArguments(group_column="by"))["group"][:] == ["1", "without a group: a.jsonl-1"]


def test_a_file_is_read_once(tmp_path, cache):
    path = write(tmp_path / "a.csv", separated(ROWS))
    read_examples(path)
    (written,) = cache.rglob("*.arrow")
    before = written.stat().st_mtime_ns
    assert rows_of(read_examples(path)) == ROWS
    assert [file.stat().st_mtime_ns for file in cache.rglob("*.arrow")] == [before]
    write(tmp_path / "a.csv", separated(ROWS[:-1]))
    assert rows_of(read_examples(path)) == ROWS[:-1]


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_broken_file_in_the_cache_is_written_anew(tmp_path, cache, share):
    path = write(tmp_path / "a.csv", separated(ROWS))
    read_examples(path)
    (written,) = cache.rglob("*.arrow")
    content = written.read_bytes()
    written.unlink()  # not cut in place: the examples above are mapped from it
    written.write_bytes(content[: int(len(content) * share)])
    assert rows_of(read_examples(path)) == ROWS
    assert written.read_bytes() == content


def combine(*parts: list[str]) -> list[str]:
    return ["".join(words) for words in itertools.product(*parts)]


CHINESE = combine(
    ["这个手机", "酒店的房间", "书的内容", "电脑的键盘", "衣服的面料", "包装和物流"],
    [
        "很好用，非常满意，下次还会再来。",
        "质量太差了，用了两天就坏了，不推荐购买。",
        "一般，价格便宜，但是和图片不一样！",
    ],
)
JAPANESE = combine(
    ["この商品は", "ホテルの部屋は", "本の内容は", "パソコンの動作は", "①番のサイズは"],
    [
        "とても良いです。また買いたいと思います。",
        "期待したほどではなかったので、がっかりしました。",
        "普通～です。値段は安いです。",
    ],
)
RUSSIAN = combine(
    ["Телефон ", "Номер в гостинице ", "Этот фильм ", "Книга, которую я купил, ", "Завтрак "],
    [
        "очень понравился, всем советую!",
        "ужасного качества, сломался через два дня.",
        "обычный, ничего особенного нет.",
    ],
)
FRENCH = combine(
    ["L’écran du téléphone ", "La chambre d'hôtel ", "Ce film « à voir » ", "Le déjeuner préparé ", "Cette œuvre "],
    ["est vraiment très décevant, à éviter…", "m’a beaucoup plu, j'achèterai à nouveau.", "était médiocre — dommage."],
)
GERMAN = combine(
    ["Das Gerät ", "Unser Hotelzimmer ", "Der Film für Kinder ", "Die Lieferung ", "Das Frühstück "],
    [
        "war schön und völlig in Ordnung.",
        "hat mich enttäuscht, größtenteils Müll.",
        "ist mäßig, kostet aber nur 5 Euro.",
    ],
)
SPANISH = combine(
    ["La película ", "El teléfono del niño ", "La habitación ", "¡Qué decepción! El envío ", "El desayuno "],
    [
        "llegó rápido y está muy bien.",
        "es pésimo, ¿por qué lo hicieron así?",
        "fue regular, pero el precio es bueno, señores.",
    ],
)
POLISH = combine(
    ["Telefon ", "Pokój w hotelu ", "Ten film, który obejrzałem, ", "Książka ", "Śniadanie "],
    [
        "jest świetny, będę polecał każdemu.",
        "zepsuł się po dwóch dniach, szkoda pieniędzy.",
        "był przeciętny, choć niezły.",
    ],
)
KOREAN = combine(
    ["이 휴대폰은 ", "호텔 방은 ", "책 내용은 ", "배송은 ", "이 영화는 "],
    ["정말 좋아요. 추천합니다.", "이틀 만에 고장났어요. 똠방각하 같아요.", "보통입니다. 가격은 저렴했어요."],
)


@pytest.mark.parametrize(
    ("lines", "encoding"),
    [
        (CHINESE, "utf-8"),
        (FRENCH, "utf-8-sig"),
        (CHINESE, "utf-16"),
        (FRENCH, "utf-32"),
        (CHINESE, "gb18030"),
        (JAPANESE, "cp932"),
        (JAPANESE, "utf-16"),
        (KOREAN, "cp949"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (FRENCH, "cp1252"),
        (GERMAN, "latin-1"),
        (SPANISH, "latin-1"),
        (POLISH, "cp1250"),
        (POLISH, "iso8859-2"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt"])
def test_an_encoding_is_found_out(tmp_path, lines, encoding, ending):
    rows = [(line, "neg" if number % 2 else "pos") for number, line in enumerate(lines)]
    content = {
        ".csv": separated(rows).decode(),
        ".jsonl": "\n".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows),
        ".txt": "\n".join(f"{label} {text}" for text, label in rows),
    }[ending]
    assert rows_of(read_examples(write(tmp_path / f"a{ending}", content, encoding))) == [
        (text.strip() if ending == ".txt" else text, label) for text, label in rows
    ]


def test_an_encoding_is_told_by_the_lines_that_are_not_ascii_wherever_they_are(tmp_path):
    ascii_rows = [(f"plain words {number}", "pos") for number in range(12_000)]
    rows = [*ascii_rows, *((line, "neg") for line in CHINESE), *ascii_rows]
    path = write(tmp_path / "a.csv", separated(rows).decode(), "gb18030")
    assert rows_of(read_examples(path)) == rows


def test_english_with_few_accents_is_western(tmp_path):
    text = "A dull, lifeless movie; don’t bother.\nThe café scene is naïve – but I’d see it again… señor.\n" * 20
    assert detect_encoding(Path(write(tmp_path / "a.txt", text, "cp1252"))) == "cp1252"


def test_utf_8_with_a_damaged_line_is_refused_and_not_read_as_something_else(tmp_path):
    lines = separated([(line, "a") for line in FRENCH]).splitlines(keepends=True)
    path = write(tmp_path / "a.csv", b"".join([*lines[:7], "café,b\n".encode("latin-1"), *lines[7:]]))
    assert "found 15 lines in UTF-8 and 1 that are not, the first of them line 8 of" in refusal(path)


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "GB18030"])
def test_a_given_encoding_is_used(tmp_path, encoding):
    path = write(tmp_path / "a.csv", "text,label\n好,a\n坏,b\n", "gb18030")
    assert read_examples(path, DataArguments(encoding=encoding))["text"][:] == ["好", "坏"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt"])
def test_a_byte_order_mark_is_no_text_where_the_encoding_is_given(tmp_path, encoding, ending):
    content = {".csv": "text,label\nx,a\ny,b\n", ".txt": "a x\nb y\n",
               ".jsonl": '{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}'}[ending]  # fmt: skip
    path = write(tmp_path / f"a{ending}", "\ufeff" + content, encoding)
    assert rows_of(read_examples(path, DataArguments(encoding=encoding))) == [("x", "a"), ("y", "b")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("utf-8", "to be text in utf-8, but found bytes that are not. Pass its --encoding, or save it as UTF-8."),
        ("ascii", "to be text in ascii, but found bytes that are not"),
        ("utf-16", "to be text in UTF-16 or UTF-32 with a byte order mark, but found bytes that are not"),
        ("klingon", "Expected a known --encoding, but got 'klingon'"),
        ("base64", "Expected a known --encoding, but got 'base64'"),
        ("utf-8\n\0", r"Expected a known --encoding, but got 'utf-8\n\x00'"),
    ],
)
def test_a_wrong_encoding_is_refused(tmp_path, given, message):
    path = write(tmp_path / "a.csv", "text,label\nplain,a\n" + "".join(f"{line},b\n" for line in GERMAN), "latin-1")
    assert message in refusal(path, DataArguments(encoding=given))


HUNGARIAN = combine(
    ["A telefon ", "Ez a könyv ", "A szállodai szoba ", "Az időjárás ", "Kedves kiszolgálás, "],
    [
        "nagyon jó volt, mindenkinek ajánlom.",
        "két nap után elromlott, kár a pénzért.",
        "bőséges és kellemes jövőre is.",
    ],
)
CZECH = combine(
    ["Telefon ", "Tento film ", "Pokoj v hotelu ", "Kniha, kterou jsem koupil, ", "Snídaně "],
    ["je výborný, doporučuji všem.", "se rozbil po dvou dnech, škoda peněz.", "je průměrný, určitě ne víc."],
)
CROATIAN = combine(
    ["Mobitel ", "Ovaj film ", "Soba u hotelu ", "Knjiga ", "Doručak "],
    [
        "je odličan, preporučujem svima.",
        "se pokvario nakon dva dana, šteta novca.",
        "prosječno, sljedeće godine možda.",
    ],
)
TURKISH = combine(
    ["Telefon ", "Bu film ", "Otel odası ", "Kitap ", "Kahvaltı "],
    ["çok güzeldi, herkese tavsiye ederim.", "iki gün sonra bozuldu, paraya yazık oldu.", "sıkıcı ve küçük, şaşırdım."],
)
ITALIAN = combine(
    ["Il film ", "La qualità ", "Questo libro ", "L'albergo ", "Il telefono "],
    ["è noioso, però la fine è bella.", "non vale il prezzo, perché si è rotto.", "così così, si può avere di più."],
)


@pytest.mark.parametrize(
    ("lines", "encoding"),
    [
        (HUNGARIAN, "cp1250"), (HUNGARIAN, "iso8859-2"), (CZECH, "cp1250"), (CZECH, "iso8859-2"), (CROATIAN, "cp1250"),
        (CROATIAN, "iso8859-2"), (TURKISH, "cp1254"), (ITALIAN, "cp1252"), (FRENCH, "cp1252"), (SPANISH, "latin-1"),
        (POLISH, "iso8859-2"), (GERMAN, "cp1252"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("count", [8, 15, 150])
def test_latin_alphabets_are_told_by_their_letters(lines, encoding, count):
    sample = "\r\n".join(f"{line},{number}" for number, line in enumerate((lines * 10)[:count])).encode(encoding)
    assert sample.decode(choose_encoding(sample)) == sample.decode(encoding)


def test_few_accents_in_english_are_western():
    sample = "".join(f"dull story of a film, très déçu café,{number}\r\n" for number in range(300)).encode("cp1252")
    assert sample.decode(choose_encoding(sample)) == sample.decode("cp1252")


def test_thai_is_read(tmp_path):
    path = write(tmp_path / "a.txt", "a โทรศัพท์ดีมาก หน้าจอคมชัด\nb คุณภาพแย่มาก เสียภายในสองวัน\n" * 10, "cp874")
    assert rows_of(read_examples(path))[0] == ("โทรศัพท์ดีมาก หน้าจอคมชัด", "a")


def test_an_encoding_that_is_not_known_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", "a очень плохой фильм\nb скучный сюжет и игра\n" * 10, "gb18030")
    assert "in no encoding that is known here. Pass its --encoding" in refusal(path)


@pytest.mark.parametrize("word", ["été", "好"])
def test_utf_16_without_its_mark_is_refused_with_the_way_to_read_it(tmp_path, word):
    path = write(tmp_path / "a.csv", f"text,label\n{word},a\nx,b\n", "utf-16-le")
    assert "Pass --encoding utf-16-le if it is that" in refusal(path)
    assert rows_of(read_examples(path, DataArguments(encoding="utf-16-le"))) == [(word, "a"), ("x", "b")]


def columns_of(header: str, row: str, **arguments: str) -> dict[str, str | None]:
    names = header.split("|")
    sample = [Row(dict(zip(names, row.split("|"), strict=True)), "line 2")]
    found = choose_columns(Table(names, iter(()), None, {}), sample, arguments, "it")
    return {part: name for part, name in vars(found).items() if name is not None}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("text|label", {"text": "text", "label": "label"}),
        ("label_text|Label|TEXT", {"text": "TEXT", "label": "Label"}),
        ("id|sentence|label", {"text": "sentence", "label": "label"}),
        ("review|sentiment", {"text": "review", "label": "sentiment"}),
        ("text|stars|helpful", {"text": "text", "label": "stars"}),
        ("|text|label", {"text": "text", "label": "label"}),
        ("sentence1|sentence2|label|idx", {"text": "sentence1", "text_pair": "sentence2", "label": "label"}),
        ("Premise|Hypothesis|Label", {"text": "Premise", "text_pair": "Hypothesis", "label": "Label"}),
        ("index|question|sentence|label", {"text": "question", "text_pair": "sentence", "label": "label"}),
        ("id|qid1|question1|question2|is_duplicate",
         {"text": "question1", "text_pair": "question2", "label": "is_duplicate"}),
        ("sentence1|sentence2|label1|gold_label",
         {"text": "sentence1", "text_pair": "sentence2", "label": "gold_label"}),
        ("index|sentence", {"text": "sentence"}),
        ("Unnamed: 0|blurb", {"text": "blurb"}),
        ("text|source|date", {"text": "text"}),
        ("blurb|label", {"text": "blurb", "label": "label"}),
        ("text|mood", {"text": "text", "label": "mood"}),
        ("customer_id|star_rating|review_headline|Review Body|review_date",
         {"text": "Review Body", "label": "star_rating"}),
        ("first_text|second_text|last-message|context", {"text": "last-message"}),
    ],
)  # fmt: skip
def test_columns_are_told_by_their_names(header, expected):
    assert columns_of(header, "|" * header.count("|")) == expected


def test_two_columns_that_are_not_known_are_told_by_their_length():
    assert columns_of("a|b", "a film that is long|good") == {"text": "a", "label": "b"}
    assert columns_of("a|b", "good|a film that is long") == {"text": "b", "label": "a"}
    assert columns_of("number|a|b", "1|good|a film that is long", id_column="number") == {
        "text": "b", "label": "a", "id": "number"}  # fmt: skip


def test_columns_may_be_named():
    assert columns_of("text|label|said|points|by|key", "||||||"[:-1], text_column="said", label_column="points",
                      text_pair_column="text", group_column="by", id_column="key") == {
        "text": "said", "label": "points", "text_pair": "text", "group": "by", "id": "key"}  # fmt: skip


@pytest.mark.parametrize(
    ("header", "arguments", "message"),
    [
        ("a|b", {"text_column": "c"}, "Expected columns ['c'] in it, but found ['a', 'b']. Pass --text_column and"),
        ("a|b", {"group_column": "by"}, "Expected columns ['by'] in it, but found ['a', 'b']"),
        ("a|b|c", {}, "Expected to tell the text column of it by its name, but found ['a', 'b', 'c']"),
        (
            "a_text|b_text|context",
            {},
            "Expected to tell the text column of it by its name, but found ['a_text', 'b_text",
        ),
        ("a|b", {"text_column": "a", "label_column": "a"}, "a different column of it for each part, but got ['a', 'a"),
        ("idx|label", {}, "Expected to tell the text column of it by its name, but found ['idx', 'label']"),
    ],
)
def test_columns_that_cannot_be_told_are_refused(header, arguments, message):
    with pytest.raises(FinetuneError) as caught:
        columns_of(header, header, **arguments)
    assert message in str(caught.value)


def test_a_file_without_a_header_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", '1,"Good food, and cheap."\n2,"Bad food."\n1,"Nice."\n')
    assert "found '1', which is a label of other rows too. Add a line with names" in refusal(path)


def test_pairs_are_read(tmp_path):
    path = write(tmp_path / "a.tsv", "sentence1\tsentence2\tlabel\nx\ty\t0\nz\tw\t1\n")
    examples = read_examples(path)
    assert examples["text"][:] == ["x", "z"]
    assert examples["text_pair"][:] == ["y", "w"]


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x00"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "Expected examples in 'a.csv', but the file is empty"),
        ("a.csv", "\ufeff", "found none below its header"),
        ("a.csv", "\n\n", "found none below its header"),
        ("a.csv", "text,label\r\n", "found none below its header"),
        ("a.tsv", "text\tlabel\n", "found none below its header"),
        ("a.json", "[]", "found none below its header"),
        ("a.txt", " \n", "found none below its header"),
        ("a.parquet", parquet([]), "found none below its header"),
        ("a.csv", "text,kind,date\nx,y,z\n", "in columns ['text', 'kind', 'date'] of 'a.csv', but found no column"),
        ("a.csv", PNG, "line 3 holds zero bytes, as binary files do"),
        ("a.csv", bytes(range(256)) * 20, "line 1 holds zero bytes"),
        ("a.csv", bytes(range(128, 256)) * 20, "in no encoding that is known here"),
        ("a.csv", parquet(ROWS), "but it is a Parquet file. Rename it to a.parquet"),
        ("a.csv", json_lines(ROWS), "Expected names of columns in the first line of 'a.csv', but found '{\"text\""),
        ("a.csv", json_list(ROWS), "found '[\\n'. Rename the file to .jsonl if it holds JSON"),
        ("a.csv", gzip.compress(separated(ROWS)), "but it is compressed with gzip. Give it the ending .gz behind"),
        ("a.csv.gz", gzip.compress(separated(ROWS * 50))[:-20], "Compressed file ended before"),
        ("a.csv.zst", COMPRESSION[".zst"](separated(ROWS * 50))[:-5], "Truncated compressed stream"),
        ("a.csv.gz", separated(ROWS), "Not a gzipped file"),
        ("a.csv.zst", separated(ROWS), "whole, readable file"),
        ("a.parquet", parquet(ROWS)[:-10], "whole, readable file"),
        ("a.parquet", parquet(ROWS)[:40], "whole, readable file"),
        ("a.parquet", separated(ROWS), "whole, readable file"),
        ("a.parquet.gz", gzip.compress(separated(ROWS)), "whole, readable file"),
        ("a.csv", "text,label\nx,a\ny\n", "Expected 2 fields in each row of 'a.csv', as in its header, but line 3"),
        ("a.csv", "text,label\n\nx,a,b\n", "but line 3 has 3. Put texts that contain the separator in double quotes"),
        ("a.tsv", 'text\tlabel\n"x\ty\tz\n', "but in the row from line 2 on got: unexpected end of data. Close each"),
        ("a.csv", 'text,label\nx,a\n"x"y,b\n', "in the row from line 3 on got: ',' expected after '\"'"),
        ("a.csv", "text,label\nx,a\ntext,label\ny,b\n", "but line 3 is its header once more. Remove the line"),
        ("a.csv", "text,label,text \nx,a,y\n", "found ['text'] twice. Rename one"),
        ("a.csv", f"text,label,{','.join(map(str, range(100_000)))},0\nx,a\n", "found ['0'] twice. Rename one"),
        ("a.parquet", parquet(ROWS, {b"huggingface": b"[" * 100_000}), "whole, readable file"),
        ("a.parquet", parquet(ROWS, **{"x" * 2_000: [1] * 5}), "found one of 2,000 characters. Add a line with names"),
        ("a.csv", "x" * 10_000_000, "found one of 10,000,000 characters"),
        ("a.csv", f"text,label\n{'x' * 10_000_000},a\n", "at line 2 has 10,000,000. Is a quote missing?"),
        ("a.csv", f"text,label\nx,{'a' * 10_000_000}\n", "one at line 2 has 10,000,000. Pass --label_column if it is"),
        ("a.txt", f"a x\na {'x' * 10_000_000}\n", "at line 2 has 10,000,000"),
        ("a.jsonl", json_lines([("x" * 10_000_000, "a")]), "at line 1 has 10,000,000"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "line 1 is not. Write one object a line"),
        ("a.json", "[" * 100_000, "Expected JSON in 'a.json', but it is not"),
        ("a.jsonl", f'{{"text": "x", "label": {"[" * 900}{"]" * 900}}}', "line 1 has a list"),
        ("a.jsonl", '{"text": "x", "label": {"name": "a"}}', "in column 'label' of 'a.jsonl', but line 1 has a dict"),
        ("a.jsonl", '{"text": "x", "label": [["a"]]}', "line 1 has a list. Pass --label_column"),
        ("a.jsonl", '{"text": ["x", "y"], "label": 1}', "texts in column 'text' of 'a.jsonl', but line 1 has a list"),
        ("a.jsonl", '{"text": "x", "label": 1}\n"text"\n', "line 2 is a str"),
        ("a.jsonl", '\n{"text": "x",\n "label": 1}', "line 2 is not"),
        ("a.jsonl", '{"text": "cut \\ud83c", "label": 1}\n', "line 1 has half of a surrogate pair"),
        ("a.jsonl", '{"text": "x", "label": "\\udfac"}\n', "line 1 has half of a surrogate pair"),
        ("a.parquet", parquet([(b"x", "a")]), "texts in column 'text' of 'a.parquet', but row 1 has a bytes"),
        ("a.txt", "text,label\nx y,a\nz,b\n", "found the names of columns: 'text,label'. Name the file .csv or .tsv"),
        ("a.data", "id\tsentence\tlabel\n1\tx y\ta\n", "found the names of columns: 'id\\tsentence\\tlabel'"),
        ("a.txt", json_lines(ROWS), "whose ending names no other format, but found JSON. Rename it to .jsonl"),
        ("a.txt", "version https://git-lfs\noid sha256:1\nsize 1\n", "found 3 distinct labels in 3 rows"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_bad_files_are_refused_in_a_line_and_leave_nothing(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    write(Path(name), content)
    assert message in refusal(name)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    assert "found none at" in refusal(tmp_path / "no.csv")
    assert "File name too long" in refusal("x" * 300)
    assert "found none at '/dev/null'" in refusal("/dev/null")


def test_a_folder_without_classes_is_refused(tmp_path):
    write(tmp_path / "data" / "a.csv", "text,label\n")
    write(tmp_path / "data" / "unsup" / "1.txt", "hidden")
    message = refusal(tmp_path / "data")
    assert "a folder of .txt files for each class" in message
    assert "found ['a.csv', 'unsup']. Pass the folder that holds the classes" in message


def test_a_folder_of_splits_is_refused_with_the_way_to_pass_them(tmp_path):
    for name in ("train/pos/1.txt", "train/neg/1.txt", "test/pos/1.txt", "test/neg/1.txt", "train/urls.txt"):
        write(tmp_path / "archive" / name, "fine")
    assert "but 'test' holds folders of them: ['neg', 'pos']. Pass it as --train_file" in refusal(tmp_path / "archive")


def test_a_name_that_is_not_utf_8_does_no_harm(tmp_path):
    path = write(tmp_path / "caf\udce9.csv", separated(ROWS))
    examples = read_examples(path)
    assert rows_of(examples) == ROWS
    assert examples["id"][0] == "caf?.csv-0"


def test_a_row_that_is_bad_late_leaves_nothing(tmp_path):
    rows = "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(3_000))
    assert "line 3002 has 1" in refusal(write(tmp_path / "a.csv", f"text,label\n{rows}cut"))


def test_bad_splits_leave_no_part_of_a_file(tmp_path, cache):
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"text {number},a\n" for number in range(100)))
    with pytest.raises(FinetuneError, match=r"two classes in split 'train', but found only 'a'"):
        load_splits(DataArguments(train_file=path))
    assert {file.suffix for file in cache.rglob("*") if file.is_file()} == {".arrow"}


# Surrogates alone are no characters, and zero bytes mark binary files.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30) | st.text(
    "\"',;\t\n\r\\ab é", max_size=20
)
TABLES = st.lists(st.tuples(TEXTS, st.sampled_from(["a", "b"])), min_size=1, max_size=12)
ANY_TABLE = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".parquet"])
@ANY_TABLE
@given(rows=TABLES)
@example(rows=[("a\r", "a"), ('"', "b"), ("\ufeff", "a"), ("", "a")])
def test_every_text_comes_back_with_its_own_label(tmp_path, ending, rows):
    assert rows_of(read_examples(write(tmp_path / f"a{ending}", WRITERS[ending](rows)))) == rows


@ANY_TABLE
@given(rows=TABLES, label_first=st.booleans())
@example(rows=[("a\tb\nc", "a")], label_first=False)
def test_every_text_of_a_tsv_comes_back_or_the_file_is_refused(tmp_path, rows, label_first):
    """It is refused only where lines within quotes look like rows."""
    text = io.StringIO(newline="")
    order = -1 if label_first else 1
    csv.writer(text, delimiter="\t").writerows(row[::order] for row in [("text", "label"), *rows])
    path = write(tmp_path / "a.tsv", text.getvalue())
    found = read_or_refuse(path)
    if any("\t" in text and ("\n" in text or "\r" in text) for text, _ in rows) and isinstance(found, str):
        assert "Save the file as .csv or .jsonl" in found
    else:
        assert found == rows


@ANY_TABLE
@given(rows=st.lists(st.tuples(st.text('"""ab, é好', max_size=20), st.sampled_from("ab")), min_size=1))
def test_rows_of_a_tsv_without_quoting_never_mix(tmp_path, rows):
    content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    found = read_or_refuse(write(tmp_path / "a.tsv", content))
    if isinstance(found, str):
        assert "Save the file as .csv or .jsonl" in found
        return
    assert [label for _, label in found] == [label for _, label in rows]
    for (text, _), (written, _) in zip(found, rows, strict=True):
        assert text in (written, written[1:-1].replace('""', '"'))


ENDINGS = [*(ending + packed for ending in WRITERS for packed in COMPRESSION), ".txt", ".xlsx", ""]


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """Put, take away, or copy some bytes of a file that was whole."""
    for _ in range(draw(st.integers(0, 4))):
        start, end = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        piece = draw(st.binary(max_size=8) | st.sampled_from([b'"', b"\n", b"\t", codecs.BOM_UTF8, b"[", b"\\ud800"]))
        data = draw(st.sampled_from([data[:start] + piece + data[end:], data[:end] + piece + data[start:]]))
    return data


@settings(ANY_TABLE, max_examples=300)
@given(data=st.data(), ending=st.sampled_from(ENDINGS))
def test_any_bytes_are_read_or_refused_in_a_line(tmp_path, data, ending):
    packed = Path(ending).suffix if Path(f"a{ending}").suffix in COMPRESSION else ""
    whole = COMPRESSION[packed](WRITERS.get(ending.removesuffix(packed), separated)(ROWS))
    content = data.draw(st.binary(max_size=200) | damaged(whole))
    path = write(tmp_path / f"a{ending}", content)
    try:
        read_examples(path)
        message = "read"
    except FinetuneError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.rglob("*.partial"))
