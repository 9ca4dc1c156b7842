"""Files and models that nearly are what they seem: each is read as its writer meant it, or refused in a line."""

import csv
import io
import json
import shutil

import datasets
import pytest
import torch
from conftest import make_reviews
from safetensors.torch import load_file, save_file
from test_understood import LABELS, TEXTS, findings_of, given, refusal, rows_of, table, write
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from finetune.data.encoding import choose_encoding
from finetune.data.load import load_given_splits, read_examples
from finetune.data.spelling import looks_like
from finetune.errors import FinetuneError
from finetune.families.embeddings.vectors import load_pooled_encoder
from finetune.families.zero_shot.entailment import load_inference_model
from finetune.metrics import SINGLE_LABEL
from finetune.models.load import load_model, load_tokenizer
from finetune.settings.parts import DataArguments, ModelArguments
from finetune.tasks import Task

ROWS = list(zip(TEXTS, LABELS, strict=True))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# Labels that nearly join


@pytest.mark.parametrize(
    ("known", "found", "shown"),
    [
        (["pos", "neg"], ["рos", "neg"], "'\\u0440os' is not 'pos'"),
        (["Pos", "Neg"], ["pos", "neg"], "'neg' is not 'Neg'"),
        (["True", "False"], ["true", "false"], "'false' is not 'False'"),
        (["01", "02"], ["1", "2"], "'1' is not '01'"),
        (["0", "1"], ["００", "1"], "'\\uff10\\uff10' is not '0'"),
        (["so so", "good"], ["so-so", "good"], "'so-so' is not 'so so'"),
        (["pos", "neg"], ['"pos"', "neg"], "'\"pos\"' is not 'pos'"),
    ],
)
def test_a_label_that_nearly_joins_is_shown_beside_the_one_it_looks_like(tmp_path, known, found, shown):
    train = table(tmp_path / "train.jsonl", known * 30)
    message = refusal(given, train, test_file=table(tmp_path / "test.jsonl", found * 2))
    assert shown in message
    assert "though it looks like it" in message


def test_numbers_look_alike_if_they_are_equal():
    assert looks_like("007") == looks_like("7") == looks_like("7.0") == looks_like("７") != looks_like("-7")
    assert looks_like("1,5") == looks_like("1.50") != looks_like("15")
    assert looks_like("−1") == looks_like("-1")
    assert looks_like("-") == "-"  # not nothing


def test_numbers_that_are_equal_are_a_finding(tmp_path):
    splits = given(table(tmp_path / "a.csv", ["01", "1", "2"] * 20))
    assert "go by several names: '01' and '1'" in findings_of(splits)["similar_label_names"].message
    assert "similar_label_names" not in findings_of(given(table(tmp_path / "b.csv", ["-1", "1", "0"] * 20)))


def test_a_spelling_of_another_split_is_said(tmp_path):
    splits = given(
        table(tmp_path / "train.csv", ["café", "thé"] * 30),
        test_file=table(tmp_path / "test.csv", ["cafe\u0301", "thé"]),
    )
    assert splits.readings["train"].twins == []
    assert splits.readings["test"].twins == [["café", "cafe\u0301"]]


@pytest.mark.parametrize("word", ["?", "-", "...", "missing", "#NULL!", "\\N"])
def test_signs_for_a_missing_label_are_a_finding(tmp_path, word):
    findings = findings_of(given(table(tmp_path / "a.csv", ["pos", "neg", word] * 20)))
    assert findings["null_word_label"].num_rows == 20


@pytest.mark.parametrize("form", ["{}%", "{} %", "${}", "{} €", "{} 000", "{},250 $", "{}/50"])
def test_numbers_with_a_unit_are_a_finding_where_they_are_classes(tmp_path, form):
    texts = [f"{text} {row}" for row, text in enumerate(TEXTS * 2)]
    labels = [form.format(row % 30 + 1) for row in range(120)]
    assert findings_of(given(table(tmp_path / "a.csv", labels, texts)))["numbers_as_classes"].num_rows == 120


def test_the_sign_of_mathematics_is_a_minus(tmp_path):
    classes = given(table(tmp_path / "a.csv", ["−1", "0", "1"] * 20), test_file=table(tmp_path / "b.csv", ["-1", "1"]))
    assert classes["train"].features["label"].names == ["0", "1", "-1"]
    numbers = read_examples(table(tmp_path / "c.csv", ["−0.5", "−1,5", "2.5"] * 20))
    assert numbers["label"][:3] == pytest.approx([-0.5, -1.5, 2.5])


