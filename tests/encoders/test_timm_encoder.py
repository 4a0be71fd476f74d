"""Weights, sizes and position embeddings of `TimmEncoder`; parity with the official release."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from uniflow.encoders import DINOv3, InternViT, SceneViT, SigLIP, TimmEncoder

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "official_tiny"
TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def tiny(**arguments) -> SceneViT:
    return SceneViT(**{"weights": None, **TINY, **arguments})


def filled(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors with other values than those it was built with."""
    generator = torch.Generator().manual_seed(3)
    return {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in model.state_dict().items()}


def assert_loaded(encoder: TimmEncoder, tensors: dict[str, torch.Tensor]) -> None:
    assert encoder.model.state_dict().keys() == tensors.keys()
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(value, tensors[key]), key


def test_loads_a_file(tmp_path):
    tensors = filled(tiny().model)
    save_file(tensors, tmp_path / "w.safetensors")
    assert_loaded(tiny(weights=tmp_path / "w.safetensors"), tensors)
    assert_loaded(tiny(weights=str(tmp_path / "w.safetensors"), tune="frozen"), tensors)


def test_loads_an_encoders_own_state_dict(tmp_path):
    tensors = filled(tiny().model)
    save_file({f"model.{key}": value for key, value in tensors.items()}, tmp_path / "w.safetensors")
    assert_loaded(tiny(weights=tmp_path / "w.safetensors"), tensors)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_siglip_224.v2_webli",
        "vit_base_patch16_224.augreg_in21k",
        "vit_base_patch16_dinov3.lvd1689m",
        "vit_small_patch14_reg4_dinov2.lvd142m",
    ],
)
def test_loads_a_timm_file_with_its_norm_and_head(name, tmp_path):
    model = timm.create_model(name, **TINY, num_classes=5)
    assert any(key.startswith(("norm.", "fc_norm.")) for key in model.state_dict())
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = TimmEncoder(name, weights=tmp_path / "w.safetensors", **TINY)
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_loads_openai_clip_keys(tmp_path):
    encoder = TimmEncoder(
        "vit_base_patch16_clip_quickgelu_224.openai", weights=None, depth=1, embed_dim=32, num_heads=2
    )
    tensors = filled(encoder.model)
    renames = {
        "blocks.": "transformer.resblocks.",
        "patch_embed.proj": "conv1",
        "norm_pre": "ln_pre",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.proj": "attn.out_proj",
        "attn.qkv.": "attn.in_proj_",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    openai = {}
    for key, value in tensors.items():
        for ours, theirs in renames.items():
            key = key.replace(ours, theirs)
        openai[f"visual.{key}"] = value
    openai["visual.class_embedding"] = openai.pop("visual.cls_token")[0, 0]
    openai["visual.positional_embedding"] = openai.pop("visual.pos_embed")[0]
    openai |= {"visual.ln_post.weight": torch.ones(32), "visual.ln_post.bias": torch.zeros(32),
               "visual.proj": torch.zeros(32, 8), "token_embedding.weight": torch.zeros(4, 8)}  # fmt: skip
    save_file({key: value.contiguous() for key, value in openai.items()}, tmp_path / "w.safetensors")
    loaded = TimmEncoder("vit_base_patch16_clip_quickgelu_224.openai", weights=tmp_path / "w.safetensors", depth=1,
                         embed_dim=32, num_heads=2)  # fmt: skip
    assert_loaded(loaded, tensors)


@pytest.mark.parametrize("antialias", [True, False])
def test_resamples_a_position_embedding_of_another_grid(antialias, tmp_path):
    tensors = filled(tiny(image_size=128).model)
    save_file(tensors, tmp_path / "w.safetensors")
    encoder = tiny(weights=tmp_path / "w.safetensors", pos_embed_antialias=antialias)
    grid = tensors["pos_embed"][:, 1:].reshape(1, 16, 16, 32).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(8, 8), mode="bicubic", antialias=antialias)
    torch.testing.assert_close(encoder.model.pos_embed[:, 1:], grid.flatten(2).transpose(1, 2))
    assert torch.equal(encoder.model.pos_embed[:, :1], tensors["pos_embed"][:, :1])


