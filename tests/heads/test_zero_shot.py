"""Zero-shot classification: of the teacher's own tokens it gives the logits of transformers' and open_clip's models."""

import copy
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tiny_towers import MODELS, TEXT, TOWERS, build, fill
from tokenizers import Tokenizer as Words
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.encoders import TransformersEncoder
from uniflow.features import EncoderSource
from uniflow.heads import ZeroShotHead

NAMES = ["cat", "dog", "hot air balloon"]
WORDS = ["<pad>", "<end>", "<start>", "<unk>", "a", "photo", "of", "the", "cat", "dog", "hot", "air", "balloon", "."]


@pytest.fixture(scope="module", params=["clip", "siglip", "siglip2"])
def folder(request, tmp_path_factory):
    """A tiny model with random weights and a tokenizer, as on the hub."""
    path = tmp_path_factory.mktemp(request.param)
    name, _, tower, _ = MODELS[request.param]
    cls = getattr(transformers, name)
    text = TEXT | {"projection_size": 32, "eos_token_id": 1}
    model = cls(cls.config_class(text_config=text, vision_config=copy.deepcopy(TOWERS[tower]))).eval()
    fill(model)
    model.save_pretrained(path)
    words = Words(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        "<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 1)]
    )
    inputs = ["input_ids", "attention_mask"] if request.param == "clip" else ["input_ids"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<end>",
        bos_token="<start>",
        unk_token="<unk>",
        model_input_names=inputs,
    )
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def source(folder):
    return EncoderSource(lambda: TransformersEncoder(str(folder))).eval()


IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def images(source):
    side = 4 * source.spec.patch_size
    return IMAGES[..., :side, :side]


def reference_logits(folder, source, texts):
    """What transformers' own model says."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")
    pixels, p = source.encoder.normalize(images(source)), source.spec.patch_size
    if model.config.model_type == "siglip2":
        patches = pixels.reshape(-1, 3, 4, p, 4, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        pixel_inputs = {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(len(pixels), 16, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[4, 4]] * len(pixels)),
        }
    else:
        pixel_inputs = {"pixel_values": pixels}
    return model(**tokens, **pixel_inputs).logits_per_image


@torch.no_grad()
def test_the_teachers_own_tokens_give_its_own_logits(folder, source):
    head = ZeroShotHead(source.spec, str(folder), NAMES)
    expected = reference_logits(folder, source, [f"a photo of a {name}." for name in NAMES])
    found = head(source(images(source)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std(dim=1).min() > 1e-4  # names differ


@torch.no_grad()
def test_names_templates_and_tokens_change_the_logits(folder, source):
    features = source(images(source))

    def logits(**changed):
        return ZeroShotHead(source.spec, str(folder), **{"class_names": NAMES, **changed})(features)

    plain = logits()
    assert not torch.allclose(plain, logits(templates=["the {} ."]))
    assert not torch.allclose(plain, logits(class_names=NAMES[::-1]))
    both, second = logits(templates=["a photo of a {}.", "the {} ."]), logits(templates=["the {} ."])
    assert not torch.allclose(both, plain)
    assert not torch.allclose(both, second)
    parts = (features.hidden_states, features.prefix_tokens)
    student = EncoderOutput(*(tuple(-tokens for tokens in part) for part in parts), features.grid)
    assert not torch.allclose(plain, ZeroShotHead(source.spec, str(folder), NAMES)(student))


@torch.no_grad()
def test_templates_are_averaged_as_in_clip(folder, source):
    head = ZeroShotHead(source.spec, str(folder), NAMES, ["a photo of a {}.", "the {} ."])
    single = [ZeroShotHead(source.spec, str(folder), NAMES, [template])._classes for template in head.templates]
    mean = (single[0] + single[1]) / 2
    torch.testing.assert_close(head._classes, mean / mean.norm(dim=1, keepdim=True))


@torch.no_grad()
def test_names_come_from_the_data_or_a_file(folder, source, tmp_path):
    named = ZeroShotHead(source.spec, str(folder), NAMES)
    head = ZeroShotHead(source.spec, str(folder))
    with pytest.raises(ValueError, match="no class names yet"):
        head(source(images(source)))
    with pytest.raises(ValueError, match="the data has no class names; set class_names"):
        head.check_data(SimpleNamespace(class_names=None))
    head.check_data(SimpleNamespace(class_names=["cat", "dog", "hot_air_balloon"]))
    torch.testing.assert_close(head._classes, named._classes)
    with pytest.raises(ValueError, match=r"the data has 4 classes, ZeroShotHead\.num_classes is 3"):
        named.check_data(SimpleNamespace(class_names=[*NAMES, "bird"]))
    (tmp_path / "names.txt").write_text("cat\ndog\n\nhot air balloon\n")
    torch.testing.assert_close(
        ZeroShotHead(source.spec, str(folder), str(tmp_path / "names.txt"))._classes, named._classes
    )


def test_nothing_of_it_is_trained_or_saved(folder, source):
    head = ZeroShotHead(source.spec, str(folder), NAMES)
    assert not head.state_dict()
    assert not list(head.parameters())


@pytest.mark.parametrize("templates", [[], ["a photo"], ["{} and {}"]])
def test_templates_need_one_place(folder, source, templates):
    with pytest.raises(ValueError, match=r"one \{\} for the name"):
        ZeroShotHead(source.spec, str(folder), NAMES, templates)


def test_features_of_another_width_are_refused(folder):
    with pytest.raises(ValueError, match="image head reads 32 channels, the features have 8; use the last layer"):
        ZeroShotHead(FeatureSpec(8, 14, 1, 0, 56), str(folder), NAMES)
    if "clip" in folder.name:
        with pytest.raises(ValueError, match="reads a class token, which the features do not have"):
            ZeroShotHead(FeatureSpec(32, 14, 1, 0, 56), str(folder), NAMES)


def test_other_models_and_missing_ones_are_one_line(tmp_path):
    build("dinov2")[0].save_pretrained(tmp_path / "dino")
    make = partial(ZeroShotHead, FeatureSpec(32, 14, 1, 1, 56), class_names=NAMES)
    with pytest.raises(ValueError, match="is a 'dinov2'; image and text meet in models of the kinds clip, siglip"):
        make(str(tmp_path / "dino"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"without config\.json"):
        make(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"no such file: nowhere\.txt"):
        make(str(tmp_path / "dino"), class_names="nowhere.txt")


def test_weights_of_which_some_are_missing_are_refused(folder, tmp_path, source):
    from safetensors.torch import load_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing .*post_layernorm"):
        ZeroShotHead(source.spec, str(tmp_path), NAMES)


OPEN_CLIP_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


@torch.no_grad()
def test_open_clips_own_tokens_give_its_own_logits(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 8,
        "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 14, "image_size": 56},
        "text_cfg": OPEN_CLIP_TEXT,
    }
    model = open_clip.CLIP(**copy.deepcopy(config)).eval()
    fill(model)
    model.logit_scale.fill_(1.0)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")

    pixels = IMAGES[..., :56, :56]
    tokens = model.visual.transformer(model.visual._embeds(pixels))
    features = EncoderOutput((tokens[:, 1:],), (tokens[:, :1],), (4, 4))
    texts = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([f"a photo of a {name}." for name in NAMES])
    images, classes, scale = model(pixels, texts)
    head = ZeroShotHead(FeatureSpec(32, 14, 1, 1, 56), str(tmp_path), NAMES)
    torch.testing.assert_close(head(features), scale * images @ classes.T, rtol=1e-4, atol=1e-4)
