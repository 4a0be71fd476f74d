"""Exported programs against the tokenizer: parity at other batches and sizes, and clear refusals."""

import sys
from functools import partial

import pytest
import torch

from uniflow import Tokenizer
from uniflow.bottleneck import FSQBottleneck, KLBottleneck, MLPBottleneck, VQBottleneck
from uniflow.cli import main
from uniflow.core.specs import EncoderOutput, EncoderSpec
from uniflow.decoders import ConvDecoder, PatchFlowDecoder, PixelDecoder, RegressionDecoder, ViTDecoder
from uniflow.encoders import CLIP, DINOv2, DINOv3, InternViT, SceneViT, SigLIP, VisionEncoder
from uniflow.tools.export import export, load_onnx, load_torch, trace, write_onnx

pytestmark = pytest.mark.skipif(torch.__version__ < "2.11", reason="older ones export no program for any batch")

TINY = {"weights": None, "depth": 1, "embed_dim": 16, "num_heads": 2}
ENCODER = partial(SceneViT, **TINY)
SMALL = {"width": 16, "num_heads": 2, "global_depth": 1}
FLOW = partial(PatchFlowDecoder, **SMALL, flow_depth=1, prediction="data")
REGRESSION = partial(RegressionDecoder, **SMALL, head_depth=1)
VIT = partial(ViTDecoder, width=16, num_heads=2, depth=1)
MLP = partial(MLPBottleneck, channels=8)


def make(encoder=ENCODER, decoder=FLOW, bottleneck=MLP):
    torch.manual_seed(0)
    built = encoder()
    neck = bottleneck(built.spec)
    tokenizer = Tokenizer(built, neck, decoder(neck.spec)).eval().requires_grad_(False)
    for parameter in tokenizer.decoder.parameters():  # zero-initialised layers would hide everything
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return tokenizer


def cases(tokenizer, name, noise):
    """Inputs of two batches and two sizes, one of them not square."""
    p = max(tokenizer.patch_size, tokenizer.encoder.spec.patch_size)
    for batch, rows, columns in ((1, 2, 4), (3, 5, 3)):
        images = torch.rand(batch, 3, p * rows, p * columns)
        if name == "encode":
            yield (images,)
        else:
            latents = torch.randn(tokenizer.encode(images).shape)
            yield (latents, torch.randn_like(images)) if noise else (latents,)


def check(tokenizer, name, run, noise=False, **options):
    reference = getattr(tokenizer, name)
    for case in cases(tokenizer, name, noise):
        given = {"noise": case[1]} if noise and name == "decode" else {}
        expected = reference(case[0], **given, **options)
        result = run(*case)
        assert result.shape == expected.shape
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


def test_the_command_writes_programs_that_take_any_batch_and_size(tmp_path, capsys):
    """Through the saved files and the runtimes of both formats; the regression decoder, which draws no noise."""
    tokenizer = make(decoder=REGRESSION)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert main(["export", str(tmp_path / "tokenizer"), str(tmp_path / "out"), "--size", "[32, 24]"]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "decode.onnx", "decode.pt2", "encode.onnx", "encode.pt2",
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "encode.pt2: images of any size -> latents; at most" in printed
    assert "decode.onnx: latents of any size -> images; at most" in printed
    for name in ("encode", "decode"):
        check(tokenizer, name, load_torch(tmp_path / "out" / f"{name}.pt2"))
        check(tokenizer, name, load_onnx(tmp_path / "out" / f"{name}.onnx"))


@pytest.fixture(scope="module")
def flow():
    """A tokenizer with a flow decoder and statistics, and its programs of two steps and normalised latents."""
    tokenizer = make()
    tokenizer.set_latent_statistics(torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8), 100)
    return tokenizer, *trace(tokenizer, size=32, steps=2, normalize=True)


def test_a_flow_decoder_takes_noise_and_runs_its_steps(flow):
    tokenizer, _, decode = flow
    assert decode.inputs == ("latents", "noise")
    run = decode.program.module()
    check(tokenizer, "decode", run, noise=True, steps=2, normalized=True)
    latents, noise = next(cases(tokenizer, "decode", noise=True))
    assert not torch.allclose(run(latents, noise), run(latents, -noise), atol=1e-3)
    one_step = tokenizer.decode(latents, steps=1, noise=noise, normalized=True)
    assert not torch.allclose(run(latents, noise), one_step, atol=1e-3)


def test_latents_are_normalised_where_that_is_asked_for(flow):
    tokenizer, encode, _ = flow
    check(tokenizer, "encode", encode.program.module(), normalize=True)
    with pytest.raises(ValueError, match="`uniflow stats`"):
        trace(make(), size=32, normalize=True)


def test_a_program_holds_the_weights_that_it_needs_and_no_others(flow):
    tokenizer, encode, decode = flow
    assert {name.split(".")[1] for name in encode.program.state_dict} == {"encoder", "bottleneck"}
    assert {name.split(".")[1] for name in decode.program.state_dict} == {"decoder"}
    assert list(dict(tokenizer.named_children())) == ["encoder", "bottleneck", "decoder"]  # which keeps its parts


