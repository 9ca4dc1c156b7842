"""Every preset on every architecture: what trained is saved, and reloads to the same logits in a fresh process.

One process reloads all methods of an architecture, through `finetune.load` and through what a stranger types who has
only transformers and PEFT. `docs/reference/methods.md` shows the table that `python tests/test_reload.py` prints.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import finetune
from finetune.accelerated import enable
from finetune.catalogue import CATALOGUE
from finetune.data.cutting import TextConfig
from finetune.data.embedded import find_embedded_model
from finetune.errors import FinetuneError
from finetune.families.encoder import Encoder
from finetune.families.save import write_model
from finetune.inference.predict import load_predictor
from finetune.methods import apply_method
from finetune.metrics import SINGLE_LABEL
from finetune.models.inputs import make_sample
from finetune.models.load import load_model, load_tokenizer
from finetune.models.quantization import is_four_bit
from finetune.settings.parts import MethodArguments, ModelArguments
from finetune.tasks import Task

SMALL = {"vocab_size": 30, "max_position_embeddings": 64, "pad_token_id": 0, "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
SPECIAL = {"bos_token_id": 2, "eos_token_id": 3}
ARCHITECTURES = {
    "bert": SMALL,
    "distilbert": {"vocab_size": 30, "max_position_embeddings": 64, "pad_token_id": 0, "dim": 32, "hidden_dim": 64,
                   "n_layers": 2, "n_heads": 2},
    "roberta": {**SMALL, **SPECIAL},
    "xlm-roberta": {**SMALL, **SPECIAL},
    "electra": {**SMALL, "embedding_size": 32},
    "deberta-v2": {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "albert": {**SMALL, "embedding_size": 16, **SPECIAL},
    "modernbert": {**SMALL, **SPECIAL, "cls_token_id": 2, "sep_token_id": 3},
    "gpt2": {"vocab_size": 30, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0,
             **SPECIAL},
    "qwen3": {**SMALL, **SPECIAL, "num_key_value_heads": 1, "head_dim": 16},
    "mpnet": {**SMALL, **SPECIAL},
    "camembert": {**SMALL, **SPECIAL},
    "longformer": {**SMALL, **SPECIAL, "sep_token_id": 3, "attention_window": 8},
    "big_bird": {**SMALL, **SPECIAL, "sep_token_id": 3, "block_size": 2, "num_random_blocks": 1},
    "xlnet": {"vocab_size": 30, "pad_token_id": 0, "d_model": 32, "d_inner": 64, "n_layer": 2, "n_head": 2, **SPECIAL},
    "funnel": {"vocab_size": 30, "pad_token_id": 0, "d_model": 32, "d_inner": 64, "block_sizes": [1, 1, 1], "n_head": 2,
               "d_head": 16, "architectures": ["FunnelBaseModel"]},
    "bart": {"vocab_size": 30, "max_position_embeddings": 64, "pad_token_id": 0, "d_model": 32, "encoder_layers": 2,
             "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
             "decoder_ffn_dim": 64, "decoder_start_token_id": 3, **SPECIAL},
    "t5": {"vocab_size": 30, "pad_token_id": 0, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
           "decoder_start_token_id": 0, "eos_token_id": 3},
    "llama": {**SMALL, **SPECIAL, "num_key_value_heads": 1, "head_dim": 16},
    "gemma": {**SMALL, **SPECIAL, "num_key_value_heads": 1, "head_dim": 16},
}  # fmt: skip
METHODS = [name for name, method in CATALOGUE.items()
           if method.family == CATALOGUE["full"].family and name not in ("peft", "qlora")]  # fmt: skip
NAMES = ["a", "b", "c"]
TOKENS = [[2, 5, 6, 7, 3], [2, 9, 8, 12, 3]]
# XLNet's own tokenizer gives its last token another type; without, its weights for segments don't train.
TYPES = {"xlnet": [[0, 0, 0, 0, 2]] * 2}

RELOAD = """
import json, sys
import torch
from pathlib import Path
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification
import finetune

folder, names = Path(sys.argv[1]), json.loads(sys.argv[2])
inputs = {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[3]).items()}
labels = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
results = {}
for path in sorted(folder.iterdir()):
    result = results[path.name] = {}
    adapter = (path / "adapter_config.json").exists()
    with torch.no_grad():
        ours, _ = finetune.load(path)
        result["finetune"] = ours(**inputs).logits.tolist()
        result["names"] = [ours.config.id2label[n] for n in range(len(names))]
        if adapter:
            stranger = AutoPeftModelForSequenceClassification.from_pretrained(path, **labels)
        else:
            stranger = AutoModelForSequenceClassification.from_pretrained(path)
        result["stranger"] = stranger.eval()(**inputs).logits.tolist()
        if adapter and json.loads(sys.argv[4])[path.name]:
            try:
                result["merged"] = stranger.merge_and_unload()(**inputs).logits.tolist()
            except (AttributeError, TypeError, ValueError) as error:
                result["merge_error"] = str(error)
