"""The data doctor: each planted trouble is found with its rows, and nothing is said of clean data."""

import csv
import functools
import itertools
import json
import random

import datasets
import numpy as np
import pytest
from conftest import GOOD, make_reviews
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoTokenizer

from finetune import cli
from finetune.data.embedded import load_embedded_reviews
from finetune.data.load import load_given_splits
from finetune.data_doctor import examine as examine_module
from finetune.data_doctor.examine import examine
from finetune.data_doctor.facts import MOJIBAKE, collect_facts
from finetune.data_doctor.findings import describe_findings, from_json, has_errors, to_json
from finetune.data_doctor.near_duplicates import find_near_duplicates
from finetune.errors import FinetuneError
from finetune.metrics import SINGLE_LABEL
from finetune.settings.parts import DataArguments
from finetune.tasks import Task

WORDS = """
    river table window morning letter garden music winter doctor street bottle mountain kitchen paper summer bridge
    market engine brother teacher village ocean ticket castle forest camera planet dinner island story basket coffee
    mirror pocket silver shadow station valley yellow circle desert family hammer jacket ladder magnet needle orange
    pencil rabbit saddle tunnel velvet wallet anchor button candle donkey feather guitar harbor insect jungle kettle
    lemon meadow napkin oyster parrot quarrel ribbon sailor temple umbrella violin walnut yogurt zebra arrives bends
    carries drops enters follows grows hides imagines jumps keeps leaves mixes needs opens paints quits reads sells
    takes uses visits walks yields across behind during except inside minus outside past round since through under
    until within without already barely calmly deeply early fairly gently hardly indeed just kindly lately mostly
    nearly often partly quite rarely slowly twice usually very widely yearly above below beside between beyond cheap
    """.split()  # noqa: SIM905
SIGNS = (
    "天地人山水火木金土日月星雨雪風花草鳥魚犬猫馬牛羊車船道橋"
    "家門窓紙本字音色光空海川島国町村市場店学校先生友春夏秋冬朝昼夜"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing of one test is known to another."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "finetune"


def make_texts(count, seed=0, words=WORDS, least=8, most=60, joined=" "):
    """Draw that many distinct texts."""
    generator = random.Random(seed)
    texts = {}
    while len(texts) < count:
        texts[joined.join(generator.choices(words, k=generator.randint(least, most)))] = None
    return list(texts)


def make_rows(count, seed=0, labels=("bad", "good", "so so"), **settings):
    """Draw a label for each text; as many of each, in random order."""
    drawn = [labels[row % len(labels)] for row in range(count)]
    random.Random(seed + 1).shuffle(drawn)
    return [
        {"text": text, "label": label} for text, label in zip(make_texts(count, seed, **settings), drawn, strict=True)
    ]


def write(folder, **splits):
    """Write rows as JSON Lines, and give the flags that name them."""
    flags = {}
    for name, rows in splits.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        flags[f"{name}_file"] = str(path)
    return flags


def look(folder, flags=None, settings=None, **splits):
    """Examine rows as the command does."""
    return examine(load_given_splits(DataArguments(**write(folder, **splits), **(flags or {}))), **(settings or {}))


def troubles(findings):
    return [finding for finding in findings if finding.severity != "note"]


def only(findings, name):
    """Take the one finding of that name."""
    found = [finding for finding in findings if finding.name == name]
    assert len(found) == 1, [finding.message for finding in findings]
    return found[0]


def ids_of(finding):
    return [example["id"] for example in finding.examples]


# Nothing to find


def three_splits(**settings):
    rows = make_rows(600, **settings)
    return {"train": rows[:400], "validation": rows[400:500], "test": rows[500:]}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"least": 2, "most": 6},
        {"words": SIGNS, "joined": "", "least": 12, "most": 90},
        {"words": SIGNS, "joined": "", "least": 4, "most": 9},
        {"words": [*WORDS, "😀", "👍🏽", "❤️", "🎬", "ça", "été", "mañana", "größer", "NÃO"], "least": 4},
        {"words": ["😀", "😡", "👍🏽", "❤️", "🎬", "🍿", "👨‍👩‍👧", "🇫🇷"], "joined": "", "least": 4, "most": 9},
        {"words": [a + b + c for a in WORDS[:30] for b in "aeiou" for c in ("", "s", "ed", "ing", "ly")],
         "least": 1, "most": 1},
    ],
    ids=["sentences", "phrases", "Japanese", "short Japanese", "many signs", "emoji", "words and their forms"],
)  # fmt: skip
def test_clean_data_gives_notes_alone(tmp_path, settings):
    findings = look(tmp_path, **three_splits(**settings))
    assert [finding.message for finding in troubles(findings)] == []
    assert [finding.name for finding in findings] == ["lengths", "lengths", "lengths"]
    assert describe_findings(findings).endswith("\n0 errors, 0 warnings, 3 notes")
    assert describe_findings(findings, with_notes=False) == "0 errors, 0 warnings, 3 notes"


def test_clean_data_without_other_splits_gives_notes_alone(tmp_path):
    assert [finding.name for finding in look(tmp_path, train=make_rows(300))] == ["lengths"]


def test_clean_labels_are_not_doubted(tmp_path):
    findings = look(tmp_path, settings={"check_labels": True}, train=separable(400))
    assert troubles(findings) == []


