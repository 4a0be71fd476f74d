"""The flow head and its loss against the reference implementation's numbers."""

from contextlib import nullcontext

import pytest
import torch
from official_reference import loss_references, losses, reference_time_embedding, tolerance

pytestmark = pytest.mark.filterwarnings("ignore:a velocity-predicting")


@pytest.mark.parametrize("same_frequencies", [True, False], ids=["same_frequencies", "own_frequencies"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_loss_velocity_and_gradients_equal_the_reference(dtype, same_frequencies):
    expected = loss_references(dtype)
    with reference_time_embedding() if same_frequencies else nullcontext():
        found = losses(dtype)
    limit = tolerance(dtype, reference_frequencies=same_frequencies)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].double(), value.double(), atol=limit, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert {"flow_loss", "v_pred", "grad_norm_z"} <= expected.keys()
    assert len([name for name in expected if name.startswith("grad_norm ")]) == 36  # every parameter of the head


def test_the_recorded_loss():
    """The number itself, so that a fixture that is exchanged is noticed."""
    assert loss_references(torch.float32)["flow_loss"].item() == pytest.approx(3.79693723, abs=1e-8)
    assert loss_references(torch.float64)["flow_loss"].item() == pytest.approx(3.796936948, abs=1e-9)
