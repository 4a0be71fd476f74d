"""Files of `TransformersEncoder`: weights, configs, preprocessors; rebuilding without them; what is refused."""

import copy
import json
import re
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_towers import TOWERS, build

from uniflow.bottleneck import MLPBottleneck
from uniflow.core.part import build_part, part_config
from uniflow.decoders import RegressionDecoder
from uniflow.encoders import TransformersEncoder, VisionEncoder
from uniflow.tokenizer import Tokenizer


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """A directory with a LLaVA of random weights."""
    build("llava")[0].save_pretrained(tmp_path / "llava")
    return tmp_path / "llava"


def assert_tower(encoder: TransformersEncoder, tower: torch.nn.Module, tolerance: float = 0.0) -> None:
    """The encoder has the tensors of the tower, but for those behind its blocks."""
    own, expected = encoder.model.state_dict(), tower.state_dict()
    assert len(own) > 10
    for key, value in own.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[key], rtol=0, atol=tolerance, msg=key)
    behind = ("post_layernorm.", "layernorm.", "norm.", "head.", "merger.", "deepstack_merger_list.")
    assert all(key.startswith(behind) or "mask_token" in key for key in expected.keys() - own.keys())


def change(directory: Path, edit, name: str = "model.safetensors") -> None:
    """Edit the tensors of a file in place."""
    tensors = load_file(directory / name)
    edit(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, directory / name)


def images(encoder: TransformersEncoder, rows: int = 4, columns: int = 3) -> torch.Tensor:
    p = encoder.spec.patch_size
    return torch.rand(2, 3, rows * p, columns * p, generator=torch.Generator().manual_seed(1))


def error_of(*arguments, **options) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # callers look at the message
        TransformersEncoder(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_of_a_sharded_directory_only_the_shards_of_the_tower_are_read(name, tmp_path):
    model, tower = build(name)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    shard_of = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {shard for key, shard in shard_of.items() if "vision_tower" in key or "visual" in key}
    others = set(shard_of.values()) - needed
    assert len(needed) > 1
    assert others
    for shard in others:
        (tmp_path / shard).write_bytes(b"not a tensor")
    assert_tower(TransformersEncoder(str(tmp_path)), tower)
    gone = sorted(needed)[1]
    (tmp_path / gone).unlink()
    assert f"has no {gone}, which its model.safetensors.index.json names" in error_of(str(tmp_path))


def test_a_file_in_place_of_the_models_own(llava, tmp_path):
    _, tower = build("llava")
    half = {f"some.prefix.{key}": value.half() for key, value in tower.state_dict().items()}
    half["some.other"] = torch.zeros(1)
    save_file(half, tmp_path / "half.safetensors")
    (llava / "model.safetensors").unlink()
    assert_tower(TransformersEncoder(str(llava), weights=str(tmp_path / "half.safetensors")), tower, 1e-3)


# What transformers' later key formats replaced: names in the hub's files, patterns in those of this version.
@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("clip", {r"^vision_model\.": "vision_model.vision_model."}),
        ("dinov2", {r"\.(q|k|v)_proj": r".attention.\1", r"attention\.o_proj": "attention.output.dense"}),
        ("dinov3", {r"^model\.layer": "layer"}),
    ],
)  # fmt: skip
def test_older_key_formats(name, older, tmp_path):
    model, tower = build(name)
    model.config.save_pretrained(tmp_path)
    tensors = {}
    for key, value in model.state_dict().items():
        for pattern, replacement in older.items():
            key = re.sub(pattern, replacement, key)
        for short, long in {"q": "query", "k": "key", "v": "value"}.items():
            key = key.replace(f"attention.attention.{short}.", f"attention.attention.{long}.")
        tensors[key] = value.contiguous()
    assert tensors.keys() != model.state_dict().keys()
    if name == "clip":  # a buffer that old files have
        tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    assert_tower(TransformersEncoder(str(tmp_path)), tower)


def test_loads_what_it_saved(tmp_path):
    encoder = TransformersEncoder("local", weights=None, config=TOWERS["dinov2_registers"])
    save_file(encoder.state_dict(), tmp_path / "w.safetensors")
    loaded = TransformersEncoder("local", weights=str(tmp_path / "w.safetensors"), config=TOWERS["dinov2_registers"])
    assert_tower(loaded, encoder.model)


