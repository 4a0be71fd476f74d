"""Reading and writing the public release's format."""

import json
import math
from pathlib import Path

import pytest
import torch
from official_reference import OFFICIAL, official_config
from safetensors.torch import load_file, save_file
from tiny import ENCODER, FLOW

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.decoders import PatchFlowDecoder, RegressionDecoder
from uniflow.encoders import InternViT
from uniflow.tokenizer.official import official_config as config_of
from uniflow.tokenizer.official import official_name, official_parts

pytestmark = pytest.mark.filterwarnings("ignore:a velocity-predicting")

# The size of the released model.
RELEASED = {
    "hidden_size": 1024, "vit_hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 448, "patch_size": 14, "latent_ch": 64, "global_blocks_depth": 6,
    "num_decoder_layers": 12, "num_sampling_steps": "1",
}  # fmt: skip


def folder(path: Path, tensors: dict[str, torch.Tensor] | None = None, **changes) -> Path:
    """The fixture's checkpoint, changed, in `path`."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(official_config() | changes))
    save_file(tensors or load_file(OFFICIAL / "model.safetensors"), path / "model.safetensors")
    return path


def built(**changes) -> Tokenizer:
    """A tokenizer that the format holds, but for `changes` of its decoder."""
    encoder = InternViT(weights=None, pos_embed_antialias=False, depth=1, embed_dim=32, num_heads=2, image_size=28)
    bottleneck = MLPBottleneck(encoder.spec, channels=4)
    sizes = {"width": 32, "global_depth": 1, "flow_depth": 1, "learned_grid": (2, 2)}
    pixels = {"pixel_mean": encoder.spec.mean, "pixel_std": encoder.spec.std}
    return Tokenizer(encoder, bottleneck, PatchFlowDecoder(bottleneck.spec, **(sizes | pixels | changes)))


def test_there_and_back_is_bitwise_the_same(tmp_path):
    tokenizer = Tokenizer.from_official(OFFICIAL)
    assert not tokenizer.training
    tokenizer.save_official(tmp_path)
    first, second = load_file(OFFICIAL / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Drop-path is a setting of training, which the format's other fields say nothing about.
    assert json.loads((tmp_path / "config.json").read_text()) == official_config() | {"drop_path_rate": 0.0}
    again = Tokenizer.from_official(tmp_path)
    assert again.config() == tokenizer.config()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), tokenizer.parameters(), strict=True))


def test_through_our_own_format_and_back(tmp_path):
    tokenizer = Tokenizer.from_official(OFFICIAL)
    tokenizer.save_pretrained(tmp_path / "ours")
    loaded = Tokenizer.from_pretrained(tmp_path / "ours")
    images, noise = torch.rand(1, 3, 56, 56), torch.randn(1, 3, 56, 56)
    assert torch.equal(loaded.reconstruct(images, noise=noise), tokenizer.reconstruct(images, noise=noise))
    loaded.save_official(tmp_path / "theirs")
    first, second = load_file(OFFICIAL / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_our_own_tokenizer_goes_there_and_back(tmp_path):
    tokenizer = built(uniform_share=0.5, steps=2).eval()
    torch.nn.init.normal_(tokenizer.decoder.head.final_proj.weight)
    tokenizer.save_official(tmp_path)
    again = Tokenizer.from_official(tmp_path)
    images, noise = torch.rand(1, 3, 42, 28), torch.randn(1, 3, 42, 28)
    assert torch.equal(again.reconstruct(images, noise=noise), tokenizer.reconstruct(images, noise=noise))
    assert again.decoder.uniform_share == 0.1  # training only, as documented


def test_latent_statistics_go_along(tmp_path):
    tokenizer = Tokenizer.from_official(OFFICIAL)
    tokenizer.set_latent_statistics(range(16), range(1, 17), count=5)
    tokenizer.save_official(tmp_path)
    again = Tokenizer.from_official(tmp_path)
    assert again.config() == tokenizer.config()
    assert again.latent_statistics == tokenizer.latent_statistics


def test_a_subclass_reads_itself():
    class Mine(Tokenizer):
        pass

    assert type(Mine.from_official(OFFICIAL)) is Mine


def test_the_released_size():
    with torch.device("meta"):
        tokenizer = Tokenizer(*official_parts(official_config() | RELEASED))
    names = [official_name(name) for name in tokenizer.state_dict()]
    assert len(set(names)) == len(names) == 530
    counts = [sum(p.numel() for p in part.parameters()) for part in tokenizer.children()]
    assert [round(count / 1e6, 1) for count in counts] == [304.0, 1.1, 147.5]
    assert round(sum(counts) / 1e6, 1) == 452.6
    layers = {name.split(".")[2] for name in names if name.startswith("encoder.layers.")}
    assert len(layers) == 24
    assert config_of(tokenizer.parts) == official_config() | RELEASED | {"llm_hidden_size": 1024, "drop_path_rate": 0.0}


def test_every_name_of_the_release_has_one_of_ours():
    tokenizer = Tokenizer.from_official(OFFICIAL)
    assert {official_name(name) for name in tokenizer.state_dict()} == load_file(OFFICIAL / "model.safetensors").keys()
    with pytest.raises(ValueError, match="no place for the tensor teacher"):
        official_name("teacher.weight")


def test_the_sampling_steps_of_the_config_are_the_decoders(tmp_path):
    tokenizer = Tokenizer.from_official(folder(tmp_path, num_sampling_steps="4"))
    latents, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 3, 56, 56)
    default = tokenizer.decode(latents, noise=noise)
    assert torch.equal(default, tokenizer.decode(latents, noise=noise, steps=4))
    assert not torch.equal(default, tokenizer.decode(latents, noise=noise, steps=1))
    with pytest.raises(ValueError, match="steps must be an integer from 1 to 10,000"):
        built(steps=0)


@pytest.mark.parametrize("hidden", [96, 171, 300])
def test_any_mlp_width(tmp_path, hidden):
    """171 / 64 is no number that timm's int(64 * ratio) has to give back."""
    tensors = load_file(OFFICIAL / "model.safetensors")
    for name in list(tensors):
        if name.startswith("encoder.layers.") and ".mlp.fc" in name:
            shape = [hidden if side == 256 else side for side in tensors[name].shape]
            tensors[name] = torch.randn(shape) * 0.02
    tokenizer = Tokenizer.from_official(folder(tmp_path / "in", tensors, intermediate_size=hidden))
    assert tokenizer.encoder.blocks[0].mlp.fc1.out_features == hidden
    tokenizer.save_official(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == hidden


def test_mlp_ratio_is_a_size_of_every_timm_encoder():
    narrow = ENCODER(mlp_ratio=2.0)
    assert narrow.blocks[0].mlp.fc1.out_features == 2 * narrow.spec.embed_dim
    for wrong in (0.0, math.nan):
        with pytest.raises(ValueError, match="mlp_ratio must be a finite number > 0"):
            ENCODER(mlp_ratio=wrong)
    with pytest.raises(ValueError, match="mlp_ratio needs weights null"):
        InternViT(mlp_ratio=2.0)


def test_half_precision_is_read_exactly(tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in load_file(OFFICIAL / "model.safetensors").items()}
    tokenizer = Tokenizer.from_official(folder(tmp_path, half))
    tokenizer.save_official(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], half[name].float()) for name in half)


