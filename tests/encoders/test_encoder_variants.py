"""Every named variant is a model that timm has weights for, and every component file names a real encoder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import timm
import torch
import yaml
from jsonargparse import ArgumentParser
from tiny_towers import TOWERS

from uniflow.encoders import (
    CLIP,
    DINOv2,
    DINOv3,
    EmbeddedViT,
    InternViT,
    SceneViT,
    SigLIP,
    TimmEncoder,
    TransformersEncoder,
    VisionEncoder,
    families,
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "encoders").glob("*.yaml"))
FAMILIES = {
    CLIP: (families.CLIPVariant, families.CLIP_NAMES),
    SigLIP: (families.SigLIPVariant, families.SIGLIP_NAMES),
    DINOv2: (families.DINOv2Variant, families.DINOV2_NAMES),
    InternViT: (families.InternViTVariant, families.INTERNVIT_NAMES),
    DINOv3: (families.DINOv3Variant, families.DINOV3_NAMES),
}
# The configs of towers are on the hub: these stand for them.
TINY_CONFIGS = {
    "transformers_clip_l14": TOWERS["clip"] | {"image_size": 224},
    "transformers_any": TOWERS["internvit"] | {"image_size": 448},
}
VARIANTS = [(family, variant) for family, (_, names) in FAMILIES.items() for variant in names]


def slot(encoder: Callable[[], VisionEncoder]) -> VisionEncoder:
    return encoder()


def encoder_of(*arguments: str) -> VisionEncoder:
    """The encoder that these command line arguments give in a task's factory slot."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(slot, sub_configs=True)  # as LightningCLI adds a task's arguments
    return slot(**parser.instantiate(parser.parse_args(list(arguments))))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_the_type_lists_the_variants(family):
    variants, names = FAMILIES[family]
    assert list(get_args(variants)) == list(names)


@pytest.mark.parametrize(("family", "variant"), VARIANTS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_variant(family, variant):
    name = FAMILIES[family][1][variant]
    assert name in timm.list_models(pretrained=True)
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    assert cfg.hf_hub_id
    assert not cfg.custom_load
    with torch.device("meta"):
        encoder = family(variant, weights=None, depth=1)
    assert encoder.spec.mean == cfg.mean
    assert encoder.spec.std == cfg.std
    assert encoder.spec.image_size == cfg.input_size[-1]
    if encoder.model.pos_embed is not None:
        assert encoder.model.patch_embed.img_size == cfg.input_size[1:]
    assert f"patch{encoder.spec.patch_size}_" in name
    assert not any("quickgelu" in note.lower() and "quickgelu" not in name for note in cfg.notes or ())


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValueError, match="DINOv2 has no variant 'x14'; its variants are s14, b14"):
        DINOv2("x14", weights=None)


def test_every_family_has_a_component_file():
    used = {yaml.safe_load(path.read_text())["class_path"] for path in CONFIGS}
    assert used == {cls.__name__ for cls in (*FAMILIES, EmbeddedViT, SceneViT, TimmEncoder, TransformersEncoder)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_component_file(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for start in ("# Source: ", "# Weights: ", "# License of the weights: ", "# Use: uniflow fit ", "# Result: "):
        assert any(line.startswith(start) for line in header), f"no {start!r} in the header"
    assert any(f"configs/encoders/{path.name}" in line for line in header)
    component = yaml.safe_load(path.read_text())
    if component["class_path"].endswith("TransformersEncoder"):
        tiny = [f"config={json.dumps(TINY_CONFIGS[path.stem])}"]
    else:
        tiny = ["depth=2", "embed_dim=32", "num_heads=2"]
    encoder = encoder_of(f"--encoder={path}", *(f"--encoder.{word}" for word in ("weights=null", "tune=1", *tiny)))
    assert type(encoder).__name__ == component["class_path"]
    arguments = encoder.init_args
    assert {**component["init_args"], "weights": None, "tune": 1}.items() <= arguments.items()
    assert (encoder.spec.num_layers, encoder.spec.embed_dim) == (2, 32)
    assert any(f" {encoder.spec.image_size} px" in line for line in header)


@pytest.mark.parametrize(("given", "tune"), [("full", "full"), ("frozen", "frozen"), ("2", 2)])
def test_tune_from_the_command_line(given, tune):
    encoder = encoder_of("--encoder=SceneViT", "--encoder.weights=null", f"--encoder.tune={given}")
    assert encoder.init_args["tune"] == tune
    trained = sum(any(p.requires_grad for p in block.parameters()) for block in encoder.model.blocks)
    assert trained == {"full": encoder.spec.num_layers, "frozen": 0, 2: 2}[tune]


def test_other_tune_is_refused_on_the_command_line():
    # In jsonargparse's words, or in those of uniflow.cli.swap if another test has installed it.
    with pytest.raises(Exception, match=r"(?s)tune.*full'?, '?frozen"):
        encoder_of("--encoder=SceneViT", "--encoder.weights=null", "--encoder.tune=half")