def put_into_cache(source: Path, cache: Path, repository: str) -> None:
    revision = "0" * 40
    snapshot = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    source.rename(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(revision)


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_hub_id_from_the_cache(shard_size, monkeypatch, tmp_path):
    model, tower = build("llava")
    model.save_pretrained(tmp_path / "llava", max_shard_size=shard_size)
    put_into_cache(tmp_path / "llava", tmp_path / "cache", "some/llava")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert_tower(TransformersEncoder("some/llava"), tower)
    assert TransformersEncoder("some/llava", weights=None).spec.num_layers == 2


def test_unknown_name_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = error_of("nobody/nothing")
    assert message.startswith("'nobody/nothing' is not a local directory and not in the Hugging Face cache")
    assert message.endswith("give a hub id or a directory with config.json, or the argument config")
    assert "weights null looks no further" in error_of("nobody/nothing", weights=None)
    assert "'no/such/dir' is not a local directory" in error_of("no/such/dir")


def test_null_asks_no_network(monkeypatch):
    def refuse(*args, local_files_only, **kwargs):
        assert local_files_only
        raise huggingface_hub.errors.LocalEntryNotFoundError("nothing here")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    TransformersEncoder("some/clip", weights=None, config=TOWERS["clip"])
    error_of("some/clip", weights=None)


def test_reports_missing_surplus_and_misshapen_tensors(llava):
    prefix = next(k for k in load_file(llava / "model.safetensors") if k.endswith("class_embedding"))
    prefix = prefix.removesuffix("embeddings.class_embedding")

    def edit(tensors):
        del tensors[f"{prefix}encoder.layers.1.mlp.fc2.bias"]
        tensors[f"{prefix}encoder.layers.7.extra"] = torch.zeros(1)
        tensors[f"{prefix}embeddings.position_embedding.weight"] = torch.zeros(10, 32)

    change(llava, edit)
    message = error_of(str(llava))
    assert message.startswith(f"weights: {str(llava)!r} does not fit this encoder: ")
    assert "1 missing (encoder.layers.1.mlp.fc2.bias)" in message
    assert "1 unexpected (encoder.layers.7.extra)" in message
    assert "1 misshapen (embeddings.position_embedding.weight is (10, 32), needs (17, 32))" in message


def test_pickled_weights_are_refused(llava):
    torch.save(load_file(llava / "model.safetensors"), llava / "pytorch_model.bin")
    (llava / "model.safetensors").unlink()
    message = error_of(str(llava))
    assert "holds no model.safetensors" in message
    assert "pickled weights (.bin) are not read" in message
    assert "is not a safetensors file" in error_of(str(llava), weights=str(llava / "pytorch_model.bin"))
    assert "no such file" in error_of(str(llava), weights=str(llava / "w.safetensors"))


def test_a_file_without_the_tower_or_with_two(llava):
    def double(tensors):
        for key in [key for key in tensors if "vision_tower" in key]:
            tensors[f"second.{key}"] = tensors[key].clone()

    change(llava, double)
    assert re.search(r"must hold one vision tower with a .*, found 2 \(", error_of(str(llava)))
    change(llava, lambda tensors: [tensors.pop(key) for key in list(tensors) if "vision_tower" in key])
    assert "found none" in error_of(str(llava))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "intern_vit_6b"}, "no model_type 'intern_vit_6b', and code that comes with a model is never"),
        ({}, "has no model_type 'None'"),
        ({"model_type": "bert"}, "no encoder is made of a 'bert', only of clip_vision_model, siglip_vision_model"),
        ({**TOWERS["clip"], "patch_size": [14, 16]}, r"'clip_vision_model'"),
        ({**TOWERS["internvit"], "image_size": [56, 28]}, r"with image_size .* must be square"),
        ({**TOWERS["siglip"], "num_attention_heads": 5}, "'siglip_vision_model' cannot be built: embed_dim must be"),
        ({**TOWERS["clip"], "hidden_size": "wide"}, "config is not a valid config: .*hidden_size"),
    ],
)  # fmt: skip
def test_refuses_configs(config, message):
    assert re.search(message, error_of("local", weights=None, config=config))


def test_refuses_broken_directories(llava):
    (llava / "config.json").write_text("{")
    assert "config.json is not valid JSON" in error_of(str(llava))
    (llava / "config.json").write_text("[]")
    assert "config.json must hold a JSON object" in error_of(str(llava))
    (llava / "config.json").unlink()
    assert "is a directory without config.json; give a hub id" in error_of(str(llava))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tune": 3}, "tune must be 'full', 'frozen', 'lora' or a number of last blocks from 1 to 2, not 3"),
        ({"tune": "half"}, "tune must be 'full'"),
        ({"mean": [0.5], "std": [0.5]}, r"mean must be 3 values, each a finite number or null, got \[0.5\]"),
    ],
)
def test_refuses_arguments(arguments, message):
    assert re.search(message, error_of("local", weights=None, config=TOWERS["clip"], **arguments))


@pytest.mark.parametrize(
    ("filename", "content", "mean"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}, (0.1, 0.2, 0.3)),
        (
            "processor_config.json",
            {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}},
            (0.1, 0.2, 0.3),
        ),
        ("preprocessor_config.json", {"do_normalize": False, "image_mean": [0.1, 0.2, 0.3]}, (0.0, 0.0, 0.0)),
        ("preprocessor_config.json", {"do_resize": True}, (0.48145466, 0.4578275, 0.40821073)),
    ],
)
def test_mean_and_std_of_the_preprocessor(filename, content, mean, llava):
    (llava / filename).write_text(json.dumps(content))
    encoder = TransformersEncoder(str(llava))
    assert encoder.spec.mean == mean
    assert tuple(encoder.init_args["mean"]) == mean
    if mean[0] == 0.1:
        assert encoder.spec.std == (1.0, 2.0, 3.0)
    given = TransformersEncoder(str(llava), mean=(0.9, 0.9, 0.9))
    assert given.spec.mean == (0.9, 0.9, 0.9)
    assert given.spec.std == encoder.spec.std
    assert not torch.equal(given(images(given)).hidden_states[-1], encoder(images(given)).hidden_states[-1])