def test_shards_are_read(tmp_path):
    whole = folder(tmp_path)
    tensors = load_file(whole / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:50], "model-00002-of-00002.safetensors": names[50:]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, whole / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    index = whole / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    expected = Tokenizer.from_official(whole).state_dict()
    (whole / "model.safetensors").unlink()
    found = Tokenizer.from_official(whole).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for change, error, message in [
        ({names[0]: "absent.safetensors"}, FileNotFoundError, "no such file beside it"),
        ({names[0]: "../model.safetensors"}, FileNotFoundError, "no such file beside it"),
        ({"extra": "model-00001-of-00002.safetensors"}, ValueError, "do not agree on the tensor extra"),
        ({"extra": 3}, ValueError, "no weight_map"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map | change}))
        with pytest.raises(error, match=message):
            Tokenizer.from_official(whole)


def _antialiased():
    tokenizer = built()
    encoder = InternViT(weights=None, pos_embed_antialias=True, depth=1, embed_dim=32, num_heads=2, image_size=28)
    return Tokenizer(encoder, tokenizer.bottleneck, tokenizer.decoder)


def _merging():
    encoder = built().encoder
    bottleneck = MLPBottleneck(encoder.spec, channels=4, merge=2)
    decoder = PatchFlowDecoder(bottleneck.spec, width=32, global_depth=1, flow_depth=1, learned_grid=(2, 2))
    return Tokenizer(encoder, bottleneck, decoder)


def _other_encoder():
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=4)
    return Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec))


def _other_decoder():
    tokenizer = built()
    decoder = RegressionDecoder(tokenizer.bottleneck.spec, width=32, global_depth=1, head_depth=1)
    return Tokenizer(tokenizer.encoder, tokenizer.bottleneck, decoder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_other_encoder, "holds InternViT, not SceneViT"),
        (_other_decoder, "holds PatchFlowDecoder, not RegressionDecoder"),
        (_antialiased, "encoder.pos_embed_antialias must be False, not True"),
        (lambda: built(prediction="data"), "decoder.prediction must be 'velocity', not 'data'"),
        (lambda: built(learned_grid=None), r"decoder.learned_grid must be \[2, 2\], not None"),
        (lambda: built(learned_grid=(4, 4)), r"decoder.learned_grid must be \[2, 2\]"),
        (lambda: built(num_heads=2), "decoder.num_heads must be 16, not 2"),
        (lambda: built(width=64), "decoder.width must be 32, not 64"),
        (lambda: built(guidance=1.5), "decoder.guidance must be 1.0, not 1.5"),
        (lambda: built(step_schedule="power", step_power=0.25), "decoder.step_schedule must be 'linear'"),
        (lambda: built(start="zero"), "decoder.start must be 'random'"),
        (lambda: built(pixel_mean=(0.5, 0.5, 0.5)), "decoder.pixel_mean"),
        (_merging, "bottleneck.merge must be 1, not 2"),
        (lambda: built().double(), "holds float32, not float64"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make().save_official(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