def test_lengths_are_counted_in_words_or_in_signs_where_words_have_no_spaces(tmp_path):
    rows = [{"text": " ".join(["word"] * count), "label": "ab"[count % 2]} for count in (1, 2, 3, 9, 4, 5)]
    finding = only(look(tmp_path, train=rows), "lengths")
    assert finding.message == "train: a text has 4 words in the median, 95 % at most 8, the longest 9"
    finding = only(look(tmp_path, settings={"max_length": 4}, train=rows), "lengths")
    assert finding.message.endswith("the longest 9; 33.3% have more than 4, so --max_length 4 cuts them")
    assert "--truncation" in finding.advice
    rows = [{"text": "हिन्दी फ़िल्में", "label": "a"}, {"text": "re\u0301sume\u0301", "label": "b"}]
    assert only(look(tmp_path, train=rows), "lengths").message.endswith("the longest 2")
    rows = [{"text": "映画は、とても良い。", "label": "a"}, {"text": "悪い", "label": "b"}]
    assert only(look(tmp_path, train=rows), "lengths").message.endswith("the longest 8")


# Labels


def test_a_split_of_one_class_is_an_error(tmp_path):
    rows = make_rows(200, labels=("no", "yes"))
    test = [row for row in rows[100:] if row["label"] == "no"]
    findings = look(tmp_path, train=rows[:100], test=test)
    finding = only(findings, "single_class")
    assert (finding.severity, finding.splits, finding.num_rows) == ("error", ("test",), len(test))
    assert finding.message == f"all {len(test)} rows of test have the same label"
    assert finding.examples[0]["label"] == "no"
    assert troubles(findings) == [finding]
    assert has_errors(findings)


def test_sorted_rows_are_found(tmp_path):
    rows = sorted(make_rows(90), key=lambda row: row["label"])
    finding = only(look(tmp_path, train=rows), "sorted_by_label")
    assert (finding.severity, finding.splits, finding.num_rows) == ("warning", ("train",), 90)
    assert finding.message == (
        "the rows of train are sorted by label: the first 30 are all 'bad', so select(range(n)) up to there gives one "
        "class"
    )
    assert ids_of(finding) == ["train.jsonl-0", "train.jsonl-30"]
    assert [example["label"] for example in finding.examples] == ["bad", "good"]


def test_rows_in_blocks_of_a_label_are_found(tmp_path):
    rows = sorted(make_rows(200, labels=("no", "yes")), key=lambda row: row["label"])
    joined = [*rows[:50], *rows[100:150], *rows[50:100], *rows[150:]]  # as two sorted files, one behind the other
    message = only(look(tmp_path, train=joined), "sorted_by_label").message
    assert message.startswith("the rows of train are in 4 blocks of one label: the first 50 are all 'no'")


def test_rows_sorted_by_the_number_to_predict_are_found(tmp_path):
    rows = [{"text": text, "label": row / 7} for row, text in enumerate(make_texts(60))]
    finding = only(look(tmp_path, train=rows), "sorted_by_label")
    assert finding.message.startswith("the rows of train are sorted by the number to predict")
    assert ids_of(finding) == ["train.jsonl-0", "train.jsonl-59"]
    random.Random(0).shuffle(rows)
    assert troubles(look(tmp_path, train=rows)) == []


@pytest.mark.parametrize(
    ("labels", "flags", "name", "message"),
    [
        (("Pos", "pos", "neg"), {}, "similar_label_names", "1 classes go by several names: 'Pos' and 'pos'"),
        (("so so", "so-so", "neg"), {}, "similar_label_names", "1 classes go by several names: 'so so' and 'so-so'"),
        (("0", "1", "neg"), {"problem_type": "single_label_classification"}, "mixed_label_names",
         "2 labels are numbers, such as '0', and 1 are not, such as 'neg'"),
        (tuple(range(3, 33)), {}, "numbers_as_classes",
         "30 different numbers, from 3 to 32, are taken as that many classes"),
        (("neg", "null", "pos"), {}, "null_word_label", "'null' among the labels may stand for a missing one"),
        (("neg", "None", "pos"), {}, "null_word_label", "'None' among the labels may stand for a missing one"),
        (("joy", "joy|fear", "fear"), {}, "several_labels_in_one",
         "1 labels look like several, such as 'joy|fear'"),
        ((["Joy"], ["joy", "fear"]), {}, "similar_label_names", "1 classes go by several names: 'Joy' and 'joy'"),
    ],
)  # fmt: skip
def test_names_of_labels_that_are_doubtful_are_found(tmp_path, labels, flags, name, message):
    rows = [{"text": text, "label": labels[row % len(labels)]} for row, text in enumerate(make_texts(90 * 2))]
    random.Random(0).shuffle(rows)
    finding = only(look(tmp_path, flags, train=rows), name)
    assert (finding.severity, finding.splits, finding.message) == ("warning", ("train",), message)
    assert 0 < finding.num_rows <= len(rows)
    assert finding.examples


@pytest.mark.parametrize(
    "labels", [("1", "2", "10"), ("C", "C++", "C#"), ("a, b", "c, d"), ("1.0.0", "v2"), tuple(range(20))]
)
def test_names_of_labels_that_are_not_doubtful(tmp_path, labels):
    rows = [{"text": text, "label": labels[row % len(labels)]} for row, text in enumerate(make_texts(120))]
    random.Random(0).shuffle(rows)
    assert troubles(look(tmp_path, train=rows)) == []


