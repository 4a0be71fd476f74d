"""Checkpoints in pieces: reading is safe and complete, and replacing one leaves no gap."""

import importlib
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tiny import ENCODER, FLOW, same

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.cli import main
from uniflow.sharding.checkpoint import (
    META_NAME,
    load_into,
    read_meta,
    read_tensors,
)


@pytest.fixture
def tokenizer():
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    return Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec)).eval()


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    path = tmp_path / "last.ckpt"
    state = {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()}
    averages = {name: value + 1 for name, value in state.items() if "bottleneck" in name}
    dcp.save({"state_dict": state, "ema": averages, "optimizer_0": {"lr": 0.1}}, checkpoint_id=path)
    torch.save({"tokenizer": tokenizer.config(), "global_step": 3}, path / META_NAME)
    return path


def test_from_pretrained_reads_it_with_averages(checkpoint, tokenizer):
    read = Tokenizer.from_pretrained(checkpoint)
    assert same(read.encoder.state_dict(), tokenizer.encoder.state_dict())
    assert all(
        torch.equal(value, tokenizer.bottleneck.state_dict()[name] + 1)
        for name, value in read.bottleneck.state_dict().items()
    )


def test_consolidate_writes_a_tokenizer(checkpoint, tmp_path):
    assert main(["consolidate", str(checkpoint), str(tmp_path / "tokenizer")]) == 0
    read = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert same(read.state_dict(), Tokenizer.from_pretrained(checkpoint).state_dict())


def test_consolidate_names_a_missing_checkpoint(tmp_path, capsys):
    assert main(["consolidate", str(tmp_path / "none.ckpt"), str(tmp_path / "tokenizer")]) == 2
    assert "none.ckpt" in capsys.readouterr().err


class Harm:
    def __reduce__(self):
        return (print, ("harm",))


def test_an_index_that_holds_code_is_refused(checkpoint, capsys):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match="not the index"):
        read_tensors(checkpoint, "state_dict.")
    assert "harm" not in capsys.readouterr().out


def test_an_index_that_points_elsewhere_is_refused(checkpoint):
    path = checkpoint / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../" + info.relative_path
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="outside"):
        read_tensors(checkpoint, "state_dict.")


def test_meta_that_holds_code_is_refused(checkpoint):
    torch.save({"tokenizer": Harm()}, checkpoint / META_NAME)
    with pytest.raises(ValueError, match="damaged"):
        read_meta(checkpoint)
    with pytest.raises(ValueError, match="damaged"):
        Tokenizer.from_pretrained(checkpoint)


def test_values_that_hold_code_are_refused(tmp_path, capsys):
    dcp.save({"optimizer_0": {"lr": Harm()}}, checkpoint_id=tmp_path / "bad")
    with pytest.raises(ValueError, match="does not fit"):
        load_into({"optimizer_0": {"lr": 0.1}}, tmp_path / "bad")
    assert "harm" not in capsys.readouterr().out


def test_plain_values_are_read(checkpoint):
    state = {"optimizer_0": {"lr": 0.0}}
    load_into(state, checkpoint)
    assert state["optimizer_0"]["lr"] == 0.1


def test_a_missing_piece_is_one_line(checkpoint):
    next(checkpoint.glob("*.distcp")).unlink()
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        Tokenizer.from_pretrained(checkpoint)


def test_other_shapes_are_refused(checkpoint):
    name = next(iter(read_tensors(checkpoint, "state_dict.")))
    with pytest.raises(ValueError, match="does not fit"):
        load_into({f"state_dict.{name}": torch.zeros(7, 7, 7)}, checkpoint)


class Sets:
    """Pickled, it names `target` and sets attributes of it."""

    def __init__(self, module, name, state):
        self.target, self.state = (module, name), state

    def bytes(self):
        module, name = self.target
        state = pickle.dumps(self.state, protocol=2)[2:-1]
        return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + state + b"b."


@pytest.mark.parametrize(
    ("module", "name"),
    [("pathlib", "Path"), ("torch.serialization", "_get_layout"), ("torch", "Size"), ("torch", "float32"),
     ("torch.distributed.checkpoint.metadata", "Metadata")],
)  # fmt: skip
@pytest.mark.parametrize("state", [(None, {"exists": 1, "__code__": 1}), {"exists": 1}])
def test_an_index_cannot_change_the_classes_that_it_names(checkpoint, module, name, state):
    target = getattr(importlib.import_module(module), name)
    before = dict(vars(target)) if hasattr(target, "__dict__") else None
    (checkpoint / ".metadata").write_bytes(Sets(module, name, state).bytes())
    with pytest.raises(ValueError, match="not the index"):
        read_tensors(checkpoint, "state_dict.")
    assert before is None or dict(vars(target)) == before
    assert Path(checkpoint).exists() is True


def change_index(checkpoint, change):
    path = checkpoint / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def test_an_index_of_more_than_its_pieces_hold_is_refused(checkpoint):
    def grow(metadata):
        entry = next(e for e in metadata.state_dict_metadata.values() if hasattr(e, "size"))
        entry.size = torch.Size([2**40])

    change_index(checkpoint, grow)
    with pytest.raises(ValueError, match="bytes of tensors, and its pieces have"):
        read_tensors(checkpoint, "state_dict.")


@pytest.mark.parametrize("length", [-1, 2**70, "1"])
def test_an_index_with_wrong_numbers_is_refused(checkpoint, length):
    def spoil(metadata):
        next(iter(metadata.storage_data.values())).length = length

    change_index(checkpoint, spoil)
    with pytest.raises(ValueError, match="expected a whole number"):
        read_tensors(checkpoint, "state_dict.")


def test_pieces_that_are_compressed_are_refused(checkpoint):
    change_index(checkpoint, lambda m: [setattr(i, "transform_descriptors", ["zstd"]) for i in m.storage_data.values()])
    with pytest.raises(ValueError, match="compressed"):
        read_tensors(checkpoint, "state_dict.")


def test_a_piece_that_is_a_named_pipe_is_refused_at_once(checkpoint):
    piece = next(checkpoint.glob("*.distcp"))
    piece.unlink()
    os.mkfifo(piece)
    with pytest.raises(OSError, match="a named pipe"):
        read_tensors(checkpoint, "state_dict.")