# Vectors in other spellings, and lists of numbers


@pytest.mark.parametrize(
    "labels",
    [["0/1/1", "1/0/0"], ["0-1", "1-0", "1-1"], ["T F F", "F T T"], ["yes,no", "no,no"], ["+ - +", "- - +"],
     ["0.1.1", "1.0.0"], ["(no; yes)", "(yes; yes)"], ["0:1:0", "1:0:0"], ["y/n", "n/n"]],
)  # fmt: skip
def test_vectors_in_a_spelling_that_is_not_read_are_refused(tmp_path, labels):
    path = table(tmp_path / "a.csv", labels * 20)
    assert "looks like vectors of 0 and 1" in refusal(given, path)
    splits = given(path, problem_type=SINGLE_LABEL)
    assert len(splits["train"].features["label"].names) == len(labels)


@pytest.mark.parametrize("labels", [["1.0", "0.0"], ["-1", "1"], ["0.1", "1.0"], ["no", "yes"], ["no way", "yes no"]])
def test_what_only_begins_like_a_vector_is_none(tmp_path, labels):
    given(table(tmp_path / "a.csv", labels * 20))


@pytest.mark.parametrize(
    "labels", [["np.array([0, 1])", "np.array([1, 0])"], ["0;1;", "1;0;"], ["torch.tensor([0, 1])"]]
)
def test_vectors_in_more_spellings_are_read(tmp_path, labels):
    found = read_examples(table(tmp_path / "a.csv", labels * 20))["label"]
    assert found[0] == [1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["[0, -1, 1]", "[1, 0, 0]"], "vectors of 0 and 1"),
        ([[0, 3, 0], [1, 1, 0]], "lists of 3 numbers that repeat, such as [0, 3, 0]"),
        ([[0, -1, -1], [1, 0, -1]], "lists of 3 numbers that repeat"),
        (["[0.1, 0.9]", "[0.5, 0.5]"], "numbers with fractions in them, such as 0.1"),
        (['{"a": 1, "b": 0}', '{"a": 0, "b": 1}'], "objects written as text"),
        (["{'a': True}", "{'a': False}"], "objects written as text"),
        ([{"a": 1}, {"a": 0}], "--label_column label.a, or --label_columns label.a,…"),
    ],
)
def test_numbers_by_their_place_are_no_names(tmp_path, labels, message):
    assert message in refusal(given, table(tmp_path / "a.jsonl", labels * 20))


@pytest.mark.parametrize("labels", [[[0, 2], [1], []], [["a", "a"], ["b"]], [[3, 1], [2, 0]]])
def test_lists_of_names_stay_lists_of_names(tmp_path, labels):
    assert given(table(tmp_path / "a.jsonl", labels * 20)).task.problem_type == "multi_label_classification"


def test_a_delimiter_that_no_row_has_is_refused_where_another_parts_the_labels(tmp_path):
    for delimiter, labels in (
        (";", ["joy,fear", "joy"]),
        ("\\t", ["joy\tfear", "joy"]),
        ("|", ["joy / fear", "fear "]),
    ):
        path = table(tmp_path / "a.csv", labels * 20)
        assert "but no row has it, and one has 'joy" in refusal(given, path, label_delimiter=delimiter)
    plain = given(table(tmp_path / "b.csv", ["joy", "fear"] * 20), label_delimiter=";")
    assert plain.task.label_names == ["fear", "joy"]


@pytest.mark.parametrize("sign", [" & ", "/", " + ", "|"])
def test_several_labels_in_one_are_a_finding_whatever_joins_them(tmp_path, sign):
    labels = ["joy", "fear", f"joy{sign}fear"] * 20
    findings = findings_of(given(table(tmp_path / "a.csv", labels)))
    assert findings["several_labels_in_one"].num_rows == 20


def test_flags_that_contradict_columns_of_labels_are_refused(tmp_path):
    lines = ["text,a,b", *(f"{text},{row % 2},{int(row % 3 == 0)}" for row, text in enumerate(TEXTS))]
    path = write(tmp_path / "a.csv", "\n".join(lines))
    for other in ({"label_delimiter": ";"}, {"problem_type": "regression"}, {"problem_type": SINGLE_LABEL}):
        assert "Expected --label_columns without --" in refusal(given, path, label_columns="a,b", **other)
    assert "Pass columns that are there as --label_columns." in refusal(given, path, label_columns="a,c")
    assert given(path, label_columns="a,b", problem_type="multi_label_classification").task.label_names == ["a", "b"]


