"""Training texts read from Parquet shards: every row once an epoch, the same steps for any number of processes."""

import json
import shutil
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_reviews
from datasets import ClassLabel, Dataset
from safetensors.numpy import load_file

from finetune.data.columns import Columns
from finetune.data.cutting import TextConfig
from finetune.data.labels import label_matrix
from finetune.data.load import load_given_splits, open_stream
from finetune.data.stream import Shards, StreamedStepSampler, TokenizingRows
from finetune.errors import FinetuneError
from finetune.settings.parts import DataArguments
from finetune.tasks import Task

TASK = Task("single_label_classification", ["neg", "pos"])
NUM_ROWS = 2_037


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five shards of uneven size, rows sorted by label, in row groups of 150."""
    folder = tmp_path_factory.mktemp("shards")
    rows = sorted((label, f"{text} {number}") for number, (text, label) in enumerate(make_reviews(NUM_ROWS)))
    for shard, part in enumerate(np.array_split(np.arange(NUM_ROWS), [100, 101, 1_000, 1_650])):
        table = pa.table({"label": [rows[row][0] for row in part], "text": [rows[row][1] for row in part]})
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=150)
    return folder


def open_rows(folder, tokenizer=None):
    return TokenizingRows(Shards(folder), Columns("text", "label"), TASK, None, tokenizer, TextConfig(24))


def epoch(folder, number=0, seed=3, **settings):
    sampler = StreamedStepSampler(open_rows(folder), step_size=16, seed=seed, **settings)
    sampler.set_epoch(number)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return [[row["text"] for row in batch] for batch in batches]


def test_every_row_once_an_epoch_in_an_order_of_its_own(folder):
    epochs = [[text for batch in epoch(folder, number) for text in batch] for number in (0, 1)]
    stored = [text for path in sorted(folder.iterdir()) for text in pq.read_table(path)["text"].to_pylist()]
    assert len(stored) == NUM_ROWS
    for texts in epochs:
        assert sorted(texts) == sorted(stored)
    assert epochs[0] != epochs[1]
    assert epoch(folder) == epoch(folder)
    assert epoch(folder, seed=4) != epoch(folder)


def test_steps_mix_what_lies_apart(folder):
    labels = {text: label for path in folder.iterdir() for text, label in
              zip(*(pq.read_table(path)[name].to_pylist() for name in ("text", "label")), strict=True)}  # fmt: skip
    shares = [np.mean([labels[text] == "pos" for text in step]) for step in epoch(folder)]
    assert np.mean([0 < share < 1 for share in shares]) > 0.8  # read in order, all but one would be of one class


@pytest.mark.parametrize(("world_size", "accumulation_steps"), [(2, 1), (4, 1), (2, 4)])
def test_processes_divide_the_steps_of_one(folder, world_size, accumulation_steps):
    alone = epoch(folder)
    shares = [
        epoch(folder, rank=rank, world_size=world_size, accumulation_steps=accumulation_steps)
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    batches = [[text for share in shares for text in share[number]] for number in range(len(shares[0]))]
    full = (len(alone) - 1) * accumulation_steps
    groups = [batches[at : at + accumulation_steps] for at in range(0, full, accumulation_steps)] + [batches[full:]]
    assert [sorted(chain.from_iterable(group)) for group in groups] == [sorted(step) for step in alone]


def test_rows_become_examples(folder, tiny_bert):
    from transformers import AutoTokenizer

    rows = open_rows(folder, AutoTokenizer.from_pretrained(tiny_bert))
    examples = rows.__getitems__([{"text": "good film", "label": "pos"}, {"text": None, "label": "neg"}])
    assert [example["labels"] for example in examples] == [1, 0]
    assert [len(example["input_ids"]) for example in examples] == [4, 2]


SOURCES = {
    "columns of 0 and 1": {"label_columns": "toxic,obscene"},
    "of true and false": {"label_columns": "is_toxic,is_obscene"},
    "classes by their names": {"label_columns": "named,obscene"},
    "within objects": {"text_column": "data.text", "label_columns": "data.toxic,data.obscene"},
    "one label within objects": {"text_column": "data.text", "label_column": "data.mood"},
    "vectors": {"label_column": "vector"},
}


def write_shards(folder):
    """Two shards whose classes are numbered the other way round."""
    folder.mkdir()
    bits = [(1, 0), (0, 0), (1, 1), (0, 1)] * 15
    for shard, names in enumerate((["no", "yes"], ["yes", "no"])):
        rows = [
            {"text": f"{text} {shard}", "toxic": toxic, "obscene": obscene, "is_toxic": bool(toxic),
             "is_obscene": bool(obscene), "named": names.index(["no", "yes"][toxic]), "vector": [toxic, obscene],
             "data": {"text": f"{text} {shard}", "toxic": toxic, "obscene": obscene, "mood": ["good", "bad"][toxic]}}
            for (text, _), (toxic, obscene) in zip(make_reviews(60, offset=60 * shard), bits, strict=True)
        ]  # fmt: skip
        dataset = Dataset.from_list(rows)
        dataset.cast_column("named", ClassLabel(names=names)).to_parquet(folder / f"{shard}.parquet")
    return bits * 2


@pytest.mark.parametrize("source", SOURCES)
def test_labels_stand_in_shards_as_they_do_in_files(tiny_bert, tmp_path, source):
    from transformers import AutoTokenizer

    bits = write_shards(tmp_path / "shards")
    other = Dataset.from_parquet(str(tmp_path / "shards/0.parquet")).select(range(8))
    other.to_parquet(tmp_path / "test.parquet")
    arguments = DataArguments(train_file=str(tmp_path / "shards"), validation_file=str(tmp_path / "test.parquet"),
                              test_file=str(tmp_path / "test.parquet"), streaming=True, **SOURCES[source])  # fmt: skip
    splits = load_given_splits(arguments)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    stream = open_stream(arguments, splits.task, tokenizer, TextConfig(24))
    read = [row for rows in stream.shards.read([(0, 0, 50), (0, 50, 60), (1, 0, 50), (1, 50, 60)], stream.names)
            for row in rows]  # fmt: skip
    examples = stream.__getitems__(read)
    if source == "one label within objects":
        assert splits.task.label_names == ["bad", "good"]
        assert [example["labels"] for example in examples] == [1 - toxic for toxic, _ in bits]
        return
    assert [tuple(map(int, example["labels"])) for example in examples] == bits
    matrix = label_matrix(splits["test"]["label"], splits.task)
    assert [tuple(map(int, row)) for row in matrix] == bits[:8]
    assert splits["train"]["text"][:2] == [row["text"] if "text" in row else row["data"]["text"] for row in read[:2]]


def test_columns_of_0_and_1_are_examined_in_all_shards(tmp_path):
    write_shards(tmp_path / "shards")
    test = str(tmp_path / "shards/0.parquet")
    arguments = {"train_file": str(tmp_path / "shards"), "validation_file": test, "test_file": test, "streaming": True}
    with pytest.raises(FinetuneError, match="read with --label_columns toxic,obscene"):
        load_given_splits(DataArguments(**arguments, text_column="text"))
    table = pq.read_table(test)
    twos = table.set_column(table.column_names.index("toxic"), "toxic", pa.array([0] * 59 + [2]))
    pq.write_table(twos, tmp_path / "shards/0.parquet", row_group_size=10)
    with pytest.raises(FinetuneError, match="but column 'toxic' has '2'"):
        load_given_splits(DataArguments(**arguments, label_columns="toxic,obscene"))
    with pytest.raises(FinetuneError, match="folder of Parquet files with --streaming, but got none"):
        load_given_splits(DataArguments(dataset_name=str(tmp_path), streaming=True))


@pytest.fixture(scope="module")
def streamed(folder, reviews, flags):
    start = flags.index("--train_file")
    return [*flags[:start], "--train_file", str(folder), *flags[start + 2 :], "--streaming", "--no_floor"]


def test_a_recipe_streams_and_resumes_to_the_same_weights(classify, streamed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [*streamed, "--max_steps", "150", "--save_strategy", "steps", "--eval_strategy", "steps",
                "--save_steps", "70", "--eval_steps", "70", "--save_total_limit", "5"]  # fmt: skip
    classify.main([*settings, "--output_dir", "straight"])
    record = json.loads((tmp_path / "straight/run.json").read_text())
    assert "streamed: 2,037 rows in 5 files" in record["data"]["splits"]["train"]["origin"]
    assert record["costs"]["train_steps"] == 150

    # What a run leaves behind that is killed after its 140th step, in its second epoch.
    shutil.copytree(tmp_path / "straight", tmp_path / "cut")
    for left in ("checkpoints/checkpoint-150", "model", "predictions"):
        shutil.rmtree(tmp_path / "cut" / left, ignore_errors=True)
    record["status"] = "running"
    (tmp_path / "cut/run.json").write_text(json.dumps(record).replace('"straight', '"cut'))
    classify.main([*settings, "--output_dir", "cut"])
    straight, resumed = (load_file(tmp_path / name / "model/model.safetensors") for name in ("straight", "cut"))
    for name, tensor in straight.items():
        np.testing.assert_array_equal(resumed[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--method", "tfidf"], "no --method tfidf with --streaming"),
        (["--oversample"], "no --oversample with --streaming"),
        (["--max_train_samples", "10"], "no --max_train_samples with --streaming"),
    ],
)
def test_what_needs_all_texts_is_refused(classify, streamed, extra, message, tmp_path):
    with pytest.raises(FinetuneError, match=message):
        classify.main([*streamed, *extra, "--output_dir", str(tmp_path / "run")])


def test_bad_shards_are_refused(folder, tmp_path):
    with pytest.raises(FinetuneError, match="but found none"):
        Shards(tmp_path)
    shutil.copytree(folder, tmp_path / "shards")
    whole = (tmp_path / "shards/3.parquet").read_bytes()
    (tmp_path / "shards/3.parquet").write_bytes(whole[:-20])
    with pytest.raises(FinetuneError, match=r"'.*3.parquet' can't be read"):
        Shards(tmp_path / "shards")
    pq.write_table(pa.table({"text": ["a"], "other": ["b"]}), tmp_path / "shards/3.parquet")
    with pytest.raises(FinetuneError, match=r"3.parquet has \['text', 'other'\]"):
        Shards(tmp_path / "shards")
