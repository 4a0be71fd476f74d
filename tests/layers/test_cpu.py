"""What is computed otherwise on a CPU, and that it is the same."""

import copy

import pytest
import torch
from tiny import ENCODER, FLOW
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.layers.cpu import fuse_attention, onednn_is_faster, use_onednn


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    found = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec)).eval()
    nn.init.normal_(found.decoder.head.final_proj.weight, std=0.1)
    return found


def calls(model, *arguments):
    """The names of the operators that a forward pass runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        result = model(*arguments)
    return result, {event.key for event in profiler.key_averages()}


@torch.no_grad()
def test_onednn_computes_the_linear_layers_in_float32(tokenizer):
    images, noise = torch.rand(2, 3, 16, 24), torch.randn(2, 3, 16, 24)
    expected = tokenizer.reconstruct(images, noise=noise)
    fast = copy.deepcopy(tokenizer)
    layers = [m for m in fast.modules() if type(m) is nn.Linear]
    assert use_onednn(fast) == len(layers) > 10
    found, used = calls(lambda: copy.deepcopy(fast).reconstruct(images, noise=noise))
    assert "mkldnn::_linear_pointwise" in used
    assert not used & {"aten::addmm", "aten::linear"}
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert fast.state_dict().keys() == tokenizer.state_dict().keys()


@torch.no_grad()
def test_operations_of_onednn_are_counted(tokenizer):
    images = torch.rand(2, 3, 16, 24)
    totals = []
    for model in (tokenizer, copy.deepcopy(tokenizer)):
        if totals:
            use_onednn(model)
        with FlopCounterMode(display=False) as counter:
            model.encode(images)
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] > 0


@pytest.mark.parametrize(
    ("vendor", "capability", "faster"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("AuthenticAMD", "DEFAULT", False),
        ("GenuineIntel", "AVX512", False),
    ],
)
@pytest.mark.parametrize("linux", [True, False])
def test_where_onednn_is_faster(monkeypatch, tmp_path, vendor, capability, faster, linux):
    description = tmp_path / "cpuinfo"
    if linux:
        description.write_text(f"vendor_id : {vendor}\n")
    monkeypatch.setattr("uniflow.layers.cpu.Path", lambda path: description)
    monkeypatch.setattr("platform.processor", lambda: f"{vendor} Family 25")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: True)
    assert onednn_is_faster() == faster
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: False)
    assert not onednn_is_faster()


def test_onednn_keeps_away_from_gradients_autocast_and_other_types():
    layer = nn.Linear(8, 4)
    expected = copy.deepcopy(layer)
    use_onednn(layer)
    x = torch.randn(3, 8)
    layer(x).sum().backward()
    expected(x).sum().backward()
    assert torch.equal(layer.weight.grad, expected.weight.grad)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x), expected(x))
        assert torch.equal(layer.bfloat16()(x.bfloat16()), expected.bfloat16()(x.bfloat16()))
        compiled = torch.compile(layer.float(), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected.float()(x))


@torch.no_grad()
def test_attention_written_out_is_the_same(tokenizer):
    x = torch.rand(1, 3, 16, 16)
    expected, used = calls(tokenizer.encode, x)
    assert any("scaled_dot_product" in name for name in used)
    assert fuse_attention(tokenizer, False) == 4  # three blocks of the encoder, one of the decoder
    found, used = calls(tokenizer.encode, x)
    assert not any("scaled_dot_product" in name for name in used)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    fuse_attention(tokenizer)
    assert torch.equal(tokenizer.encode(x), expected)
