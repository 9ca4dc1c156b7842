"""What a model reads is found from the model, and its tokenizer is made to fit, or refused in one line.

Each kind of fault is provoked on several small random models: positions that start after the padding token, tokens
without embeddings, Python tokenizers, padding on the wrong side, types that a model lacks, weights that are not there.
"""

import json
import re
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_reviews, write_csv
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_reload import ARCHITECTURES
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    ByT5Tokenizer,
    CanineTokenizer,
    PerceiverTokenizer,
    PreTrainedTokenizerFast,
    T5EncoderModel,
    pipeline,
)

import finetune
from finetune.cli import main as finetune_command
from finetune.data.cutting import TextConfig
from finetune.data.tokens import encode_texts
from finetune.errors import FinetuneError
from finetune.families.encoder import Encoder
from finetune.families.save import write_model
from finetune.inference.predict import load_predictor
from finetune.methods import apply_method
from finetune.metrics import SINGLE_LABEL
from finetune.models.inputs import (
    MIX_BY_LENGTH,
    READ_THE_LAST_TOKEN,
    count_positions,
    longest_input,
    shortest_input,
    sketch_model,
)
from finetune.models.load import load_model, load_padding_tokenizer, load_tokenizer
from finetune.models.predictor import Predictor
from finetune.settings.parts import MethodArguments, ModelArguments
from finetune.tasks import Task

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 2,
         "eos_token_id": 3}  # fmt: skip
SMALL = {
    **{name: {} for name in ("bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert",
                             "data2vec-text", "ibert", "esm", "mpnet", "electra", "albert", "deberta-v2", "opt", "gpt2",
                             "convbert", "mobilebert", "fnet", "yoso")},
    "longformer": {"attention_window": 8, "sep_token_id": 3},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40},
    "distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2},
    "llama": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 8},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 3},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "n_positions": 512,
           "decoder_start_token_id": 0},
    "umt5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
    "xlnet": {"d_model": 16, "d_inner": 32, "n_layer": 1, "n_head": 2},
    "funnel": {"d_model": 16, "d_inner": 32, "block_sizes": [1, 1, 1], "n_head": 2, "d_head": 8,
               "architectures": ["FunnelBaseModel"]},
    "bloom": {"n_layer": 1, "n_head": 2},
}  # fmt: skip
WITHOUT_SIZES = {"xlnet", "funnel", "t5", "umt5", "bloom"}  # of positions, or by other names
AB = Task(SINGLE_LABEL, ["neg", "pos"])
LONG = "good film " * 60


def config_of(model_type: str, **settings):
    kept = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
    sizes = {name: size for name, size in SIZES.items() if model_type not in WITHOUT_SIZES or name in kept}
    if model_type == "bloom":
        sizes["hidden_size"] = 16
    return AutoConfig.for_model(
        model_type, **{**sizes, "id2label": {0: "neg", 1: "pos"}, **SMALL[model_type], **settings}
    )


