"""Training with low-rank adapters: what moves, what is kept, and that what is saved is a plain tokenizer."""

import json
import sys
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from tiny import ENCODER, fit, same, tiny_scenes, tiny_task

from uniflow.callbacks import EMA, TokenizerExport
from uniflow.encoders import SceneViT
from uniflow.tokenizer import Tokenizer

LORA = partial(ENCODER, tune="lora", lora_rank=4, lora_alpha=8.0)
ADAPTERS = (".lora_A.default.weight", ".lora_B.default.weight")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, trainer and losses of four steps with a checkpoint at each; the module holds the averages."""
    folder = tmp_path_factory.mktemp("lora")
    checkpoints = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    ema = EMA(0.9)
    task = tiny_task(encoder=LORA)
    callbacks = [ema, checkpoints, TokenizerExport()]
    trainer, losses = fit(task, tiny_scenes(), folder, callbacks=callbacks, enable_checkpointing=True)
    return folder, trainer, losses, ema


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def without_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)


def close(left: Tokenizer, right: Tokenizer, images: torch.Tensor) -> None:
    with torch.no_grad():
        for ours, theirs in zip(left.encoder(images).hidden_states, right.encoder(images).hidden_states, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(left.encode(images), right.encode(images), rtol=1e-5, atol=1e-5)


def test_adapters_bottleneck_and_decoder_are_trained_and_nothing_else(tmp_path):
    trainer, _ = fit(tiny_task(encoder=LORA), tiny_scenes(), tmp_path)
    task = trainer.lightning_module
    original = task.teacher.encoder.state_dict()
    for name, tensor in task.tokenizer.encoder.state_dict().items():
        if name.endswith(ADAPTERS):
            assert tensor.abs().sum() > 0
        else:
            assert torch.equal(tensor, original[name.replace(".base_layer", "")]), name
    moving = {name for name, p in task.named_parameters() if p.requires_grad}
    assert {n for n in moving if n.startswith("tokenizer.encoder.")} == {
        n for n, _ in task.named_parameters() if n.endswith(ADAPTERS)
    }
    [groups] = [optimizer.param_groups for optimizer in trainer.optimizers]
    assert sum(len(group["params"]) for group in groups) == len(moving)


def test_first_loss_is_that_of_the_plain_encoder(tmp_path):
    """At the start the distance to the teacher is zero, whatever the adapters' A."""
    first = []
    for tune in ({"tune": "lora"}, {"tune": "full"}):
        task = tiny_task(encoder=partial(ENCODER, **tune), distillation_weight=1.0)
        task.configure_model()
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        distances = task.distances(task.tokenizer.encoder(images), task.teacher(images))
        first.append(distances)
    assert all(distances.abs().max() < 1e-6 for distances in first)


def test_average_and_checkpoint_hold_the_adapters(run):
    folder, trainer, _, ema = run
    checkpoint = torch.load(folder / "step=4.ckpt", weights_only=True)
    averaged = {name for name in ema.average if name.startswith("tokenizer.encoder.")}
    assert averaged == {name for name, _ in trainer.lightning_module.named_parameters() if name.endswith(ADAPTERS)}
    assert checkpoint["ema"].keys() == ema.average.keys()
    assert averaged < checkpoint["state_dict"].keys()
    assert any(".base_layer." in name for name in checkpoint["state_dict"])
    assert checkpoint["tokenizer"]["encoder"]["init_args"]["tune"] == "lora"


def test_exported_tokenizer_is_plain(run, images, without_peft):
    folder, trainer, _, _ = run
    tensors = load_file(folder / "tokenizer" / "model.safetensors")
    plain = SceneViT(weights=None, depth=3, embed_dim=32, num_heads=2)
    assert {f"encoder.{name}" for name in plain.state_dict()} == {n for n in tensors if n.startswith("encoder.")}
    arguments = json.loads((folder / "tokenizer" / "config.json").read_text())["encoder"]["init_args"]
    assert (arguments["tune"], arguments["lora_rank"], arguments["lora_alpha"]) == ("full", None, None)
    loaded = Tokenizer.from_pretrained(folder / "tokenizer")
    assert all(p.requires_grad for p in loaded.parameters())
    close(loaded, trainer.lightning_module.tokenizer, images)


