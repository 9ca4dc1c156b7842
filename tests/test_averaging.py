"""An optimizer that averages instead of lowering its rate: what is measured and saved are the averages."""

import importlib.util

import pytest
import torch
from conftest import make_reviews, write_csv
from safetensors.torch import load_file
from test_resume_changes import Cut
from test_trainer import make_model, make_trainer, tokenized, tokenizer  # noqa: F401  fixtures
from transformers import TrainerCallback

from finetune.settings.parsing import parse_arguments
from finetune.training.evaluation import EvaluatingTrainer


class Averaging(torch.optim.SGD):
    """Takes its steps from weights of its own, and shows their mean in evaluation mode: as schedule-free ones do."""

    def __init__(self, params, **settings):
        super().__init__(params, **settings)
        self.param_groups[0]["is_training"] = False
        self.modes = []

    def _swap(self, to_training):
        if self.param_groups[0]["is_training"] != to_training:
            for group in self.param_groups:
                for parameter in group["params"]:
                    state = self.state[parameter]
                    if "mean" in state:
                        shown = parameter.detach().clone()
                        parameter.data.copy_(state["own" if to_training else "mean"])
                        state["mean" if to_training else "own"] = shown
            self.param_groups[0]["is_training"] = to_training

    def train(self):
        self._swap(True)

    def eval(self):
        self._swap(False)

    @torch.no_grad()
    def step(self, closure=None):
        assert self.param_groups[0]["is_training"], "Optimizer was not in train mode when step is called"
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["mean"] = 0.5 * state.get("mean", parameter.detach()) + 0.5 * parameter.detach()


@pytest.fixture
def build(tmp_path, tiny_bert, tokenizer, tokenized):  # noqa: F811
    def build(folder="a", **settings):
        trainer = make_trainer(tmp_path / folder, make_model(tiny_bert, tokenizer), tokenizer, tokenized, **settings)
        trainer.tuning = None
        trainer.optimizer_cls_and_kwargs = Averaging, {"lr": 0.05}
        return trainer

    return build


def means(trainer):
    """Return the averages by the parameter's name."""
    inner = trainer.optimizer.optimizer
    return {
        name: (parameter if not inner.param_groups[0]["is_training"] else inner.state[parameter]["mean"]).detach()
        for name, parameter in trainer.model.named_parameters()
    }


def test_the_mean_is_what_is_evaluated(build, monkeypatch):
    trainer = build(max_steps=6, eval_strategy="steps", eval_steps=2)
    seen = []

    def look(self, logits, metrics):
        assert not self.optimizer.optimizer.param_groups[0]["is_training"]
        seen.append({name: parameter.detach().clone() for name, parameter in self.model.named_parameters()})

    monkeypatch.setattr(type(trainer), "look_at", look)
    trainer.train()
    assert len(seen) == 3
    assert all(torch.equal(seen[-1][name], mean) for name, mean in means(trainer).items())
    assert issubclass(type(trainer), EvaluatingTrainer)


def test_the_mean_is_what_is_saved_and_what_is_left_in_the_end(build, tmp_path):
    trainer = build(max_steps=5, save_strategy="steps", save_steps=3, lr_scheduler_type="constant")
    trainer.train()
    assert all(torch.equal(trainer.model.get_parameter(name), mean) for name, mean in means(trainer).items())
    straight = build("b", max_steps=3, lr_scheduler_type="constant")
    straight.train()
    saved = load_file(tmp_path / "a/checkpoint-3/model.safetensors")
    assert all(torch.equal(saved[name], mean) for name, mean in means(straight).items())


def test_a_resume_is_the_same_as_going_straight_through(build, tmp_path):
    straight = build("straight", max_steps=6, save_strategy="steps", save_steps=3)
    straight.train()
    cut = build("cut", max_steps=6, save_strategy="steps", save_steps=3)
    cut.add_callback(Cut)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = build("cut", max_steps=6, save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-3"))
    for name, parameter in straight.model.named_parameters():
        assert torch.equal(resumed.model.get_parameter(name), parameter), name


def test_the_best_checkpoint_is_not_averaged_again(build, tmp_path):
    trainer = build(max_steps=6, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
                    load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True)  # fmt: skip
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    trainer.evaluate()
    assert all(torch.equal(trainer.model.get_parameter(name), tensor) for name, tensor in best.items())


@pytest.mark.skipif(importlib.util.find_spec("schedulefree") is None, reason="schedulefree is not installed")
@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"])
def test_schedule_free_optimizers_warm_up_in_steps_and_train(classify, flags, tmp_path, name):
    warmups = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
            warmups.append(optimizer.param_groups[0].get("warmup_steps"))

    write_csv(tmp_path / "train.csv", make_reviews(60))
    classify.main([*flags, "--optim", name, "--warmup_steps", "0.5", "--no_floor", "--learning_rate", "0.01",
                   "--output_dir", str(tmp_path / "run")])  # fmt: skip
    arguments = parse_arguments(None, {"train_file": str(tmp_path / "train.csv"), "output_dir": "x"}, ["--optim", name])
    assert arguments.training.lr_scheduler_type == "constant"
    assert (tmp_path / "run/model/model.safetensors").exists()
