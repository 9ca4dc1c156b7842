"""Splits, labels, tokens and batches, with values worked by hand."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoTokenizer

from finetune.data.batch import GlobalStepSampler, MicroBatchCollator, cut_by_tokens
from finetune.data.cutting import TextConfig
from finetune.data.load import load_splits, read_examples
from finetune.data.split import carve_splits, check_classes, describe_split, drop_duplicates, stratified_indices
from finetune.data.tokenize import tokenize_dataset
from finetune.errors import FinetuneError
from finetune.settings.parts import DataArguments


def make(texts, labels, names=("no", "yes")):
    features = Features({"id": Value("string"), "text": Value("string"), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"id": [str(i) for i in range(len(texts))], "text": texts, "label": labels}, features)


def test_embedded_reviews_are_split_20000_2404_2500_in_halves():
    splits = load_splits(DataArguments(dataset_name="embedded"))
    described = {name: describe_split(split) for name, split in splits.items()}
    assert {name: split["rows"] for name, split in described.items()} == {
        "train": 20_000, "validation": 2_404, "test": 2_500}  # fmt: skip
    assert described["test"]["labels"] == {"negative": 1248, "positive": 1252}  # as the distinct texts
    texts = [set(split["text"]) for split in splits.values()]
    assert len(texts[0] | texts[1] | texts[2]) == 24_904  # distinct, and none on two sides
    assert all(split["rows"] == split["distinct_texts"] for split in described.values())
    assert "25,000 rows, 24,904 distinct texts: 96 duplicates dropped" in described["train"]["origin"]
    # A fixed seed: the same rows on every machine, for every method.
    assert described["test"]["sha256"] == "0e5b912600ba8c673788cdc8dd2f59f4e1dca77df4893242be34877b82e4022c"


def test_samples_are_stratified_and_not_the_first_rows():
    splits = load_splits(DataArguments(dataset_name="embedded", max_train_samples=100, max_eval_samples=51))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [100, 51, 51]
    assert np.bincount(splits["train"]["label"]).tolist() == [50, 50]
    assert "stratified sample of 100 of 20000 rows" in splits["train"].info.description


def test_stratified_indices_keep_shares_and_never_repeat():
    labels = np.array([0] * 70 + [1] * 25 + [2] * 5)
    for size in (1, 7, 50, 99, 100):
        drawn = stratified_indices(labels, size, seed=1)
        assert len(drawn) == len(set(drawn.tolist())) == size
        counts = np.bincount(labels[drawn], minlength=3)
        assert np.all(np.abs(counts - size * np.array([0.7, 0.25, 0.05])) <= 1)
        assert size < 3 or counts.min() > 0
    assert not np.array_equal(stratified_indices(labels, 50, seed=1), stratified_indices(labels, 50, seed=2))


def test_carved_splits_are_disjoint_and_complete():
    train = make([f"text {i}" for i in range(100)], [i % 2 for i in range(100)])
    splits = carve_splits(train, {"test": 20, "validation": 10}, seed=0)
    assert sorted(row for split in splits.values() for row in split["id"]) == sorted(train["id"][:])
    assert "stratified, split_seed 0" in splits["test"].info.description
    with pytest.raises(FinetuneError, match="more than 100 training rows"):
        carve_splits(train, {"test": 100}, seed=0)


def test_duplicates_are_dropped_before_carving(tmp_path):
    rows = [f"text {i // 2},{'ab'[i // 2 % 2]}" for i in range(200)]  # every text twice
    path = tmp_path / "twice.csv"
    path.write_text("\n".join(["text,label", *rows]))
    splits = load_splits(DataArguments(train_file=str(path)))
    texts = [text for split in splits.values() for text in split["text"]]
    assert len(texts) == len(set(texts)) == 100
    assert len(drop_duplicates(make(["a", "b", "a"], [0, 1, 0]))) == 2
    note = drop_duplicates(make(["a", "b", "a", "a", "b"], [0, 1, 1, 0, 1])).info.description
    assert note.endswith("3 duplicates dropped, of 1 texts with different labels the first row was kept")


@pytest.mark.parametrize("seed", range(5))
def test_a_class_in_few_groups_stays_in_train_with_its_groups(seed):
    labels = ["a", "b"] * 50 + ["rare"] * 6
    groups = [f"author {row // 4}" for row in range(100)] + ["author 3", "one", "one", "one", "one", "one"]
    names = sorted(set(labels))
    train = make([f"text {row}" for row in range(106)], [names.index(label) for label in labels], names=names)
    train = train.add_column("group", groups)
    splits = carve_splits(train, {"test": 10, "validation": 10}, seed=seed)
    assert splits["train"]["label"][:].count(names.index("rare")) == 6
    assert {"author 3", "one"} <= set(splits["train"]["group"])
    found = [set(split["group"]) for split in splits.values()]
    assert sum(map(len, found)) == len(set().union(*found)) == 26
    assert all(set(split["label"]) >= {0, 1} for split in splits.values())


def test_train_that_is_all_in_another_split_is_refused(tmp_path):
    path = tmp_path / "same.csv"
    path.write_text("\n".join(["text,label", *(f"text {i},{'ab'[i % 2]}" for i in range(50))]))
    arguments = DataArguments(train_file=str(path), test_file=str(path), remove_leakage=True)
    with pytest.raises(FinetuneError, match="in no other split, but all 50 rows are"):
        load_splits(arguments)


def test_a_split_of_one_class_is_refused():
    sorted_by_label = make([f"text {i}" for i in range(100)], [0] * 50 + [1] * 50)
    splits = DatasetDict(train=sorted_by_label, validation=sorted_by_label.select(range(20)))
    with pytest.raises(FinetuneError, match="at least two classes in split 'validation', but found only 'no'"):
        check_classes(splits)


def test_a_class_without_training_rows_is_refused():
    lost = make([f"text {i}" for i in range(10)], [i % 2 for i in range(10)], names=("a", "b", "c"))
    with pytest.raises(FinetuneError, match=r"training rows of every class, .* found none of \['c'\]"):
        check_classes(DatasetDict(train=lost))


def test_test_labels_may_be_the_numbers_of_train_s(tmp_path):
    test = tmp_path / "test.csv"
    test.write_text("text,label\nx,1\ny,0\n")
    splits = load_splits(DataArguments(dataset_name="embedded", test_file=str(test), max_train_samples=100))
    assert splits["test"]["label"][:] == [1, 0]
    assert splits["test"].features["label"].names == ["negative", "positive"]


def test_labels_are_in_natural_order(tmp_path):
    path = tmp_path / "topics.csv"
    path.write_text("\n".join(["text,label", *(f"text {i},{i % 12}" for i in range(120))]))
    assert read_examples(str(path)).features["label"].names == [str(i) for i in range(12)]


def test_text_that_looks_like_something_else_stays_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\nNA,x\n007,y\nnull,x\n"a, b",y\n')
    assert read_examples(str(path))["text"][:] == ["NA", "007", "null", "a, b"]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".tsv", "text\tlabel\none\ta\ntwo\tb\n"),
        (".jsonl", '{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n'),
        (".json", '[{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]'),
    ],
)
def test_file_formats(tmp_path, suffix, content):
    path = tmp_path / f"data{suffix}"
    path.write_text(content)
    examples = read_examples(str(path))
    assert examples["text"][:] == ["one", "two"]
    assert examples.features["label"].names == ["a", "b"]
    assert examples["id"][:] == [f"data{suffix}-0", f"data{suffix}-1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "one,two,three\nx,y,z\n", r"tell the text column of .* found \['one', 'two', 'three'\]"),
        ("a.csv", "text,other,more\nx,y,z\n", "found no column that holds them"),
        ("a.csv", "text,label,text\nx,y,z\n", r"found \['text'\] twice"),
        ("a.csv", "text,label\n", "found none below its header"),
        ("a.csv", "", "the file is empty"),
        ("a.csv", 'text,label\n"open,x\n', "separated values .*unexpected end of data"),
        ("a.csv", "text,label\nA great film, really,pos\n", "Expected 2 fields in each row"),
        ("a.csv", "text,label\ngood,pos,\n", "Expected 2 fields in each row"),
        ("a.csv", "text,label\nx,\n", "row 1 lacks one"),
        ("a.jsonl", "{", "line 1 is not"),
        ("a.jsonl", "[1]", "object 1 is a int"),
        ("a.jsonl", '{"text": {}, "label": 1}', "has a dict"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y", "label": "b"}', "a number and str"),
        ("a.parquet", "text", "whole, readable file"),
        ("a.csv.gz", "text", "whole, readable file"),
        ("a.csv", "text,label\n" + "x" * 1_000_001 + ",a\n", "at most 1,000,000 characters"),
        ("a.csv", "text,label\na,1\nb,2\nc,3\n", "3 distinct labels in 3 rows"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(FinetuneError, match=message):
        read_examples(str(path))


def test_a_label_that_train_lacks_is_refused(tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("\n".join(["text,label", *(f"text {i},{'ab'[i % 2]}" for i in range(40))]))
    test.write_text("text,label\nx,a\ny,c\n")
    with pytest.raises(FinetuneError, match=r"only the labels \['a', 'b'\] in column 'label' .*, but found \['c'\]"):
        load_splits(DataArguments(train_file=str(train), test_file=str(test)))


def test_labels_of_every_split_are_numbered_as_in_train(tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("\n".join(["text,label", *(f"text {i},{'abc'[i % 3]}" for i in range(60))]))
    test.write_text("text,label\nx,c\ny,b\n")
    splits = load_splits(DataArguments(train_file=str(train), test_file=str(test)))
    assert splits["test"]["label"][:] == [2, 1]


def test_tokenization_of_three_sentences(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    examples = make(["the film was good !", "Bad", "a very very very dull story ."], [1, 0, 0])
    tokenized = tokenize_dataset(examples, tokenizer, TextConfig(7))
    names = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenized["input_ids"]]
    assert names == [
        ["[CLS]", "the", "film", "was", "good", "!", "[SEP]"],
        ["[CLS]", "bad", "[SEP]"],
        ["[CLS]", "a", "very", "very", "very", "dull", "[SEP]"],
    ]
    assert tokenized["length"][:] == [7, 3, 7]
    assert tokenized["is_truncated"][:] == [False, False, True]
    assert tokenized["labels"][:] == [1, 0, 0]


def test_groups_hold_every_example_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 50, 200).tolist()
    groups = cut_by_tokens(lengths, 64)
    assert sorted(position for group in groups for position in group) == list(range(200))
    assert all(len(group) * max(lengths[i] for i in group) <= 64 for group in groups)
    assert cut_by_tokens([100, 2], 64) == [[0], [1]]  # longer than the budget: alone


def test_collator_pads_each_micro_batch_to_its_own_longest(tiny_bert):
    collate = MicroBatchCollator(AutoTokenizer.from_pretrained(tiny_bert), max_tokens=8)
    batch = collate(
        [
            {"input_ids": [2, 5, 3], "labels": 1, "length": 3},
            {"input_ids": [2, 5, 6, 7, 8, 3], "labels": 0, "length": 6},
            {"input_ids": [2, 6, 7, 3], "labels": 0, "length": 4},
        ]
    )
    assert batch["num_examples"] == 3
    first, second = batch["micro_batches"]
    assert first["input_ids"].tolist() == [[2, 5, 6, 7, 8, 3]]
    assert second["input_ids"].tolist() == [[2, 6, 7, 3], [2, 5, 3, 0]]
    assert second["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert second["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("accumulation_steps", [1, 4])
@pytest.mark.parametrize("count", [3, 5, 64, 65, 66, 1000])
def test_every_example_is_drawn_once_an_epoch_by_one_process(count, accumulation_steps, world_size):
    lengths = np.random.default_rng(0).integers(1, 50, count).tolist()
    samplers = [GlobalStepSampler(lengths, 12, 3, accumulation_steps, rank, world_size) for rank in range(world_size)]
    shares = [list(sampler) for sampler in samplers]
    assert all(len(share) == len(samplers[0]) for share in shares)  # as many batches on every process
    assert all(batch for share in shares for batch in share)  # and work for it in each
    assert sorted(example for share in shares for batch in share for example in batch) == list(range(count))


def test_a_step_has_the_same_examples_however_it_is_divided():
    def steps(accumulation_steps, world_size):
        shares = [
            list(GlobalStepSampler(list(range(1, 97)), 12, 0, accumulation_steps, rank, world_size))
            for rank in range(world_size)
        ]
        return [
            sorted(
                example for share in shares for batch in share[first : first + accumulation_steps] for example in batch
            )
            for first in range(0, len(shares[0]), accumulation_steps)
        ]

    assert len(steps(1, 1)) == 8
    assert steps(1, 1) == steps(4, 1) == steps(1, 2) == steps(3, 2)


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = GlobalStepSampler(list(range(1, 101)), 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_batches_are_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 500, 800)
    spreads = [np.ptp(lengths[batch]) for batch in GlobalStepSampler(lengths.tolist(), 16, seed=0)]
    assert np.median(spreads) < 50  # of 500: a random batch spreads over more than 400


def test_a_data_set_with_an_official_test_split_keeps_it_and_carves_validation_from_train(tmp_path):
    """A folder of Parquet files loads as a data set of the Hub does; this one is shaped like stanfordnlp/imdb."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    for split, count in (("train", 100), ("test", 30), ("unsupervised", 10)):
        columns = {"text": [f"{split} {i}" for i in range(count)], "label": [int(i >= count / 2) for i in range(count)]}
        Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{split}.parquet")
    splits = load_splits(DataArguments(dataset_name=str(tmp_path)))
    assert {name: len(split) for name, split in splits.items()} == {"train": 90, "validation": 10, "test": 30}
    assert splits["test"]["text"][:] == [f"test {i}" for i in range(30)]
    assert all(text.startswith("train") for text in splits["validation"]["text"])
    assert np.bincount(splits["validation"]["label"]).tolist() == [5, 5]
    assert splits["train"].features["label"].names == ["neg", "pos"]
    assert set(splits["train"].column_names) == {"id", "text", "label"}


def test_a_data_set_s_own_column_names_can_be_given(tmp_path):
    columns = {"said": ["a", "b", "c"] * 20, "points": [1, 10, 2] * 20, "more": ["x"] * 60}
    columns["said"] = [f"{word} {i}" for i, word in enumerate(columns["said"])]
    Dataset.from_dict(columns).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(FinetuneError, match=r"found \['said', 'points', 'more'\]. Pass --text_column and --label"):
        load_splits(DataArguments(dataset_name=str(tmp_path)))
    splits = load_splits(DataArguments(dataset_name=str(tmp_path), text_column="said", label_column="points"))
    assert splits["train"].features["label"].names == ["1", "2", "10"]


@pytest.mark.parametrize("texts", [[["a", "list"]] * 60, [{"said": "x"}] * 60], ids=["lists", "objects"])
def test_a_data_set_s_text_column_must_hold_texts(tmp_path, texts):
    Dataset.from_dict({"text": texts, "label": [0, 1] * 30}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(FinetuneError, match=r"one value a row in column 'text' of split 'train' .*--text_column"):
        load_splits(DataArguments(dataset_name=str(tmp_path)))
