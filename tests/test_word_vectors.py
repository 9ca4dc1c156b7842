"""Static word vectors: files of word2vec and GloVe, and folders of model2vec, under embeddings and in a TextCNN."""

import functools
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, OTHER, make_frame, make_reviews, needs_exporters, train_on_frames
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from finetune.errors import FinetuneError, Interrupted
from finetune.export.onnx import export
from finetune.families.embeddings import static
from finetune.hub.stage import stage
from finetune.inference.exported import load_exported
from finetune.inference.predict import load_predictor
from finetune.inference.reload import compute_logits_elsewhere
from finetune.models.word_vectors import find_word_vectors, load_static_model, read_word_vectors
from finetune.settings.parsing import parse_arguments
from finetune.training.trainer import FineTuningTrainer

DIM = 6
WORDS = [*GOOD, *BAD, *OTHER, "unseen", "twice"]
TEXTS = [text for text, _ in make_reviews(12, offset=700)] + ["", "good", "Unseen good", "gibberish", "film bad " * 30]
QUICK = {"method": "embeddings", "max_length": 24, "num_threads": 1, "floor": "false", "bf16": "false"}

train = functools.partial(train_on_frames, QUICK)


def make_vectors(seed=0):
    """Draw a vector for each word, those of good and of bad words apart."""
    vectors = np.random.default_rng(seed).normal(size=(len(WORDS), DIM)).astype(np.float32)
    vectors[: len(GOOD), 0] += 9
    vectors[len(GOOD) : len(GOOD + BAD), 0] -= 9
    return vectors


def to_lines(words, vectors):
    return [f"{word} {' '.join(map(str, row))}" for word, row in zip(words, vectors.tolist(), strict=True)]


def write(path, lines, end="\n"):
    content = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def write_static_model(folder, normalize=True, **tensors):
    """Write a folder of model2vec, as its `save_pretrained` does, with the parts of words of a tokenizer."""
    folder.mkdir()
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS, "##ish", "gibber"])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[PAD] $0 [PAD]", special_tokens=[("[PAD]", 0)])
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = torch.from_numpy(np.concatenate([np.ones((2, DIM)), make_vectors(), np.full((2, DIM), 0.5)]))
    save_file({"embeddings": rows.half(), **tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"normalize": normalize, "model_type": "model2vec"}))
    return str(folder)


@pytest.fixture(scope="module")
def glove(tmp_path_factory):
    return write(tmp_path_factory.mktemp("glove") / "glove.txt", to_lines(WORDS, make_vectors()))


@pytest.fixture(scope="module")
def trained(glove, tmp_path_factory):
    """A run of embeddings, to be read only."""
    return train(tmp_path_factory.mktemp("embeddings") / "run", None, word_vectors=glove)


def mean_of(text, words=WORDS, vectors=None):
    vectors = make_vectors() if vectors is None else vectors
    known = [vectors[words.index(word)] for word in text.lower().split() if word in words]
    return np.mean(known, axis=0) if known else np.zeros(DIM)


@pytest.mark.parametrize("layout", ["glove", "word2vec", "word2vec.gz", "tabs", "windows", "mark", "old word2vec"])
def test_every_layout_gives_the_same_vectors(tmp_path, layout):
    lines, end = to_lines(WORDS, make_vectors()), "\n"
    if "word2vec" in layout:
        lines = [f"{len(lines)} {DIM}", *lines]
    if layout == "tabs":
        lines = [line.replace(" ", "\t") for line in lines]
    if layout == "mark":
        lines[0] = "\ufeff" + lines[0]
    end = {"windows": "\r\n", "old word2vec": " \n"}.get(layout, "\n")
    path = write(tmp_path / f"vectors{'.gz' if layout.endswith('gz') else '.txt'}", lines, end)
    found = read_word_vectors(path, {"the", "unseen", "good", "absent"})
    assert found.words == ["good", "the", "unseen"]
    np.testing.assert_array_equal(found.vectors, make_vectors()[[WORDS.index(word) for word in found.words]])


def test_words_with_blanks_and_other_signs_as_glove_has_them(tmp_path):
    lines = ["at name@domain.com 1 2 3", ". . . 4 5 6", "1 7 8 9", "\u00a0 1 1 1", "the 10 11 12", " 2 2 2"]
    found = read_word_vectors(write(tmp_path / "v.txt", lines), {"the", "1"}, 10)
    assert dict(zip(found.words, found.vectors.tolist(), strict=True))["the"] == [10, 11, 12]
    assert dict(zip(found.words, found.vectors.tolist(), strict=True))["1"] == [7, 8, 9]
    assert {"at name@domain.com", ". . ."} <= set(found.words)