# Encodings

SENTENCES = {
    "Russian": ("Очень понравился фильм, всем советую|Ужасного качества, сломался на второй день|Актёры играли хорошо, "
                "но сюжет скучный", ["cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic", "cp855"]),
    "Ukrainian": ("Дуже сподобався фільм, усім раджу|Жахливої якості, зламався|Їжа була смачною, є недоліки",
                  ["cp1251", "koi8_u"]),
    "Japanese": ("とても良いです。また買いたい|期待したほどではなかった|映画は退屈だった",
                 ["shift_jis", "cp932", "euc_jp", "iso2022_jp"]),
    "Chinese": ("这个手机很好用，非常满意|质量太差了，用了两天就坏了|电影很无聊", ["gb18030", "gbk", "gb2312"]),
    "Taiwanese": ("這個手機很好用，非常滿意|質量太差了，用了兩天就壞了|電影很無聊", ["big5", "cp950"]),
    "Korean": ("정말 재미있는 영화였어요|품질이 너무 나빠서 고장났어요|보통이에요 가격은 싸요", ["cp949", "euc_kr"]),
    "Greek": ("Μου άρεσε πολύ η ταινία|Πολύ κακή ποιότητα, χάλασε|Βαρετό έργο", ["cp1253", "iso8859_7", "cp737"]),
    "Turkish": ("İki gün sonra bozuldu, yazık oldu|Sıkıcı ve küçük, şaşırdım|Çok güzel bir film",
                ["cp1254", "cp857", "mac_turkish"]),
    "Hebrew": ("סרט נהדר מאוד נהניתי|איכות גרועה מאוד נשבר|סרט רגיל",
               ["cp1255", "cp862"]),
    "Latvian": ("Ļoti laba filma, iesaku visiem|Šausmīga kvalitāte, salūza|Parasta filma, nekā īpaša", ["cp1257"]),
    "Lithuanian": ("Labai geras filmas, rekomenduoju visiems žiūrėti|Bloga kokybė, sugedo per dvi dienas, ačiū|Įdomus, "
                   "bet per ilgas, šį kartą", ["cp1257"]),
    "French": ("Le film était très réussi, à voir|C'est l'œuvre de sa vie|Déçu, 5 € de trop",
               ["cp1252", "iso8859_15", "mac_roman"]),
    "German": ("Größe und Qualität sind mäßig|Für 20 € ist es schön|Ärgerlich", ["cp1252", "iso8859_15"]),
    "typography": ("I won £500 – call now|It’s only £5, “great”|costs € 20 … ok", ["cp1252"]),
}  # fmt: skip


@pytest.mark.parametrize("count", [9, 60])
@pytest.mark.parametrize(
    ("language", "encoding"), [(name, one) for name, (_, encodings) in SENTENCES.items() for one in encodings]
)
def test_an_encoding_of_the_language_comes_back_exactly(tmp_path, language, encoding, count):
    lines = SENTENCES[language][0].split("|")
    texts = [f"{lines[row % len(lines)]} {row}" for row in range(count)]
    path = table(tmp_path / "a.csv", ["a", "b", "a"] * (count // 3), texts, encoding=encoding)
    assert read_examples(path)["text"][:] == texts


@pytest.mark.parametrize("encoding", ["cp850", "cp437", "mac_roman"])
@pytest.mark.parametrize("language", ["German", "French", "typography"])
def test_code_pages_of_old_consoles_are_read_or_refused_rather_than_misread(language, encoding):
    sample = "\n".join(f"{line} {row}" for row in range(20) for line in SENTENCES[language][0].split("|"))
    sample = sample.encode(encoding, "ignore")
    chosen = choose_encoding(sample)
    assert chosen is None or sample.decode(chosen) == sample.decode(encoding)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("очень плохой фильм и скучный сюжет", "gb18030"), ("とても良いです。また買いたい", "gb18030")],
)
def test_a_script_that_an_encoding_was_not_made_for_is_refused_rather_than_misread(text, encoding):
    assert choose_encoding(f"{text}\n".encode(encoding) * 20) is None


def test_signs_within_words_are_no_text_of_western_europe():
    """¢ is ó in the code page of consoles, ‚ is é: words tell, also where each stands by itself."""
    for line in ("información", "é um filme", "più caro"):
        sample = "".join(f"{line},{row}\n" for row in range(20)).encode("cp850")
        assert choose_encoding(sample) not in ("cp1252", "iso8859-15", "cp1250")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["film", "好看的电影", "été"])
