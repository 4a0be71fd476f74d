"""Teacher, distances, weightings and schedules."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from uniflow.distill import (
    Adaptive,
    DepthPrior,
    FrozenTeacher,
    LastLayer,
    LayerWeighting,
    UniformWeighting,
    cosine_distances,
    tokens_to_match,
)
from uniflow.encoders import EncoderOutput, SceneViT
from uniflow.training import ConstantSchedule, CosineSchedule, LinearSchedule, Piecewise, Warmup

FIXTURES = Path(__file__).parents[1] / "fixtures" / "losses"


@pytest.fixture(scope="module")
def reference():
    return load_file(FIXTURES / "training.safetensors"), json.loads((FIXTURES / "expected.json").read_text())


@pytest.mark.parametrize("case", ["independent", "correlated"])
@pytest.mark.parametrize(
    ("name", "weighting"),
    [
        ("beta0", Adaptive(0.0)),
        ("beta1", Adaptive(1.0)),
        ("beta2", Adaptive()),
        ("beta4", Adaptive(4.0)),
        ("beta0", DepthPrior()),
        ("uniform", UniformWeighting()),
    ],
)
def test_losses_weights_and_gradients_equal_the_reference(reference, case, name, weighting):
    tensors, expected = reference
    student = tensors[f"dist.{case}.H_student"].clone().requires_grad_()
    distances = cosine_distances(list(student), list(tensors[f"dist.{case}.H_teacher"]))
    weights = weighting(distances, progress=0.5)
    loss = (weights * distances).sum()
    values = expected[f"dist_{case}"][name]
    assert loss.item() == pytest.approx(values["loss"], abs=1e-6)
    if "weights" in values:
        assert weights.tolist() == pytest.approx(values["weights"], abs=1e-6)
    loss.backward()
    assert student.grad.norm().item() == pytest.approx(values["grad_norm_H_student"], abs=1e-6)
    if name == "beta2":
        gradient = tensors[f"dist.{case}.grad_H_student_beta2"]
        torch.testing.assert_close(student.grad.float(), gradient, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weighting", [UniformWeighting(), LastLayer(), DepthPrior(), Adaptive(), Adaptive(beta=200.0)])
@pytest.mark.parametrize("layers", [1, 6, 24])
def test_weights_sum_to_one_for_any_depth_and_carry_no_gradient(weighting, layers):
    distances = torch.linspace(0, 2, layers).requires_grad_()
    weights = weighting(distances, 0.3)
    assert weights.shape == (layers,)
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert not weights.requires_grad
    assert torch.isfinite(weights).all()


def test_each_weighting_differs():
    distances = torch.tensor([0.1, 0.5, 0.2])
    found = [tuple(w(distances, 0.0).tolist()) for w in (UniformWeighting(), LastLayer(), DepthPrior(), Adaptive())]
    assert len(set(found)) == 4
    assert found[1] == (0, 0, 1)
    assert Adaptive(beta=2.0, prior=0.0)(distances, 0.0).argmax() == 1


def test_a_weighting_follows_its_schedule():
    weighting = Adaptive(beta=LinearSchedule(0.0, 4.0))
    distances = torch.tensor([0.9, 0.1])
    assert weighting(distances, 0.0).tolist() == pytest.approx(DepthPrior()(distances, 0.0).tolist())
    assert weighting(distances, 1.0).tolist() == pytest.approx(Adaptive(4.0)(distances, 0.0).tolist())


def test_a_wrong_number_of_scores_is_refused():
    class Wrong(LayerWeighting):
        def scores(self, distances, progress):
            return distances[:-1]

    with pytest.raises(ValueError, match="one score a layer"):
        Wrong()(torch.ones(3), 0.0)


def test_distances_are_computed_in_float32_under_autocast():
    h = torch.randn(2, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = cosine_distances([h.bfloat16()], [h.bfloat16() * 2])
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(0, abs=1e-6)
    assert cosine_distances([h], [-h]).item() == pytest.approx(2, abs=1e-6)
    with pytest.raises(ValueError, match="same number of layers"):
        cosine_distances([h], [h, h])
    with pytest.raises(ValueError, match="layer 1"):
        cosine_distances([h], [h[:, 1:]])


def test_prefix_tokens_join_on_request():
    output = EncoderOutput((torch.zeros(1, 4, 2),), (torch.ones(1, 1, 2),), (2, 2))
    assert tokens_to_match(output, prefix=False)[0].shape == (1, 4, 2)
    assert tokens_to_match(output, prefix=True)[0].shape == (1, 5, 2)


def test_schedules_have_closed_forms():
    assert [ConstantSchedule(3.0)(p) for p in (0, 0.5, 1)] == [3, 3, 3]
    assert [LinearSchedule(1, 0)(p) for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert [CosineSchedule(1, 0)(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    warm = Warmup(0.5, LinearSchedule(2, 0))
    assert [warm(p) for p in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0, 1, 2, 1, 0])
    piecewise = Piecewise([0.2, 0.4, 0.4, 0.8], [1, 2, 5, 1])
    assert [piecewise(p) for p in (0, 0.3, 0.4, 0.6, 1)] == pytest.approx([1, 1.5, 5, 3, 1])
    with pytest.raises(ValueError, match="must increase"):
        Piecewise([0.5, 0.1], [0, 1])
    with pytest.raises(ValueError, match="same number of values"):
        Piecewise([0.5], [0, 1])
    with pytest.raises(ValueError, match="fraction"):
        Warmup(1.0)


def test_nothing_thaws_the_teacher():
    encoder = SceneViT(weights=None, depth=2, embed_dim=32, num_heads=2)
    teacher = FrozenTeacher(encoder)
    holder = nn.ModuleDict({"teacher": teacher})
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    with torch.no_grad():
        next(encoder.parameters()).add_(1)  # the teacher is a copy
    holder.train()
    holder.requires_grad_(True)
    teacher.train().requires_grad_(True)
    assert not any(m.training for m in teacher.modules())
    output = teacher(torch.rand(1, 3, 16, 16))
    assert not output.hidden_states[-1].requires_grad
    optimizer = torch.optim.SGD(holder.parameters(), lr=1.0)
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