def test_of_several_spellings_the_one_in_lower_case_counts_else_the_first(tmp_path, recwarn):
    lines = ["Paris 1 1", "PARIS 2 2", "The 3 3", "the 4 4", "the 5 5", "Cafe\u0301 6 6"]
    found = read_word_vectors(write(tmp_path / "v.txt", lines), {"paris", "the", "café"})
    vectors = dict(zip(found.words, found.vectors.tolist(), strict=True))
    assert vectors == {"paris": [1, 1], "the": [4, 4], "café": [6, 6]}
    (warning,) = recwarn
    assert str(warning.message).startswith("1 of the words in v.txt that are needed stand there twice, such as 'the'")


def test_words_beyond_the_bound_are_kept_if_the_training_texts_have_them(tmp_path):
    path = write(tmp_path / "v.txt", [f"w{number} {number} 0" for number in range(50)])
    found = read_word_vectors(path, {"w40", "w1"}, 3, lambda word: word != "w2")
    assert found.words == ["w0", "w1", "w3", "w4", "w40"]
    assert found.vectors[:, 0].tolist() == [0, 1, 3, 4, 40]


GOOD_LINES = ["the 1 2 3", "of 4 5 6"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"2 3\n", "has no such line"),
        (b"a sentence\nand another\n", "Expected 1 numbers after the word in line 1 .* found 'sentence' among them"),
        (b"word,1,2\n", "has no such line"),
        ("\n".join([*GOOD_LINES, "and 1 2"]).encode(), r"Expected 3 numbers .* in line 3 .*, but found 2\."),
        ("\n".join([*GOOD_LINES, "and 1 2 3 4"]).encode(), r"Expected 3 numbers .* in line 3 .*, but found 4\."),
        ("\n".join([*GOOD_LINES, "a 1 x 3"]).encode(), r"in line 3 .*, but found 'x' among them\."),
        ("\n".join([*GOOD_LINES, "a 1 nan 3"]).encode(), r"line 3 \('a'\) has NaN or infinite"),
        ("\n".join([*GOOD_LINES, "a 1 1e99 3"]).encode(), r"line 3 \('a'\) has NaN or infinite"),
        ("\n".join(["3 3", *GOOD_LINES]).encode(), "Expected the 3 words that the first line of .* but it has 2"),
        (b"2 3\nthe " + np.ones(3, "f").tobytes() + b"\nof " + np.ones(3, "f").tobytes(), "is binary. Unpack"),
        (b"PK\x03\x04" + bytes(range(200)), "is binary. Unpack"),
        ("\n".join(GOOD_LINES).encode("utf-16"), "is binary. Unpack"),
        pytest.param(
            gzip.compress(b"the 1 2 3\n" * 500)[:-20], "reading it gave: Compressed file ended", id="cut short"
        ),
        pytest.param(gzip.compress(b"the 1 2 3\n")[:-4] + b"1234", "reading it gave: ", id="wrong length"),
    ],
)
def test_what_is_no_file_of_vectors_is_refused_in_a_line(tmp_path, content, message):
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(FinetuneError, match=message) as caught:
        read_word_vectors(str(tmp_path / "v.txt"), {"the", "a", "and"}, 10)
    assert "\n" not in str(caught.value)


def test_lines_that_are_not_needed_are_not_parsed_but_counted(tmp_path):
    path = write(tmp_path / "v.txt", [*GOOD_LINES, "odd 1 x 3", "short 1 2"])
    with pytest.raises(FinetuneError, match="in line 4"):
        read_word_vectors(path, {"the"})
    path = write(tmp_path / "v.txt", [*GOOD_LINES, "odd 1 x 3"])
    assert read_word_vectors(path, {"the"}).words == ["the"]


def test_the_logits_are_linear_in_the_mean_of_the_words(trained):
    weights = load_file(trained.directory / "model/model.safetensors")
    weight, bias = weights["classifier.weight"].numpy(), weights["classifier.bias"].numpy()
    means = np.stack([mean_of(text) for text in TEXTS])
    vectors = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    found = load_predictor(trained.directory, torch.float32).compute_logits(TEXTS)[0]
    texts_with_all = [number for number, text in enumerate(TEXTS) if len(text.split()) <= 24]
    np.testing.assert_allclose(found[texts_with_all], (vectors @ weight.T + bias)[texts_with_all], atol=1e-5)
    np.testing.assert_allclose(found[TEXTS.index("gibberish")], bias, atol=1e-6)
    assert trained.metrics["test"]["accuracy"] > 0.9