def test_utf_16_without_its_mark_is_named_with_its_order(tmp_path, encoding, text):
    path = table(tmp_path / "a.csv", ["a", "b"] * 30, [f"{text} {row}" for row in range(60)], encoding=encoding)
    assert f"Pass --encoding {encoding}" in refusal(given, path)
    assert given(path, encoding=encoding)["train"]["text"][0] == f"{text} 0"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_a_byte_order_mark_within_joined_files_is_no_part_of_a_row(tmp_path, name):
    parts = []
    for rows in (ROWS[:30], ROWS[30:]):
        if name == "a.csv":
            parts.append("".join(f"{text},{label}\n" for text, label in rows))
        elif name == "a.jsonl":
            parts.append("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        else:
            parts.append("".join(f"{label} {text}\n" for text, label in rows))
    head = "text,label\n" if name == "a.csv" else ""
    joined = f"\ufeff{head}{parts[0]}\ufeff{parts[1]}"
    assert rows_of(read_examples(write(tmp_path / name, joined))) == ROWS
    if head:
        for mark in ("", "\ufeff"):
            twice = f"{mark}{head}{parts[0]}\ufeff{head}{parts[1]}"
            assert "is its header once more" in refusal(given, write(tmp_path / name, twice))


# Separators and headers

SHAPES = {
    "row numbers of R": ('"text","label"', lambda row, text, label: f'"{row + 1}","{text}","{label}"'),
    "a separator behind each row": ("text,label", lambda row, text, label: f"{text},{label},"),
    "a separator behind the header": ("text,label,", lambda row, text, label: f"{text},{label}"),
    "blanks before quotes": ("text, label", lambda row, text, label: f'"{text}", "{label}"'),
    "blanks before quotes, label first": ("label, text", lambda row, text, label: f'{label}, "{text}"'),
    "single quotes": ("'text';'label'", lambda row, text, label: f"'{text}';'{label}'"),
    "bars around": ("|text|label|", lambda row, text, label: f"|{text}|{label}|"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes_of_tables_are_read(tmp_path, shape):
    head, form = SHAPES[shape]
    lines = [form(row, f"{text}; yes, so" if "bars" not in shape and "behind" not in shape else text, label)
             for row, (text, label) in enumerate(ROWS)]  # fmt: skip
    found = rows_of(read_examples(write(tmp_path / "a.csv", "\n".join([head, *lines]) + "\n")))
    assert [label for _, label in found] == LABELS
    assert [text.removesuffix("; yes, so") for text, _ in found] == TEXTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("| text | label |\n|---|:---:|\n| good | a |\n", "as in a table in Markdown"),
        ("# made by me\ntext,label\ngood,a\n", "as in its header '# made by me', but line 2 has 2"),
        ("what a good film this was,3\n" + "".join(f"{text},{row % 3}\n" for row, text in enumerate(TEXTS)),
         "which look like an example"),
        ("one of the best films of all time,great\n" + "".join(f"{a},{b}\n" for a, b in ROWS), "look like an example"),
    ],
)  # fmt: skip
def test_first_lines_that_are_no_names_are_refused(tmp_path, content, message):
    assert message in refusal(given, write(tmp_path / "a.csv", content))


@pytest.mark.parametrize("sign", ["\t", ",", "|"])
def test_names_of_columns_above_lines_are_refused(tmp_path, sign):
    lines = "".join(f"{text}{sign}{label}\n" for text, label in ROWS)
    message = refusal(given, write(tmp_path / "a.txt", f"remark{sign}kind\n{lines}"))
    assert "looks like names of columns" in message
    assert rows_of(read_examples(write(tmp_path / "b.txt", lines))) == ROWS


def test_json_of_rows_by_their_number_is_read_and_of_several_lists_refused(tmp_path):
    objects = [{"text": text, "label": label} for text, label in ROWS]
    by_row = write(tmp_path / "a.json", json.dumps({f"r{row}": one for row, one in enumerate(objects)}))
    assert rows_of(read_examples(by_row)) == ROWS
    several = write(tmp_path / "b.json", json.dumps({"train": objects, "test": objects[:9]}))
    assert "but found several: ['train', 'test']" in refusal(given, several)
    by_text = write(tmp_path / "c.json", json.dumps(dict(ROWS)))
    assert len(refusal(given, by_text)) < 3_000


# Columns and groups


def columns_of(tmp_path, names, make):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([names, *(make(row, *one) for row, one in enumerate(ROWS))])
    return write(tmp_path / "a.csv", text.getvalue())


URL = "https://example.org/films/{}/a-page-whose-address-is-longer-than-its-text?utm_source=letter"


@pytest.mark.parametrize(
    ("names", "make", "expected"),
    [
        (("url", "remark", "label"), lambda row, text, label: (URL.format(row), text, label), ("remark", "label")),
        (("page", "remark", "label"), lambda row, text, label: (URL.format(row), text, label), ("remark", "label")),
        (("when", "remark", "label"), lambda row, text, label: ("2020-01-02 03:04", text, label), ("remark", "label")),
        (("title", "abstract", "topic"), lambda row, text, label: (f"T{row}", text, label), ("abstract", "topic")),
        (("title", "plot", "label"), lambda row, text, label: (f"T{row}", text, label), ("plot", "label")),
        (("title", "label"), lambda row, text, label: (text, label), ("title", "label")),
        (("text", "intent", "domain"), lambda row, text, label: (text, label, "x"), ("text", "intent")),
        (("headline", "link", "category"), lambda row, text, label: (text, URL, label), ("headline", "category")),
    ],
)  # fmt: skip
def test_addresses_dates_and_short_titles_are_no_texts(tmp_path, names, make, expected):
    text, label = expected
    columns = given(columns_of(tmp_path, names, make)).readings["train"].columns
    assert columns == f"text from column {text!r}, label from column {label!r}"


@pytest.mark.parametrize(
    ("names", "make"),
    [
        (("link", "kind"), lambda row, text, label: (URL.format(row), label)),
        (("url", "label"), lambda row, text, label: (URL.format(row), label)),
        (("text", "date"), lambda row, text, label: (text, f"2020-01-{row % 3 + 1:02}")),
        (("text", "created_at"), lambda row, text, label: (text, f"{row % 3}")),
        (("text", "moment"), lambda row, text, label: (text, 1_400_000_000 + row % 3)),
        (("text", "user"), lambda row, text, label: (text, f"user {row % 3}")),
        (("text", "reviewId"), lambda row, text, label: (text, row % 3)),
    ],
)
def test_columns_that_tell_rows_apart_are_guessed_to_be_nothing(tmp_path, names, make):
    message = refusal(given, columns_of(tmp_path, names, make))
    assert message.endswith(("Pass --label_column.", "Pass --text_column and --label_column."))


def test_a_column_that_is_missing_is_asked_for_by_its_own_flag(tmp_path):
    path = columns_of(tmp_path, ("text", "label", "key"), lambda row, text, label: (text, label, row // 2))
    for part in ("text_pair", "group", "id"):
        assert f"Pass columns that are there as --{part}_column." in refusal(given, path, **{f"{part}_column": "nope"})
    assert "Pass another --id_column" in refusal(given, path, id_column="key")


@pytest.mark.parametrize("missing", ["-", "?", "unknown", "Anonymous", "[deleted]", ""])
def test_placeholders_name_no_group(tmp_path, missing):
    path = columns_of(
        tmp_path, ("text", "label", "author"), lambda row, text, label: (text, label, missing if row % 2 else row)
    )
    assert findings_of(given(path, group_column="author"))["rows_without_group"].num_rows == 30


# Models


def change(folder, name, **fields):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **fields}))


