"""Training a generator by YAML: what a run leaves, what a test says, samples from its folder, what is refused."""

import contextlib
import io
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from cli_fixtures import exit_code, write_codes, write_shards
from PIL import Image
from tiny_language import write_lm

from uniflow import Tokenizer
from uniflow.conditions import LabelCondition
from uniflow.generators import DiT, FeatureAlignment, Generator, LatentSpace, NextToken, PictureSpace
from uniflow.plan import FakeTask, memory_of, parts_of
from uniflow.start.weights import load_initial
from uniflow.tasks import GenerationTask

RECIPE = """
model:
  class_path: GenerationTask
  init_args:
    tokenizer: embedded
    generator: {class_path: DiT, init_args: {width: 16, depth: 1, num_heads: 2, steps: 2}}
    condition: {class_path: LabelCondition, init_args: {num_classes: 12, width: 8}}
    space: {class_path: PictureSpace, init_args: {channels: 8, block: 2, images: 8}}
    eval_guidance: [1.0, 3.0]
data:
  class_path: Scenes
  init_args: {size: 32, train_length: 48, val_length: 16, test_length: 8, batch_size: 8, num_workers: 0,
    fields: [facts]}
trainer: {accelerator: cpu, max_steps: 6, log_every_n_steps: 1, enable_progress_bar: false, logger: false}
ema: null
"""
STRAY = ("--model.condition.init_args.dropout", "1.0")
CODES = ("--model.generator", "NextToken", "--model.generator.width", "16", "--model.generator.depth", "1")
CODES += ("--model.generator.num_heads", "2", "--model.generator.head_depth", "1", "--model.space", "LatentSpace")
ONE_GUIDANCE = ("--model.eval_guidance", "[1.0]", "--data.fields", "[]", "--images", "null")


@pytest.fixture
def recipe(project):
    (project / "recipe.yaml").write_text(RECIPE)
    return "recipe.yaml"


def fitted_in(folder, *options):
    """The folder of a run of the recipe with `options`, made in `folder`, with what it said on stderr in `said.txt`."""
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.chdir(folder)
        assert exit_code("fit", "-c", "recipe.yaml", "--run", "run", *options) == 0, said.getvalue()
    (folder / "run" / "said.txt").write_text(said.getvalue())
    return folder / "run"


@pytest.fixture(scope="module")
def fitted_once(tmp_path_factory):
    return fitted_in(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def codes_once(tmp_path_factory):
    """The folder of a run of next-token prediction; the tokenizer is beside it."""
    folder = tmp_path_factory.mktemp("codes")
    return fitted_in(folder, *CODES, "--model.tokenizer", str(write_codes(folder / "codes")))


@pytest.fixture
def fitted(recipe, project, fitted_once):
    """`run` in the project, as the recipe leaves it."""
    return shutil.copytree(fitted_once, project / "run")


@pytest.fixture
def fitted_codes(recipe, project, codes_once):
    return shutil.copytree(codes_once, project / "run")


def results(project, run="run"):
    return json.loads((project / run / "test_results.json").read_text())


def test_a_run_leaves_a_generator_that_sample_uses(fitted, uniflow, project):
    assert "PictureSpace: its pictures come within" in (fitted / "said.txt").read_text()
    assert {"best.ckpt", "last.ckpt", "generator"} <= {path.name for path in (project / "run").iterdir()}
    tested = uniflow("test", "-c", "run/config.yaml", "--ckpt_path", "last")
    assert tested.code == 0, tested.err
    numbers = results(project)
    assert {"test/frechet_scene_vit", "test/frechet_scene_vit_g3", "test/frechet_scene_vit_floor"} <= numbers.keys()
    assert numbers["test/frechet_scene_vit"] > numbers["test/frechet_scene_vit_floor"] > 0
    assert 0 <= numbers["test/accuracy"] <= 1
    assert {
        f"test/prompt{suffix}" for suffix in ("", "_g3", "_real", "_chance", "_count", "_color_g3")
    } <= numbers.keys()
    assert numbers["generation/images"] == 8
    assert (project / "run/images/test.png").is_file()

    words = ("sample", "--generator", "run/generator", "--classes", "3,4", "--seed", "5", "--device", "cpu")
    assert uniflow(*words, "--count", "4", "--out", "first", "--npz", "first.npz").code == 0
    arrays = np.load(project / "first.npz")["arr_0"]
    assert (arrays.shape, arrays.dtype) == ((4, 32, 32, 3), np.uint8)
    for number, array in enumerate(arrays):
        assert np.array_equal(np.array(Image.open(project / f"first/{number:06d}.png")), array)
    assert uniflow(*words, "--count", "4", "--out", "again", "--batch_size", "3").code == 0
    again = np.stack([np.array(Image.open(project / f"again/{number:06d}.png")) for number in range(4)])
    assert np.abs(again.astype(int) - arrays).max() <= 1
    model = Generator.from_pretrained(project / "run/generator")
    images = model.sample(torch.tensor([3, 4, 3, 4]), seed=5)
    assert np.abs((images.permute(0, 2, 3, 1).numpy() * 255).round() - arrays).max() <= 1


def test_two_processes_make_the_images_of_one(fitted, uniflow, project, monkeypatch):
    words = ("sample", "--generator", "run/generator", "--count", "3", "--device", "cpu")
    assert uniflow(*words, "--out", "one").code == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert uniflow(*words, "--out", "two").code == 0
    for number in range(3):
        one, two = (np.array(Image.open(project / f"{run}/{number:06d}.png")).astype(int) for run in ("one", "two"))
        assert np.abs(one - two).max() <= 1
    assert "make it with one process" in uniflow(*words, "--npz", "x.npz").error


def test_dropping_every_condition_changes_the_training(fitted, recipe, uniflow, project):
    losses = {}
    for name, options in {"run": None, "again": (), "untold": STRAY}.items():
        # A network whose output starts at zero passes its first gradients on after a few steps.
        if options is not None:
            assert uniflow("fit", "-c", recipe, "--run", name, *options).code == 0
        weights = torch.load(project / name / "last.ckpt", weights_only=True)["state_dict"]
        losses[name] = weights["condition.embedding.weight"]
    assert torch.equal(losses["run"], losses["again"])
    assert not torch.equal(losses["run"], losses["untold"])


def test_an_alignment_trains_the_network_and_stays_out_of_the_generator(fitted, recipe, uniflow, project):
    aligned = ("--model.alignment", "FeatureAlignment", "--model.alignment.depth", "1")
    logged = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "aligned")
    assert uniflow("fit", "-c", recipe, "--run", "aligned", *aligned, *logged).code == 0
    plain, other = (Generator.from_pretrained(project / run / "generator").network for run in ("run", "aligned"))
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert not torch.equal(plain.input_proj.weight, other.input_proj.weight)
    [metrics] = (project / "aligned").rglob("metrics.csv")
    assert "train/alignment" in metrics.read_text().splitlines()[0]
    on = ("--ckpt_path", "last", "--trainer.max_steps", "7")
    assert uniflow("fit", "-c", recipe, "--run", "aligned", *aligned, *on).code == 0


