"""Blocks: found in any model, and checkpointed and compiled without changing names, values or copies."""

import copy

import pytest
import torch
from tiny import ENCODER, FLOW, fit, same, tiny_scenes, tiny_task
from torch import nn

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.layers.blocks import checkpoint_blocks, compile_blocks, find_blocks, restore_blocks
from uniflow.tokenizer.summary import model_summary


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    model = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec))
    with torch.no_grad():
        for parameter in model.parameters():  # layers that start as zero would hide the others
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def step(tokenizer, size=32):
    """Loss and gradients of one training step."""
    torch.manual_seed(1)
    images = torch.rand(2, 3, size, size)
    latents, _ = tokenizer.bottleneck(tokenizer.encoder(images))
    loss = sum(tokenizer.decoder.loss(latents, images).values())
    tokenizer.zero_grad()
    loss.backward()
    return loss.item(), [p.grad.clone() for p in tokenizer.parameters() if p.grad is not None]


def test_blocks_of_a_tokenizer(tokenizer):
    names = [type(block).__name__ for block in find_blocks(tokenizer)]
    assert names == ["Block"] * 3 + ["Block"] + ["AdaLNBlock"] * 2  # encoder, global blocks, patch MLP


def test_blocks_of_other_models():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))  # leaves are no blocks
            self.stages = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))
            self.heads = nn.ModuleList([nn.Linear(2, 2), nn.GELU()])

    model = Model()
    assert find_blocks(model) == [*model.stages, model.heads[0]]


def count_saved(tokenizer):
    """Bytes that one training step keeps for its backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in tokenizer.parameters()}
    saved = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(tokenizer)
    return sum(saved.values())


@pytest.mark.parametrize("mode", [True, "selective"])
def test_checkpointing_keeps_less_and_changes_nothing(tokenizer, mode):
    loss, gradients = step(tokenizer)
    before, names = count_saved(tokenizer), list(tokenizer.state_dict())
    checkpoint_blocks(find_blocks(tokenizer), mode)
    again, others = step(tokenizer)
    assert again == loss
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    assert list(tokenizer.state_dict()) == names
    assert count_saved(tokenizer) < 0.7 * before


def test_checkpointing_of_no_known_kind_is_refused(tokenizer):
    with pytest.raises(ValueError, match="must be true, false or 'selective', not 'some'"):
        checkpoint_blocks(find_blocks(tokenizer), "some")
    before = count_saved(tokenizer)
    checkpoint_blocks(find_blocks(tokenizer), False)
    assert count_saved(tokenizer) == before


@pytest.mark.parametrize("mode", [False, True, "selective"])
def test_compiled_blocks_compute_the_same_without_a_break(tokenizer, mode):
    loss, gradients = step(tokenizer)
    names = list(tokenizer.state_dict())
    checkpoint_blocks(find_blocks(tokenizer), mode)
    compile_blocks(find_blocks(tokenizer), backend="aot_eager")
    again, others = step(tokenizer)
    assert again == pytest.approx(loss, abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, others, strict=True))
    assert list(tokenizer.state_dict()) == names


def test_further_sizes_compile_once(tokenizer):
    torch._dynamo.reset()  # it remembers the sizes of other tests
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    compile_blocks(find_blocks(tokenizer), backend=backend)
    counts = []
    for size in (32, 48, 64, 40):
        with torch.no_grad():
            tokenizer.encoder(torch.rand(2, 3, size, size))
        counts.append(len(seen))
    assert counts == [1, 2, 2, 2]  # three blocks share one graph, and further sizes another


def test_copies_are_bound_to_themselves(tokenizer):
    checkpoint_blocks(find_blocks(tokenizer))
    twin = copy.deepcopy(tokenizer)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert step(twin)[0] != step(tokenizer)[0]


def test_restored_blocks_are_plain(tokenizer):
    blocks = find_blocks(tokenizer)
    checkpoint_blocks(blocks)
    compile_blocks(blocks, backend="aot_eager")
    assert all("forward" in block.__dict__ for block in blocks)
    restore_blocks(tokenizer)
    assert not any("forward" in block.__dict__ for block in blocks)


def test_summary_of_a_compiled_tokenizer(tokenizer):
    plain = model_summary(tokenizer)
    compile_blocks(find_blocks(tokenizer))
    assert model_summary(tokenizer) == plain


@pytest.mark.parametrize(
    ("option", "value"),
    [("activation_checkpointing", True), ("activation_checkpointing", "selective"), ("compile_blocks", True)],
)
def test_options_of_the_task(tmp_path, option, value, monkeypatch):
    def eager(forward, **options):
        assert options == {"fullgraph": True}
        calls.append(forward)
        return lambda *args, **kwargs: forward(*args, **kwargs)

    calls: list = []
    monkeypatch.setattr(torch, "compile", eager)
    from uniflow.layers import blocks

    blocks._compiled.cache_clear()
    plain, changed = tiny_task(), tiny_task(**{option: value})
    _, expected = fit(plain, tiny_scenes(), tmp_path, steps=2)
    _, losses = fit(changed, tiny_scenes(), tmp_path, steps=2)
    blocks._compiled.cache_clear()
    assert losses == expected
    assert bool(calls) == (option == "compile_blocks")
    changed_blocks = [m for m in changed.modules() if "forward" in m.__dict__]
    assert len(changed_blocks) == 6
    assert not any("forward" in m.__dict__ for m in plain.modules())
    assert same(changed.state_dict(), plain.state_dict())
