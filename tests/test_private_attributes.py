"""What this package takes from inside its dependencies, and what notices when it is gone.

Upstream may rename a private attribute in any release. One that is read raises; one that is written, or asked for with
`getattr` and a default, would be missed in silence: a model in the wrong place, a wrong figure, a slow run.
"""

import ast
import inspect

import pytest
import torch
import transformers
from conftest import ROOT, make_reviews
from packaging.version import Version
from peft import LoraConfig, TaskType, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    ModernBertConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from finetune.accelerated.attention import use_cpu_attention
from finetune.accelerated.precision import keep_activations_in_bf16
from finetune.accelerated.unpadding import use_unpadding
from finetune.data.cutting import TextConfig
from finetune.metrics import SINGLE_LABEL
from finetune.models.load import load_model
from finetune.models.predictor import Predictor
from finetune.settings.parsing import parse_arguments
from finetune.settings.parts import ModelArguments
from finetune.tasks import Task

# Read or called, so that a missing one raises wherever it is used; every training, prediction or `--help` does.
READ = {
    "_actions", "_attn_implementation", "_forward_hooks", "_get_all_tensors", "_get_collator_with_removed_columns",
    "_linear_pointwise",
    "_load_rng_state", "_no_split_modules", "_prepare_inputs", "_remove_unused_columns", "_set_sync_gradients",
    "_softmax_backward_data", "_tr_loss", "_train_batch_size",
}  # fmt: skip
# Written: the attribute, and whose code must go on to read it.
WRITTEN = {
    "_created_lr_scheduler": Trainer,
    "_globalstep_last_logged": Trainer,
    "_initial_global_step": Trainer,
    "_last_lr": LRScheduler,
    "_n_gpu": TrainingArguments,
    "_setup_devices": TrainingArguments,
    "_total_loss_scalar": Trainer,
}
# Of named tuples, where the underscore only keeps clear of the fields.
PUBLIC = {"_asdict", "_replace"}


def private_attributes():
    """Find every attribute with a leading underscore that no class of this package defines."""
    used, own = set(), set()
    for file in [*(ROOT / "finetune").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
                if isinstance(node, ast.ClassDef) and not node.bases:  # its `self` is nobody else's
                    own |= {one.attr for one in ast.walk(node) if _is_of_self(one)}
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                used.add(node.attr)
    return used - own


def _is_of_self(node):
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def test_every_private_attribute_of_a_dependency_is_known_here():
    assert private_attributes() == READ | WRITTEN.keys() | PUBLIC


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_still_read(name):
    if name == "_initial_global_step" and Version(transformers.__version__) < Version("5.19"):
        pytest.skip("transformers before 5.19 divides by all steps anyway")
    reads = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(WRITTEN[name])))
        if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Load)
    ]
    assert reads


def test_the_trainer_can_say_how_many_gpus_it_takes(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments._n_gpu = 3
    assert arguments.n_gpu == 3


def test_flags_stand_in_their_groups(capsys):
    with pytest.raises(SystemExit):
        parse_arguments("A recipe.", {"output_dir": "runs", "dataset_name": "embedded"}, ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert {"data:", "model:", "method:", "tuning:", "run:"} <= set(lines)


def test_peft_still_asks_whether_to_cast_its_inputs(tiny_bert):
    """By a public switch of PEFT, which turns the attribute that `keep_activations_in_bf16` turns."""
    model = BertForSequenceClassification.from_pretrained(tiny_bert)
    wrapped = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query"]))
    layers = [module for module in wrapped.modules() if "cast_input_dtype_enabled" in vars(module)]
    assert len(layers) == 2
    with disable_input_dtype_casting(wrapped):
        assert not any(layer.cast_input_dtype_enabled for layer in layers)
    assert all(layer.cast_input_dtype_enabled for layer in layers)
    keep_activations_in_bf16(wrapped)
    assert not any(layer.cast_input_dtype_enabled for layer in layers)


def test_attention_dropout_reaches_the_layers(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    arguments = ModelArguments(model_name_or_path=tiny_bert, attention_dropout=0.37)
    model = load_model(arguments, "full", tokenizer, Task(SINGLE_LABEL, ["neg", "pos"]), seed=0)
    assert model.bert.encoder.layer[0].attention.self.dropout.p == 0.37
    names = {
        "attention_probs_dropout_prob": BertConfig,
        "attention_dropout": ModernBertConfig,
        "attn_pdrop": GPT2Config,
    }
    assert all(hasattr(config(), name) for name, config in names.items())


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_stranger_s_model_cuts_texts_to_what_it_reads(tiny_bert, kind):
    model, tokenizer = make_stranger(tiny_bert, kind)
    predictor = Predictor(model, tokenizer, None, torch.float32)
    assert predictor.text_config == TextConfig(32)
    assert predictor.compute_logits(["good film " * 60])[0].shape == (1, 2)


def make_stranger(tiny_bert, kind):
    """Make a classifier whose tokenizer says of no limit."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.model_max_length = 10**30
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "bert":
        config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes)
        return BertForSequenceClassification(config).eval(), tokenizer
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=33, pad_token_id=0, **sizes)
    return RobertaForSequenceClassification(config).eval(), tokenizer


@pytest.mark.parametrize("is_decoder", [False, True])
def test_only_encoders_are_packed(tiny_bert, is_decoder):
    config = BertConfig.from_pretrained(tiny_bert, is_decoder=is_decoder)
    model = BertForSequenceClassification.from_pretrained(tiny_bert, config=config).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    inputs = tokenizer([text for text, _ in make_reviews(6)], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
        use_cpu_attention(model)
        use_unpadding(model)
        rows = []
        model.bert.encoder.layer[0].register_forward_pre_hook(lambda layer, args: rows.append(len(args[0])))
        torch.testing.assert_close(model(**inputs).logits, expected)
    assert rows == [6 if is_decoder else 1]


def test_the_encoder_that_is_packed_is_found_by_its_name():
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 30}
    model = DistilBertModel(DistilBertConfig(**sizes))
    use_unpadding(model)
    assert model.transformer._forward_hooks