def test_cached_latents_train_a_generator_of_their_tokenizer_only(recipe, uniflow, project):
    data = ("--data.class_path", "Scenes", "--data.size", "16", "--data.train_length", "8", "--data.val_length", "4")
    encoded = uniflow("encode", "--tokenizer", "embedded", *data, "--data.num_workers", "0", "--out", "cached")
    assert encoded.code == 0, encoded.err
    words = ("fit", "-c", recipe, "--data", "CachedLatents", "--data.root", "cached", "--data.batch_size", "4")
    words += ("--data.num_workers", "0", "--trainer.max_steps", "1", "--trainer.val_check_interval", "1")
    result = uniflow(*words, "--run", "run")
    assert result.code == 0, result.err
    assert (project / "run/images/val_0000001.png").is_file()
    assert "the test judges images" in uniflow("test", "-c", "run/config.yaml", "--ckpt_path", "last").error
    index = json.loads((project / "cached/index.json").read_text())
    index["tokenizer"]["weights"] = "0123456789ab"
    (project / "cached/index.json").write_text(json.dumps(index))
    assert "of another tokenizer (weights 0123456789ab) than embedded" in uniflow(*words, "--run", "refused").error


def test_a_checkpoint_goes_with_its_tokenizer(fitted, uniflow, project):
    other = Tokenizer.from_pretrained("embedded")
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    other.save_pretrained(project / "other")
    result = uniflow("test", "-c", "run/config.yaml", "--ckpt_path", "last", "--model.tokenizer", "other")
    assert "trained on the latents of another tokenizer" in result.error


