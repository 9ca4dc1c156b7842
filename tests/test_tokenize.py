"""How long texts are cut, in windows and otherwise, and how the windows' logits become the text's."""

import datasets
import numpy as np
import pytest
import tokenizers
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

from finetune.data.batch import MicroBatchCollator
from finetune.data.cutting import TextConfig
from finetune.data.load import read_examples
from finetune.data.tokenize import tokenize_dataset
from finetune.data.tokens import encode_texts
from finetune.families.textcnn.vocabulary import load_word_tokenizer, train_word_tokenizer
from finetune.metrics import MULTI_LABEL
from finetune.models.logits import compute_logits, pool_windows

LETTERS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]
CLS, SEP = "[CLS]", "[SEP]"


@pytest.fixture(scope="module")
def tokenizer():
    words = ["[PAD]", "[UNK]", CLS, SEP, "[MASK]", *LETTERS]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}, model_max_length=16)


def cut(tokenizer, config, *texts):
    encoded = encode_texts(texts, tokenizer, config)
    return [tokenizer.convert_ids_to_tokens(tokens) for tokens in encoded["input_ids"]], encoded


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [("head", LETTERS[:8]), ("tail", LETTERS[-8:]), ("head+tail", LETTERS[:2] + LETTERS[-6:])],
)
def test_what_is_kept_of_a_long_text(tokenizer, truncation, kept):
    tokens, encoded = cut(tokenizer, TextConfig(10, truncation), " ".join(LETTERS), "a b")
    assert tokens == [[CLS, *kept, SEP], [CLS, "a", "b", SEP]]
    assert encoded["length"] == [10, 4]
    assert encoded["is_truncated"] == [True, False]


@pytest.mark.parametrize("truncation", ["head", "tail", "head+tail", "window"])
def test_a_tokenizer_that_was_saved_with_padding_and_truncation_cuts_the_same(tokenizer, tmp_path, truncation):
    """The tokenizer.json of all-MiniLM-L6-v2 asks for 128 tokens, no fewer; not even the first call must heed it."""
    tokenizer.save_pretrained(tmp_path)
    expected = encode_texts([" ".join(LETTERS), "a b"], tokenizer, TextConfig(10, truncation, 2))
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_padding(length=12)
    backend.enable_truncation(max_length=12)
    backend.save(str(tmp_path / "tokenizer.json"))
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.backend_tokenizer.padding["length"] == 12
    assert encode_texts([" ".join(LETTERS), "a b"], saved, TextConfig(10, truncation, 2)) == expected


def test_head_and_tail_of_512_tokens_are_128_and_382(tokenizer):
    text = " ".join(["a"] * 300 + ["b"] * 300 + ["c"] * 382)
    (tokens,), _ = cut(tokenizer, TextConfig(512, "head+tail"), text)
    assert tokens == [CLS, *["a"] * 128, *["c"] * 382, SEP]


def test_a_text_that_just_fits_is_whole_under_every_strategy(tokenizer):
    text = " ".join(LETTERS[:8])
    for truncation in ("head", "tail", "head+tail"):
        (tokens,), encoded = cut(tokenizer, TextConfig(10, truncation), text)
        assert tokens == [CLS, *LETTERS[:8], SEP]
        assert encoded["is_truncated"] == [False]


def test_windows_overlap_by_the_stride_and_reach_the_end(tokenizer):
    encoded = encode_texts([" ".join(LETTERS[:9]), "a b"], tokenizer, TextConfig(6, "window", window_stride=1))
    windows = [[tokenizer.convert_ids_to_tokens(window) for window in one] for one in encoded["input_ids"]]
    assert windows == [
        [[CLS, *"abcd", SEP], [CLS, *"defg", SEP], [CLS, *"ghi", SEP]],
        [[CLS, "a", "b", SEP]],
    ]
    assert encoded["length"] == [17, 4]
    assert encoded["is_truncated"] == [False, False]


def test_an_empty_text_has_one_window(tokenizer):
    assert encode_texts([""], tokenizer, TextConfig(6, "window", 1))["input_ids"] == [[[2, 3]]]


def test_a_tokenizer_without_special_tokens_is_cut_likewise():
    tokenizer = train_word_tokenizer([" ".join(LETTERS)], 50, max_length=4)
    tokens, _ = cut(tokenizer, TextConfig(4, "head+tail"), " ".join(LETTERS))
    assert tokens == [["a", "n", "o", "p"]]


def test_pairs_are_told_apart_and_the_longer_one_is_cut(tokenizer):
    encoded = encode_texts(["a b c d e f"], tokenizer, TextConfig(8), pairs=["g h"])
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"][0]) == [CLS, *"abc", SEP, "g", "h", SEP]
    assert encoded["token_type_ids"] == [[0] * 5 + [1] * 3]