def test_refuses_a_mean_that_is_none(llava):
    (llava / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5, "image_std": 0.5}))
    assert re.search("image_mean in .*preprocessor_config.json must be three numbers", error_of(str(llava)))


def test_the_tokenizer_comes_back_without_directory_and_network(llava, monkeypatch):
    (llava / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}))
    encoder = TransformersEncoder(str(llava), tune="frozen")
    bottleneck = MLPBottleneck(encoder.spec, channels=4)
    decoder = RegressionDecoder(bottleneck.spec, width=16, num_heads=2, global_depth=1, head_depth=1)
    tokenizer = Tokenizer(encoder, bottleneck, decoder).eval()
    pixels = images(encoder)
    expected = tokenizer.encode(pixels)
    tokenizer.save_pretrained(llava.parent / "tokenizer")
    for file in llava.iterdir():
        file.unlink()
    llava.rmdir()

    def refuse(*args, **kwargs):
        raise AssertionError("nothing is to be looked up")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    loaded = Tokenizer.from_pretrained(llava.parent / "tokenizer")
    assert torch.equal(loaded.encode(pixels), expected)
    assert loaded.encoder.spec == encoder.spec
    assert loaded.config() == tokenizer.config()
    # The saved file holds the tower under a prefix, so that it serves as weights, too.
    config = part_config(encoder)
    again = build_part(config, VisionEncoder, weights=str(llava.parent / "tokenizer" / "model.safetensors"))
    assert_tower(again, encoder.model)


@pytest.mark.parametrize("name", TOWERS)
def test_the_recorded_config_is_json_and_complete(name):
    given = copy.deepcopy(TOWERS[name])
    encoder = TransformersEncoder("local", weights=None, config=given)
    assert given == TOWERS[name]
    config = part_config(encoder)
    stored = json.loads(json.dumps(config))
    assert stored == config
    assert stored["init_args"]["config"]["model_type"] == given["model_type"]
    rebuilt = build_part(stored, VisionEncoder, weights=None)
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(rebuilt(images(encoder)).hidden_states[-1], encoder(images(encoder)).hidden_states[-1])


def test_a_whole_models_config_as_argument(llava):
    whole = json.loads((llava / "config.json").read_text())
    encoder = TransformersEncoder("local", weights=None, config=whole)
    assert encoder.init_args["config"]["model_type"] == "clip_vision_model"
    assert encoder.spec == TransformersEncoder(str(llava), weights=None).spec


@pytest.mark.parametrize("name", TOWERS)
def test_bfloat16_parameters(name):
    encoder = TransformersEncoder("local", weights=None, config=TOWERS[name])
    exact = encoder(images(encoder)).hidden_states[-1]
    rounded = encoder.bfloat16()(images(encoder)).hidden_states[-1]
    assert rounded.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(exact, rounded.float(), dim=-1).min() > 0.98


@pytest.mark.parametrize("name", TOWERS)
def test_runs_on_a_device_that_cannot_be_read(name):
    """As `uniflow summary` does; nor does a tower wait for a GPU to tell it how patches lie."""
    encoder = TransformersEncoder("local", weights=None, config=TOWERS[name])
    pixels = images(encoder).to("meta")
    assert encoder.to("meta")(pixels).feature_map().shape == (2, 32, 4, 3)


@pytest.mark.parametrize("name", ["clip", "qwen2_vl"])
def test_checkpointing_builds_no_graph_for_frozen_blocks(name):
    encoder = TransformersEncoder("local", weights=None, config=TOWERS[name], tune=1, gradient_checkpointing=True)
    output = encoder(images(encoder))
    assert [hidden.requires_grad for hidden in output.hidden_states] == [False, True]


def test_says_nothing(llava, capfd, recwarn):
    level = transformers.utils.logging.get_verbosity()
    TransformersEncoder(str(llava), gradient_checkpointing=True)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert transformers.utils.logging.get_verbosity() == level


def test_names_the_package_that_is_missing_or_too_old(monkeypatch):
    # Not `transformers` as imported above: the package replaces itself when its first class is loaded.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.57.0")
    with pytest.raises(ImportError, match=r"transformers 5\.\d+ or newer, this is 4\.57\.0: pip install -U uniflow"):
        TransformersEncoder("local", weights=None, config=TOWERS["clip"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install uniflow\[transformers\]"):
        TransformersEncoder("local", weights=None, config=TOWERS["clip"])
