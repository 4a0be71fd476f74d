"""The projection that bottlenecks share, and the paper's bottleneck as it always was."""

import pytest
import torch
import torch.nn.functional as F
from tiny import ENCODER, output_of

from uniflow.bottleneck import MLPBottleneck
from uniflow.bottleneck.projection import ProjectedBottleneck
from uniflow.layers.init import preserve_variance_

SPEC = ENCODER().spec


@pytest.mark.parametrize("contiguous", [True, False])
def test_without_merging_keys_start_and_numbers_are_those_of_old_checkpoints(contiguous):
    torch.manual_seed(3)
    fc1, fc2 = torch.nn.Linear(SPEC.embed_dim, SPEC.embed_dim), torch.nn.Linear(SPEC.embed_dim, 8)
    preserve_variance_(fc1, fc2)
    torch.manual_seed(3)
    bottleneck = MLPBottleneck(SPEC, channels=8)
    assert list(bottleneck.state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert torch.equal(bottleneck.fc1.weight, fc1.weight)
    assert torch.equal(bottleneck.fc2.weight, fc2.weight)
    features = torch.randn(2, SPEC.embed_dim, 3, 5)
    if not contiguous:  # as an encoder's feature map is
        features = features.to(memory_format=torch.channels_last)
    expected = fc2(F.gelu(fc1(features.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
    latents, losses = bottleneck(output_of(features))
    assert torch.equal(latents, expected)
    assert losses == {}


def test_merged_tokens_are_read_row_by_row():
    bottleneck = MLPBottleneck(SPEC, channels=8, merge=2)
    assert bottleneck.fc1.weight.shape == (SPEC.embed_dim, 4 * SPEC.embed_dim)
    features = torch.randn(1, SPEC.embed_dim, 4, 6)
    square = features[0, :, 2:4, 4:6]
    tokens = torch.cat([square[:, 0, 0], square[:, 0, 1], square[:, 1, 0], square[:, 1, 1]])
    torch.testing.assert_close(
        bottleneck(output_of(features))[0][0, :, 1, 2], bottleneck.fc2(F.gelu(bottleneck.fc1(tokens)))
    )


class Normalized(MLPBottleneck):
    normalize_last = True

    def __init__(self, encoder):
        ProjectedBottleneck.__init__(self, encoder, 8)


def test_normalising_is_a_layer_norm_of_each_token():
    bottleneck = Normalized(SPEC)
    features = 5 + 3 * torch.randn(1, SPEC.embed_dim, 2, 2)
    token = features[0, :, 1, 0]
    token = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(
        bottleneck(output_of(features))[0][0, :, 1, 0], bottleneck.fc2(F.gelu(bottleneck.fc1(token)))
    )