@pytest.mark.parametrize("labels", [["a"] * 19 + ["b"], ["a", "a", "b"] * 2 + ["c"], ["a", "b"] * 40])
def test_an_order_that_chance_gives_is_not_called_sorted(tmp_path, labels):
    rows = [{"text": text, "label": label} for text, label in zip(make_texts(len(labels)), labels, strict=True)]
    assert "sorted_by_label" not in {finding.name for finding in look(tmp_path, train=rows)}


def test_a_label_that_train_lacks_is_an_error():
    findings = examine(DatasetDict(train=make_dataset(make_texts(20), [row % 2 for row in range(20)], ["a", "b", "c"])))
    finding = only(findings, "labels_missing_from_train")
    assert (finding.severity, finding.message) == ("error", "train has no row of ['c']")
    assert troubles(findings) == [finding]


def make_dataset(texts, labels, names):
    features = Features({"id": Value("string"), "text": Value("string"), "label": ClassLabel(names=names)})
    columns = {"id": [str(row) for row in range(len(texts))], "text": texts, "label": labels}
    return Dataset.from_dict(columns, features)


def test_classes_with_fewer_rows_than_splits_are_found(tmp_path):
    rows = [*make_rows(18, labels=("a", "b")), {"text": "one more", "label": "c"}, {"text": "and more", "label": "d"}]
    rows = [*rows[:5], rows[-1], *rows[5:-1], {"text": "a last one", "label": "d"}]
    findings = look(tmp_path, train=rows)
    finding = only(findings, "classes_with_fewer_rows_than_splits")
    assert finding.message == "train has fewer than 3 rows of 2 of its 4 classes: c (1), d (2)"
    assert (finding.severity, finding.num_rows) == ("warning", 3)
    assert ids_of(finding) == ["train.jsonl-5", "train.jsonl-19", "train.jsonl-20"]
    assert troubles(findings) == [finding]  # nine times as many rows are not called imbalanced


def test_class_imbalance_is_found_from_ten_times_as_many_rows(tmp_path):
    rows = [{"text": text, "label": "rare" if row % 11 == 5 else "usual"} for row, text in enumerate(make_texts(110))]
    findings = look(tmp_path, train=rows)
    finding = only(findings, "class_imbalance")
    assert finding.message == "usual has 100 rows, rare 10: 10 times as many"
    assert (finding.severity, finding.num_rows) == ("warning", 10)
    assert troubles(findings) == [finding]
    assert not troubles(look(tmp_path, train=rows[:-1]))  # 99 rows


def test_withheld_test_labels_are_noted(tmp_path):
    splits = three_splits()
    for labels in ({"label": -1}, {"label": None}, {}):
        test = [{"text": row["text"], **labels} for row in splits["test"]]
        findings = look(tmp_path, train=splits["train"], test=test, settings={"check_labels": True})
        finding = only(findings, "labels_withheld")
        assert (finding.severity, finding.splits, finding.num_rows) == ("note", ("test",), 100)


# Copies


def test_exact_duplicates_are_counted_as_rows_and_as_texts(tmp_path):
    rows = make_rows(100, labels=("a", "b"))
    rows += [rows[3], rows[3], rows[7]]
    findings = look(tmp_path, train=rows)
    finding = only(findings, "exact_duplicates")
    assert (finding.severity, finding.splits, finding.num_rows) == ("warning", ("train",), 3)
    assert finding.message == "train has 103 rows of 100 distinct texts: 3 rows repeat one of 2 texts"
    assert ids_of(finding) == ["train.jsonl-3", "train.jsonl-100"]
    assert troubles(findings) == [finding]


def test_duplicates_across_splits_are_counted_as_rows_and_as_texts(tmp_path):
    splits = three_splits()
    splits["test"][2:5] = [splits["train"][0], splits["train"][0], splits["train"][9]]
    splits["validation"][0] = splits["train"][20]
    findings = look(tmp_path, **splits)
    found = [finding for finding in findings if finding.name == "duplicates_across_splits"]
    assert [(finding.splits, finding.num_rows, finding.severity) for finding in found] == [
        (("train", "validation"), 1, "warning"), (("train", "test"), 3, "warning")]  # fmt: skip
    assert found[1].message == "3 rows of test (2 texts) are also in train"
    assert ids_of(found[1]) == ["test.jsonl-2", "test.jsonl-3", "test.jsonl-4"]
    assert only(findings, "exact_duplicates").splits == ("test",)
    assert len(troubles(findings)) == 3


def test_the_same_text_under_different_labels_is_found(tmp_path):
    rows = make_rows(60, labels=("a", "b"))
    other = {"a": "b", "b": "a"}
    rows += [{**rows[4], "label": other[rows[4]["label"]]}, rows[4], rows[5]]
    test = [{**rows[8], "label": other[rows[8]["label"]]}, *make_rows(20, seed=5, labels=("a", "b"))]
    findings = look(tmp_path, train=rows, test=test)
    finding = only(findings, "same_text_different_labels")
    assert (finding.severity, finding.splits, finding.num_rows) == ("warning", ("train", "test"), 5)
    assert finding.message == "2 texts stand under different labels"
    first, second = finding.examples
    assert first["text"] == second["text"]
    assert {first["label"], second["label"]} == {"a", "b"}


