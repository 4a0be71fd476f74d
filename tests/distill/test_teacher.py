"""A teacher whose weights are rounded as autocast rounds them."""

import pytest
import torch
from tiny import ENCODER, fit, tiny_scenes, tiny_task

from uniflow.distill import FrozenTeacher
from uniflow.encoders import DINOv2, DINOv3, SigLIP

SMALL = {"weights": None, "depth": 2, "embed_dim": 64, "num_heads": 2}
ENCODERS = {
    "scene": ENCODER,
    "dinov2": lambda: DINOv2("s14", **SMALL),
    "dinov3": lambda: DINOv3("s16", **SMALL),
    "siglip": lambda: SigLIP("v2_b16_224", **SMALL),
}


def weight_bytes(module):
    return sum(p.numel() * p.element_size() for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ENCODERS)
def test_rounded_weights_give_the_same_states_under_autocast_bit_for_bit(family, dtype):
    torch.manual_seed(0)
    teacher = FrozenTeacher(ENCODERS[family]())
    images = torch.randint(0, 256, (2, 3, 2 * teacher.encoder.spec.patch_size, 4 * teacher.encoder.spec.patch_size))
    before = weight_bytes(teacher)
    with torch.autocast("cpu", dtype):
        expected = teacher(images.to(torch.uint8))
        teacher.round_weights(dtype)
        found = teacher(images.to(torch.uint8))
    for own, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert own.dtype == other.dtype
        assert torch.equal(own, other)
    assert weight_bytes(teacher) < 0.75 * before


def test_it_computes_under_that_autocast_wherever_it_is_called():
    teacher, images = FrozenTeacher(ENCODER()), torch.rand(1, 3, 16, 16)
    exact = teacher(images).hidden_states[-1]
    teacher.round_weights(torch.bfloat16)
    teacher.round_weights(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = teacher(images).hidden_states[-1]
    assert torch.equal(teacher(images).hidden_states[-1], expected)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(teacher(images).hidden_states[-1], expected)
    assert not torch.equal(expected, exact)
    torch.testing.assert_close(expected, exact, atol=0.1, rtol=0)


def test_other_types_are_refused():
    teacher = FrozenTeacher(ENCODER())
    teacher.round_weights(torch.bfloat16)
    with pytest.raises(ValueError, match="cannot become"):
        teacher.round_weights(torch.float16)
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        FrozenTeacher(ENCODER()).round_weights(torch.float32)


def test_training_is_the_same_with_it(tmp_path):
    def losses(rounded):
        task = tiny_task()
        task.configure_model()
        if rounded:
            task.teacher.round_weights(torch.bfloat16)
        return fit(task, tiny_scenes(), tmp_path, precision="bf16-mixed")[1]

    torch.manual_seed(0)
    expected = losses(False)
    torch.manual_seed(0)
    assert losses(True) == expected
