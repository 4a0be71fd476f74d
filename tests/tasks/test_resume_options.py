"""Resuming with other options: they win; what cannot go on says how to start from the weights alone."""

from functools import partial

import pytest
import torch
from parallel import ForkedFSDP2, needs_sharding
from tiny import ENCODER, FLOW, fit, same, tiny_scenes, tiny_task

from uniflow.callbacks import EMA
from uniflow.cli.checkpoint import LastCheckpoint
from uniflow.sharding.checkpoint import read_tensors
from uniflow.tasks import TokenizerTask
from uniflow.training import ConstantSchedule, FusedAdamW, LinearSchedule

HINT = "set model.init_from"


def run(folder, steps=4, ckpt_path=None, callbacks=(), task=None, **options):
    """The task and its trainer after `steps` steps of a run that writes last.ckpt."""
    task = task or tiny_task(**options)
    saving = LastCheckpoint(every_n_train_steps=2)
    trainer, losses = fit(
        task, tiny_scenes(), folder, steps=steps, ckpt_path=ckpt_path, callbacks=[saving, *callbacks],
        enable_checkpointing=True,
    )  # fmt: skip
    return task, trainer, losses


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a run of two steps with AdamW, lr 3e-3, weight decay .05, and averages."""
    folder = tmp_path_factory.mktemp("first")
    run(folder, steps=2, callbacks=[EMA(0.9)])
    return folder


def optimizer_of(trainer):
    return trainer.optimizers[0]


def test_the_options_win_and_the_position_of_the_schedule_stays(first, tmp_path, caplog):
    caplog.set_level("INFO")
    options = {
        "optimizer": partial(FusedAdamW, lr=1e-4, weight_decay=0.3, betas=(0.5, 0.6), eps=1e-5),
        "lr_schedule": LinearSchedule(1, 0),
    }
    _, trainer, losses = run(tmp_path, 4, first / "last.ckpt", **options)
    assert len(losses) == 2  # steps 3 and 4
    groups = optimizer_of(trainer).param_groups
    assert {(group["betas"], group["eps"]) for group in groups} == {((0.5, 0.6), 1e-5)}
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    assert {group["initial_lr"] for group in groups} == {1e-4}
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.base_lrs == [1e-4] * len(groups)
    assert scheduler.last_epoch == 4
    assert int(next(iter(optimizer_of(trainer).state.values()))["step"]) == 4  # the state was restored
    said = caplog.text
    assert "resumed with other options than the checkpoint's" in said
    assert "lr 0.0001 (was 0.003)" in said


def test_the_first_step_takes_the_new_learning_rate(first, tmp_path):
    still = partial(FusedAdamW, lr=0.0, weight_decay=0.0)
    before = torch.load(first / "last.ckpt", weights_only=True)["state_dict"]
    task, _, _ = run(tmp_path, 4, first / "last.ckpt", optimizer=still, lr_schedule=ConstantSchedule())
    assert same(task.state_dict(), before)


def test_with_the_same_options_nothing_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    run(tmp_path, 2)
    run(tmp_path, 4, tmp_path / "last.ckpt")
    assert "resumed with other options" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": partial(torch.optim.SGD, lr=0.1)}, "holds the state of uniflow.training.FusedAdamW, and model"),
        ({"encoder": partial(ENCODER, tune="frozen")}, "parameter groups of"),
        ({"encoder_lr_multiplier": 0.5}, "parameter groups of"),
    ],
)
def test_what_cannot_go_on_says_so(first, tmp_path, options, message):
    with pytest.raises(ValueError, match=f"{message}.*{HINT}"):
        run(tmp_path, 4, first / "last.ckpt", **options)


def test_state_of_another_shape_is_refused_before_the_first_step(first, tmp_path):
    checkpoint = torch.load(first / "last.ckpt", weights_only=True)
    state = checkpoint["optimizer_states"][0]["state"]
    state[1]["exp_avg"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=rf"exp_avg of parameter 1 is \(1,\), not .*{HINT}"):
        run(tmp_path, 4, tmp_path / "bad.ckpt")


@pytest.mark.parametrize("spoil", ["shape", "name", "missing"])
def test_averages_that_do_not_fit_are_refused(first, tmp_path, spoil):
    checkpoint = torch.load(first / "last.ckpt", weights_only=True)
    name = next(iter(checkpoint["ema"]))
    average = checkpoint["ema"].pop(name)
    checkpoint["ema"] |= {"shape": {name: average.sum()}, "name": {"other": average}, "missing": {}}[spoil]
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"^the averages \(ema\) of the checkpoint do not fit the model: "):
        run(tmp_path, 4, tmp_path / "bad.ckpt", callbacks=[EMA(0.9)])


def test_a_checkpoint_of_weights_alone_is_not_resumed(first, tmp_path):
    checkpoint = torch.load(first / "last.ckpt", weights_only=True)
    del checkpoint["optimizer_states"]
    torch.save(checkpoint, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=f"weights alone.*{HINT}"):
        run(tmp_path, 4, tmp_path / "weights.ckpt")


class Watching(TokenizerTask):
    """Remembers its weights at the first batch."""

    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        if self.global_step == 0:
            self.begun = {name: value.clone() for name, value in self.state_dict().items()}


def watched(tmp_path, init_from, ckpt_path=None, **options):
    task = tiny_task(init_from=str(init_from), **options)
    task.__class__ = Watching
    run(tmp_path, 4, ckpt_path, task=task)
    return task


def test_init_from_a_checkpoint_takes_its_averaged_weights_and_another_optimizer(first, tmp_path, caplog):
    caplog.set_level("INFO")
    saved = torch.load(first / "last.ckpt", weights_only=True)
    task = watched(tmp_path, first / "last.ckpt", optimizer=partial(torch.optim.SGD, lr=1e-3))
    assert same(task.begun, {**saved["state_dict"], **saved["ema"]})
    assert task.global_step == 4
    assert "start: the weights of" in caplog.text


def test_init_from_a_tokenizer_leaves_out_a_regression(first, tmp_path):
    tokenizer = tiny_task()
    tokenizer.build()
    tokenizer.tokenizer.save_pretrained(tmp_path / "tokenizer")
    task = watched(tmp_path, tmp_path / "tokenizer", start="regression", latent_feature_weight=0.1)
    expected = {f"tokenizer.{name}": value for name, value in tokenizer.tokenizer.state_dict().items()}
    assert same({name: value for name, value in task.begun.items() if name in expected}, expected)


def test_init_from_is_not_read_when_a_run_is_resumed(first, tmp_path):
    run(tmp_path, 4, first / "last.ckpt", init_from=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"init_from: there is no checkpoint, tokenizer or generator at .*gone"):
        run(tmp_path, 4, init_from=str(tmp_path / "gone"))


def test_init_from_has_to_fit(first, tmp_path):
    with pytest.raises(ValueError, match=r"do not fit the model that is to be trained: .*tokenizer\.encoder"):
        run(tmp_path, 4, init_from=str(first / "last.ckpt"), encoder=partial(ENCODER, embed_dim=16))


@needs_sharding
def test_the_options_win_in_a_sharded_run(first, tmp_path):
    small = {"encoder": partial(ENCODER, depth=1), "decoder": partial(FLOW, flow_depth=1)}  # each tensor takes its time

    def sharded(steps, ckpt_path=None, **options):
        task = tiny_task(**small, **options)
        saving = LastCheckpoint(every_n_train_steps=2)
        trainer, _ = fit(
            task, tiny_scenes(), tmp_path, steps=steps, ckpt_path=ckpt_path, callbacks=[saving],
            enable_checkpointing=True, strategy=ForkedFSDP2(), devices=1,
        )  # fmt: skip
        return trainer

    sharded(2)
    still = partial(FusedAdamW, lr=0.0, weight_decay=0.0, betas=(0.5, 0.6))
    weights = read_tensors(tmp_path / "last.ckpt", "state_dict.")
    sharded(4, tmp_path / "last.ckpt", optimizer=still, lr_schedule=ConstantSchedule())
    assert same(read_tensors(tmp_path / "last.ckpt", "state_dict."), weights)
    with pytest.raises(Exception, match=f"model.optimizer is torch.*{HINT}"):
        sharded(4, tmp_path / "last.ckpt", optimizer=partial(torch.optim.SGD, lr=0.1))


def test_on_the_command_line_it_is_one_line(uniflow, fitted):
    more = ("fit", "-c", "recipe.yaml", "--trainer.max_steps", "4")
    last = str(fitted / "last.ckpt")
    refused = uniflow(*more, "--run", "two", "--ckpt_path", last, "--model.optimizer", "FusedAdamW")
    assert refused.code == 2
    assert "the checkpoint holds the state of torch.optim" in refused.error
    assert refused.error.endswith("set model.init_from to it and leave ckpt_path out")
    start = ("--model.init_from", last, "--trainer.max_steps", "1")
    begun = uniflow(*more, "--run", "three", "--model.optimizer", "FusedAdamW", *start)
    assert begun.code == 0, begun.err
