"""What a part says about itself: how it is rebuilt without weights, saved, and whether it can be sharded."""

import pytest
import torch
from tiny import ENCODER, REGRESSION
from tiny_towers import build
from torch import nn

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck, MultiVQBottleneck, VQBottleneck
from uniflow.core.specs import EncoderSpec
from uniflow.encoders import SceneViT, TransformersEncoder
from uniflow.sharding.shard import shard

SPEC = EncoderSpec(16, 8, 3, 1, 32, (0.5,) * 3, (0.5,) * 3)


class FromFile(SceneViT):
    """Its weights come in by an argument of another name, from a file that only the first machine has."""

    def __init__(self, source: str | None = "first.pt") -> None:
        if source is not None and source != "here":
            raise ValueError(f"there is no {source}")
        super().__init__(weights=None, depth=3, embed_dim=32, num_heads=2)

    @classmethod
    def unloaded_arguments(cls):
        return {"source": None}


class Scaled(MLPBottleneck):
    """Trained with a factor, and saved without: it is multiplied into the last layer."""

    def __init__(self, encoder: EncoderSpec, scaled: bool = True) -> None:
        super().__init__(encoder, channels=4)
        self.factor = nn.Parameter(torch.tensor(3.0)) if scaled else 1.0

    def forward(self, output):
        latents, losses = super().forward(output)
        return latents * self.factor, losses

    @classmethod
    def plain_state(cls, arguments, tensors):
        if not arguments["scaled"]:
            return dict(arguments), dict(tensors)
        factor = tensors["factor"]
        plain = {k: v * factor if k.startswith("fc2.") else v for k, v in tensors.items() if k != "factor"}
        return {**arguments, "scaled": False}, plain


def tokenizer(encoder, bottleneck):
    made = bottleneck(encoder.spec)
    return Tokenizer(encoder, made, REGRESSION(made.spec)).eval()


def test_a_tokenizer_is_rebuilt_without_what_its_encoder_says_it_can_do_without(tmp_path):
    encoder = FromFile("here")
    encoder.init_args["source"] = "elsewhere.pt"
    tokenizer(encoder, MLPBottleneck).save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.encoder.init_args["source"] == "elsewhere.pt"
    assert all(map(torch.equal, loaded.encoder.parameters(), encoder.parameters()))


def test_any_part_can_be_saved_as_a_simpler_one(tmp_path):
    model, images = tokenizer(ENCODER(), Scaled), torch.rand(1, 3, 32, 32)
    model.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.bottleneck.init_args["scaled"] is False
    assert "bottleneck.factor" not in loaded.state_dict()
    torch.testing.assert_close(loaded.encode(images), model.encode(images))


def test_a_tower_of_the_hub_is_the_base_model_and_one_in_a_folder_is_not(tmp_path, monkeypatch):
    build("clip")[0].save_pretrained(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    assert TransformersEncoder("clip").base_model is None
    encoder = TransformersEncoder(str(tmp_path / "clip"))
    encoder.init_args["name"] = "openai/clip-vit-base-patch16"
    assert encoder.base_model == "openai/clip-vit-base-patch16"
    encoder.init_args["weights"] = None
    assert encoder.base_model is None


@pytest.mark.parametrize("cls", [VQBottleneck, MultiVQBottleneck])
def test_a_part_says_that_it_cannot_be_sharded(cls):
    with pytest.raises(ValueError, match=f"^{cls.__name__} writes entries of its learnable codebook .* learnable to"):
        shard(cls(SPEC, codebook_size=8, learnable=True), sharding=None)
    for allowed in ({}, {"learnable": True, "kmeans_init": False, "dead_code_threshold": 0.0}):
        cls(SPEC, codebook_size=8, **allowed).check_shardable()