@pytest.fixture
def base(tmp_path, tiny_bert):
    return shutil.copytree(tiny_bert, tmp_path / "base")


def load(base):
    arguments = ModelArguments(model_name_or_path=str(base))
    tokenizer = load_tokenizer(arguments, 16)
    return load_model(arguments, "full", tokenizer, Task(SINGLE_LABEL, ["a", "b"]), seed=0), tokenizer


@pytest.mark.parametrize("names", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_a_model_without_a_vocabulary_is_refused(base, names):
    for name in names:
        (base / name).unlink()
    assert "knows its special tokens alone. Put its tokenizer.json" in refusal(load, base)


def test_a_vocabulary_of_its_own_without_settings_is_enough(base):
    expected = AutoTokenizer.from_pretrained(base)(make_reviews(1)[0][0])["input_ids"]
    (base / "tokenizer_config.json").unlink()
    assert load(base)[1](make_reviews(1)[0][0])["input_ids"] == expected


def load_pooled(base):
    arguments = ModelArguments(model_name_or_path=str(base))
    return load_pooled_encoder(arguments, load_tokenizer(arguments, 16), Task(SINGLE_LABEL, ["a", "b"]), False)


def load_of_inference(base):
    arguments, tokenizer = ModelArguments(model_name_or_path=str(base)), AutoTokenizer.from_pretrained(base)
    config = AutoConfig.from_pretrained(base, id2label={0: "contradiction", 1: "entailment"})
    whole = AutoModelForSequenceClassification.from_config(config)
    whole.base_model.load_state_dict(load_file(base / "model.safetensors"), strict=False)
    whole.save_pretrained(base)
    return load_inference_model(arguments, tokenizer, Task(SINGLE_LABEL, ["a", "b"]), {})


@pytest.mark.parametrize("load", [load, load_pooled, load_of_inference])
@pytest.mark.parametrize("spoil", ["cut off", "text", "nan", "infinite"])
def test_spoilt_weights_are_refused_in_a_line(base, spoil, load):
    file = base / "model.safetensors"
    if spoil in ("nan", "infinite"):
        weights = load_file(file)
        weights["encoder.layer.0.output.dense.weight"].view(-1)[0] = torch.inf if spoil == "infinite" else torch.nan
        save_file(weights, file, metadata={"format": "pt"})
        assert "NaN or infinite" in refusal(load, base)
    elif load is not load_of_inference:  # which reads the file itself
        file.write_bytes(file.read_bytes()[:-100] if spoil == "cut off" else b"no weights")
        assert "Expected weights in safetensors" in refusal(load, base)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", {"model_type": "superbert"}, "model type `superbert`"),
        ("config.json", {"num_attention_heads": 3}, "to divide the width 16"),
        ("config.json", {"pad_token_id": 999}, "pad_token_id to be the number of a token"),
        ("config.json", {"vocab_size": 10}, "Expected token numbers below 10"),
        ("tokenizer_config.json", {"padding_side": "top"}, "padding_side left or right"),
        ("tokenizer_config.json", {"pad_token": None}, "a padding token"),
    ],
)
def test_settings_that_no_model_can_have_are_one_line(base, name, fields, message):
    change(base, name, **fields)
    assert message in refusal(load, base)