print(json.dumps(results))
"""


# What a classifier of the type never reads, so that training does not move it: the attention of all but the first token
# in Longformer's last layer, BigBird's pooler, what XLNet has for masked tokens.
UNREAD = {"longformer": "layer.1.attention.self.", "big_bird": "bert.pooler.", "xlnet": "mask_emb"}
TEXTS = [
    "good film",
    "bad the plot was very dull and the scene of this story is boring and the actor poor . !",
    "",
    "the the the the the the film of the plot",
    "a",
]
PAIRS = ["bad", "the very good story of a film", "actor", "good good good", ""]


def inputs_of(model_type: str) -> dict[str, list]:
    """Return what models of a type are tried on."""
    return {"input_ids": TOKENS, **({"token_type_ids": TYPES[model_type]} if model_type in TYPES else {})}


def train_and_save(folder: Path, base: str, method: str) -> dict:
    """Train three steps so that everything trainable has moved, save, and tell what to expect of a reload."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_model(ModelArguments(model_name_or_path=base), method, tokenizer, Task(SINGLE_LABEL, NAMES), seed=0)
    model = enable(apply_method(model, MethodArguments(method, num_layers=1)))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    labels = torch.tensor([0, 2])
    inputs = {name: torch.tensor(rows) for name, rows in inputs_of(model.config.model_type).items()}
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**inputs).logits, labels).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        if name in frozen:
            same = frozen[name].to(parameter.dtype)  # four-bit layers hold their biases in the format they compute in
            assert torch.equal(parameter, same), f"{name} is frozen and moved"
    moved = {name for name, p in model.named_parameters() if name in start and not torch.equal(p, start[name])}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.tolist()
    write_model(folder / method, Encoder(), model, tokenizer)
    return {"logits": logits, "still": sorted(start.keys() - moved)}


def write_base(model_type: str, workplace: Path, tokenizer: str) -> str:
    """Write a small random model without a classification head."""
    base = workplace / "base"
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(model_type, **ARCHITECTURES[model_type])).save_pretrained(base)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(base)
    return str(base)


def run_architecture(model_type: str, workplace: Path, tokenizer: str) -> tuple[dict, dict, dict]:
    """Return what was expected of each method, what a fresh process found, and what PEFT refused."""
    base = write_base(model_type, workplace, tokenizer)
    saved = workplace / "saved"
    saved.mkdir()
    expected, refused = {}, {}
    for method in METHODS:
        try:
            expected[method] = train_and_save(saved, base, method)
        except FinetuneError as error:
            refused[method] = str(error)
    merges = json.dumps({method: bool(CATALOGUE[method].merges) for method in METHODS})
    command = [sys.executable, "-c", RELOAD, str(saved), json.dumps(NAMES), json.dumps(inputs_of(model_type)), merges]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return expected, json.loads(done.stdout.splitlines()[-1]), refused


# With every method in each run of the tests: an encoder, and a decoder.
USUAL = ("bert", "gpt2")


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=[] if name in USUAL else [pytest.mark.slow]) for name in ARCHITECTURES],
)
def test_every_method_reloads(model_type, tmp_path, tiny_bert):
    expected, found, refused = run_architecture(model_type, tmp_path, tiny_bert)
    assert expected.keys() == found.keys()
    for method, result in expected.items():
        assert [name for name in result["still"] if UNREAD.get(model_type, "-") not in name] == [], method
    assert len(expected) >= 10, refused
    for method, result in found.items():
        logits = torch.tensor(expected[method]["logits"])
        torch.testing.assert_close(torch.tensor(result["finetune"]), logits, atol=1e-6, rtol=0, msg=method)
        torch.testing.assert_close(torch.tensor(result["stranger"]), logits, atol=1e-6, rtol=0, msg=method)
        assert result["names"] == NAMES
        if "merged" in result:
            torch.testing.assert_close(torch.tensor(result["merged"]), logits, atol=1e-5, rtol=0, msg=method)