def test_the_record_says_which_vectors_and_how_many_words_have_one(trained, glove, capsys):
    record = trained.record
    words = {word for text in make_frame()["text"] for word in text.split()}
    with open(glove, "rb") as file:  # noqa: PTH123
        assert record.word_vectors.sha256 == hashlib.file_digest(file, "sha256").hexdigest()
    assert (record.word_vectors.found, record.word_vectors.words) == (len(words), len(words))
    assert record.word_vectors.kept == len(WORDS)
    assert record.pretrained is None
    assert record.model.name is None
    assert record.model.architecture == "StaticEncoder + LogisticRegression"


def test_the_bound_is_said(tmp_path, glove, monkeypatch, capsys):
    monkeypatch.setattr(static, "MOST_OTHER_WORDS", 1)
    lines = [line for line in to_lines(WORDS, make_vectors()) if not line.startswith(("the ", "film "))]
    run = train(tmp_path / "run", None, word_vectors=write(tmp_path / "v.txt", lines))
    number = len({word for text in make_frame()["text"] for word in text.split()})
    said = f"{number - 2} of {number} words of the training texts have a vector in v.txt; with others the model knows"
    assert f"{said} {number - 1}\n" in capsys.readouterr().err
    assert run.record.word_vectors.kept == number - 2 + 1


