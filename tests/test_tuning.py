"""How fast each parameter moves, and when: against the formulas of the papers."""

import json
import re

import numpy as np
import pytest
import torch
from test_methods import SMALL
from test_trainer import make_model, make_trainer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from finetune.data.cutting import TextConfig
from finetune.data.load import read_examples
from finetune.data.tokenize import tokenize_dataset
from finetune.errors import FinetuneError
from finetune.families.textcnn.textcnn import TextCNNConfig, TextCNNForSequenceClassification
from finetune.methods import apply_method
from finetune.methods.depth import parameter_depths
from finetune.methods.rates import Rates, build_parameter_groups
from finetune.methods.schedules import schedule_factor
from finetune.methods.unfreezing import GradualUnfreezing
from finetune.settings.parts import MethodArguments, TuningArguments

DEEP = {**SMALL, "num_hidden_layers": 3}
MODERN = {**DEEP, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
ALBERT = {**DEEP, "embedding_size": 8, "num_hidden_groups": 1}
GPT2 = {
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "vocab_size": 30,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DEPTHS = [
    ("bert", DEEP, "bert.embeddings.word_embeddings.weight", 3),
    ("bert", DEEP, "bert.encoder.layer.0.attention.self.query.weight", 2),
    ("bert", DEEP, "bert.encoder.layer.2.output.dense.bias", 0),
    ("bert", DEEP, "bert.pooler.dense.weight", 0),
    ("bert", DEEP, "classifier.weight", 0),
    ("modernbert", MODERN, "model.embeddings.tok_embeddings.weight", 3),
    ("modernbert", MODERN, "model.layers.0.mlp.Wi.weight", 2),
    ("modernbert", MODERN, "model.final_norm.weight", 0),
    ("modernbert", MODERN, "head.dense.weight", 0),
    ("albert", ALBERT, "albert.embeddings.word_embeddings.weight", 1),
    ("albert", ALBERT, "albert.encoder.embedding_hidden_mapping_in.weight", 1),
    ("albert", ALBERT, "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", 0),
    ("gpt2", GPT2, "transformer.wpe.weight", 3),
    ("gpt2", GPT2, "transformer.h.1.attn.c_attn.weight", 1),
    ("gpt2", GPT2, "transformer.ln_f.weight", 0),
    ("gpt2", GPT2, "score.weight", 0),
]


def build(model_type, settings):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **settings))
    head = "score" if model_type == "gpt2" else "classifier"
    model.new_modules = [head]
    return model


@pytest.mark.parametrize(("model_type", "settings", "name", "depth"), DEPTHS, ids=[name for *_, name, _ in DEPTHS])
def test_depths(model_type, settings, name, depth):
    assert parameter_depths(build(model_type, settings))[name] == depth


# Where a parameter lies, told from its name alone: (its number in the stack, how many there are) or the ends.
STACKS = {
    "bert": (r"bert\.encoder\.layer\.(\d+)\.", r"bert\.embeddings\.", 3),
    "modernbert": (r"model\.layers\.(\d+)\.", r"model\.embeddings\.", 3),
    "albert": (r"albert\.encoder\.albert_layer_groups\.(\d+)\.", r"albert\.(embeddings|encoder\.embedding_hidden)", 1),
}


def layers_above(model_type, name):
    """Count the layers that stand above a parameter: none above the head."""
    layer, embeddings, num_layers = STACKS[model_type]
    if found := re.match(layer, name):
        return num_layers - 1 - int(found[1])
    return num_layers if re.match(embeddings, name) else 0


@pytest.mark.parametrize(("model_type", "settings"), [("bert", DEEP), ("modernbert", MODERN), ("albert", ALBERT)])
def test_each_layer_learns_at_its_own_rate_and_weight_decay_stays_off_biases(model_type, settings):
    model = apply_method(build(model_type, settings), MethodArguments("full"))
    decayed = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    groups = build_parameter_groups(model, Rates(0.95, 1e-2), ["classifier"], decayed, 1e-3, 0.01)
    seen = {}
    for group in groups:
        for name in group["names"]:
            assert name not in seen
            seen[name] = (group["lr"], group["weight_decay"])
    assert seen.keys() == dict(model.named_parameters()).keys()
    assert len({rate for rate, _ in seen.values()}) == STACKS[model_type][2] + 2  # layers, embeddings, head
    for name, (rate, decay) in seen.items():
        expected = 1e-2 if name.startswith("classifier.") else 1e-3 * 0.95 ** layers_above(model_type, name)
        assert rate == pytest.approx(expected)
        assert decay == (0.01 if name in decayed else 0.0)