def test_pooling_by_hand():
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 1.0], [3.0, 0.0]])
    counts = torch.tensor([3, 1])
    mean = pool_windows(logits, counts, "mean", None)
    torch.testing.assert_close(mean, torch.tensor([[4 / 3, 1.0], [3.0, 0.0]]))
    torch.testing.assert_close(pool_windows(logits, counts, "max", None), torch.tensor([[3.0, 2.0], [3.0, 0.0]]))
    votes = pool_windows(logits, counts, "vote", None).exp()
    torch.testing.assert_close(votes.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(votes[0], (torch.tensor([2.0, 1.0]) + mean[0].softmax(0)) / 4)
    tied = pool_windows(torch.tensor([[0.0, 5.0], [1.0, 0.0]]), torch.tensor([2]), "vote", None)
    assert tied.argmax() == 1  # one vote each: the mean decides
    several = pool_windows(torch.tensor([[50.0, -50.0], [50.0, 1.0]]), torch.tensor([2]), "vote", MULTI_LABEL)
    assert several[0, 0] > 5
    assert torch.isfinite(several).all()


def test_a_text_in_windows_is_one_example(tokenizer):
    examples = [{"input_ids": [[2, 5, 3], [2, 6, 7, 3]], "labels": 1}, {"input_ids": [[2, 3]], "labels": 0}]
    batch = MicroBatchCollator(tokenizer, max_tokens=100)(examples)
    (micro_batch,) = batch["micro_batches"]
    assert batch["num_examples"] == 2
    assert batch["num_tokens"] == 9
    assert micro_batch["input_ids"].tolist() == [[2, 5, 3, 0], [2, 6, 7, 3], [2, 3, 0, 0]]
    assert micro_batch["attention_mask"].sum() == 9
    assert micro_batch["num_windows"].tolist() == [2, 1]
    assert micro_batch["labels"].tolist() == [1, 0]


def test_at_most_so_many_windows_train_spread_over_the_text(tokenizer):
    windows = [[2, number, 3] for number in range(5, 15)]
    collator = MicroBatchCollator(tokenizer, max_tokens=100, max_windows=4)
    (micro_batch,) = collator([{"input_ids": windows, "labels": 0}])["micro_batches"]
    assert micro_batch["input_ids"][:, 1].tolist() == [5, 8, 11, 14]


@pytest.mark.parametrize("pooling", ["mean", "max", "vote"])
def test_logits_of_windows_do_not_depend_on_batches(tiny_bert, pooling):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    texts = ["the film was good and the plot was great of this story", "bad", "the actor was very dull and boring"]
    encoded = encode_texts(texts, tokenizer, TextConfig(6, "window", 1))
    examples = [{"input_ids": windows} for windows in encoded["input_ids"]]
    collate = MicroBatchCollator(tokenizer, 1).collate
    logits = [
        compute_logits(model, examples, encoded["length"], collate, tokens, torch.float32, pooling)
        for tokens in (6, 500)
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-6)
    assert logits[0].shape == (3, 2)
    with torch.no_grad():
        alone = model(**tokenizer("bad", return_tensors="pt")).logits[0]
    if pooling != "vote":
        np.testing.assert_allclose(logits[0][1], alone, atol=1e-6)


def test_the_second_run_reads_tokens_from_the_cache(tmp_path, tiny_bert, reviews, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    examples = read_examples(reviews["--train_file"])
    first = tokenize_dataset(examples, tokenizer, TextConfig(24))
    monkeypatch.setattr("finetune.data.tokenize.encode_texts", None)  # it is not called again
    again = tokenize_dataset(read_examples(reviews["--train_file"]), tokenizer, TextConfig(24))
    assert again.to_list() == first.to_list()
    for changed in (
        lambda: tokenize_dataset(examples, tokenizer, TextConfig(23)),
        lambda: tokenize_dataset(examples.select(range(59)), tokenizer, TextConfig(24)),
        lambda: tokenize_dataset(
            Dataset.from_dict({**examples.to_dict(), "label": [1 - label for label in examples["label"]]},
                              features=examples.features), tokenizer, TextConfig(24)
        ),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            changed()


@pytest.mark.parametrize("cut", [0, 300, -1000, None])
def test_broken_tokens_in_the_cache_are_computed_anew(tmp_path, tiny_bert, reviews, monkeypatch, cut):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    examples = read_examples(reviews["--train_file"])
    first = tokenize_dataset(examples, tokenizer, TextConfig(24)).to_list()
    (written,) = tmp_path.rglob("tokenized-*.arrow")
    content = written.read_bytes()
    written.unlink()  # not cut in place: the tokens above are mapped from it
    if cut is None:  # whole, but of fewer rows
        examples.select(range(9)).map(cache_file_name=str(written), load_from_cache_file=False)
    else:
        written.write_bytes(content[:cut])
    assert tokenize_dataset(examples, tokenizer, TextConfig(24)).to_list() == first
    assert Dataset.from_file(str(written)).to_list() == first


def test_a_vocabulary_is_learnt_once(tmp_path, reviews, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    examples = read_examples(reviews["--train_file"])
    learnt = train_word_tokenizer(examples["text"], 50, max_length=24)
    first = load_word_tokenizer(examples, 50, max_length=24)
    assert first.get_vocab() == learnt.get_vocab()
    monkeypatch.setattr("finetune.families.textcnn.vocabulary.train_word_tokenizer", None)  # it is not called again
    again = load_word_tokenizer(examples, 50, max_length=8)
    assert again.backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
    assert (again.model_max_length, again.pad_token, again.padding_side) == (8, "[PAD]", "right")
    for changed in ((examples.select(range(9)), 50), (examples, 49)):
        with pytest.raises(TypeError):
            load_word_tokenizer(*changed, max_length=24)
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    (written,) = tmp_path.rglob("vocabulary-*")
    content = written.read_text()
    written.write_text(content[:99])
    assert load_word_tokenizer(examples, 50, max_length=24).get_vocab() == learnt.get_vocab()
    assert written.read_text() == content