def write_encoder(folder: Path, model_type: str, tokenizer, **settings) -> str:
    torch.manual_seed(0)
    AutoModel.from_config(config_of(model_type, **settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_classifier(folder: Path, model_type: str, tokenizer, **settings) -> str:
    """Write what a stranger trained: without finetune_config.json, its weights large enough to tell texts apart."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config_of(model_type, **settings))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tokenizer(tiny_bert):
    """The tokenizer of the tests, which knows no limit."""
    return AutoTokenizer.from_pretrained(tiny_bert, model_max_length=10**30)


def make_word_tokenizer(**settings):
    """Make a tokenizer of whole words that adds </s>, as that of T5 does."""
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", "good", "bad", "film", "a"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", **settings}
    )


# The longest input


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        *[(name, 40) for name in ("bert", "distilbert", "electra", "albert", "deberta-v2", "gpt2", "bart", "opt")],
        *[(name, 39) for name in ("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert",
                                  "data2vec-text", "ibert", "esm", "longformer")],
        ("mpnet", 38),  # its padding is token 1, whatever the config says
    ],
)  # fmt: skip
def test_a_table_of_positions_is_read_to_its_end_and_no_further(model_type, expected):
    model = AutoModelForSequenceClassification.from_config(config_of(model_type)).eval()
    assert count_positions(model) == count_positions(sketch_model(config_of(model_type))) == expected

    def run(length):
        with torch.no_grad():
            model(torch.tensor([[2, *[9] * (length - 2), 3]]))

    run(expected)
    with pytest.raises((IndexError, RuntimeError)):
        run(expected + 1)


@pytest.mark.parametrize(("padding", "expected"), [(0, 39), (1, 38), (5, 34)])
def test_positions_start_after_the_padding_token(padding, expected):
    assert count_positions(sketch_model(config_of("roberta", pad_token_id=padding))) == expected


def test_a_vocabulary_as_large_as_the_table_is_no_table():
    assert count_positions(sketch_model(config_of("bert", vocab_size=40))) == 40
    assert count_positions(sketch_model(config_of("roberta", vocab_size=40, pad_token_id=1))) == 38


@pytest.mark.parametrize("model_type", ["xlnet", "t5", "umt5", "funnel", "bloom"])
def test_relative_positions_have_no_limit(model_type, tokenizer):
    model = AutoModelForSequenceClassification.from_config(config_of(model_type)).eval()
    assert count_positions(model) is None
    assert longest_input(model, tokenizer) is None
    with torch.no_grad():
        model(torch.tensor([[9] * 700 + [3]]))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_rotary_positions_end_where_the_model_was_trained(model_type):
    assert count_positions(sketch_model(config_of(model_type))) == 40


@pytest.mark.parametrize(
    ("told", "expected"),
    [(10**30, 40), (1e30, 40), (1_000_000_000, 40), (32, 32), (32.0, 32), (512, 40), (0, 40), (-1, 40), (None, 40)],
)
def test_the_tokenizer_s_own_limit_counts_if_it_is_one(tokenizer, told, expected):
    tokenizer.model_max_length = told
    assert longest_input(sketch_model(config_of("bert")), tokenizer) == expected


def test_virtual_tokens_take_up_positions(tokenizer):
    model = AutoModelForSequenceClassification.from_config(config_of("bert"))
    wrapped = get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=6))
    assert longest_input(wrapped, tokenizer) == 34


@pytest.mark.parametrize(("model_type", "longest"), [("mpnet", 38), ("camembert", 39), ("gpt2", 40)])
def test_training_is_refused_more_than_the_model_reads(tmp_path, tokenizer, model_type, longest):
    base = ModelArguments(model_name_or_path=write_encoder(tmp_path, model_type, tokenizer))
    assert load_tokenizer(base, longest).model_max_length == longest
    with pytest.raises(
        FinetuneError, match=rf"at most {longest}, .* but got {longest + 1}. Pass --max_length {longest}."
    ):
        load_tokenizer(base, longest + 1, saves_embeddings=False)
    with pytest.raises(FinetuneError, match=r"at least 3, since the tokenizer of .* adds 2 special tokens"):
        load_tokenizer(base, 2)


@pytest.mark.parametrize(
    ("model_type", "longest"), [("roberta", 39), ("mpnet", 38), ("longformer", 39), ("gpt2", 40), ("xlnet", 122)]
)
def test_a_stranger_s_model_cuts_long_texts_to_what_it_reads(tmp_path, tokenizer, model_type, longest):
    folder = write_classifier(tmp_path, model_type, tokenizer)
    predictor = load_predictor(folder, torch.float32)
    logits, lengths = predictor.compute_logits(["good film", LONG])
    assert lengths.tolist() == [4, longest]
    np.testing.assert_allclose(predictor.compute_logits(["good film"])[0][0], logits[0], atol=1e-5)
    assert finetune.load_classifier(folder).predict([LONG])[0].label in ("neg", "pos")


def test_a_config_that_promises_more_than_the_model_reads_is_refused(tmp_path, tokenizer):
    folder = Path(write_classifier(tmp_path, "roberta", tokenizer))
    for limit, fits in ((39, True), (40, False), (512, False)):
        text = TextConfig(limit).to_dict()
        (folder / "finetune_config.json").write_text(json.dumps({"problem_type": SINGLE_LABEL, "text": text}))
        if fits:
            load_predictor(folder)
            continue
        with pytest.raises(FinetuneError, match=rf"at most 39 tokens.* says {limit}. Set max_length in it to 39"):
            load_predictor(folder)


# Padding


@pytest.mark.parametrize(
    ("model_type", "side"), [("bert", "right"), ("gpt2", "right"), ("llama", "right"), ("xlnet", "left")]
)
@pytest.mark.parametrize("saved", ["left", "right"])
def test_the_side_of_padding_is_made_right_and_saved(tmp_path, tiny_bert, model_type, side, saved):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, padding_side=saved)
    arguments = ModelArguments(model_name_or_path=write_encoder(tmp_path / "base", model_type, tokenizer))
    tokenizer = load_tokenizer(arguments, 32)
    model = load_model(arguments, "full", tokenizer, AB, seed=0)
    write_model(tmp_path / "model", Encoder(), model, tokenizer, TextConfig(32))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").padding_side == side
    texts = [text for text, _ in make_reviews(8)]
    size = 1 if model_type == "xlnet" else 8  # whose batches the pipeline can't take apart
    answers = pipeline("text-classification", str(tmp_path / "model"))(texts, batch_size=size)
    ours = load_predictor(tmp_path / "model", torch.float32).compute_probabilities(texts).max(axis=1)
    np.testing.assert_allclose([one["score"] for one in answers], ours, atol=1e-5)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("told", [None, 0, 9])
def test_decoders_pad_with_their_end_token_and_know_it(tmp_path, model_type, told):
    tokenizer = make_word_tokenizer(pad_token=None, padding_side="left")
    folder = write_classifier(tmp_path, model_type, tokenizer, pad_token_id=told)
    texts = ["good film", "bad film a bad film a good", "", "</s>", "good </s> </s>"]
    predictor = load_predictor(folder, torch.float32)
    assert predictor.model.config.pad_token_id == 3
    together = predictor.compute_logits(texts)[0]
    alone = [predictor.compute_logits([text])[0][0] for text in texts]
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_a_text_without_tokens_is_one_of_padding():
    tokenizer = make_word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", "$A $B", [])
    for truncation in ("head", "tail", "head+tail"):
        columns = encode_texts(["", "good"], tokenizer, TextConfig(8, truncation))
        assert columns["input_ids"] == [[0], [4]]
        assert columns["length"] == [1, 1]
    assert encode_texts([""], tokenizer, TextConfig(8, "window"))["input_ids"] == [[[0]]]


def test_a_tokenizer_that_makes_no_mask_is_told_to(tmp_path, tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, model_input_names=["input_ids"])
    folder = write_classifier(tmp_path, "bert", tokenizer)
    predictor = load_predictor(folder, torch.float32)
    together = predictor.compute_logits(["good film", "bad the plot was very dull"])[0]
    np.testing.assert_allclose(predictor.compute_logits(["good film"])[0], together[:1], atol=1e-5)


@pytest.mark.parametrize("model_type", ["fnet", "funnel", "convbert", "mobilebert", "yoso"])
def test_where_padding_changes_answers_only_texts_of_one_length_share_a_batch(tmp_path, tokenizer, model_type):
    folder = write_classifier(tmp_path, model_type, tokenizer, max_position_embeddings=40)
    texts = [text for text, _ in make_reviews(12)] + ["", "good", "good film", "the good film"]
    for truncation in ("head", "window"):
        text = TextConfig(12, truncation).to_dict()
        (tmp_path / "finetune_config.json").write_text(json.dumps({"problem_type": SINGLE_LABEL, "text": text}))
        predictor = load_predictor(folder, torch.float32)
        together = predictor.compute_logits(texts)[0]
        alone = [predictor.compute_logits([text])[0][0] for text in texts]
        # MobileBERT's activations grow without a LayerNorm, and with them what a processor rounds: 2.3e-5 was seen.
        np.testing.assert_allclose(alone, together, atol=5e-5 if model_type == "mobilebert" else 1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_funnel_gets_as_many_tokens_as_its_blocks_halve(blocks):
    model = AutoModelForSequenceClassification.from_config(config_of("funnel", block_sizes=[1] * blocks)).eval()
    least = shortest_input(model)
    with torch.no_grad():
        model(torch.full((1, least), 9))
        if blocks > 1:
            with pytest.raises((RuntimeError, IndexError)):
                model(torch.full((1, least - 1), 9))


# Vocabulary


def add_word(tokenizer, word="zzztok"):
    tokenizer.add_tokens([word])
    return tokenizer


@pytest.mark.parametrize("model_type", ["bert", "mpnet", "gpt2", "t5"])
def test_added_tokens_get_embeddings_that_are_trained_and_saved(tmp_path, tiny_bert, model_type):
    tokenizer = add_word(AutoTokenizer.from_pretrained(tiny_bert))
    base = write_encoder(tmp_path / "base", model_type, tokenizer)
    arguments = ModelArguments(model_name_or_path=base)
    tokenizer = load_tokenizer(arguments, 32)
    with pytest.warns(UserWarning, match=r"1 of the tokens that were added to the tokenizer of .* have no embedding"):
        model = load_model(arguments, "full", tokenizer, AB, seed=0)
    again = load_model(arguments, "full", tokenizer, AB, seed=0)
    assert torch.equal(model.get_input_embeddings().weight, again.get_input_embeddings().weight)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 31
    write_model(tmp_path / "model", Encoder(), model, tokenizer, TextConfig(32))
    ours = Predictor(model, tokenizer, TextConfig(32), torch.float32).compute_logits(["zzztok film"])[0]
    np.testing.assert_allclose(
        load_predictor(tmp_path / "model", torch.float32).compute_logits(["zzztok film"])[0], ours
    )


def test_added_tokens_are_refused_where_they_would_not_be_saved(tmp_path, tiny_bert):
    base = write_encoder(tmp_path, "bert", add_word(AutoTokenizer.from_pretrained(tiny_bert)))
    with pytest.raises(FinetuneError, match=r"below 30, .* go up to 30 \('zzztok'\).* pass --method full"):
        load_tokenizer(ModelArguments(model_name_or_path=base), 32, saves_embeddings=False)


@pytest.mark.parametrize("method", ["lora", "prompt", "ia3"])
def test_added_tokens_with_an_adapter_are_one_line(tmp_path, tiny_bert, reviews, method, capsys):
    base = write_encoder(tmp_path / "base", "bert", add_word(AutoTokenizer.from_pretrained(tiny_bert)))
    files = [word for pair in reviews.items() for word in pair]
    with pytest.raises(SystemExit) as caught:
        finetune_command(["train", *files, "--model_name_or_path", base, "--method", method, "--max_length", "10",
                          "--output_dir", str(tmp_path / "run")])  # fmt: skip
    assert caught.value.code == 2
    assert "pass --method full" in capsys.readouterr().err


def foreign_tokenizer(kind: str):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(60))]
    if kind == "larger":
        return BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    ids = {word: number for number, word in enumerate(words[:20])}
    ids["w19"] = 30
    return BertTokenizerFast(vocab=ids)


def raise_id(folder: str, kind: str) -> str:
    """Let a tokenizer number its last token 10^9; the tokenizers library would take half a minute to write it so."""
    file = Path(folder) / "tokenizer.json"
    if kind == "an id of 10^9":
        file.write_text(re.sub(r'"w19": *30', '"w19": 1000000000', file.read_text()))
        assert "1000000000" in file.read_text()
    return folder


@pytest.mark.parametrize("kind", ["larger", "an id of 10^9", "one too many"])
def test_a_foreign_tokenizer_is_refused_in_training_and_prediction(tmp_path, kind):
    base = raise_id(write_encoder(tmp_path / "base", "bert", foreign_tokenizer(kind)), kind)
    with pytest.raises(FinetuneError, match=r"token numbers below [\d,]+.* Take the tokenizer that belongs to it"):
        load_tokenizer(ModelArguments(model_name_or_path=base), 32)
    folder = raise_id(write_classifier(tmp_path / "model", "bert", foreign_tokenizer(kind)), kind)
    with pytest.raises(FinetuneError, match="token numbers below "):
        finetune.load(folder)


def test_a_stranger_s_added_tokens_without_embeddings_are_refused(tmp_path, tiny_bert):
    folder = write_classifier(tmp_path, "bert", add_word(AutoTokenizer.from_pretrained(tiny_bert)))
    with pytest.raises(FinetuneError, match=r"go up to 30 \('zzztok'\)"):
        load_predictor(folder)


def test_a_tokenizer_of_another_model_shows_in_its_padding_token(tmp_path, tiny_bert):
    base = write_encoder(tmp_path, "roberta", AutoTokenizer.from_pretrained(tiny_bert), pad_token_id=1)
    arguments = ModelArguments(model_name_or_path=base)
    tokenizer = load_tokenizer(arguments, 32)
    with pytest.warns(UserWarning, match="pads with token 1 and its tokenizer with 0"):
        model = load_model(arguments, "full", tokenizer, AB, seed=0)
    assert model.config.pad_token_id == 1  # by which it counts positions


def test_a_tokenizer_without_an_unknown_token_is_refused(tmp_path):
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "good": 1, "a": 2}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    base = write_encoder(tmp_path, "bert", tokenizer)
    with pytest.raises(FinetuneError, match=r"reads any text.* Give it an unknown token"):
        load_tokenizer(ModelArguments(model_name_or_path=base), 32)


@pytest.mark.parametrize(
    ("slow", "method"),
    [
        (CanineTokenizer, "full"),
        *((slow, method) for slow in (ByT5Tokenizer, PerceiverTokenizer) for method in ("full", "textcnn")),
    ],
)
def test_a_python_tokenizer_is_refused_in_one_line(tmp_path, slow, method):
    base = write_encoder(tmp_path / "base", "bert", slow(), vocab_size=300)
    arguments = ModelArguments(model_name_or_path=base)
    with pytest.raises(FinetuneError, match=rf"fast tokenizer .* is {slow.__name__}, which is written in Python"):
        load_padding_tokenizer(arguments) if method == "textcnn" else load_tokenizer(arguments, 32)
    if slow is CanineTokenizer:  # a million characters, which take seconds to load
        return
    folder = write_classifier(tmp_path / "model", "bert", slow(), vocab_size=300)
    with pytest.raises(FinetuneError, match="fast tokenizer"):
        finetune.load(folder)


# Token types


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "gpt2", "mpnet", "bart"])
def test_types_that_a_model_has_not_are_left_out(tmp_path, tokenizer, model_type):
    settings = {"type_vocab_size": 1} if model_type == "roberta" else {}
    predictor = load_predictor(write_classifier(tmp_path, model_type, tokenizer, **settings), torch.float32)
    assert "token_type_ids" not in predictor.tokenizer.model_input_names
    assert predictor.compute_logits(["good film"], ["bad plot"])[0].shape == (1, 2)


def make_xlnet_like_tokenizer():
    words = ["<pad>", "<unk>", "<s>", "</s>", "<sep>", "<cls>", "good", "bad", "film", "a"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        "$A:0 <sep>:0 <cls>:2", "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2", [("<sep>", 4), ("<cls>", 5)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", model_input_names=names
    )


def test_xlnet_gets_the_types_of_single_texts_too(tmp_path):
    folder = write_classifier(tmp_path, "xlnet", make_xlnet_like_tokenizer())
    predictor = load_predictor(folder, torch.float32)
    assert predictor.tokenizer.padding_side == "left"
    texts = ["good film", "a good film a bad film", "", "bad"]
    inputs = predictor.tokenizer(texts, padding=True, return_tensors="pt")
    assert inputs["token_type_ids"].max() == 3 or inputs["token_type_ids"].max() == 2
    with torch.no_grad():
        stranger = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        expected = stranger(**inputs).logits.numpy()
        without = stranger(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.numpy()
    np.testing.assert_allclose(predictor.compute_logits(texts)[0], expected, atol=1e-5)
    assert np.abs(without - expected).max() > 1e-3


@pytest.mark.parametrize("truncation", ["tail", "head+tail", "window"])
def test_types_are_cut_with_their_tokens(truncation):
    columns = encode_texts(["a good film a bad film", "a"], make_xlnet_like_tokenizer(), TextConfig(5, truncation))
    rows, types = columns["input_ids"], columns["token_type_ids"]
    if truncation == "window":
        rows, types = list(chain(*rows)), list(chain(*types))
    assert [len(row) for row in rows] == [len(one) for one in types]
    assert all(row[-2:] == [4, 5] and one == [0] * (len(row) - 1) + [2] for row, one in zip(rows, types, strict=True))


# The end token by which BART and T5 classify


@pytest.mark.parametrize("model_type", ["bart", "t5", "umt5"])
def test_an_end_token_within_a_text_does_not_end_it(tmp_path, model_type):
    predictor = load_predictor(write_classifier(tmp_path, model_type, make_word_tokenizer()), torch.float32)
    texts = ["good film", "good </s> film </s>", "", "bad " * 50 + "</s>"]
    for pairs in (None, ["bad", "</s>", "a </s>", ""]):
        together = predictor.compute_logits(texts, pairs)[0]
        for number, text in enumerate(texts):
            alone = predictor.compute_logits([text], pairs and [pairs[number]])[0][0]
            np.testing.assert_allclose(alone, together[number], atol=1e-5)


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_a_tokenizer_that_ends_no_text_is_refused(tmp_path, model_type):
    tokenizer = make_word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", "$A $B", [])
    base = write_encoder(tmp_path, model_type, tokenizer)
    with pytest.raises(FinetuneError, match=r"ends texts with token 3, by which .* classifies"):
        load_tokenizer(ModelArguments(model_name_or_path=base), 32)


# Weights that are not there


def load_with_warnings(base: str, tokenizer, method="full"):
    arguments = ModelArguments(model_name_or_path=base)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_model(arguments, method, load_tokenizer(arguments, 32), AB, seed=0)
    return model, [str(one.message) for one in caught if "more than a head" in str(one.message)]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "deberta-v2", "xlnet", "bart", "gpt2"])
def test_a_head_and_a_pooler_drawn_at_random_are_no_news(tmp_path, tokenizer, model_type):
    base = Path(write_encoder(tmp_path, model_type, tokenizer))
    weights = load_file(base / "model.safetensors")
    save_file({name: weight for name, weight in weights.items() if "pooler" not in name}, base / "model.safetensors")
    assert load_with_warnings(str(base), tokenizer)[1] == []


def write_t5_encoder(folder: Path, tokenizer) -> str:
    T5EncoderModel(config_of("t5")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_an_encoder_without_its_decoder_is_warned_of(tmp_path, method):
    base = write_t5_encoder(tmp_path / "base", make_word_tokenizer())
    model, (warning,) = load_with_warnings(base, None, method)
    assert "'transformer.decoder.block.0" in warning
    assert "of the encoder, is drawn at random" in warning
    model = apply_method(model, MethodArguments(method))
    tokenizer = AutoTokenizer.from_pretrained(base)
    write_model(tmp_path / "model", Encoder(), model, tokenizer, TextConfig(32))
    ours = Predictor(model.eval(), tokenizer, TextConfig(32), torch.float32).compute_logits(["good film"])[0]
    found = load_predictor(tmp_path / "model", torch.float32).compute_logits(["good film"])[0]
    np.testing.assert_allclose(found, ours, atol=1e-6)  # what was drawn is saved, with an adapter too


@pytest.mark.parametrize("fault", ["another prefix", "another architecture", "a layer short", "another width"])
def test_an_encoder_drawn_at_random_is_warned_of(tmp_path, tokenizer, fault):
    base = Path(write_encoder(tmp_path, "bert", tokenizer, num_hidden_layers=2))
    weights = load_file(base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    if fault == "another prefix":
        weights = {f"module.encoder.{name}": weight for name, weight in weights.items()}
    elif fault == "another architecture":
        config["model_type"] = "distilbert"
        config.update(dim=16, hidden_dim=32, n_layers=2, n_heads=2)
    elif fault == "a layer short":
        weights = {name: weight for name, weight in weights.items() if "layer.1." not in name}
    else:
        config["intermediate_size"] = 48
    (base / "config.json").write_text(json.dumps(config))
    save_file(weights, base / "model.safetensors")
    (warning,) = load_with_warnings(str(base), tokenizer)[1]
    share = int(warning.split("more than a head, ")[1].split("%")[0])
    assert share == 100 if fault == "another prefix" else 10 < share < 100


def test_an_adapter_on_a_base_that_lost_weights_is_refused(tmp_path, tokenizer):
    base = write_encoder(tmp_path / "base", "bert", tokenizer)
    arguments = ModelArguments(model_name_or_path=base)
    model = load_model(arguments, "lora", load_tokenizer(arguments, 32, saves_embeddings=False), AB, seed=0)
    write_model(tmp_path / "model", Encoder(), apply_method(model, MethodArguments("lora")), tokenizer, TextConfig(32))
    finetune.load(tmp_path / "model")
    weights = load_file(tmp_path / "base/model.safetensors")
    save_file({k: v for k, v in weights.items() if "layer.0.output" not in k}, tmp_path / "base/model.safetensors")
    with pytest.raises(FinetuneError, match=r"lack 'bert.encoder.layer.0.output.* Restore the base"):
        finetune.load(tmp_path / "model")


@pytest.mark.parametrize("method", ["full", "lora", "head"])
@pytest.mark.parametrize("model_type", ["xlnet", "bart", "longformer"])
def test_whole_runs_from_the_shell(tmp_path, tokenizer, model_type, method, capsys):
    base = write_encoder(tmp_path / "base", model_type, tokenizer)
    files = [word for name in ("train", "validation", "test") for word in
             (f"--{name}_file", write_csv(tmp_path / f"{name}.csv", make_reviews(24, 50 * len(name))))]  # fmt: skip
    finetune_command(["train", *files, "--model_name_or_path", base, "--method", method, "--max_length", "24",
                       "--num_train_epochs", "1", "--bf16", "false", "--num_threads", "1", "--no_floor",
                       "--output_dir", str(tmp_path / "run")])  # fmt: skip
    predictor = load_predictor(tmp_path / "run", torch.float32)
    texts = ["good film", LONG]
    together = predictor.compute_logits(texts)[0]
    np.testing.assert_allclose(predictor.compute_logits(texts[:1])[0][0], together[0], atol=1e-5)


def test_the_table_of_models_is_that_of_the_tests():
    text = (ROOT / "docs/reference/models.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z0-9_-]+)` \|[^|]*\| (left|right) \|", text, re.MULTILINE))
    assert list(rows) == list(ARCHITECTURES)
    assert {name for name, side in rows.items() if side == "left"} == READ_THE_LAST_TOKEN
    listed = text.split("**Padding that changes answers**")[1].split("predict texts")[0]
    assert set(re.findall(r"`([a-z]+)`", listed)) == MIX_BY_LENGTH