def test_lora_plus_is_sixteen_times_as_fast_on_b():
    model = apply_method(build("bert", DEEP), MethodArguments("lora_plus"))
    groups = build_parameter_groups(model, Rates(lora_plus_ratio=16), ["classifier"], [], 1e-4, 0.0)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {16 * 1e-4}
    assert {rate for name, rate in rates.items() if "lora_B" not in name} == {1e-4}


def test_the_slanted_triangle_is_that_of_the_paper():
    """Howard and Ruder 2018, equation 3, with cut_frac 0.1 and ratio 32, written as they write it."""
    num_steps, cut_frac, ratio = 200, 0.1, 32
    cut = int(num_steps * cut_frac)
    factor = schedule_factor("slanted_triangular", num_steps, 1)
    for t in range(num_steps):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        assert factor(t) == pytest.approx((1 + p * (ratio - 1)) / ratio)


@pytest.mark.parametrize(
    ("name", "mode", "gamma"),
    [
        ("triangular", "triangular", 1.0),
        ("triangular2", "triangular2", 1.0),
        ("exp_range", "exp_range", 0.1 ** (1 / 80)),
    ],
)
def test_cycles_are_those_of_torch(name, mode, gamma):
    """Smith 2017, as torch.optim.lr_scheduler.CyclicLR computes it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0.1, max_lr=1.0, step_size_up=20, mode=mode, gamma=gamma, cycle_momentum=False
    )
    factor = schedule_factor(name, num_steps=80, num_cycles=2)
    for step in range(80):
        assert factor(step) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def tokenized(reviews, tokenizer):
    return tokenize_dataset(read_examples(reviews["--train_file"]), tokenizer, TextConfig(24))


def test_gradual_unfreezing_goes_from_the_top_down(tmp_path, tiny_bert, tokenizer, tokenized):
    trainer = make_trainer(
        tmp_path, make_model(tiny_bert, tokenizer), tokenizer, tokenized, num_train_epochs=5, max_steps=-1,
        per_device_train_batch_size=20, weight_decay=0.1,
    )  # fmt: skip
    trainer.tuning = TuningArguments(unfreeze_every=1.0)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    seen, in_backward = [], []
    for number, layer in enumerate(trainer.model.bert.encoder.layer):
        layer.register_full_backward_hook(
            lambda *_, number=number: in_backward.append((trainer.state.global_step, number))
        )

    step = trainer.training_step

    def watched_step(model, inputs, *args, **kwargs):
        loss = step(model, inputs, *args, **kwargs)
        with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        seen.append(
            {
                name.split(".")[3] if "layer." in name else name.split(".")[1 if "bert" in name else 0]
                for name in with_gradient
            }
        )
        return loss

    trainer.training_step = watched_step
    trainer.train()
    assert len(seen) == 15  # three steps an epoch
    head = {"classifier"}
    assert seen[0] == seen[2] == head
    assert seen[3] == seen[5] == head | {"pooler", "1"}
    assert seen[6] == seen[8] == head | {"pooler", "1", "0"}
    assert seen[9] == seen[14] == head | {"pooler", "1", "0", "embeddings"}
    first = {number: min(at for at, layer in in_backward if layer == number) for number in (0, 1)}
    assert first == {1: 3, 0: 6}  # no time was spent in the backward pass of frozen layers
    assert all(
        not torch.equal(parameter, before[name])
        for name, parameter in trainer.model.named_parameters()
        if "position" not in name
    )


def test_a_schedule_longer_than_training_is_refused():
    model = build("bert", DEEP)
    with pytest.raises(FinetuneError, match="4 stages of 10 steps don't end within its 40 steps"):
        GradualUnfreezing(model, ["classifier"], period=10, num_steps=40)
    GradualUnfreezing(model, ["classifier"], period=9, num_steps=40)


def test_last_layers_bitfit_and_drawing_anew():
    model = apply_method(build("bert", DEEP), MethodArguments("last_layers", num_layers=1))
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[3] for name in trains if "layer." in name} == {"2"}
    assert "bert.pooler.dense.weight" in trains
    assert not any("embeddings" in name for name in trains)

    model = apply_method(build("bert", DEEP), MethodArguments("bitfit"))
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {name for name, _ in model.named_parameters() if name.endswith("bias")} | {"classifier.weight"}

    model = build("bert", DEEP)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    apply_method(model, MethodArguments("full", reinit_layers=2))
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name.split(".")[3] for name in changed if "layer." in name} == {"1", "2"}
    assert "bert.pooler.dense.weight" in changed
    assert not any("embeddings" in name for name in changed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (MethodArguments("last_layers", num_layers=4), "--num_layers from 1 to the 3 layers of the model, but got 4"),
        (MethodArguments("full", reinit_layers=4), "--reinit_layers from 1 to the 3 layers"),
    ],
)
def test_more_layers_than_there_are(arguments, message):
    with pytest.raises(FinetuneError, match=message):
        apply_method(build("bert", DEEP), arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("peft_type: magic", "peft_type that PEFT knows in --peft_config, but got 'MAGIC'"),
        ("peft_type: LORA\nrank: 3", r"fields of LoraConfig, but got \['rank'\]"),
        ("peft_type: LORA\ntarget_modules: [nothing]", "PEFT says: No modules were targeted"),
        ("[1]", "'name: value' lines"),
        ("peft_type: LORA\nmodules_to_save: [nowhere]", "as modules_to_save, but it has no 'nowhere'"),
        ("peft_type: LORA\ntask_type: CAUSAL_LM", "no task_type in --peft_config"),
        ("peft_type: LORA\ninference_mode: true", "no inference_mode in --peft_config"),
    ],
)
def test_bad_peft_configs_are_one_line(tmp_path, content, message):
    path = tmp_path / "peft.yaml"
    path.write_text(content)
    with pytest.raises(FinetuneError, match=message) as caught:
        apply_method(build("bert", DEEP), MethodArguments("peft", peft_config=str(path)))
    assert "\n" not in str(caught.value)


def test_two_methods_at_once_are_refused(tmp_path):
    path = tmp_path / "peft.yaml"
    path.write_text("peft_type: IA3")
    with pytest.raises(FinetuneError, match="Expected one method, but got --method lora and peft_type IA3"):
        apply_method(build("bert", DEEP), MethodArguments("lora", peft_config=str(path)))


def test_modules_to_save_are_added_to_those_that_the_checkpoint_lacked(tmp_path):
    path = tmp_path / "peft.yaml"
    path.write_text("modules_to_save: [pooler]")
    model = apply_method(build("bert", DEEP), MethodArguments("lora", peft_config=str(path)))
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"classifier", "pooler"} <= {name.split(".modules_to_save")[0].split(".")[-1] for name in trains}


def test_a_model_without_layers_has_no_rate_for_each():
    model = TextCNNForSequenceClassification(TextCNNConfig(vocab_size=20, embedding_dim=8, pad_token_id=0))
    with pytest.raises(FinetuneError, match=r"a list of layers, but found none in TextCNN.* Leave out --layer_decay"):
        build_parameter_groups(model, Rates(0.9), [], [], 1e-3, 0.0)


def test_any_peft_method_by_its_config(tmp_path):
    path = tmp_path / "peft.yaml"
    path.write_text("peft_type: LOHA\nr: 4\ntarget_modules: all-linear\n")
    model = apply_method(build("bert", DEEP), MethodArguments("peft", peft_config=str(path)))
    assert model.peft_config["default"].r == 4
    assert any("hada" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--unfreeze_every", "1", "--method", "lora"], "--unfreeze_every with --method full"),
        (["--unfreeze_every", "1"], "unfreezing schedule shorter than training"),
        (["--lr_schedule", "triangular", "--warmup_steps", "3"], "--lr_schedule or --warmup_steps, but got both"),
        (["--lr_schedule", "triangular", "--lr_scheduler_type", "cosine"], "--lr_schedule or --lr_scheduler_type"),
        (["--layer_decay", "1.5"], r"--layer_decay in \(0, 1\]"),
        (["--method", "peft"], "--peft_config with --method peft"),
        (["--method", "qlora"], "a GPU for --method qlora"),
    ],
)
def test_settings_that_contradict(classify, flags, words, tmp_path, message):
    with pytest.raises(FinetuneError, match=message):
        classify.main([*flags, *words, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_run_records_its_tuning(imdb, flags, tmp_path):
    words = ["--layer_decay", "0.9", "--lr_schedule", "triangular2", "--head_learning_rate", "1e-3"]
    words += ["--logging_steps", "1", "--num_train_epochs", "2"]
    imdb.main([*flags, *words, "--output_dir", str(tmp_path / "run")])
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["arguments"]["tuning"]["layer_decay"] == 0.9
    history = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    steps = [entry for entry in history if "loss" in entry]
    assert np.isfinite([entry["loss"] for entry in steps]).all()
    factor = schedule_factor("triangular2", num_steps=len(steps), num_cycles=2)
    rates = np.array([entry["learning_rate"] for entry in steps])
    np.testing.assert_allclose(rates / rates[0], [factor(step) / factor(0) for step in range(len(steps))])
    assert len(set(rates.round(12))) > 2
