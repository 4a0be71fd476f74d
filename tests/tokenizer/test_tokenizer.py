"""The tokenizer's doors: shapes, sizes, saving and loading."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from uniflow import Tokenizer
from uniflow.bottleneck import Bottleneck, MLPBottleneck
from uniflow.core.part import build_part, part_config
from uniflow.core.specs import LatentSpec
from uniflow.decoders import PatchFlowDecoder, PixelDecoder, RegressionDecoder
from uniflow.encoders import SceneViT
from uniflow.tokenizer.summary import model_summary


class MeanColour(PixelDecoder):
    """A decoder of another package: paints each patch in one colour."""

    def __init__(self, latent: LatentSpec, gain: float = 2.0) -> None:
        super().__init__()
        self.spec = latent
        self.gain = gain
        self.to_rgb = nn.Conv2d(latent.channels, 3, 1)

    def loss(self, latents, images):
        return {"colour": (self.decode(latents) - images).square().mean()}

    def decode(self, latents, *, steps=None, noise=None, generator=None):
        colours = self.gain * self.to_rgb(latents)
        return nn.functional.interpolate(colours, scale_factor=self.spec.patch_size)


def tiny(decoder=PatchFlowDecoder, **kwargs):
    torch.manual_seed(0)
    encoder = SceneViT(weights=None, depth=2, embed_dim=32, num_heads=2)
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    if decoder is PatchFlowDecoder:
        kwargs = {"width": 32, "num_heads": 2, "global_depth": 1, "flow_depth": 2, "prediction": "data"} | kwargs
    if decoder is RegressionDecoder:
        kwargs = {"width": 32, "num_heads": 2, "global_depth": 1, "head_depth": 2} | kwargs
    tokenizer = Tokenizer(encoder, bottleneck, decoder(bottleneck.spec, **kwargs)).eval()
    with torch.no_grad():
        for parameter in tokenizer.decoder.parameters():  # zero-initialised layers would hide everything
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return tokenizer


@pytest.mark.parametrize("decoder", [PatchFlowDecoder, RegressionDecoder, MeanColour])
@pytest.mark.parametrize("size", [(64, 64), (24, 40), (23, 41), (1, 1)])
def test_encode_decode_shapes_and_ranges(decoder, size):
    tokenizer = tiny(decoder)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    latents = tokenizer.encode(images)
    grid = [-(-side // 8) for side in size]
    assert latents.shape == (2, 8, *grid)
    decoded = tokenizer.decode(latents)
    assert decoded.shape == (2, 3, 8 * grid[0], 8 * grid[1])
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    assert tokenizer.reconstruct(images).shape == images.shape
    torch.testing.assert_close(tokenizer.encode(images.float() / 255), latents)
    [features] = tokenizer.features(images)
    assert features.shape == (2, 32, *grid)


def test_padding_repeats_the_edge_and_leaves_full_patches_alone():
    tokenizer = tiny()
    images = torch.randint(0, 256, (1, 3, 20, 16), dtype=torch.uint8)
    padded = tokenizer.pad(images)
    assert padded.dtype == torch.uint8
    assert padded.shape == (1, 3, 24, 16)
    assert torch.equal(padded[..., :20, :], images)
    assert torch.equal(padded[..., 20:, :], images[..., -1:, :].expand(-1, -1, 4, -1))
    assert tokenizer.pad(padded) is padded


def test_noise_generator_steps_and_clamp_change_the_picture():
    tokenizer = tiny()
    latents = tokenizer.encode(torch.rand(1, 3, 16, 16))
    noise = torch.randn(1, 3, 16, 16)
    first = tokenizer.decode(latents, noise=noise)
    assert torch.equal(first, tokenizer.decode(latents, noise=noise))
    assert not torch.equal(first, tokenizer.decode(latents, noise=-noise))
    assert not torch.equal(first, tokenizer.decode(latents, noise=noise, steps=4))

    def draw(seed):
        return tokenizer.decode(latents, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    tokenizer.decoder.head.final_proj.bias.data += 5
    loud = tokenizer.decode(latents, noise=noise, clamp=False)
    assert loud.max() > 1
    assert torch.equal(loud.clamp(0, 1), tokenizer.decode(latents, noise=noise))


def test_bad_input_is_refused_in_one_line():
    tokenizer = tiny()
    latents = tokenizer.encode(torch.rand(1, 3, 16, 16))
    cases = [
        (lambda: tokenizer.encode(torch.rand(3, 16, 16)), "RGB"),
        (lambda: tokenizer.encode(torch.rand(1, 1, 16, 16)), "RGB"),
        (lambda: tokenizer.decode(latents[:, :4]), r"latents must be \(B, 8, h, w\)"),
        (lambda: tokenizer.decode(latents, noise=torch.rand(1, 3, 8, 8)), "images' shape"),
        (lambda: tokenizer.decode(latents, steps=0), "from 1 to 10,000 steps"),
        (lambda: tokenizer.features(torch.rand(1, 3, 16, 16), layers=[2]), "blocks 0 to 1"),
        (lambda: Tokenizer(tokenizer.encoder, tokenizer.bottleneck, MeanColour(LatentSpec(4, 8))), "expects"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decoder", [PatchFlowDecoder, RegressionDecoder, MeanColour])
def test_save_and_load_gives_the_same_tokenizer(tmp_path, decoder):
    tokenizer = tiny(decoder)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.config() == tokenizer.config()
    assert not loaded.training
    images, noise = torch.rand(2, 3, 16, 24), torch.randn(2, 3, 16, 24)
    assert torch.equal(loaded.reconstruct(images, noise=noise), tokenizer.reconstruct(images, noise=noise))
    files = ["README.md", "config.json", "model.safetensors"]
    assert sorted(p.name for p in (tmp_path / "tokenizer").iterdir()) == files


def test_loading_never_fetches_weights(tmp_path, monkeypatch):
    tokenizer = tiny()
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder"]["init_args"]["weights"] = "pretrained"  # as of an encoder that was adapted from the hub
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("loading touched the network"))
    Tokenizer.from_pretrained(tmp_path)


def test_broken_folders_give_one_clear_line(tmp_path):
    tiny().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())

    def broken(message, new_config=None, new_tensors=None, raw=None, error=ValueError):
        (tmp_path / "config.json").write_text(json.dumps(new_config or config))
        save_file(new_tensors or tensors, tmp_path / "model.safetensors")
        if raw:
            (tmp_path / raw[0]).write_bytes(raw[1])
        with pytest.raises(error, match=message) as caught:
            Tokenizer.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)

    name = "bottleneck.fc1.weight"
    broken(f"missing {name}", new_tensors={k: v for k, v in tensors.items() if k != name})
    broken("unexpected extra", new_tensors={**tensors, "extra": torch.zeros(1)})
    broken(rf"{name} is \(1,\)", new_tensors={**tensors, name: torch.zeros(1)})
    broken("not a valid safetensors", raw=("model.safetensors", b"\x80\x02}q\x00."))
    broken("not valid JSON", raw=("config.json", b"{"))
    broken("format", new_config={**config, "format": 99})
    broken("names no decoder", new_config={k: v for k, v in config.items() if k != "decoder"})
    broken("cannot import", new_config={**config, "decoder": {"class_path": "nowhere.Decoder"}})
    broken("is not a PixelDecoder", new_config={**config, "decoder": {"class_path": "os.getcwd"}})
    wrong = {"class_path": config["decoder"]["class_path"], "init_args": {"wdith": 3}}
    broken("does not take the arguments", new_config={**config, "decoder": wrong})
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer.from_pretrained(tmp_path / "absent")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_part_is_rebuilt_from_its_config():
    part = tiny().bottleneck
    config = part_config(part)
    reads = {"layers": "last", "fuse": "concat", "normalize": "layer", "shortcut": False, "temporal_merge": 1}
    arguments = {"channels": 8, "merge": 1, **reads}
    assert config == {"class_path": "uniflow.bottleneck.MLPBottleneck", "init_args": arguments}
    assert json.loads(json.dumps(config)) == config
    again = build_part(config, Bottleneck, SceneViT(weights=None, depth=2, embed_dim=32, num_heads=2).spec)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in part.state_dict().items()}


def test_summary_counts_matrix_products():
    tokenizer = tiny(MeanColour)
    rows = model_summary(tokenizer, 64)
    assert rows["total"]["parameters"] == sum(p.numel() for p in tokenizer.parameters())
    # 64 patches, Linear 32 -> 32 and 32 -> 8, two operations a multiply-add.
    assert rows["bottleneck"]["gflop"] == pytest.approx(2 * 64 * (32 * 32 + 32 * 8) / 1e9)
    assert rows["decoder"]["gflop"] == pytest.approx(2 * 64 * 8 * 3 / 1e9)
    assert rows["total"]["gflop"] > rows["encoder"]["gflop"] > 0


@pytest.mark.parametrize("decoder", [PatchFlowDecoder, RegressionDecoder])
def test_every_decoder_has_a_summary(decoder):
    tokenizer = tiny(decoder)
    assert model_summary(tokenizer, (24, 40))["decoder"]["gflop"] > 0
    assert all(p.requires_grad and p.device.type == "cpu" for p in tokenizer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_whole_model_can_be_cast(dtype):
    tokenizer = tiny().to(dtype)
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    assert tokenizer.encode(images).dtype == dtype
    result = tokenizer.reconstruct(images)
    assert torch.isfinite(result).all()
    assert result.dtype == torch.promote_types(dtype, torch.float32)