def test_near_duplicates_across_splits_are_found(tmp_path):
    splits = three_splits(least=20)
    changed = [row["text"].split() for row in splits["train"][:3]]
    splits["test"][0]["text"] = " ".join(["WELL,", *changed[0]]) + "!"  # a word more, other signs
    splits["test"][1]["text"] = splits["train"][1]["text"].upper()
    splits["test"][2]["text"] = " ".join(word if place % 4 else "other" for place, word in enumerate(changed[2]))
    findings = look(tmp_path, **splits)
    finding = only(findings, "near_duplicates_across_splits")
    assert (finding.severity, finding.splits, finding.num_rows) == ("warning", ("train", "test"), 2)
    assert finding.message == (
        "2 texts of test share at least 70% of their runs of 5 words (letters in short ones) with a text of train"
    )
    assert ids_of(finding) == ["train.jsonl-0", "test.jsonl-0"]
    assert troubles(findings) == [finding]


def test_near_duplicates_inside_train_are_noted_while_splits_are_to_be_carved(tmp_path):
    splits = three_splits(least=20)
    splits["train"][3]["text"] = splits["train"][2]["text"] + " indeed"
    finding = only(look(tmp_path, train=splits["train"]), "near_duplicates")
    assert (finding.severity, finding.splits, finding.num_rows) == ("note", ("train",), 1)
    assert ids_of(finding) == ["train.jsonl-2", "train.jsonl-3"]
    assert "near_duplicates" not in {found.name for found in look(tmp_path, **splits)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "とても面白い映画でしたが、最後は少し長いと思いました。",
            "とても面白い映画でしたが、最後は少し長いと思いました！",
        ),
        ("这部电影非常好看，演员的表演也很出色，值得一看。", "这部电影非常好看，演员的表演也很出色，值得一看吧"),
        ("A lovely little film!", "a lovely little films"),
    ],
)
def test_near_duplicates_are_found_without_spaces_and_in_short_texts(tmp_path, one, other):
    splits = three_splits()
    splits["train"][0]["text"], splits["test"][0]["text"] = one, other
    assert only(look(tmp_path, **splits), "near_duplicates_across_splits").num_rows == 1


def make_variants():
    """Texts, and copies of which more or fewer words were changed, in two splits; the first rows are a boilerplate."""
    generator = random.Random(3)
    texts = [f"{' '.join(WORDS[:40])} number {row}" for row in range(30)]
    texts += [" ".join(make_texts(1, seed=1)), "One, two.", "one two", "", "?!"]
    for text in make_texts(120, seed=7, least=6, most=120):
        words = text.split()
        for _ in range(2):
            rate = generator.choice([0, 0.01, 0.02, 0.04, 0.08])
            texts.append(" ".join(generator.choice(WORDS) if generator.random() < rate else word for word in words))
            if generator.random() < 0.5:
                texts[-1] += " " + generator.choice(WORDS)
        texts.append(text)
    return texts


@functools.cache
def runs_of(text):
    """Return the set of a text's runs of five words, or letters, as they are; a single word has none."""
    words = "".join(sign for sign in text.lower() if sign.isalnum() or sign == " ").split()
    parts = words if len(words) > 5 else "".join(words)
    return {tuple(parts[start : start + 5]) for start in range(max(1, len(parts) - 4))} if len(words) > 1 else set()


def similarity(one, other):
    common = len(runs_of(one) & runs_of(other))
    return common / max(1, len(runs_of(one)) + len(runs_of(other)) - common)


def test_near_duplicates_are_those_that_comparing_all_pairs_finds():
    variants = make_variants()
    random.Random(0).shuffle(variants)
    halves = {"train": list(dict.fromkeys(variants[:200])), "test": list(dict.fromkeys(variants[200:]))}
    texts = [text for half in halves.values() for text in half]
    task = Task(SINGLE_LABEL, ["a", "b"])
    facts = [
        collect_facts(name, make_dataset(half, [row % 2 for row in range(len(half))], ["a", "b"]), task)
        for name, half in halves.items()
    ]
    found = find_near_duplicates(facts)
    places = [(split, row) for split, half in enumerate(halves.values()) for row in range(len(half))]
    numbers = {place: number for number, place in enumerate(places)}
    for first, second in found:
        one, other = texts[numbers[first]], texts[numbers[second]]
        assert first < second
        assert one != other
        assert similarity(one, other) >= 0.7

    # Each text once for each split with one that it is like.
    told = [(second, first[0]) for first, second in found]
    assert told == sorted(set(told))
    boilerplate = {place for place, text in zip(places, texts, strict=True) if "number" in text}
    assert len(boilerplate) == 30
    assert len(boilerplate & {second for second, _ in told}) == 29  # all but the first
    similar = {
        (other, one[0])
        for one, other in itertools.combinations(places, 2)
        if other not in boilerplate
        and texts[numbers[one]] != texts[numbers[other]]
        and similarity(texts[numbers[one]], texts[numbers[other]]) >= 0.8
    }
    assert len(similar) > 100
    assert len(similar & set(told)) >= 0.98 * len(similar)