@pytest.mark.parametrize(
    ("model_type", "side"),
    [
        pytest.param(name, side, marks=[] if side == "right" or name in USUAL else [pytest.mark.slow])
        for name in ARCHITECTURES
        for side in ("right", "left")
    ],
)
def test_a_text_is_answered_alone_as_in_company(model_type, side, tmp_path, tiny_bert):
    base = write_base(model_type, tmp_path, tiny_bert)
    AutoTokenizer.from_pretrained(base, padding_side=side).save_pretrained(base)
    arguments = ModelArguments(model_name_or_path=base)
    tokenizer = load_tokenizer(arguments, 32)
    model = load_model(arguments, "full", tokenizer, Task(SINGLE_LABEL, NAMES), seed=0)
    with torch.no_grad():  # as if trained: small random weights would tell no text from another
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.2)
    for config in (TextConfig(32), TextConfig(8, "window", 2), TextConfig(8, "head+tail")):
        write_model(tmp_path / "saved", Encoder(), model, tokenizer, config, replaces=True)
        plain, fast = (load_predictor(tmp_path / "saved", torch.float32, accelerated=one) for one in (False, True))
        for pairs in (None, PAIRS) if config.truncation == "head" else (None,):
            together = plain.compute_logits(TEXTS, pairs)[0]
            assert np.ptp(together, axis=0).max() > 0.05  # it tells texts apart, so that a shifted one would show
            np.testing.assert_allclose(fast.compute_logits(TEXTS, pairs)[0], together, atol=1e-5)
            for predictor in (plain, fast):
                alone = [
                    predictor.compute_logits([text], pairs and [pairs[number]])[0][0]
                    for number, text in enumerate(TEXTS)
                ]
                np.testing.assert_allclose(alone, together, atol=1e-5)
    # A stranger pads with the saved tokenizer, and gets the same.
    stranger = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    write_model(tmp_path / "saved", Encoder(), model, tokenizer, TextConfig(32), replaces=True)
    expected = load_predictor(tmp_path / "saved", torch.float32).compute_logits(TEXTS)[0]
    inputs = AutoTokenizer.from_pretrained(tmp_path / "saved")(TEXTS, padding=True, return_tensors="pt")
    if model_type == "funnel":  # whose answers padding changes
        return
    with torch.no_grad():
        np.testing.assert_allclose(stranger(**inputs).logits.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_adapters_are_tried_on_goes_through(model_type):
    config = AutoConfig.for_model(model_type, **ARCHITECTURES[model_type])
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        assert model(**make_sample(model)).logits.isfinite().all()


def test_qlora_reloads_in_four_bits(tmp_path):
    expected = train_and_save(tmp_path, str(find_embedded_model()), "qlora")  # a width that four bits divide
    assert expected["still"] == []
    model, _ = finetune.load(tmp_path / "qlora")
    assert is_four_bit(model.get_base_model())
    assert model.get_base_model().bert.encoder.layer[0].attention.self.query.weight.dtype == torch.uint8
    with torch.no_grad():
        found = model(input_ids=torch.tensor(TOKENS)).logits
    torch.testing.assert_close(found, torch.tensor(expected["logits"]), atol=1e-6, rtol=0)


def describe(model_type: str, workplace: Path, tokenizer: str) -> tuple[list[str], dict[str, str]]:
    """Return a row of the table, and what was refused or did not merge, by method."""
    expected, found, refused = run_architecture(model_type, workplace, tokenizer)
    cells, notes = [], {}
    for method in METHODS:
        if method in refused:
            cells.append("–")
            said = re.search(r"PEFT says: (.*)\. Other fields", refused[method])
            notes[method] = _generalize(said[1] if said else refused[method])
            continue
        logits = torch.tensor(expected[method]["logits"])
        ways = [name for name in ("finetune", "stranger", "merged") if name in found[method]]
        worst = max(float((torch.tensor(found[method][way]) - logits).abs().max()) for way in ways)
        cells.append(f"{worst:.0e}".replace("0e+00", "0") + (" m" if "merged" in ways else ""))
        if "merge_error" in found[method]:
            notes[f"merging {method}"] = _generalize(found[method]["merge_error"])
    return cells, notes


def _generalize(reason: str) -> str:
    """Return a reason without the names of one architecture, so that it can be compared with others'."""
    return re.sub(r"\w+ForSequenceClassification", "it", re.sub(r"'\w+(Head|Summary)' object", "the head", reason))


def main() -> None:
    """Print the table of `docs/reference/methods.md`, and what was refused: reasons, methods, architectures."""
    from conftest import write_tiny_bert

    print("| model type | " + " | ".join(f"`{method}`" for method in METHODS) + " |")
    print("|---" * (len(METHODS) + 1) + "|")
    reasons: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tiny_bert(Path(folder) / "tokenizer")
        for model_type in sys.argv[1:] or ARCHITECTURES:
            (Path(folder) / model_type).mkdir()
            cells, notes = describe(model_type, Path(folder) / model_type, tokenizer)
            print(f"| `{model_type}` | " + " | ".join(cells) + " |", flush=True)
            for method, reason in notes.items():
                reasons.setdefault(reason, {}).setdefault(method, []).append(model_type)
    for reason, methods in reasons.items():
        where: dict[tuple[str, ...], list[str]] = {}
        for method, model_types in methods.items():
            where.setdefault(tuple(model_types), []).append(method)
        print(
            "- "
            + "; ".join(f"{', '.join(some)} on {', '.join(types)}" for types, some in where.items())
            + f": {reason}"
        )


if __name__ == "__main__":
    main()