def test_reports_missing_surplus_and_misshapen_tensors(tmp_path):
    tensors = filled(tiny().model)
    del tensors["blocks.1.attn.proj.bias"]
    tensors["blocks.7.extra"] = torch.zeros(1)
    tensors["blocks.0.mlp.fc1.weight"] = torch.zeros(64, 32)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not fit this encoder") as error:
        tiny(weights=tmp_path / "w.safetensors")
    message = str(error.value)
    assert "\n" not in message
    assert "1 missing (blocks.1.attn.proj.bias)" in message
    assert "1 unexpected (blocks.7.extra)" in message
    assert "1 misshapen (blocks.0.mlp.fc1.weight is (64, 32), needs (128, 32))" in message


@pytest.mark.parametrize(
    ("change", "report"),
    [
        (lambda t: t.pop("cls_token"), r"1 missing \(cls_token\)$"),
        (lambda t: t.update({"blocks.0.ls1.gamma": torch.ones(32)}), r"1 unexpected \(blocks.0.ls1.gamma\)$"),
        (lambda t: t.update({"cls_token": torch.ones(1, 1, 8)}), r"1 misshapen \(cls_token is \(1, 1, 8\), needs"),
        (
            lambda t: t.update({"patch_embed.proj.weight": torch.ones(32, 3, 16, 16)}),
            "unexpected .patch_embed.proj.w",
        ),
        (lambda t: t.update({"pos_embed": torch.ones(1, 1 + 47, 32)}), "cannot be converted"),
        (lambda t: t.clear(), "missing .* and [0-9]+ more"),
    ],
    ids=["missing", "unexpected", "misshapen", "patch", "pos_embed", "empty"],
)
def test_refuses_a_file_that_does_not_fit(change, report, tmp_path):
    tensors = filled(tiny().model)
    change(tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=report):
        tiny(weights=tmp_path / "w.safetensors")