def test_the_rows_of_a_boilerplate_are_found_behind_many_others(tmp_path):
    boilerplate = " ".join(WORDS[:60])
    train = [{"text": f"{boilerplate} {row}", "label": "ab"[row % 2]} for row in range(120)]
    test = [{"text": f"{boilerplate} {row}", "label": "ab"[row % 2]} for row in range(120, 160)]
    splits = {"train": train, "validation": make_rows(20, labels=("a", "b")), "test": test}
    assert only(look(tmp_path, **splits), "near_duplicates_across_splits").num_rows == 40


# Texts


def test_missing_blank_and_written_null_texts_are_found(tmp_path):
    rows = make_rows(40, labels=("a", "b"))
    for row, text in {
        3: None,
        5: "",
        6: " \n\t",
        8: "nan",
        9: " NULL ",
        10: "#N/A",
        11: "None of them",
        12: "?",
    }.items():
        rows[row]["text"] = text
    findings = look(tmp_path, train=rows)
    found = {finding.name: (finding.severity, finding.num_rows, ids_of(finding)) for finding in findings}
    assert found["null_text"] == ("error", 1, ["train.jsonl-3"])
    assert found["empty_text"] == ("warning", 2, ["train.jsonl-5", "train.jsonl-6"])
    assert found["null_word"] == ("warning", 3, ["train.jsonl-8", "train.jsonl-9", "train.jsonl-10"])
    assert only(findings, "null_text").message == "1 rows of train have no text"


def read_wrongly(text):
    """Read UTF-8 as browsers read Windows-1252: five bytes that it lacks become control characters."""
    signs = (bytes([byte]) for byte in text.encode("utf-8"))
    return "".join(sign.decode("cp1252", "ignore") or chr(sign[0]) for sign in signs)


@pytest.mark.parametrize(
    "text",
    ["café", "L’été", "“quoted”", "a – b", "a — b", "wait…", "à Paris", "voilà", "Noël", "NOËL", "château", "cœur",
     "GARÇON", "CÔTE", "Österreich", "Straße", "für", "Ärger", "KÖLN", "GRÜN", "mañana", "AÑO", "¿Qué?", "CORAZÓN",
     "Íñigo", "10 €", "x™", "3 °C", "5 £", "« oui »", "ação", "IRMÃO", "привет", "Ελλάδα", "שלום", "你好", "日本語",
     "ไทย", "😀"],
)  # fmt: skip
def test_mojibake_is_recognised_in_every_misread_text(text):
    assert MOJIBAKE.search(read_wrongly(text))
    assert MOJIBAKE.search(text.encode("utf-8").decode("latin-1"))
    assert not MOJIBAKE.search(text)


@pytest.mark.parametrize(
    "text",
    ["São Paulo: NÃO à AÇÃO! “AMANHÔ, IRMû, MAÇÃ — LÃ… ROMÃ\xa0",
     "Été comme hiver… où ça\xa0? « Là-bas\xa0»\xa0: l’œuvre, CHÂTEAU\xa0»", "« à\xa0» et « é\xa0»\xa0; À… CHÂTEAU…",
     "Tôi ĐÃ… ĂN RỒI, “NGÔ — đã về", "HÂLÂ… “HÂLÔ, hâlâ”", "¿AÑO? ¡ÑANDÚ… «MAÑANA»", "Größe, ÄRGER, Spaß… „Öl“",
     "PÅ” og PÅ – 5 Å³, 2 Å²", "ÞAÐ… »", "ÎN România – până", "2×½×¼", "£5, 10 °C, 3 €, ©, ™, ½", "他说：“好”……——",
     "「日本語」…", "Привет, «мир»…", "naïve café – “déjà vu”…", "Ã, Â e À"],
)  # fmt: skip
def test_correct_text_is_no_mojibake(text):
    assert not MOJIBAKE.search(text)


def test_misread_rows_are_found(tmp_path):
    rows = make_rows(40, labels=("a", "b"))
    rows[3]["text"] += " " + read_wrongly("une après-midi d’été")
    rows[4]["text"] += " l’été, à Noël"
    rows[20]["text"] += " caf\ufffd"
    findings = look(tmp_path, train=rows)
    finding = only(findings, "mojibake")
    assert (finding.severity, finding.num_rows) == ("warning", 2)
    assert ids_of(finding) == ["train.jsonl-3", "train.jsonl-20"]
    assert troubles(findings) == [finding]


@pytest.mark.parametrize(
    ("labels", "leak"),
    [
        (("sports", "politics"), "[SPORTS]"),
        (("card_arrival", "lost_card"), "Card arrival:"),
        (("体育", "财经"), "体育："),
    ],
)
def test_a_label_that_stands_in_its_texts_is_a_leak(tmp_path, labels, leak):
    rows = make_rows(100, labels=labels)
    own = [row for row in rows if row["label"] == labels[0]]
    for row in own[:40]:
        row["text"] = f"{leak} {row['text']}"
    other = next(row for row in rows if row["label"] == labels[1])
    other["text"] += f" {leak}"
    findings = look(tmp_path, train=rows)
    finding = only(findings, "label_in_text")
    assert (finding.severity, finding.num_rows) == ("warning", 40)
    assert finding.message == f"80% of the texts of class {labels[0]!r} hold its name, of the others 2.0%"
    assert {example["label"] for example in finding.examples} == {labels[0]}
    assert troubles(findings) == [finding]