@pytest.mark.parametrize("fields", [{"model_max_length": 10**30}, {"model_max_length": -1}, {"padding_side": "left"}])
def test_settings_that_say_nothing_are_made_right(base, fields):
    change(base, "tokenizer_config.json", **fields)
    model, tokenizer = load(base)
    assert tokenizer.padding_side == "right"
    assert model(**tokenizer(TEXTS[:3], padding=True, return_tensors="pt")).logits.isfinite().all()


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(FinetuneError, match="is a file"):
        load(write(tmp_path / "model", "x"))


# Settings that say how data are read


@pytest.mark.parametrize(
    "flags",
    [{"label_columns": "a,b"}, {"text_column": "review"}, {"label_delimiter": ";"}, {"encoding": "cp1252"},
     {"group_column": "author"}, {"text_pair_column": "other"}],
)  # fmt: skip
def test_flags_of_files_are_refused_where_there_is_none(flags):
    assert f"Expected no --{next(iter(flags))}" in refusal(load_given_splits, DataArguments("embedded", **flags))


def test_an_encoding_of_no_text_is_warned_of(tmp_path):
    objects = [{"text": text, "label": label} for text, label in ROWS]
    datasets.Dataset.from_list(objects).to_parquet(tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="--encoding has no effect"):
        given(tmp_path / "a.parquet", encoding="cp1252")


def test_a_delimiter_beside_class_names_is_refused(tmp_path):
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": [row % 2 for row in range(60)]})
    rows.cast_column("label", datasets.ClassLabel(names=["a", "b"])).to_parquet(tmp_path / "a.parquet")
    assert "which has class names of its own" in refusal(given, tmp_path / "a.parquet", label_delimiter=";")


@pytest.mark.parametrize("other", ["inf", "n.v.t.", "-Infinity"])
def test_what_is_no_number_among_numbers_is_shown(tmp_path, other):
    numbers = [f"{1 + row / 7:.3f}" for row in range(40)]
    path = table(tmp_path / "a.csv", [*numbers[:7], other, *numbers[8:]])
    message = refusal(given, path)
    assert f"but row 8 has '{other}' among numbers. Write a number, or remove the row." in message
