"""The task of visual question answering: what it learns, logs, saves and refuses."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from parallel import ForkedFSDP2, needs_sharding
from tiny import fit, tiny_scenes
from tiny_language import write_lm
from torchvision.io import write_png

from uniflow.callbacks import EMA
from uniflow.encoders import SceneViT
from uniflow.features import BlankSource, EncoderSource, FeatureSource, LatentSource
from uniflow.language import Assistant, PretrainedLM, ScratchLM, TextTemplate
from uniflow.tasks import VisualQuestionTask
from uniflow.tasks.vqa import AnswerAccuracy, conversations, questions_asked
from uniflow.training import FusedAdamW

ENCODER = partial(EncoderSource, partial(SceneViT, None, embed_dim=16, depth=2, num_heads=2), [-2])
SCENES = {"fields": ["questions"], "batch_size": 8, "train_length": 16}


def task(source=ENCODER, **kwargs):
    defaults = {"lm": ScratchLM(16, 1, 2), "tune_lm": "full", "max_new_tokens": 2}
    return VisualQuestionTask(source, optimizer=partial(FusedAdamW, lr=1e-2), **(defaults | kwargs))


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return PretrainedLM(str(write_lm(tmp_path_factory.mktemp("lm"))))


@pytest.fixture(scope="module")
def batch():
    return next(iter(tiny_scenes(**SCENES).train_dataloader()))


def trained(tmp_path, **kwargs):
    trainer, losses = fit(task(**kwargs), tiny_scenes(**SCENES), tmp_path, steps=2)
    return trainer.lightning_module, losses


def same_answers(run, batch):
    module, _ = run
    loaded = Assistant.from_pretrained(module.trainer.default_root_dir + "/assistant")
    asked = [a for a in questions_asked(batch) if a.image < 3]
    module.eval()
    with torch.no_grad():
        theirs = module.head.replies(module.head(module.features(batch["image"])), asked)
        ours = [loaded.answer(batch["image"][a.image], a.turns[-1].question, max_new_tokens=2) for a in asked]
    assert ours == theirs
    assert any(theirs)
    return loaded


@pytest.mark.parametrize(
    "source", [ENCODER, partial(LatentSource, "embedded"), BlankSource], ids=["encoder", "latents", "blank"]
)
def test_a_run_leaves_an_assistant_that_answers_as_the_task_does(tmp_path, batch, source):
    loaded = same_answers(trained(tmp_path, source=source, merge=2), batch)
    assert loaded.size == (32, 32)
    large = torch.rand(3, 40, 64)
    assert isinstance(loaded.answer(large, "How many objects are there?", [("What color is the star?", "red")]), str)
    assert isinstance(loaded.answer(None, "How many objects are there?"), str)


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_a_pretrained_model_is_in_no_checkpoint_and_is_found_again(tmp_path, batch, lm, tune):
    module, _ = run = trained(tmp_path, lm=lm, tune_lm=tune, template=TextTemplate("", "{}", " {}{eos}"))
    assert all(".projector." in name or ".adapters." in name for name in module.state_dict())
    assert any("adapters" in name for name in module.state_dict()) == (tune == "lora")
    assert (tmp_path / "assistant" / "adapters.safetensors").exists() == (tune == "lora")
    assert not (tmp_path / "assistant" / "lm").exists()
    same_answers(run, batch)
    if tune == "lora":  # B starts at zero, and moves
        assert all(w.any() for name, w in module.answerer.adapters.items() if "lora_B" in name)


def test_the_average_of_the_adapters_is_what_is_saved(tmp_path, lm):
    trainer, _ = fit(task(lm=lm, tune_lm="lora"), tiny_scenes(**SCENES), tmp_path, steps=3, callbacks=[EMA(0.5)])
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "assistant" / "adapters.safetensors")
    held = trainer.lightning_module.answerer.adapters.state_dict()
    assert all(torch.equal(saved[name], held[name]) for name in held)


def test_training_lowers_the_loss_and_logs(tmp_path):
    trainer, losses = fit(task(), tiny_scenes(**SCENES), tmp_path, steps=12)
    assert losses[-1] < losses[0] - 0.5
    logged = trainer.callback_metrics
    assert 0.1 < logged["train/trained_tokens"] < 0.6
    assert logged["train/cut"] == 0
    assert logged["train/vqa"] == pytest.approx(logged["train/loss"])


def loss_of(batch, **kwargs):
    module = task(**kwargs)
    torch.manual_seed(0)
    module.configure_model()
    torch.manual_seed(1)
    return module.losses(module.features(batch["image"]), batch)["vqa"].item()


@pytest.fixture(scope="module")
def default_loss(batch):
    return loss_of(batch)


@pytest.mark.parametrize(
    "change",
    [{"merge": 2}, {"norm": False}, {"separate": True}, {"template": TextTemplate()}, {"max_tokens": 20}],
    ids=lambda change: next(iter(change)),
)
def test_settings_change_the_loss(batch, default_loss, change):
    assert loss_of(batch, **change) != default_loss


def test_the_same_settings_give_the_same_loss(batch, default_loss):
    assert loss_of(batch) == default_loss


def trained_adapters(folder, lm, **kwargs):
    return trained(folder, lm=lm, tune_lm="lora", **kwargs)[0].answerer.adapters.state_dict()


@pytest.fixture(scope="module")
def plain_adapters(tmp_path_factory, lm):
    return trained_adapters(tmp_path_factory.mktemp("plain"), lm)


@pytest.mark.parametrize(
    "change",
    [{"lora_rank": 2}, {"lora_targets": ["q_proj"]}, {"lora_alpha": 1.0}],
    ids=lambda change: next(iter(change)),
)
def test_settings_of_adapters_change_the_training(tmp_path, lm, plain_adapters, change):
    plain, changed = plain_adapters, trained_adapters(tmp_path, lm, **change)
    differs = plain.keys() != changed.keys() or any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(plain.values(), changed.values(), strict=True)
    )
    assert differs


def test_the_second_stage_starts_from_the_first_ones_projector(tmp_path, lm):
    first, _ = trained(tmp_path / "one", lm=lm, tune_lm="frozen")
    data = tiny_scenes(**SCENES)
    second = task(lm=lm, tune_lm="lora", init_projector=str(tmp_path / "one" / "assistant"), lr_schedule=0.0)
    fit(second, data, tmp_path / "two", steps=1)
    for name, weight in first.answerer.projector.state_dict().items():
        torch.testing.assert_close(second.answerer.projector.state_dict()[name], weight)
    with pytest.raises(ValueError, match=r"init_projector: .* has no projector.safetensors; give RUN/assistant"):
        fit(task(lm=lm, init_projector=str(tmp_path)), data, tmp_path / "three", steps=1)


def test_activation_checkpointing_gives_the_same_loss(tmp_path, lm):
    losses = [trained(tmp_path, lm=lm, tune_lm="lora", activation_checkpointing=on)[1] for on in (True, False)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_questions_become_one_conversation_or_one_each(batch):
    together, apart = list(conversations(batch, False)), list(conversations(batch, True))
    assert len(together) == len(batch["image"])
    assert len(apart) == sum(map(len, batch["questions"])) == len(list(questions_asked(batch)))
    for turns, _, _ in (*together, *apart):
        assert turns[0].question.startswith("<image>\n")
        assert all("<image>" not in turn.question for turn in turns[1:])
    orders = {tuple(next(conversations(batch, False, shuffle=True))[0]) for _ in range(20)}
    assert len(orders) > 1
    assert len({frozenset(turn.answer for turn in order) for order in orders}) == 1


def test_turns_of_a_conversation_are_asked_after_the_true_turns_before():
    turns = [{"question": "<image> a", "answer": "b"}, {"question": "c", "answer": "d", "kind": "k"}]
    asked = list(questions_asked({"image": torch.zeros(1, 3, 8, 8), "conversation": [turns]}))
    assert [(a.turns, a.kind, a.truth) for a in asked] == [
        ([("<image> a", "")], "", "b"),
        ([("<image> a", "b"), ("c", "")], "k", "d"),
    ]


def test_accuracy_over_all_questions_and_by_kind():
    metric = AnswerAccuracy(["count", "color", "shape"])
    metric.update(["3", "Red.", "two"], ["3", "blue", "2"], ["count", "color", "other"])
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(
        {"vqa_accuracy": 2 / 3, "vqa_accuracy_count": 1.0, "vqa_accuracy_color": 0.0}
    )


def test_pictures_show_questions_and_answers(batch):
    module = task()
    module.configure_model()
    rows = module.image_rows(batch, 3)
    assert set(rows) == {"answers"}
    assert rows["answers"].shape[0] == 3
    assert 0 <= rows["answers"].min() < rows["answers"].max() <= 1
    assert "[[" in module.shown_sample(batch)


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ScratchLM has random weights: set tune_lm to full, not frozen"):
        task(tune_lm="frozen")
    with pytest.raises(ValueError, match=r"Scenes has no questions: set --data.fields \[questions\]"):
        fit(task(), tiny_scenes(), tmp_path, steps=1)
    with pytest.raises(ValueError, match="no language model can be read from 'nothing/here'"):
        PretrainedLM("nothing/here").load()
    with pytest.raises(FileNotFoundError, match=r"is not an assistant: it has no assistant.json"):
        Assistant.from_pretrained(tmp_path)


def test_adapters_cannot_be_sharded(lm):
    module = task(lm=lm, tune_lm="lora")
    module.configure_model()
    with pytest.raises(ValueError, match="tune_lm lora cannot be sharded"):
        module.head.check_shardable()


class OwnSource(FeatureSource):
    """Of somebody else: nobody knows how to save it."""

    def __init__(self):
        super().__init__()
        self.blank = BlankSource()
        self.spec = self.blank.spec

    def forward(self, images):
        return self.blank(images)


def test_a_source_of_ones_own_trains_and_no_assistant_is_written(tmp_path):
    with pytest.warns(UserWarning, match="RUN/assistant is not written: a OwnSource cannot be saved"):
        trained(tmp_path, source=OwnSource)
    assert not (tmp_path / "assistant" / "assistant.json").exists()


def test_a_damaged_assistant_is_refused_in_one_line(tmp_path):
    trained(tmp_path, source=ENCODER)
    path = tmp_path / "assistant" / "assistant.json"
    config = json.loads(path.read_text())
    for change in ({"vision": None}, {"template": {"class": "os"}}, {"projector": {"nothing": 1}}, {"format": 9}):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=r"does not describe an assistant|of format 1") as caught:
            Assistant.from_pretrained(path.parent)
        assert "\n" not in str(caught.value)
    for size in ([0, 0], [10**6, 10**6], "x", [8]):
        path.write_text(json.dumps({**config, "size": size}))
        with pytest.raises(ValueError, match="size must be two numbers of pixels from 1 to"):
            Assistant.from_pretrained(path.parent)


def test_chat_answers_and_says_what_is_missing(tmp_path, uniflow, batch):
    trained(tmp_path, source=ENCODER)
    write_png(batch["image"][0], str(tmp_path / "a.png"))
    folder = ["--assistant", str(tmp_path / "assistant")]
    result = uniflow("chat", *folder, "--image", str(tmp_path / "a.png"), "How many objects are there?", "What color?")
    assert result.code == 0, result.err
    assert "> What color?" in result.out
    assert "a projector, which has to be trained" in uniflow("chat", "--lm", "x", "--tokenizer", "embedded", "hi").error
    assert "--gguf_file names a file of --lm" in uniflow("chat", *folder, "--gguf_file", "x", "hi").error
    error = uniflow("chat", *folder, "--tokenizer", "embedded", "hi").error
    assert "reads features of width 16, and those of embedded have 128: give a tokenizer of the same encoder" in error


class Written(Callback):
    def on_test_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            Path(trainer.default_root_dir, "metrics.json").write_text(json.dumps(values))


def evaluate(folder, processes, sharded=False):
    seed_everything(0, verbose=False)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if processes > 1 else "auto"
    strategy = ForkedFSDP2() if sharded else strategy
    settings = {"logger": False, "enable_progress_bar": False, "default_root_dir": folder, "callbacks": [Written()]}
    trainer = Trainer(accelerator="cpu", devices=processes, strategy=strategy, **settings)
    trainer.test(task(), tiny_scenes(**SCENES | {"test_length": 15}), verbose=False)
    return json.loads((folder / "metrics.json").read_text())


def test_two_processes_evaluate_as_one(tmp_path):
    assert evaluate(tmp_path, 2) == pytest.approx(evaluate(tmp_path, 1), abs=1e-5)


@needs_sharding
def test_a_sharded_model_evaluates_as_one_process_and_leaves_a_whole_assistant(tmp_path):
    assert evaluate(tmp_path, 2, sharded=True) == pytest.approx(evaluate(tmp_path, 1), abs=1e-5)
    settings = {"strategy": ForkedFSDP2(), "devices": 2}
    fit(task(), tiny_scenes(**SCENES | {"batch_size": 4}), tmp_path, steps=1, **settings)
    assistant = Assistant.from_pretrained(tmp_path / "assistant")
    torch.manual_seed(0)
    start = ENCODER().state_dict()
    assert all(value.shape == start[name].shape for name, value in assistant.source.state_dict().items())
    assert assistant.answer(None, "What?", max_new_tokens=1) is not None