def test_topics_that_their_texts_name_are_one_note(tmp_path):
    """As of news about metals: one line for all, and a warning only where nearly every text says its class."""
    topics = ("zinc", "copper", "tin", "gold")
    rows = make_rows(200, labels=topics)
    for number, row in enumerate(rows):
        if number % 10 < 6:
            row["text"] += f" {row['label']}"
    findings = look(tmp_path, train=rows)
    finding = only(findings, "label_in_text")
    assert (finding.severity, finding.num_rows) == ("note", 120)
    assert finding.message.endswith("hold its name, of the others 0.0%; so do texts of 3 more of 4 classes, 120 in all")
    assert troubles(findings) == []
    for row in rows:
        row["text"] = f"{row['label']}: {row['text']}"
    finding = only(look(tmp_path, train=rows), "label_in_text")
    assert (finding.severity, finding.num_rows) == ("warning", 200)


def test_a_label_that_stands_in_all_texts_or_in_a_longer_word_is_no_leak(tmp_path):
    rows = make_rows(100, labels=("good", "bad"))
    for row in rows:
        row["text"] += " badly, good" if row["label"] == "bad" else " goods and good"
    assert troubles(look(tmp_path, train=rows)) == []


def test_groups_across_splits_are_found(tmp_path):
    splits = three_splits()
    for number, (name, rows) in enumerate(splits.items()):
        for row, values in enumerate(rows):
            values["author"] = f"{name} {row // 4}"
        rows[number]["author"] = "someone"
    splits["test"][50]["author"] = splits["test"][51]["author"] = "train 7"
    findings = look(tmp_path, {"group_column": "author"}, **splits)
    found = [finding for finding in findings if finding.name == "groups_across_splits"]
    assert [(finding.splits, finding.num_rows, finding.severity) for finding in found] == [
        (("train", "validation"), 1, "warning"), (("train", "test"), 3, "warning"),
        (("validation", "test"), 1, "warning")]  # fmt: skip
    assert found[1].message == (
        "3 rows of test are of 2 groups that are also in train, for example 'someone'"
    )  # fmt: skip
    assert ids_of(found[1]) == ["train.jsonl-0", "test.jsonl-2"]
    assert troubles(findings) == found