# Every encoder family with a learned position embedding, every other decoder and kind of bottleneck occurs once.
COMBINATIONS = {
    "scene_merge": (
        partial(SceneViT, **TINY, gradient_checkpointing=True),
        partial(MLPBottleneck, channels=8, merge=2),
        REGRESSION,
    ),
    "dinov2_learned_grid": (
        partial(DINOv2, "s14_reg4", image_size=56, **TINY, gradient_checkpointing=True),
        partial(FSQBottleneck, levels=[5, 5, 5], merge=2),
        partial(VIT, learned_grid=(4, 3)),
    ),
    "siglip_conv": (
        partial(SigLIP, "v2_b16_224", image_size=64, **TINY),
        partial(KLBottleneck, channels=8),
        partial(ConvDecoder, width=16, min_width=8, depth=1, groups=4),
    ),
    "clip_zero_start": (
        partial(CLIP, "b16_openai", image_size=64, pos_embed_antialias=False, **TINY),
        VQBottleneck,
        partial(FLOW, start="zero", guidance=2.0),
    ),
    "internvit_vit": (partial(InternViT, "300m", image_size=56, **TINY), MLP, VIT),
}
FAST = ("dinov2_learned_grid", "clip_zero_start")  # with gradient checkpointing, merging, a fixed start


@pytest.mark.parametrize(
    "parts", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in COMBINATIONS]
)
def test_every_part_takes_any_batch_and_size(parts):
    encoder, bottleneck, decoder = COMBINATIONS[parts]
    tokenizer = make(encoder, decoder, bottleneck)
    encode, decode = trace(tokenizer)
    assert decode.inputs == ("latents",)
    check(tokenizer, "encode", encode.program.module())
    check(tokenizer, "decode", decode.program.module())


@pytest.mark.slow
@pytest.mark.parametrize("parts", COMBINATIONS)
def test_every_part_in_onnx(parts, tmp_path):
    encoder, bottleneck, decoder = COMBINATIONS[parts]
    tokenizer = make(encoder, decoder, bottleneck)
    for traced in trace(tokenizer):
        write_onnx(traced, tmp_path / "program.onnx", opset=20)
        check(tokenizer, traced.name, load_onnx(tmp_path / "program.onnx"))


@pytest.mark.slow
def test_a_flow_decoder_in_onnx(flow, tmp_path):
    tokenizer, _, decode = flow
    write_onnx(decode, tmp_path / "program.onnx", opset=20)
    run = load_onnx(tmp_path / "program.onnx")
    check(tokenizer, "decode", run, noise=True, steps=2, normalized=True)


class Patches(VisionEncoder):
    """A single layer, which is soon traced."""

    def __init__(self):
        super().__init__()
        self.spec = EncoderSpec(16, 8, 1, 0, 32, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.layer = torch.nn.Conv2d(3, 16, 8, 8)

    def forward(self, images):
        tokens = self.layer(self.normalize(images))
        flat = tokens.flatten(2).transpose(1, 2)
        return EncoderOutput((flat,), (flat[:, :0],), grid=(tokens.shape[2], tokens.shape[3]))


class Tiles(PixelDecoder):
    """One colour for each latent, which is soon traced."""

    def __init__(self, latent):
        super().__init__()
        self.spec = latent
        self.gain = torch.nn.Parameter(torch.ones(()))

    def loss(self, latents, images):
        return {}

    def decode(self, latents, *, steps=None, noise=None, generator=None):
        side = self.spec.patch_size
        return self.gain * latents[:, :3].repeat_interleave(side, 2).repeat_interleave(side, 3)


class Untraceable(Tiles):
    """Looks at values."""

    def decode(self, latents, *, steps=None, noise=None, generator=None):
        return super().decode(latents if latents.mean() > 0 else -latents)


def test_an_encoder_that_fixes_its_size_is_refused_and_exported_for_one(tmp_path):
    """timm's rotary positions turn the grid into plain numbers."""
    tokenizer = make(lambda: DINOv3("s16", image_size=64, **TINY), Tiles)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"exported encode does not work for .* --static_size true"):
        export(str(tmp_path / "tokenizer"), tmp_path / "out", format="torch")
    assert list((tmp_path / "out").iterdir()) == []
    export(str(tmp_path / "tokenizer"), tmp_path / "out", format="torch", static_size=True, size=(64, 32))
    run = load_torch(tmp_path / "out" / "encode.pt2")
    for batch in (1, 4):
        images = torch.rand(batch, 3, 64, 32)
        torch.testing.assert_close(run(images), tokenizer.encode(images), atol=1e-4, rtol=1e-4)


class Random(Tiles):
    """Draws noise and does not say so."""

    def decode(self, latents, *, steps=None, noise=None, generator=None):
        return torch.rand(latents.shape[0], 3, latents.shape[2] * 8, latents.shape[3] * 8) * self.gain


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="decode cannot be exported") as caught:
        trace(make(Patches, Untraceable), size=32)
    assert "\n" not in str(caught.value)
    make(Patches, Random).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="something else than the tokenizer"):
        export(str(tmp_path), tmp_path / "out", format="torch")


def test_errors(tmp_path, monkeypatch, capsys):
    make(Patches).save_pretrained(tmp_path / "tokenizer")
    command = ["export", str(tmp_path / "tokenizer"), str(tmp_path / "out")]
    for options, message in (
        (["--size", "30"], "multiples of the patch size 8, and at least two of them"),
        (["--size", "8"], "at least two of them"),
        (["--format", "coreml"], "torch, onnx, both"),
        (["--steps", "0", "--format", "torch", "--size", "16"], "from 1 to 10,000 steps"),
    ):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(command) == 2
    assert "pip install uniflow[export]" in capsys.readouterr().err
    assert not (tmp_path / "out" / "encode.onnx").exists()
