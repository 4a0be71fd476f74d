"""The model card: what it says, when it is written, and what of it is the user's."""

import json

import pytest
import torch
import yaml
from cli_fixtures import REPOSITORY
from huggingface_hub import ModelCard
from lightning.pytorch import Trainer
from tiny import fit, tiny_scenes, tiny_task

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.callbacks import EMA, ResultsFile, TokenizerExport
from uniflow.decoders import RegressionDecoder
from uniflow.encoders import DINOv2, SceneViT, TimmEncoder
from uniflow.tokenizer.card import model_card, read_run, write_card

GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden_tokenizer"


@pytest.fixture(scope="module")
def golden():
    return Tokenizer.from_pretrained(GOLDEN)


def with_encoder(encoder):
    bottleneck = MLPBottleneck(encoder.spec, channels=4)
    decoder = RegressionDecoder(bottleneck.spec, width=16, num_heads=2, global_depth=1, head_depth=1)
    return Tokenizer(encoder, bottleneck, decoder)


def test_it_says_what_the_tokenizer_is(golden):
    text = model_card(golden.parts, None, None)
    card = ModelCard(text)
    assert card.data.library_name == "uniflow"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "visual-tokenizer" in card.data.tags
    assert card.data.license is None
    assert "latents of 4 channels, one for each 8 x 8 pixels" in text
    total = sum(p.numel() for p in golden.parameters())
    assert f"| total | | {total:,} |" in text
    encoder = sum(p.numel() for p in golden.encoder.parameters())
    assert f"| encoder | `SceneViT` | {encoder:,} |" in text
    assert "Not recorded." in text
    assert "Not measured." in text


def test_it_shows_recipe_and_results_as_they_are(golden):
    recipe = {"model": {"decoder": {"width": 16}}, "ema": None, "run": "/home/me/run", "ckpt_path": None}
    results = {"test/psnr": 21.12345678901, "protocol/fingerprint": "abc", "protocol/settings": {"size": [64, 64]}}
    text = model_card(golden.parts, recipe, results)
    shown = text.partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(shown) == {"model": {"decoder": {"width": 16}}, "ema": None}
    assert "| `test/psnr` | 21.12345678901 |" in text
    assert '| `protocol/settings` | {"size": [64, 64]} |' in text
    assert "Not measured" not in text


def test_the_base_model_is_named_where_the_arguments_tell(golden, monkeypatch):
    assert golden.encoder.base_model is None
    assert SceneViT().base_model is None  # the weights of this package, not timm's of that name
    monkeypatch.setattr("uniflow.encoders.timm_encoder.read_weights", lambda name, weights: None)
    name = "vit_small_patch14_dinov2.lvd142m"
    for encoder in (DINOv2("s14"), TimmEncoder(name)):
        tokenizer = with_encoder(encoder)
        assert tokenizer.encoder.base_model == f"timm/{name}"
        assert ModelCard(model_card(tokenizer.parts, None, None)).data.base_model == f"timm/{name}"
    assert TimmEncoder(name, weights=None).base_model is None


class Family(TimmEncoder):
    """Takes `weights` only among its `**timm`, like CLIP and its kind."""

    def __init__(self, variant: str = "tiny", **timm) -> None:
        super().__init__("vit_tiny_patch16_224", **timm)
        self.record_defaults(TimmEncoder)


def test_weights_are_not_read_again_but_stay_on_record(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("uniflow.encoders.timm_encoder.read_weights", lambda name, weights: asked.append(weights))
    sizes = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8, "image_size": 16}
    with_encoder(Family(weights="weights.safetensors", **sizes)).save_pretrained(tmp_path)
    assert asked == ["weights.safetensors"]
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert asked == ["weights.safetensors", None]
    assert loaded.config()["encoder"]["init_args"]["weights"] == "weights.safetensors"


def test_what_the_user_wrote_stays(tmp_path, golden):
    write_card(tmp_path, model_card(golden.parts, None, {"test/psnr": 1.0}))
    path = tmp_path / "README.md"
    edited = path.read_text().replace("library_name: uniflow", "library_name: uniflow\nlicense: mit")
    path.write_text(edited + "\nThanks to all.\n")
    golden.save_pretrained(tmp_path)
    text = path.read_text()
    assert ModelCard(text).data.license == "mit"
    assert "Thanks to all." in text
    assert text.count("## Measured results") == 1
    assert "Not measured." in text
    path.write_text("My own words.\n")
    golden.save_pretrained(tmp_path)
    assert path.read_text() == "My own words.\n"


def test_a_damaged_run_is_refused_in_one_line(tmp_path):
    assert read_run(tmp_path) == (None, None)
    for name, content in {"config.yaml": "a: [1", "test_results.json": "{"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=f"{name} is not valid (YAML|JSON)") as caught:
            read_run(tmp_path)
        assert "\n" not in str(caught.value)
        (tmp_path / name).write_text("[1]")
        with pytest.raises(ValueError, match="holds no names with values"):
            read_run(tmp_path)
        (tmp_path / name).unlink()


def test_fit_writes_the_recipe_and_test_adds_what_it_measured(tmp_path):
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 2}\n")
    task, ema = tiny_task(), EMA(0.5)
    fit(task, tiny_scenes(), tmp_path, callbacks=[ema, TokenizerExport()], steps=2)
    card = tmp_path / "tokenizer" / "README.md"
    assert "max_steps: 2" in card.read_text()
    assert "Not measured." in card.read_text()

    def test():
        settings = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False}
        trainer = Trainer(default_root_dir=tmp_path, callbacks=[TokenizerExport(), ResultsFile()], **settings)
        trainer.test(task, tiny_scenes(), verbose=False)
        return json.loads((tmp_path / "test_results.json").read_text())

    results = test()
    assert f"| `test/psnr` | {results['test/psnr']} |" in card.read_text()
    assert "max_steps: 2" in card.read_text()
    before = card.read_text()
    with torch.no_grad():  # other weights than those of the folder: the card is not about them
        task.tokenizer.bottleneck.fc2.bias += 1
    assert test()["test/psnr"] != results["test/psnr"]
    assert card.read_text() == before