def test_the_share_of_truncated_texts_is_told_with_a_tokenizer(tmp_path, tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = [{"text": f"{' '.join(GOOD)} {text}", "label": label} for text, label in make_reviews(40)]
    finding = only(look(tmp_path, settings={"tokenizer": tokenizer, "max_length": 8}, train=rows), "truncated_texts")
    assert (finding.severity, finding.num_rows) == ("note", 40)
    assert finding.message == "100.0% of the texts of train have more than 8 tokens"
    rows = [{"text": "good " * (9 if row < 10 else 2), "label": "ab"[row % 2]} for row in range(40)]
    for max_length, cut in ((8, 10), (10, 10), (11, 0)):
        findings = look(tmp_path, settings={"tokenizer": tokenizer, "max_length": max_length}, train=rows)
        assert only(findings, "truncated_texts").num_rows == cut
    rows = [{"sentence1": "good film", "sentence2": "the plot", "label": "ab"[row % 2]} for row in range(10)]
    for max_length, cut in ((6, 10), (7, 0)):  # [CLS] good film [SEP] the plot [SEP]
        findings = look(tmp_path, settings={"tokenizer": tokenizer, "max_length": max_length}, train=rows)
        assert only(findings, "truncated_texts").num_rows == cut


# Other tasks


def test_several_labels_a_text(tmp_path):
    rows = three_splits()
    for split in rows.values():
        for row, values in enumerate(split):
            values["label"] = [["drama"], ["drama", "comedy"], ["war"], []][row % 4]
    assert troubles(look(tmp_path, **rows)) == []
    train, test = rows["train"], rows["test"]
    train[0]["label"] = ["western"]
    train[9]["text"] = train[8]["text"]
    for row in train[2:100:4]:
        row["text"] += " WAR"
    test[0]["text"] = train[2]["text"]
    findings = look(tmp_path, **rows)
    assert sorted(finding.name for finding in troubles(findings)) == [
        "class_imbalance", "classes_with_fewer_rows_than_splits", "duplicates_across_splits", "exact_duplicates",
        "label_in_text", "same_text_different_labels"]  # fmt: skip
    imbalance = only(findings, "class_imbalance").message
    assert imbalance == "drama has 199 rows, western 1: 199 times as many"
    assert only(findings, "label_in_text").message.startswith("25% of the texts of class 'war' hold its name, of the")
    assert only(findings, "same_text_different_labels").num_rows == 4
    examples = only(findings, "exact_duplicates").examples
    assert [example["label"] for example in examples] == ["drama", "comedy,drama"]
    with pytest.raises(FinetuneError, match="rows of one class each for --check_labels"):
        look(tmp_path, settings={"check_labels": True}, **rows)


def test_a_number_to_predict(tmp_path):
    splits = three_splits()
    for split in splits.values():
        for row, values in enumerate(split):
            values["label"] = row * 7 % 50 / 10 + 0.05
    assert troubles(look(tmp_path, **splits)) == []
    splits["train"][1] = {**splits["train"][0], "label": 4.5}
    for row in splits["test"]:
        row["label"] = 2.5
    findings = look(tmp_path, **splits)
    assert {finding.name: finding.severity for finding in troubles(findings)} == {
        "single_class": "error", "exact_duplicates": "warning", "same_text_different_labels": "warning"}  # fmt: skip
    assert [example["label"] for example in only(findings, "exact_duplicates").examples] == ["0.05", "4.5"]


def test_pairs_of_texts(tmp_path):
    texts = make_texts(600, least=10)
    rows = [
        {"sentence1": texts[row], "sentence2": texts[row + 300], "label": "ab"[row * row % 7 % 2]} for row in range(290)
    ]
    assert troubles(look(tmp_path, train=rows)) == []
    rows[3]["sentence2"] = " "
    rows[4]["sentence1"] = None
    rows[5]["sentence2"] = "nan"
    rows[6]["sentence1"] = read_wrongly("déjà vu")
    rows[8] = dict(rows[7])
    rows[10] = {**rows[9], "sentence2": rows[9]["sentence2"] + " twice"}
    findings = look(tmp_path, train=rows)
    found = {finding.name: ids_of(finding) for finding in findings}
    assert found["empty_text"] == ["train.jsonl-3"]
    assert found["null_text"] == ["train.jsonl-4"]
    assert found["null_word"] == ["train.jsonl-5"]
    assert found["mojibake"] == ["train.jsonl-6"]
    assert found["exact_duplicates"] == ["train.jsonl-7", "train.jsonl-8"]
    assert found["near_duplicates"] == ["train.jsonl-9", "train.jsonl-10"]
    assert only(findings, "null_word").examples[0]["text"].endswith("…")
    assert only(findings, "mojibake").examples[0]["text"].startswith("dÃ©jÃ vu | ")


# Labels that are likely wrong


def separable(count):
    """Make texts of which two words in ten tell the label."""
    own = {"a": WORDS[:25], "b": WORDS[25:50]}
    generator = random.Random(0)
    rows = []
    for text, row in zip(make_texts(count, words=WORDS[50:]), make_rows(count, labels=("a", "b")), strict=True):
        words = [*text.split(), *generator.sample(own[row["label"]], 5)]
        rows.append({"text": " ".join(words), "label": row["label"]})
    return rows


def test_flipped_labels_are_doubted(tmp_path):
    rows = separable(400)
    flipped = random.Random(1).sample(range(400), 20)
    for row in flipped:
        rows[row]["label"] = "b" if rows[row]["label"] == "a" else "a"
    train, test = rows[:300], rows[300:]
    found = [
        finding
        for finding in look(tmp_path, settings={"check_labels": True}, train=train, test=test)
        if finding.name == "doubtful_labels"
    ]
    assert [finding.splits for finding in found] == [("train",), ("test",)]  # the small split profits from the large
    planted = [sum(row < 300 for row in flipped), sum(row >= 300 for row in flipped)]
    for finding, count in zip(found, planted, strict=True):
        assert 0.8 * count <= finding.num_rows <= count + 2
        shown = [int(name.split("-")[1]) + (300 if finding.splits == ("test",) else 0) for name in ids_of(finding)]
        assert set(shown) <= set(flipped)  # the most doubtful first
    assert found[0].message.startswith(f"{found[0].num_rows} labels of train (")


def test_labels_of_texts_without_a_common_word_are_not_doubted(tmp_path):
    rows = [{"text": f"word{row}", "label": "ab"[row % 2]} for row in range(40)]
    assert troubles(look(tmp_path, settings={"check_labels": True}, train=rows)) == []


# The findings of the embedded reviews


def test_the_embedded_reviews_are_sorted_and_have_96_copies():
    findings = examine(DatasetDict(train=load_embedded_reviews()))
    assert [finding.name for finding in troubles(findings)] == ["sorted_by_label", "exact_duplicates"]
    assert only(findings, "exact_duplicates").num_rows == 96
    assert "25,000 rows of 24,904 distinct texts: 96 rows repeat" in only(findings, "exact_duplicates").message
    assert "the first 12,500 are all 'negative'" in only(findings, "sorted_by_label").message


# The cache


def test_a_second_call_reads_the_findings_and_changed_data_gives_new_ones(tmp_path, cache, monkeypatch):
    splits = three_splits()
    splits["test"][0] = splits["train"][0]
    first = look(tmp_path, **splits)
    files = list(cache.glob("findings-*"))
    assert len(files) == 1
    assert only(first, "duplicates_across_splits").num_rows == 1
    assert from_json(json.loads(files[0].read_text())) == first

    monkeypatch.setattr(examine_module, "CHECKS", ())
    assert look(tmp_path, **splits) == first  # not looked for again
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache.parent)

    splits["test"][1] = splits["train"][1]
    assert only(look(tmp_path, **splits), "duplicates_across_splits").num_rows == 2
    assert len(list(cache.glob("findings-*"))) == 2
    look(tmp_path, settings={"check_labels": True}, **splits)
    assert len(list(cache.glob("findings-*"))) == 3
    assert not list(cache.glob("*.partial"))


