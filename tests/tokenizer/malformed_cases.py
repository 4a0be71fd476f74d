"""Ways to spoil a tokenizer's folder, and what is said about each: CASES, for test_malformed.

One list of small cases, over 400 lines long: to split it would only scatter it.
"""

import json
import os
import pickle
import shutil
import struct
import zipfile

import pytest
import torch
from cli_fixtures import REPOSITORY
from safetensors.torch import load_file, save_file

GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden_tokenizer"
FC1, FC2 = "bottleneck.fc1.weight", "bottleneck.fc2.weight"
CASES = {}


def case(name, expected, *arguments):
    """Register a way to spoil the folder `tokenizer`, and what the one line says."""

    def register(spoil):
        assert name not in CASES
        CASES[name] = (lambda folder: spoil(folder, *arguments), expected)
        return spoil

    return register


def cases(spoil, table):
    for name, (expected, *arguments) in table.items():
        case(name, expected, *arguments)(spoil)


# ----- model.safetensors, byte by byte


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def weights_bytes(folder, content):
    path = folder / "model.safetensors"
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)


class Evil:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return (exec, ("open('canary', 'w').close()",))


DAMAGED = "not a valid safetensors file"
cases(
    weights_bytes,
    {
        "weights: empty": (DAMAGED, b""),
        "weights: cut in the length of the header": (DAMAGED, lambda old: old[:4]),
        "weights: cut in the header": (DAMAGED, lambda old: old[:200]),
        "weights: cut in the tensors": (DAMAGED, lambda old: old[: len(old) // 2]),
        "weights: one byte short": (DAMAGED, lambda old: old[:-1]),
        "weights: one byte too long": (DAMAGED, lambda old: old + b"\0"),
        "weights: header of 2^63 bytes": (DAMAGED, lambda old: struct.pack("<Q", 2**63) + old[8:]),
        "weights: header longer than the file": (DAMAGED, lambda old: struct.pack("<Q", len(old)) + old[8:]),
        "weights: header of no bytes": (DAMAGED, lambda old: struct.pack("<Q", 0) + old[8:]),
        "weights: header is no JSON": (DAMAGED, safetensors(b"{'a': 1}")),
        "weights: header is a list": (DAMAGED, safetensors([])),
        "weights: header is no text": (DAMAGED, safetensors(b"\xff\xfe\xfd\xfc")),
        "weights: header with NaN": (DAMAGED, safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}')),
        "weights: header nests deeply": (DAMAGED, safetensors(b"[" * 100_000 + b"]" * 100_000)),
        "weights: tensors overlap": (DAMAGED, safetensors({"a": entry(0, 4), "b": entry(2, 6)}, b"\0" * 6)),
        "weights: offsets run backwards": (DAMAGED, safetensors({"a": entry(4, 0)}, b"\0" * 4)),
        "weights: a hole between tensors": (DAMAGED, safetensors({"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12)),
        "weights: offsets behind the end": (DAMAGED, safetensors({"a": entry(0, 2**40, [2**38])}, b"\0" * 4)),
        "weights: offsets do not fit the shape": (DAMAGED, safetensors({"a": entry(0, 4, [2])}, b"\0" * 4)),
        "weights: a size that overflows": (DAMAGED, safetensors({"a": entry(0, 4, [2**62, 2**62])}, b"\0" * 4)),
        "weights: a negative size": (DAMAGED, safetensors({"a": entry(0, 4, [-1])}, b"\0" * 4)),
        "weights: an unknown type": (DAMAGED, safetensors({"a": entry(0, 4, dtype="PICKLE")}, b"\0" * 4)),
        "weights: no tensors": ("missing encoder.", safetensors({})),
        "weights: a pickle": (DAMAGED, pickle.dumps(Evil())),
        "weights: text": (DAMAGED, b"version https://git-lfs.github.com/spec/v1\n"),
    },
)


@case("weights: a checkpoint of torch", DAMAGED)
def torch_checkpoint(folder):
    torch.save({"a": Evil()}, folder / "model.safetensors")


# ----- model.safetensors, tensor by tensor


def tensors(folder, change):
    found = load_file(folder / "model.safetensors")
    save_file(change(found), folder / "model.safetensors")


def replaced(name, change):
    return lambda old: {**old, name: change(old[name])}


cases(
    tensors,
    {
        "tensors: one is missing": (f"missing {FC1}", lambda old: {k: v for k, v in old.items() if k != FC1}),
        "tensors: one too many": ("unexpected extra", lambda old: {**old, "extra": torch.zeros(1)}),
        "tensors: all under other names": ("missing ", lambda old: {f"module.{k}": v for k, v in old.items()}),
        "tensors: another shape": (f"{FC1} is (1,)", replaced(FC1, lambda t: torch.zeros(1))),
        "tensors: transposed": (f"{FC2} is (16, 4)", replaced(FC2, lambda t: t.T.contiguous())),
        "tensors: of no size": (f"{FC1} is (0, 16)", replaced(FC1, lambda t: t[:0].clone())),
        "tensors: integers": (f"{FC1} is torch.int64", replaced(FC1, lambda t: t.long())),
        "tensors: bytes": (f"{FC1} is torch.uint8", replaced(FC1, lambda t: t.byte())),
        "tensors: truth values": (f"{FC1} is torch.bool", replaced(FC1, lambda t: t > 0)),
        "tensors: complex numbers": (f"{FC1} is torch.complex64", replaced(FC1, lambda t: t.to(torch.complex64))),
    },
)


# ----- config.json, as a file


def config_bytes(folder, content):
    (folder / "config.json").write_bytes(content(folder) if callable(content) else content)


NO_JSON = "not valid JSON"
cases(
    config_bytes,
    {
        "config: empty": (NO_JSON, b""),
        "config: cut": (NO_JSON, lambda folder: (folder / "config.json").read_bytes()[:100]),
        "config: Python": (NO_JSON, b"{'format': 1}"),
        "config: a pickle": ("not a text in UTF-8", pickle.dumps(Evil())),
        "config: not UTF-8": ("not a text in UTF-8", '{"format": "é"}'.encode("latin-1")),
        "config: zero bytes": (NO_JSON, b"\0" * 64),
        "config: nests deeply": (NO_JSON, b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "config: a number of 10,000 digits": (NO_JSON, b'{"format": ' + b"9" * 10_000 + b"}"),
        "config: a list": ("must hold a JSON object", b"[1, 2]"),
        "config: null": ("must hold a JSON object", b"null"),
        "config: text": ("must hold a JSON object", b'"config"'),
        "config: no format": ("format 1, not None", b"{}"),
    },
)


# ----- config.json, by what it says


def config(folder, change):
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


def put(*keys_and_value):
    """Change that sets content[key][key]... = value."""
    *keys, last, value = keys_and_value

    def change(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return change


def argument(part, name, value):
    return put(part, "init_args", name, value)


def encoder(class_path, **arguments):
    return put("encoder", {"class_path": class_path, "init_args": arguments})


def decoder(class_path):
    return put("decoder", {"class_path": class_path, "init_args": {}})


def statistics(value):
    return {"mean": [value] * 4, "std": [1.0] * 4, "count": 1}


def checkpoint_with_decoder(class_path):
    def change(content):
        decoder(class_path)(content["tokenizer"])
        return content

    return change


LARGE = "far larger than its"
cases(
    config,
    {
        "config: another format": ("format 1, not 99", put("format", 99)),
        "config: a list as format": ("format 1, not [1]", put("format", [1])),
        "config: no encoder": ("names no encoder", lambda content: content.pop("encoder")),
        "config: no bottleneck": ("names no bottleneck", lambda content: content.pop("bottleneck")),
        "config: a decoder that is null": ("names no decoder", put("decoder", None)),
        "config: a decoder that is text": ("names no decoder", put("decoder", "uniflow.decoders.PatchFlowDecoder")),
        "config: statistics that are a list": ("latent_statistics", put("latent_statistics", [1])),
        "config: statistics of no numbers": ("latent_statistics", put("latent_statistics", {"mean": "a", "std": 1})),
        "config: statistics that are not finite": (
            "must be finite",
            put("latent_statistics", statistics(float("nan"))),
        ),
        "config: statistics without end": ("too large", put("latent_statistics", statistics(10**400))),
        "class: none": ("needs a class_path", put("decoder", {})),
        "class: a number": ("needs a class_path", decoder(7)),
        "class: empty": ("needs a class_path", decoder("")),
        "class: no module": ("needs a class_path", decoder("PatchFlowDecoder")),
        "class: relative": ("needs a class_path", decoder("..canary_module.Decoder")),
        "class: a path": ("needs a class_path", decoder("../canary_module.Decoder")),
        "class: a zero byte": ("needs a class_path", decoder("canary_module\0.Decoder")),
        "class: a call": ("needs a class_path", decoder("os.system('touch canary')")),
        "class: no such module": ("cannot import 'nowhere.Decoder'", decoder("nowhere.Decoder")),
        "class: no such class": ("has no attribute 'Decoder'", decoder("uniflow.decoders.Decoder")),
        "class: no such submodule": ("cannot import", decoder("uniflow.decoders.nowhere.Decoder")),
        "class: a function of the system": ("os.system is not a PixelDecoder", decoder("os.system")),
        "class: a process": ("subprocess.Popen is not a PixelDecoder", decoder("subprocess.Popen")),
        "class: eval": ("builtins.eval is not a PixelDecoder", decoder("builtins.eval")),
        "class: a module": ("uniflow.decoders is not a PixelDecoder", decoder("uniflow.decoders")),
        "class: a layer of torch": ("torch.nn.Linear is not a PixelDecoder", decoder("torch.nn.Linear")),
        "class: abstract": ("PixelDecoder is abstract", decoder("uniflow.decoders.PixelDecoder")),
        "class: of another slot": ("MLPBottleneck is not a VisionEncoder", encoder("uniflow.bottleneck.MLPBottleneck")),
        "class: a standard module, not imported": ("cannot import", decoder("antigravity.Decoder")),
        "class: a package that has nothing to do with uniflow": ("cannot import 'pip.Decoder'", decoder("pip.Decoder")),
        "class: in the current directory": ("import canary_module yourself", decoder("canary_module.Decoder")),
        "class: in a package there": ("import canary_package.parts yourself", decoder("canary_package.parts.Decoder")),
        "class: in a module that poses as installed": ("import canary_posing", decoder("canary_posing.Decoder")),
        "class: an encoder in the current directory": (
            "import canary_module yourself",
            encoder("canary_module.Encoder"),
        ),
        "arguments: a list": ("must be a JSON object", put("decoder", "init_args", [1, 2])),
        "arguments: text": ("must be a JSON object", put("decoder", "init_args", "width=3")),
        "arguments: unknown": ("does not take the arguments", argument("decoder", "wdith", 3)),
        "arguments: unknown to the encoder": ("unexpected keyword argument", argument("encoder", "hub", "x")),
        "arguments: the spec": ("does not take the arguments", argument("decoder", "latent", {"channels": 4})),
        "arguments: self": ("SceneViT", argument("encoder", "self", 1)),
        "arguments: text for a number": (
            "integer >= 1, not 'wide'",
            argument("decoder", "width", "wide"),
        ),
        "arguments: null for a number": (
            "integer >= 1, not None",
            argument("bottleneck", "channels", None),
        ),
        "arguments: a broken number": ("depth must be an integer >= 1, not 2.5", argument("encoder", "depth", 2.5)),
        "arguments: an object for a number": (
            "embed_dim must be an integer >= 1",
            argument("encoder", "embed_dim", {"a": 1}),
        ),
        "arguments: no choice": ("prediction must be", argument("decoder", "prediction", "noise")),
        "arguments: text for numbers": ("pixel_mean must be", argument("decoder", "pixel_mean", "grey")),
        "arguments: three numbers for two": ("learned_grid must be", argument("decoder", "learned_grid", [1, 2, 3])),
        "arguments: negative": ("channel", argument("bottleneck", "channels", -4)),
        "arguments: zero": ("embed_dim must be an integer >= 1, not 0", argument("encoder", "embed_dim", 0)),
        "arguments: a width of nothing": ("PatchFlowDecoder", argument("decoder", "width", 0)),
        "arguments: another size": ("do not fit its config", argument("decoder", "width", 32)),
        "arguments: more channels": ("do not fit its config", argument("bottleneck", "channels", 8)),
        "arguments: a huge width": (LARGE, argument("decoder", "width", 10**6)),
        "arguments: a huge number of channels": (LARGE, argument("bottleneck", "channels", 10**9)),
        "arguments: a huge picture": (LARGE, argument("encoder", "image_size", 10**6)),
        "arguments: a huge grid": (LARGE, argument("decoder", "learned_grid", [30_000, 30_000])),
        "arguments: no end of blocks": (LARGE, argument("decoder", "flow_depth", 10**12)),
        "arguments: a number without end": ("Overflow", argument("encoder", "embed_dim", 10**30)),
        "arguments: a model of the hub": (
            "timm has no model",
            encoder("uniflow.encoders.TimmEncoder", name="hf-hub:someone/evil"),
        ),
        "arguments: a model in a folder": (
            "timm has no model",
            encoder("uniflow.encoders.TimmEncoder", name="local-dir:../evil"),
        ),
    },
)


# ----- the folder


def links(folder, name, target):
    (folder / name).unlink()
    if target is not None:
        (folder / name).symlink_to(target)


def shards(folder):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {FC1: "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def folder_for_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()


def unreadable(folder, name):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (folder / name).chmod(0)


cases(
    links,
    {
        "folder: no weights": ("has no model.safetensors", "model.safetensors", None),
        "folder: no config": ("has no config.json", "config.json", None),
        "folder: a link to nothing": ("has no model.safetensors", "model.safetensors", "../nowhere"),
        "folder: a link to itself": ("has no model.safetensors", "model.safetensors", "model.safetensors"),
        "folder: a config that is linked to itself": ("has no config.json", "config.json", "config.json"),
        "folder: a config elsewhere that is none": (NO_JSON, "config.json", "/etc/passwd"),
    },
)
case("folder: shards that lead out of it", "has no model.safetensors")(shards)
cases(
    folder_for_file,
    {
        "folder: a folder for the weights": ("model.safetensors: a folder; give a regular file", "model.safetensors"),
        "folder: a folder for the config": ("config.json: a folder; give a regular file", "config.json"),
    },
)
cases(
    unreadable,
    {
        "folder: weights that may not be read": ("ermission", "model.safetensors"),
        "folder: a config that may not be read": ("ermission", "config.json"),
    },
)


@case("folder: linked to itself", "no tokenizer at")
def linked_folder(folder):
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)


@case("folder: empty", "has no config.json")
def empty_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


# ----- checkpoints: a file where the folder was


def checkpoint(folder, content):
    parts = json.loads((folder / "config.json").read_text())
    state = {f"tokenizer.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    shutil.rmtree(folder)
    content = content({"tokenizer": parts, "state_dict": state})
    if isinstance(content, bytes):
        folder.write_bytes(content)
    else:
        torch.save(content, folder)


def compressed(folder):
    """The same archive with its records compressed, and one of them of 64 MB of zeros."""
    checkpoint(folder, lambda old: old)
    with zipfile.ZipFile(folder) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(folder, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in records.items():
            new.writestr(name, b"\0" * 2**26 if name.endswith("/data/0") else content)


def with_state(change):
    def changed(content):
        name = f"tokenizer.{FC1}"
        return {**content, "state_dict": {**content["state_dict"], name: change(content["state_dict"][name])}}

    return changed


UNSAFE = "not a checkpoint that can be read safely"
NONE = "not a checkpoint of a uniflow tokenizer"
cases(
    checkpoint,
    {
        "checkpoint: empty": (UNSAFE, lambda old: b""),
        "checkpoint: text": (UNSAFE, lambda old: b"hello\n"),
        "checkpoint: a pickle": (UNSAFE, lambda old: pickle.dumps(Evil())),
        "checkpoint: an object in it": (UNSAFE, lambda old: {**old, "extra": Evil()}),
        "checkpoint: cut": (UNSAFE, lambda old: b"PK\3\4" + b"\0" * 100),
        "checkpoint: a list": (NONE, lambda old: [1, 2]),
        "checkpoint: of something else": (NONE, lambda old: {"state_dict": old["state_dict"]}),
        "checkpoint: no weights": (NONE, lambda old: {"tokenizer": old["tokenizer"]}),
        "checkpoint: weights that are a list": (NONE, lambda old: {**old, "state_dict": [1]}),
        "checkpoint: an average that is a list": (NONE, lambda old: {**old, "ema": [1]}),
        "checkpoint: a config that is a list": (NONE, lambda old: {**old, "tokenizer": [1]}),
        "checkpoint: weights that are numbers": ("not tensors", with_state(lambda tensor: 3)),
        "checkpoint: sparse weights": ("cannot be loaded", with_state(lambda tensor: tensor.to_sparse())),
        "checkpoint: weights without data": ("cannot be loaded", with_state(lambda tensor: tensor.to("meta"))),
        "checkpoint: a class in the current directory": (
            "import canary_module yourself",
            checkpoint_with_decoder("canary_module.Decoder"),
        ),
    },
)
case("checkpoint: compressed", "more than its own size")(compressed)


@case("checkpoint: safetensors", UNSAFE)
def bare_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    folder.write_bytes(content)