def test_refuses_patch_kernels_of_another_size(tmp_path):
    def plain(**kwargs):
        return TimmEncoder("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2, **kwargs)

    save_file(filled(plain(weights=None).model), tmp_path / "w.safetensors")
    plain(weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match=r"1 misshapen \(patch_embed.proj.weight is \(32, 3, 16, 16\), needs"):
        plain(weights=str(tmp_path / "w.safetensors"), patch_size=8, image_size=112)


def test_refuses_a_pickle_in_disguise(tmp_path):
    torch.save(tiny().model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        tiny(weights=tmp_path / "w.safetensors")


def test_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no such file: .*w\.safetensors"):
        tiny(weights=tmp_path / "w.safetensors")


def test_pretrained_without_network_names_the_file_option(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot fetch the pretrained weights of .*set weights to the path") as error:
        TimmEncoder("vit_tiny_patch16_224.augreg_in21k")
    assert "\n" not in str(error.value)


def test_pretrained_comes_from_the_hubs_cache(monkeypatch, tmp_path):
    name = "vit_tiny_patch16_224.augreg_in21k"
    tensors = timm.create_model(name, num_classes=7).state_dict()
    revision = "0" * 40
    snapshot = tmp_path / f"models--timm--{name}" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(revision)
    save_file(tensors, snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    encoder = TimmEncoder(name)
    assert len(encoder.model.state_dict()) > 100
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(value, tensors[key]), key


def test_refuses_pretrained_weights_that_timm_does_not_have():
    with pytest.raises(ValueError, match="timm has no loadable pretrained weights for 'vit_base_patch16_18x2_224'"):
        TimmEncoder("vit_base_patch16_18x2_224")


@pytest.mark.parametrize("size", ["depth", "embed_dim", "num_heads", "patch_size", "image_size"])
def test_refuses_sizes_beside_pretrained_weights(size):
    with pytest.raises(ValueError, match=f"fit its own size only: {size} needs weights null or a safetensors file"):
        SigLIP(**{size: 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vit_base_patch16_sigclip"}, "timm has no model 'vit_base_patch16_sigclip'; near names: vit_base"),
        ({"name": "vit_base_patch16_224.webli"}, "timm has no model 'vit_base_patch16_224.webli'"),
        ({"name": "resnet18"}, "timm's 'resnet18' cannot be built as a ViT encoder"),
        ({"embed_dim": 33, "num_heads": 2}, "cannot be built as a ViT encoder of size"),
        ({"depth": 0}, "depth must be an integer >= 1 or null, got 0"),
        ({"tune": 13}, "tune must be 'full', 'frozen', 'lora' or a number of last blocks from 1 to 12, not 13"),
        ({"tune": "half"}, "tune must be 'full'"),
        ({"tune": True}, "tune must be 'full'"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**{"name": "vit_tiny_patch16_224.augreg_in21k", "weights": None, **arguments})


def test_pos_embed_antialias_matters_on_other_grids():
    torch.manual_seed(0)
    smooth, plain = tiny(), tiny(pos_embed_antialias=False)
    plain.load_state_dict(smooth.state_dict())
    own = torch.rand(1, 3, 64, 64)
    assert torch.equal(smooth(own).hidden_states[-1], plain(own).hidden_states[-1])
    for size in [(32, 24), (96, 128)]:
        other = torch.rand(1, 3, *size)
        assert not torch.allclose(smooth(other).hidden_states[-1], plain(other).hidden_states[-1])


def test_pos_embed_antialias_needs_a_learned_position_embedding():
    with pytest.raises(ValueError, match="no plain learned position embedding"):
        DINOv3(weights=None, pos_embed_antialias=False, **TINY)


def test_state_dict_keys_are_timms():
    assert set(tiny().state_dict()) == {f"model.{key}" for key in tiny().model.state_dict()}
    assert "model.blocks.0.attn.qkv.weight" in tiny().state_dict()


RENAMES = {"embeddings.class_embedding": "cls_token", "embeddings.position_embedding": "pos_embed",
           "embeddings.patch_embedding": "patch_embed.proj", "encoder.layers.": "blocks."}  # fmt: skip


@pytest.fixture
def official(tmp_path) -> InternViT:
    """The official release's tiny encoder in this package."""
    tensors = {}
    for key, value in load_file(OFFICIAL / "model.safetensors").items():
        if key.startswith(("embeddings.", "encoder.")):
            for theirs, ours in RENAMES.items():
                key = key.replace(theirs, ours)
            key = f"{key}.gamma" if key.endswith(("ls1", "ls2")) else key
            tensors[key] = value
    save_file(tensors, tmp_path / "official.safetensors")
    config = json.loads((OFFICIAL / "config.json").read_text())
    return InternViT("300m", weights=tmp_path / "official.safetensors", pos_embed_antialias=False, image_size=56,
                     embed_dim=config["hidden_size"], depth=config["num_hidden_layers"],
                     num_heads=config["num_attention_heads"])  # fmt: skip


def to_pixels(normalized: torch.Tensor, encoder: InternViT) -> torch.Tensor:
    mean, std = (torch.tensor(v, dtype=normalized.dtype).view(3, 1, 1) for v in (encoder.spec.mean, encoder.spec.std))
    return normalized * std + mean


@pytest.mark.parametrize(
    ("dtype", "file", "tolerance"),
    [(torch.float32, "outputs", 1e-5), (torch.float64, "outputs_f64", 1e-10)],
    ids=["float32", "float64"],
)
def test_hidden_states_of_the_official_release(official, dtype, file, tolerance):
    encoder, expected = official.to(dtype), load_file(OFFICIAL / f"{file}.safetensors")
    output = encoder(to_pixels(load_file(OFFICIAL / "inputs.safetensors")["pixel_values"].to(dtype), encoder))
    assert len(output.hidden_states) == 4
    for layer, (hidden, prefix) in enumerate(zip(output.hidden_states, output.prefix_tokens, strict=True), start=1):
        reference = expected[f"hidden_states.{layer}"]
        torch.testing.assert_close(torch.cat([prefix, hidden], dim=1), reference, rtol=0, atol=tolerance)


def test_another_grid_of_the_official_release(official):
    expected = load_file(OFFICIAL / "outputs.safetensors")["encoder84_last_hidden_state"]
    output = official(to_pixels(load_file(OFFICIAL / "inputs.safetensors")["pixel_values_84"], official))
    last = torch.cat([output.prefix_tokens[-1], output.hidden_states[-1]], dim=1)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-5)