def test_checkpoint_loads_as_a_plain_tokenizer_of_the_average(run, images, without_peft):
    folder, trainer, _, _ = run
    loaded = Tokenizer.from_pretrained(folder / "step=4.ckpt")
    close(loaded, trainer.lightning_module.tokenizer, images)
    assert same(loaded.state_dict(), Tokenizer.from_pretrained(folder / "tokenizer").state_dict())
    earlier = Tokenizer.from_pretrained(folder / "step=2.ckpt")
    assert not torch.allclose(earlier.encode(images), loaded.encode(images), atol=1e-4)


def test_saving_does_not_disturb_the_model(run, tmp_path, images):
    tokenizer = run[1].lightning_module.tokenizer
    before, output = {k: v.clone() for k, v in tokenizer.state_dict().items()}, tokenizer.encode(images)
    tokenizer.save_pretrained(tmp_path)
    assert same(before, tokenizer.state_dict())
    assert torch.equal(output, tokenizer.encode(images))
    again = Tokenizer.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    assert same(load_file(tmp_path / "again" / "model.safetensors"), load_file(tmp_path / "model.safetensors"))


def test_a_killed_run_resumes_with_the_same_losses(run, tmp_path):
    folder, trainer, losses, ema = run
    again = EMA(0.9)
    resumed, rest = fit(
        tiny_task(encoder=LORA), tiny_scenes(), tmp_path, callbacks=[again], ckpt_path=folder / "step=2.ckpt"
    )
    assert rest == losses[2:]
    assert same(resumed.lightning_module.state_dict(), trainer.lightning_module.state_dict())
    assert same(again.average, ema.average)


def test_another_rank_does_not_resume(run, tmp_path):
    other = tiny_task(encoder=partial(LORA, lora_rank=2))
    with pytest.raises(RuntimeError, match="size mismatch"):
        fit(other, tiny_scenes(), tmp_path, ckpt_path=run[0] / "step=2.ckpt")


def test_bf16_run_is_merged_in_float32(tmp_path, images):
    trainer, _ = fit(tiny_task(encoder=LORA), tiny_scenes(), tmp_path, precision="bf16-true")
    tokenizer = trainer.lightning_module.tokenizer
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tensors = load_file(tmp_path / "tokenizer" / "model.safetensors")
    weight = tensors["encoder.model.blocks.0.mlp.fc1.weight"]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())  # what the adapters add would be rounded away
    loaded = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    close(loaded, tokenizer.float(), images)


def spoil(change):
    def write(folder, tmp_path):
        checkpoint = torch.load(folder / "step=4.ckpt", weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "bad.ckpt")
        return tmp_path / "bad.ckpt"

    return write


FC1 = "tokenizer.encoder.model.blocks.0.mlp.fc1"


def arguments_of(checkpoint):
    return checkpoint["tokenizer"]["encoder"]["init_args"]


def expand(checkpoint):
    """Four bytes that say they are a matrix of 2^40 numbers."""
    side = 2**20
    checkpoint["ema"] = {}
    checkpoint["state_dict"] |= {
        f"{FC1}.base_layer.weight": torch.zeros(1, 1).expand(side, side),
        f"{FC1}.lora_A.default.weight": torch.zeros(1, 1).expand(1, side),
        f"{FC1}.lora_B.default.weight": torch.zeros(1, 1).expand(side, 1),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: arguments_of(c).pop("lora_alpha"), "needs a number as its lora_alpha, not None"),
        (lambda c: arguments_of(c).update(lora_alpha="8"), "needs a number as its lora_alpha, not '8'"),
        (
            lambda c: c["ema"].update({f"{FC1}.lora_A.default.weight": torch.zeros(4, 7)}),
            "the adapters of model.blocks.0.mlp.fc1 do not fit its weight",
        ),
        (
            lambda c: (c["ema"].clear(), c["state_dict"].pop(f"{FC1}.lora_B.default.weight")),
            "the adapters of model.blocks.0.mlp.fc1 do not form a pair",
        ),
        (lambda c: arguments_of(c).update(tune="full"), "lora_rank is for tune 'lora', and tune is 'full'"),
        (
            lambda c: arguments_of(c).update(tune="full", lora_rank=None, lora_alpha=None),
            "do not fit its config: missing encoder.model.blocks.0.attn.qkv.weight",
        ),
        (expand, "describes a model far larger than its"),
    ],
    ids=["no alpha", "alpha is text", "misfit", "half a pair", "tune full", "no arguments", "larger than the file"],
)
def test_spoilt_checkpoints_are_refused_in_one_line(run, tmp_path, change, message):
    path = spoil(change)(run[0], tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_pretrained(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