def test_a_missing_text_is_told_from_the_word_none_in_the_cache(tmp_path):
    rows = make_rows(20, labels=("a", "b"))
    rows[3]["text"] = "None"
    assert not has_errors(look(tmp_path, train=rows))
    rows[3]["text"] = None
    assert has_errors(look(tmp_path, train=rows))


# The command


def run(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", *argv])
    return caught.value.code, capsys.readouterr()


def as_argv(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def test_the_command_prints_findings_and_ends_with_0(tmp_path, capsys):
    splits = three_splits()
    splits["test"][4] = splits["train"][0]
    output = tmp_path / "findings.json"
    argv = [*as_argv(write(tmp_path, **splits)), "--output_json", str(output)]
    status, printed = run(argv, capsys)
    assert status == 0
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0].startswith("task: one of 3 classes: bad ")
    assert lines[1] == (
        "train: 400 rows of file train.jsonl, text from column 'text', label from column 'label', an object a line, "
        "read as utf-8"
    )
    assert [line.split(",")[0] for line in lines[2:4]] == [
        "validation: 100 rows of file validation.jsonl", "test: 100 rows of file test.jsonl"]  # fmt: skip
    del lines[0]
    assert lines[3] == "warning  duplicates across splits: 1 rows of test (1 texts) are also in train"
    assert lines[4].startswith(f"          test test.jsonl-4 [{splits['train'][0]['label']}]: ")
    assert lines[5] == "         → Figures on them flatter. --remove_leakage drops them from train."
    assert lines[-1] == "0 errors, 1 warning, 3 notes"
    findings = from_json(json.loads(output.read_text(encoding="utf-8")))
    assert findings == examine(load_given_splits(DataArguments(**write(tmp_path, **splits))))
    assert to_json(findings) == json.loads(output.read_text(encoding="utf-8"), object_hook=as_tuples)


def as_tuples(values):
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def test_the_command_names_flags_that_it_does_not_use(tmp_path, capsys):
    argv = [*as_argv(write(tmp_path, **three_splits())), "--truncation=tail", "--max_train_samples", "9"]
    status, printed = run(argv, capsys)
    assert status == 0
    assert printed.err == (
        "warning: finetune doctor examines the data as it lies and has no use for: --truncation, --max_train_samples\n"
    )


def test_the_command_ends_with_1_if_there_are_errors(tmp_path, capsys):
    path = tmp_path / "one.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "pos") for text in make_texts(30))])
    status, printed = run(["--train_file", str(path)], capsys)
    assert status == 1
    assert "error    single class: all 30 rows of train have the same label" in printed.out
    assert printed.out.endswith("1 error, 0 warnings, 1 note\n")


def test_the_command_tells_what_a_model_s_tokens_are_cut_to(tmp_path, capsys, tiny_bert):
    rows = [{"text": text, "label": label} for text, label in make_reviews(60)]
    argv = as_argv({**write(tmp_path, train=rows), "model_name_or_path": tiny_bert, "max_length": "12"})
    status, printed = run(argv, capsys)
    assert status == 0
    cut = sum(len(row["text"].split()) > 10 for row in rows)
    assert f"truncated texts: {cut / 60:.1%} of the texts of train have more than 12 tokens" in printed.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "one of --train_file and --dataset_name"),
        (["--train_file", "FILE", "--dataset_name", "embedded"], "one of --train_file and --dataset_name"),
        (["--train_file", "nowhere.csv"], "nowhere.csv"),
        (["--train_file", "FILE", "--validation_file", "nowhere.csv"], "nowhere.csv"),
        (["--train_file", "FILE", "--fly"], "flags that the doctor knows, but found '--fly'"),
        (["--train_file", "FILE", "word"], "flags that the doctor knows, but found 'word'"),
        (["--train_file"], "expected one argument"),
        (["--train_file", "FILE", "--max_length", "many"], "invalid int value: 'many'"),
        (["--train_file", "FILE", "--max_length", "2"], "--max_length of at least 3, but got 2"),
        (["--train_file", "FILE", "--problem_type", "guess"], "invalid choice: 'guess'"),
        (["--train_file", "FILE", "--text_column", "body"], "columns ['body']"),
        (["--train_file", "FILE", "--output_json", "nowhere/a.json"], "a file in a folder that exists"),
        (["--train_file", "FILE", "--output_json", "/"], "a file in a folder that exists"),
        (["--train_file", "FILE", "--model_name_or_path", "/nowhere"], "'/nowhere' does not exist"),
        (["--train_file", "FILE", "--check_labels", "--problem_type", "regression"], "for --check_labels"),
    ],
)  # fmt: skip
def test_mistakes_end_with_one_line_and_status_2(tmp_path, capsys, argv, message):
    rows = [{"text": text, "label": row % 5} for row, text in enumerate(make_texts(40))]
    file = write(tmp_path, train=rows)["train_file"]
    status, printed = run([file if word == "FILE" else word for word in argv], capsys)
    assert status == 2
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_findings_pass_through_json_unchanged(tmp_path):
    splits = three_splits()
    splits["test"][4] = splits["train"][0]
    findings = look(tmp_path, **splits)
    assert from_json(json.loads(json.dumps(to_json(findings)))) == findings
    assert all(
        isinstance(finding.num_rows, int) and not isinstance(finding.num_rows, np.integer) for finding in findings
    )