def test_a_text_is_answered_alone_as_in_company_and_without_the_file(glove, tmp_path):
    copy = tmp_path / "vectors.txt"
    copy.write_bytes(open(glove, "rb").read())  # noqa: PTH123, SIM115
    run = train(tmp_path / "run", None, word_vectors=str(copy))
    copy.unlink()
    predictor = load_predictor(run.directory, torch.float32)
    together = predictor.compute_logits(TEXTS)[0]
    alone = np.concatenate([predictor.compute_logits([text])[0] for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(compute_logits_elsewhere(run.directory / "model", TEXTS, None), together, atol=1e-5)


@needs_exporters
def test_it_is_exported(trained, tmp_path):
    expected = load_predictor(trained.directory, torch.float32).compute_logits(TEXTS)[0]
    export(trained.directory, tmp_path / "fp32")
    np.testing.assert_allclose(load_exported(tmp_path / "fp32", 1).compute_logits(TEXTS)[0], expected, atol=1e-5)
    export(trained.directory, tmp_path / "int8", int8=True, tolerance=100)
    assert (
        np.abs(load_exported(tmp_path / "int8", 1).compute_logits(TEXTS)[0] - expected).max()
        < 0.15 * np.abs(expected).max()
    )


def test_transformers_alone_loads_it_from_the_hub(trained, glove, tmp_path):
    staged = stage(trained.directory, tmp_path / "model", "me/static", None)
    card = (tmp_path / "model/README.md").read_text()
    assert f"Word vectors: `glove.txt`, SHA-256 `{trained.record.word_vectors.sha256}`; " in card
    assert str(tmp_path.parent) not in card
    snippet = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    code = "import sys; sys.modules['finetune'] = None\n" + snippet.replace("me/static", str(staged.folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    predicted = trained.predict(["A text to classify."])[0]
    assert f"'label': '{predicted.label}'" in done.stdout


def as_pairs(table):
    return table.assign(other=table["text"].str.split().str[::-1].str.join(" "))


def test_pairs(tmp_path, glove):
    run = train(tmp_path / "run", None, as_pairs, word_vectors=glove, text_pair_column="other")
    assert run.record.model.trainable_parameters == 2 * 4 * DIM + 2
    assert run.record.word_vectors.found == run.record.word_vectors.words


@pytest.mark.parametrize("normalize", [True, False])
def test_a_model_of_model2vec_pools_as_it_was_made_to(tmp_path, normalize):
    mapping = torch.arange(len(WORDS) + 4).flip(0)
    weights = torch.linspace(0.5, 2, len(WORDS) + 4)
    folder = write_static_model(tmp_path / "potion", normalize, mapping=mapping, weights=weights)
    run = train(tmp_path / "run", None, word_vectors=folder)
    rows = load_file(f"{folder}/model.safetensors")["embeddings"].float()[mapping] * weights[:, None]
    rows = rows.numpy()
    vocabulary = ["[PAD]", "[UNK]", *WORDS, "##ish", "gibber"]
    expected = []
    for text in TEXTS:
        words = text.replace("gibberish", "gibber ##ish").split()[:24]
        known = [rows[vocabulary.index(word)] for word in words if word in vocabulary]
        mean = np.mean(known, axis=0) if known else np.zeros(DIM)
        expected.append(mean / max(np.linalg.norm(mean), 1e-12) if normalize else mean)
    saved = load_file(run.directory / "model/model.safetensors")
    weight, bias = saved["classifier.weight"].numpy(), saved["classifier.bias"].numpy()
    found = load_predictor(run.directory, torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_allclose(found, np.stack(expected) @ weight.T + bias, atol=1e-4)
    assert (run.record.word_vectors.found, run.record.word_vectors.words) == (None, None)


def test_a_folder_without_padding_or_unknown_tokens(tmp_path):
    folder = tmp_path / "model"
    write_static_model(folder)
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    Tokenizer(BPE(letters, [])).save(str(folder / "tokenizer.json"))
    save_file({"embedding.weight": torch.eye(26)}, folder / "model.safetensors")
    model = load_static_model(str(folder), 16)
    assert model.vectors.shape == (27, 26)
    assert not model.vectors[model.tokenizer.pad_token_id].any()
    assert model.unknown is None
    found = find_word_vectors(str(folder), ["ab", "!", "c"])
    assert found.words == ["ab", "c"]
    np.testing.assert_array_equal(found.vectors[0][:3], [0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "but there is no tokenizer.json. Pass such a folder"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "Expected JSON in .*tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), "Expected word vectors in .*safetens"),
        (lambda folder: save_file({"a": torch.ones(2)}, folder / "model.safetensors"), "Expected a table 'embeddings'"),
        (
            lambda folder: save_file({"embeddings.word.weight": torch.ones(40, 2)}, folder / "model.safetensors"),
            "Expected a table 'embeddings'",
        ),
        (
            lambda folder: save_file({"embeddings": torch.ones(3, 2)}, folder / "model.safetensors"),
            "Expected a vector for each of the 31 tokens",
        ),
        (
            lambda folder: save_file({"embeddings": torch.full((40, 2), torch.nan)}, folder / "model.safetensors"),
            "it has NaN or infinite",
        ),
    ],
)
def test_what_is_no_folder_of_model2vec_is_refused_in_a_line(tmp_path, spoil, message):
    write_static_model(tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(FinetuneError, match=message) as caught:
        load_static_model(str(tmp_path / "model"), 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (None, {}, "Expected --word_vectors to be a file or folder, but .* does not exist"),
        (["le 1 2", "la 3 4"], {}, "Expected vectors of words in the training texts, but .* has none of their"),
        (["le 1 2", "la 3 4"], {"method": "textcnn"}, "Expected vectors of words in the training texts, but .* none"),
    ],
)
def test_a_run_refuses_them_in_a_line(tmp_path, lines, settings, message):
    path = str(tmp_path / "v.txt") if lines is None else write(tmp_path / "v.txt", lines)
    with pytest.raises(FinetuneError, match=message) as caught:
        train(tmp_path / "run", None, word_vectors=path, **settings)
    assert "\n" not in str(caught.value)


def test_methods_without_a_use_for_them_say_so(tmp_path, glove, capsys):
    train(tmp_path / "run", None, method="tfidf", word_vectors=glove)
    train(tmp_path / "rand", None, method="textcnn", textcnn_variant="rand", word_vectors=glove, max_steps=1)
    said = capsys.readouterr().err
    assert "--method tfidf has no use for: bf16, floor, max_length, word_vectors\n" in said
    assert "--method textcnn has no use for: word_vectors\n" in said


@pytest.mark.parametrize("variant", [None, pytest.param("static", marks=pytest.mark.slow), "multichannel"])
def test_a_textcnn_starts_from_them(tmp_path, glove, variant):
    settings = {} if variant is None else {"textcnn_variant": variant}
    run = train(tmp_path / "run", None, method="textcnn", word_vectors=glove, max_steps=3, **settings)
    config = json.loads((run.directory / "model/config.json").read_text())
    assert (config["variant"], config["embedding_dim"]) == (variant or "non-static", DIM)
    assert run.record.model.name is None
    saved = load_file(run.directory / "model/model.safetensors")
    tokenizer = load_predictor(run.directory).tokenizer
    name = "static_embedding.weight" if variant == "multichannel" else "embedding.weight"
    rows = saved[name][[tokenizer.get_vocab()[word] for word in ("good", "film")]].numpy()
    before = make_vectors()[[WORDS.index("good"), WORDS.index("film")]]
    if variant is None:
        assert 0 < np.abs(rows - before).max() < 0.1
    else:
        np.testing.assert_array_equal(rows, before)
    expected = load_predictor(run.directory, torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_allclose(compute_logits_elsewhere(run.directory / "model", TEXTS, None), expected, atol=1e-5)


def test_words_without_a_vector_are_drawn_with_the_variance_of_the_others(tmp_path):
    words = [f"w{number}" for number in range(400)]
    vectors = np.random.default_rng(0).normal(0, 2, size=(200, 50)).astype(np.float32)
    path = write(tmp_path / "v.txt", to_lines(words[:200], vectors))
    frame = make_frame().assign(text=[" ".join(words[number * 6 : number * 6 + 12]) for number in range(60)])
    settings = {"method": "textcnn", "word_vectors": path, "textcnn_variant": "static", "max_steps": 1}
    runs = [
        train(tmp_path / f"run{number}", None, lambda _: frame.copy(), **settings, seed=seed)
        for number, seed in enumerate((0, 0, 1))
    ]
    tables = [load_file(run.directory / "model/model.safetensors")["embedding.weight"].numpy() for run in runs]
    vocabulary = load_predictor(runs[0].directory).tokenizer.get_vocab()
    missing = [vocabulary[word] for word in words[200:] if word in vocabulary]
    drawn = tables[0][missing]
    assert drawn.std() == pytest.approx(2, rel=0.05)
    assert np.abs(drawn).max() <= 2.05 * 3**0.5
    np.testing.assert_array_equal(tables[0], tables[1])
    assert not np.array_equal(tables[0][missing], tables[2][missing])
    assert runs[0].record.word_vectors.words == len(vocabulary) - 2
    assert runs[0].record.word_vectors.found == len(vocabulary) - 2 - len(missing)


def test_a_textcnn_starts_from_a_folder_of_model2vec(tmp_path):
    folder = write_static_model(tmp_path / "potion")
    run = train(tmp_path / "run", None, method="textcnn", textcnn_variant="static", word_vectors=folder, max_steps=1)
    saved = load_file(run.directory / "model/model.safetensors")["embedding.weight"]
    row = saved[load_predictor(run.directory).tokenizer.get_vocab()["film"]].numpy()
    np.testing.assert_allclose(row, make_vectors()[WORDS.index("film")], atol=2e-3)  # held in half precision
    assert run.record.word_vectors.found is not None


def test_a_run_goes_on_with_the_same_vectors_alone(tmp_path, monkeypatch):
    path = tmp_path / "v.txt"
    write(path, to_lines(WORDS, make_vectors()))
    settings = {"method": "textcnn", "word_vectors": str(path), "num_train_epochs": 3}
    straight = train(tmp_path / "straight", None, **settings)
    save = FineTuningTrainer._save_checkpoint

    def save_and_end(*args):
        save(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuningTrainer, "_save_checkpoint", save_and_end)
        with pytest.raises(Interrupted):
            train(tmp_path / "cut", None, **settings)
    write(path, to_lines(WORDS, make_vectors(seed=1)))
    with pytest.raises(FinetuneError, match=r"these differ: the word vectors .*v\.txt' \(they have changed\)"):
        train(tmp_path / "cut", None, **settings)
    write(path, to_lines(WORDS, make_vectors()))
    again = train(tmp_path / "cut", None, **settings)
    files = [run.directory / "model/model.safetensors" for run in (straight, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_with_vectors_a_textcnn_tunes_them_unless_another_variant_is_chosen(glove):
    flags = ["--method", "textcnn", "--train_file", glove, "--output_dir", "x"]
    for more, expected in (
        ([], "rand"),
        (["--word_vectors", glove], "non-static"),
        (["--word_vectors", glove, "--textcnn_variant", "static"], "static"),
    ):
        arguments = parse_arguments(None, {}, [*flags, *more])
        assert arguments.family.textcnn_variant == expected
        assert ("model_name_or_path" in arguments.unused()) is True
        assert ("textcnn_embedding_dim" in arguments.unused()) is bool(more)
        assert "textcnn_vocabulary_size" not in arguments.unused()