def test_another_decoder_of_the_same_latents_paints_other_images(fitted, recipe, uniflow, project):
    other = Tokenizer.from_pretrained("embedded")
    with torch.no_grad():
        for parameter in other.decoder.parameters():
            parameter.mul_(1.01)
    other.save_pretrained(project / "painter")
    test = ("test", "-c", "run/config.yaml", "--ckpt_path", "last", *ONE_GUIDANCE)
    assert uniflow(*test).code == 0
    before = results(project)
    painter = ("--model.decoder", "painter")
    assert uniflow(*test, *painter).code == 0
    after = results(project)
    assert after["test/frechet_scene_vit"] != before["test/frechet_scene_vit"]
    assert after["test/frechet_scene_vit_floor"] == before["test/frechet_scene_vit_floor"]
    assert (before["generation/decoder"], after["generation/decoder"]) == ("embedded", "painter")
    sample = ("sample", "--generator", "run/generator", "--count", "1", "--device", "cpu")
    assert uniflow(*sample, "--out", "one").code == 0
    assert uniflow(*sample, "--out", "two", "--decoder", "painter").code == 0
    one, two = (np.array(Image.open(project / f"{run}/000000.png")) for run in ("one", "two"))
    assert not np.array_equal(one, two)
    # What a run with it leaves has it, and goes on from its own checkpoint.
    on = ("--ckpt_path", "last", "--trainer.max_steps", "7")
    assert uniflow("fit", "-c", recipe, "--run", "run", *painter, *on).code == 0
    saved = Tokenizer.from_pretrained(project / "run/generator/tokenizer")
    assert torch.equal(next(saved.decoder.parameters()), next(other.decoder.parameters()))
    with torch.no_grad():
        next(other.bottleneck.parameters()).mul_(1.01)
    other.save_pretrained(project / "painter")
    for refused in (uniflow(*test, *painter), uniflow(*sample, "--decoder", "painter")):
        assert "the decoder of painter is for other latents" in refused.error


