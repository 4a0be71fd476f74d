"""The student in the place of the tower that it came from: the model's own code, its layers, nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_assistants import inputs, multimodal
from tiny_towers import fill, to_timm

from uniflow.encoders import CLIP, InternViT, SigLIP, TimmEncoder, TransformersEncoder
from uniflow.encoders.base import VisionEncoder
from uniflow.language.put_back import check_normalization, put_back

FAMILIES = ["internvl", "llava_onevision", "llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
SO400M = "v2_so400m_14_378"
TIMM_SIZES = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "image_size": 56}
# Model -> the encoder of timm that computes what its tower does.
TIMM: dict[str, tuple[type[TimmEncoder], str]] = {
    "internvl": (InternViT, "300m"),
    "llava_onevision": (SigLIP, SO400M),
    "llava": (CLIP, "l14_openai"),
}


@pytest.fixture(params=FAMILIES)
def saved(request: Any, tmp_path: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor], str]:
    model = multimodal(request.param)
    model.save_pretrained(tmp_path)
    return model, inputs(model), str(tmp_path)


@torch.no_grad()
def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).logits


def test_a_student_equal_to_its_teacher_gives_the_same_logits(saved: Any) -> None:
    model, batch, folder = saved
    before = logits(model, batch)
    encoder = TransformersEncoder(folder)
    swap = put_back(model, encoder)
    assert swap.student is not swap.teacher
    assert not any(parameter.requires_grad for parameter in swap.student.parameters())
    torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=1e-5)


def test_another_student_gives_other_logits_and_the_teacher_comes_back(saved: Any) -> None:
    model, batch, folder = saved
    before = logits(model, batch)
    encoder = TransformersEncoder(folder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    with put_back(model, encoder) as swap:
        changed = logits(model, batch)
        assert not torch.allclose(changed, before, atol=1e-3)
        swap.restore()
        assert torch.equal(logits(model, batch), before)
        swap.insert()
        assert torch.equal(logits(model, batch), changed)
    assert torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("layer", [-2, -1, 1])
def test_the_models_config_chooses_the_layer(layer: int, tmp_path: Any) -> None:
    model = multimodal("llava")
    model.save_pretrained(tmp_path)
    encoder, batch = TransformersEncoder(str(tmp_path)), inputs(model)
    with torch.no_grad():
        for parameter in encoder.blocks[1].parameters():
            parameter.mul_(1.5)
    model.config.vision_feature_layer = layer
    before = logits(model, batch)
    put_back(model, encoder)
    assert torch.allclose(logits(model, batch), before, atol=1e-5) == (layer != -1)


def timm_student(name: str, model: torch.nn.Module, folder: Any) -> TimmEncoder:
    family, variant = TIMM[name]
    tower = model.model.vision_tower
    empty = family(variant, weights=None, **TIMM_SIZES)
    behind = ("layernorm", "post_layernorm", "head.")
    state = {k: v for k, v in tower.state_dict().items() if not k.startswith(behind) and "mask_token" not in k}
    save_file({k: v.contiguous() for k, v in to_timm(state, empty.model).items()}, folder / "timm.safetensors")
    return family(variant, weights=str(folder / "timm.safetensors"), **TIMM_SIZES)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("name", TIMM)
def test_a_student_of_timm_gives_the_logits_of_the_same_tower(name: str, layer: int, tmp_path: Any) -> None:
    model = multimodal(name)
    model.config.vision_feature_layer = layer
    batch = inputs(model)
    batch["pixel_values"] = batch["pixel_values"].clamp(-1, 1) / 2
    student = timm_student(name, model, tmp_path).eval()
    before = logits(model, batch)
    with put_back(model, student):
        torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=1e-5)
        fill(model.model.vision_tower.encoder.blocks[0])
        assert not torch.allclose(logits(model, batch), before, atol=1e-3)


def test_the_student_takes_the_type_of_the_tower(tmp_path: Any) -> None:
    model = multimodal("internvl")
    model.save_pretrained(tmp_path)
    model.to(torch.bfloat16)
    batch = inputs(model)
    before = logits(model, batch)
    put_back(model, TransformersEncoder(str(tmp_path)))
    assert torch.equal(logits(model, batch), before)


def like(name: str, **changes: Any) -> Callable[[], VisionEncoder]:
    """Makes an encoder as the tower of a tiny model, but for some settings."""
    return lambda: TransformersEncoder(
        "local", weights=None, config=multimodal(name).config.vision_config.to_dict() | changes
    )


@pytest.mark.parametrize(
    ("name", "build", "text"),
    [
        ("llava", like("llava", num_hidden_layers=3), "student's num_hidden_layers is 3, the model's tower has 2"),
        ("llava", like("llava", patch_size=7), "student's patch_size is 7, the model's tower has 14"),
        ("llava", like("llava", num_attention_heads=4), "student's num_attention_heads is 4"),
        ("llava", like("llava", hidden_act="gelu"), "student's hidden_act is gelu"),
        ("llava", like("llava", image_size=112), r"position_embedding.* is \(65, 32\)"),
        ("llava", like("llava_onevision"), "tower is a CLIPVisionModel, the student a SiglipVisionModel"),
        ("qwen2_5_vl", like("qwen2_5_vl", window_size=28), "student's window_size is 28"),
        ("llava", lambda: SigLIP(SO400M, weights=None, **TIMM_SIZES), "student's num_prefix_tokens is 0, the model's"),
        ("internvl", lambda: InternViT(weights=None, **(TIMM_SIZES | {"depth": 1})), "student's num_layers is 1"),
        ("qwen2_vl", lambda: CLIP(weights=None, **TIMM_SIZES), "takes packed patches, which only a student that is"),
    ],
)  # fmt: skip
def test_another_architecture_is_refused_in_one_line(name: str, build: Any, text: str) -> None:
    model = multimodal(name)
    with pytest.raises(ValueError, match=text) as error:
        put_back(model, build())
    assert "\n" not in str(error.value)


def test_embeddings_before_the_first_block_are_refused_where_an_encoder_has_none() -> None:
    model = multimodal("llava")
    model.config.vision_feature_layer = [0, -1]
    with pytest.raises(ValueError, match="embeddings before the first block"):
        put_back(model, CLIP(weights=None, **TIMM_SIZES))


def test_the_pixels_must_be_normalised_alike() -> None:
    from transformers import CLIPImageProcessor

    encoder = CLIP(weights=None, **TIMM_SIZES)
    check_normalization(CLIPImageProcessor(), encoder.spec)
    with pytest.raises(ValueError, match=r"image_mean \[0.5, 0.5, 0.5\], the student's encoder expects \[0.48"):
        check_normalization(CLIPImageProcessor(image_mean=[0.5] * 3), encoder.spec)


def test_a_model_without_a_known_tower_is_refused() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    with pytest.raises(ValueError, match="no encoder is made of a 'llama'"):
        put_back(LlamaForCausalLM(config), CLIP(weights=None, **TIMM_SIZES))
