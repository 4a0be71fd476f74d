"""The flow head and its loss against the reference implementation's numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from uniflow.decoders import PatchFlowDecoder
from uniflow.decoders.layers import TimeEmbedding, sincos_2d
from uniflow.specs import LatentSpec

FIXTURES = Path(__file__).parents[1] / "fixtures"
# Names of the reference implementation's flow head -> ours.
RENAMES = {
    "time_embed.mlp.0.": "time_embed.fc1.",
    "time_embed.mlp.2.": "time_embed.fc2.",
    "res_blocks.": "blocks.",
    ".in_ln.": ".norm.",
    ".adaLN_modulation.1.": ".modulation.",
    "final_layer.modulation.": "final_modulation.",
    "final_layer.linear.": "final_proj.",
}


def ours(name: str) -> str:
    for old, new in RENAMES.items():
        name = name.replace(old, new)
    return name


@pytest.fixture
def decoder():
    """A decoder with the reference flow head, in float64."""
    tensors = load_file(FIXTURES / "official_tiny" / "model.safetensors")
    decoder = PatchFlowDecoder(
        LatentSpec(channels=16, patch_size=14), width=64, num_heads=4, global_depth=0, flow_depth=3
    )
    prefix = "flow_head.net."
    head = {ours(k.removeprefix(prefix)): v for k, v in tensors.items() if k.startswith(prefix)}
    decoder.head.load_state_dict(head)
    return decoder.double()


@pytest.fixture
def batch():
    return {k: v.double() for k, v in load_file(FIXTURES / "losses" / "training.safetensors").items()}


@pytest.mark.filterwarnings("ignore:a velocity-predicting")
def test_loss_and_gradients_equal_the_reference(decoder, batch):
    expected = json.loads((FIXTURES / "losses" / "expected.json").read_text())
    z = batch["z"].requires_grad_()
    loss = decoder.flow_loss(z, batch["x1"], batch["x0"], batch["t"])
    assert loss.item() == pytest.approx(expected["flow_loss_f64"], abs=1e-6)
    loss.backward()
    assert float(z.grad.norm()) == pytest.approx(expected["grad_norm_z_f64"], abs=1e-6)
    torch.testing.assert_close(z.grad, batch["grad_z"], atol=1e-6, rtol=0)
    norms = {ours(k): v for k, v in expected["grad_norms_f64"].items()}
    found = {name: float(p.grad.norm()) for name, p in decoder.head.named_parameters()}
    assert found == pytest.approx(norms, abs=1e-6)


@pytest.mark.filterwarnings("ignore:a velocity-predicting")
def test_velocity_equals_the_reference(decoder, batch):
    x_t = (1 - batch["t"][:, None]) * batch["x0"] + batch["t"][:, None] * batch["x1"]
    velocity = decoder.velocity(x_t, batch["t"], batch["z"])
    # The reference's float32 exp() of the time frequencies differs from this machine's by one unit in the last place.
    torch.testing.assert_close(velocity, batch["v_pred_f64"], atol=2e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:a velocity-predicting")
def test_float32_loss(decoder, batch):
    single = {k: v.float() for k, v in batch.items()}
    loss = decoder.float().flow_loss(single["z"], single["x1"], single["x0"], single["t"])
    assert loss.item() == pytest.approx(3.79693723, abs=1e-5)


def test_embeddings_equal_the_reference():
    outputs = load_file(FIXTURES / "official_tiny" / "outputs.safetensors")
    table = outputs["sincos_pos_embed"].reshape(1, -1, 64)
    side = int(table.shape[1] ** 0.5)
    torch.testing.assert_close(sincos_2d(64, (side, side)), table, atol=1e-6, rtol=0)
    embedding = TimeEmbedding(64)
    seen = []
    embedding.fc1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    embedding(torch.tensor([0, 250, 333.25, 999]) / 1000)
    expected = outputs["timestep_embedding_t0_250_333.25_999"]
    torch.testing.assert_close(seen[0], expected, atol=2e-4, rtol=0)  # t/1000*1000 rounds: 1e-7 of an angle of 999