def test_a_generator_goes_on_from_another_ones_weights(fitted, recipe, uniflow, project):
    on = ("fit", "-c", recipe, "--trainer.max_steps", "1", "--model.optimizer.lr", "0.0")
    for number, source in enumerate(("run/generator", "run/last.ckpt")):
        result = uniflow(*on, "--run", f"on{number}", "--model.init_from", source)
        assert result.code == 0, result.err
        weights = (Generator.from_pretrained(project / name / "generator") for name in ("run", f"on{number}"))
        first, second = (model.state_dict() for model in weights)
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    for kind in ("cake", ["generator"]):
        (project / "run/generator/config.json").write_text(json.dumps({"kind": kind}))
        with pytest.raises(ValueError, match=r"^init_from: run/generator holds neither a tokenizer nor a generator"):
            load_initial(made(), "run/generator")
    assert "do not fit" in uniflow(*on, "--run", "no", "--model.init_from", "embedded").error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.condition.init_args.num_classes", "3"), "the data has 12 classes"),
        (("--model.tokenizer", "missing"), "no tokenizer at missing"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(recipe, uniflow, words, message):
    assert message in uniflow("fit", "-c", recipe, "--run", "run", *words).error


@pytest.fixture(scope="module")
def tokenizers(codes_once, tmp_path_factory):
    """The folder of a tokenizer of codes and of one without latent statistics, "codes" and "plain"."""
    folder = tmp_path_factory.mktemp("tokenizers")
    plain = Tokenizer.from_pretrained("embedded")
    plain.clear_latent_statistics()
    plain.save_pretrained(folder / "plain")
    shutil.copytree(codes_once.parent / "codes", folder / "codes")
    return folder


def unbuilt(**changed):
    """The task of the recipe with other arguments."""
    parts = {
        "tokenizer": "embedded",
        "generator": partial(DiT, width=16, depth=1, num_heads=2),
        "condition": partial(LabelCondition, num_classes=12, width=8),
        "space": partial(PictureSpace, channels=8, block=2, images=8),
    }
    return GenerationTask(**(parts | changed))


def made(**changed):
    task = unbuilt(**changed)
    task.configure_model()
    return task


NEXT_TOKEN = partial(NextToken, width=16, depth=1, num_heads=2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer": "plain"}, "has no latent statistics, which a generator needs"),
        ({"generator": partial(DiT, width=16, depth=1, num_heads=3)}, "multiple of 4"),
        ({"alignment": partial(FeatureAlignment, depth=4)}, "depth must be at most 1, the blocks of DiT, got 4"),
        (
            {"generator": NEXT_TOKEN, "space": LatentSpace},
            "these latents of 64 channels are not codes; it needs a model.tokenizer with a discrete bottleneck",
        ),
        (
            {"generator": NEXT_TOKEN, "tokenizer": "codes", "space": partial(PictureSpace, channels=4, block=1)},
            "and LatentSpace as model.space",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(tokenizers, monkeypatch, changed, message):
    monkeypatch.chdir(tokenizers)
    with pytest.raises(ValueError, match=message):
        made(**changed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--generator", "missing"), "missing is not a generator"),
        (("--generator", "missing", "--count", "0"), "--count must be at least 1"),
        (("--generator", "missing", "--steps", "0"), "--steps must lie between 1"),
        (("--generator", "missing", "--npz", "x.npy"), "must end in .npz"),
    ],
)
def test_sample_refuses_in_one_line(uniflow, words, message):
    assert message in uniflow("sample", *words).error


def test_captions_are_told_and_prompts_sampled(recipe, uniflow, project):
    text = ("--model.condition", "TextCondition", "--model.condition.name", str(write_lm(project / "lm")))
    text += ("--model.condition.width", "8", "--model.condition.token_width", "8", "--data", "WebDataset")
    text += tuple(word for split, path in write_shards(project).items() for word in (f"--data.{split}", path))
    text += ("--data.size", "32", "--data.num_workers", "0", "--data.batch_size", "2", "--images", "null")
    fit = ("fit", "-c", recipe, "--run", "run", *text, "--trainer.max_steps", "1")
    refused = uniflow(*fit)
    assert refused.error.startswith(
        "TextCondition reads 'caption', which the data does not have; set data.caption to the field that holds the "
        "captions: txt, or json:KEY"
    )
    assert (refused.code, len(refused.error) <= 320) == (2, True)
    result = uniflow(*fit, "--data.caption", "txt")
    assert result.code == 0, result.err
    sample = ("sample", "--generator", "run/generator", "--count", "1", "--device", "cpu", "--out", "out")
    assert "told each image's caption in training" in uniflow(*sample, "--classes", "1").error
    assert "not several" in uniflow(*sample, "--classes", "1", "--prompt", "star").error
    (project / "lm").rename(project / "moved")
    assert "no text encoder can be read from" in uniflow(*sample, "--prompt", "star").error
    assert uniflow(*sample, "--prompt", "star", "--text_encoder", "moved").code == 0


def test_a_generator_of_codes_runs_on_a_discrete_tokenizer(fitted_codes, recipe, uniflow, project):
    assert (project / "run/images/val_0000006.png").is_file()
    tested = uniflow("test", "-c", "run/config.yaml", "--ckpt_path", "last", "--data.fields", "[]")
    assert tested.code == 0, tested.err
    assert results(project)["test/frechet_scene_vit_g3"] > 0
    sample = ("sample", "--generator", "run/generator", "--classes", "3,4", "--count", "2", "--device", "cpu")
    assert uniflow(*sample, "--out", "all").code == 0
    assert uniflow(*sample, "--out", "few", "--top_k", "1").code == 0
    assert (project / "all/grid.png").read_bytes() != (project / "few/grid.png").read_bytes()
    assert "has no number of steps" in uniflow(*sample, "--steps", "4").error


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter:UserWarning")
def test_a_generator_of_codes_is_planned(tokenizers):
    network = partial(NEXT_TOKEN, head_depth=1)
    fake = FakeTask(unbuilt(tokenizer=str(tokenizers / "codes"), generator=network, space=LatentSpace))
    assert [(part.name, part.trained > 0) for part in parts_of(fake, (32, 32))] == [
        ("tokenizer", False),
        ("generator", True),
    ]
    for row in memory_of(fake, (2, 3, 32, 32), mixed=True, checkpointing=True):
        assert row.gradients > 0


def test_cached_codes_give_the_loss_of_the_tokenizer_s_own(fitted_codes, codes_once, uniflow, monkeypatch):
    data = ("--data.size", "32", "--data.val_length", "16", "--data.num_workers", "0")
    scenes = ("--data.class_path", "Scenes", *data, "--data.train_length", "16")
    encoded = uniflow("encode", "--tokenizer", str(codes_once.parent / "codes"), *scenes, "--out", "cached")
    assert encoded.code == 0, encoded.err
    cached = ("--data", "CachedLatents", "--data.root", "cached", "--data.batch_size", "8", "--data.num_workers", "0")
    validate = ("validate", "-c", "run/config.yaml", "--ckpt_path", "last", "--images", "null")
    losses, times = [], []
    asked = NextToken.validation_loss

    def counted(network, latents, noise, t, conditioning):
        times.append(t[0].item())
        return asked(network, latents, noise, t, conditioning)

    monkeypatch.setattr(NextToken, "validation_loss", counted)
    for options in ((), cached):
        result = uniflow(*validate, *options)
        assert result.code == 0, result.err
        losses.append(re.search(r"val/loss\W+([0-9.]+)", result.out + result.err)[1])
    assert losses[0] == losses[1]
    assert times == [0.5] * 4  # two batches of each: the loss has no time


def test_generators_without_codes_refuse_how_to_draw_them(fitted, uniflow):
    sample = ("sample", "--generator", "run/generator", "--count", "1", "--device", "cpu")
    assert "DiT draws no codes: temperature is not for it" in uniflow(*sample, "--temperature", "0.5").error
    network = Generator.from_pretrained("run/generator").network
    for name, value in (("temperature", 0.5), ("top_k", 3), ("top_p", 0.5)):
        with pytest.raises(ValueError, match=f"^DiT draws no codes: {name} is not for it"):
            network.draw_codes(**{name: value})
