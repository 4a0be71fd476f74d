"""What every decoder of the package has to do, and what the settings of each change."""

import inspect

import pytest
import torch

import uniflow.decoders
from uniflow.core.part import build_part, part_config
from uniflow.core.specs import LatentSpec
from uniflow.decoders import ConvDecoder, PatchFlowDecoder, PixelDecoder, RegressionDecoder, ViTDecoder
from uniflow.flow import data_to_velocity, velocity_target, velocity_to_data
from uniflow.layers.grid import PositionEmbedding, patchify, sincos_2d, unpatchify

SPEC = LatentSpec(channels=8, patch_size=4)
TINY = {
    PatchFlowDecoder: {"width": 48, "num_heads": 2, "global_depth": 1, "flow_depth": 2},
    RegressionDecoder: {"width": 48, "num_heads": 2, "global_depth": 1, "head_depth": 2},
    ViTDecoder: {"width": 48, "num_heads": 2, "depth": 2},
    ConvDecoder: {"width": 32, "min_width": 8, "depth": 1, "groups": 4},
}
DECODERS = [
    cls
    for cls in vars(uniflow.decoders).values()
    if inspect.isclass(cls) and issubclass(cls, PixelDecoder) and not inspect.isabstract(cls)
]


def make(cls=PatchFlowDecoder, **kwargs):
    torch.manual_seed(0)
    decoder = cls(SPEC, **(TINY[cls] | kwargs))
    with torch.no_grad():
        for parameter in decoder.parameters():  # zero-initialised layers would hide everything
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return decoder


def test_every_decoder_is_in_this_contract():
    assert set(DECODERS) == set(TINY)


@pytest.mark.parametrize("cls", DECODERS)
@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_loss_and_decode(cls, grid):
    decoder = make(cls)
    latents = torch.randn(2, 8, *grid, requires_grad=True)
    images = torch.rand(2, 3, 4 * grid[0], 4 * grid[1])
    losses = decoder.loss(latents, images)
    total = sum(losses.values())
    assert total.ndim == 0
    assert total.dtype == torch.float32
    total.backward()
    assert latents.grad.abs().sum() > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in decoder.parameters())
    decoded = decoder.decode(latents.detach())
    assert decoded.shape == images.shape
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = decoder.loss(latents.detach(), images)
        assert all(v.dtype == torch.float32 for v in low.values())
        assert decoder.decode(latents.detach()).dtype == torch.float32


@pytest.mark.parametrize("cls", DECODERS)
def test_the_estimate_comes_with_the_same_loss(cls):
    decoder = make(cls)
    latents, images = torch.randn(2, 8, 2, 3, requires_grad=True), torch.rand(2, 3, 8, 12)
    torch.manual_seed(3)
    alone = decoder.loss(latents, images)
    torch.manual_seed(3)
    losses, estimate = decoder.loss_and_estimate(latents, images)
    assert losses.keys() == alone.keys()
    assert all(torch.equal(losses[name], alone[name]) for name in alone)
    assert estimate.shape == images.shape
    estimate.square().mean().backward()
    assert latents.grad.abs().sum() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert decoder.loss_and_estimate(latents.detach(), images)[1].dtype == torch.float32


@pytest.mark.parametrize("cls", DECODERS)
def test_a_decoder_that_knows_no_estimate_decodes_one(cls):
    decoder = make(cls)
    latents, images = torch.randn(2, 8, 2, 3), torch.rand(2, 3, 8, 12)
    torch.manual_seed(3)
    losses, estimate = PixelDecoder.loss_and_estimate(decoder, latents, images)
    torch.manual_seed(3)
    assert all(torch.equal(losses[name], loss) for name, loss in decoder.loss(latents, images).items())
    assert torch.equal(estimate, decoder.decode(latents))
    if cls is not PatchFlowDecoder:  # what is painted in one go is its own estimate
        assert torch.equal(decoder.loss_and_estimate(latents, images)[1], estimate)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_a_flow_estimates_from_the_pass_of_its_loss(prediction):
    decoder = make(prediction=prediction, pixel_mean=(0.4, 0.5, 0.6))
    latents, images, noise = torch.randn(2, 8, 2, 3), torch.rand(2, 3, 8, 12), torch.randn(2, 6, 48)
    passes = []
    decoder.head.register_forward_hook(lambda *_: passes.append(1))

    def estimate(t):
        decoder.draw = lambda data: (noise, torch.full((2, 6), t))
        return decoder.loss_and_estimate(latents, images)[1]

    at_noise = estimate(0.0)
    assert len(passes) == 1
    torch.testing.assert_close(at_noise, decoder.decode(latents, noise=unpatchify(noise, 4, (2, 3))))
    if prediction == "velocity":  # x_t + (1 - t) v, with nothing left to go at t = 1
        torch.testing.assert_close(estimate(1.0), images)
    # A velocity at x_t and the data that it implies are the same prediction.
    x_t, t = torch.randn(3, 48), torch.rand(3) * 0.9
    velocity = decoder.velocity(x_t, t, torch.randn(3, 48))
    implied = velocity_to_data(velocity, x_t, t[:, None])
    torch.testing.assert_close(data_to_velocity(implied, x_t, t[:, None]), velocity, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cls", DECODERS)
def test_training_lowers_the_loss(cls):
    decoder = make(cls, **({"prediction": "data"} if cls is PatchFlowDecoder else {}))
    torch.manual_seed(1)
    latents, images = torch.randn(8, 8, 2, 2), torch.rand(8, 3, 1, 1).expand(8, 3, 8, 8)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)

    def error():
        return (decoder.decode(latents, noise=torch.zeros(8, 3, 8, 8)) - images).square().mean().item()

    before = error()
    for _ in range(100):
        optimizer.zero_grad()
        sum(decoder.loss(latents, images).values()).backward()
        optimizer.step()
    assert error() < 0.5 * before


@pytest.mark.parametrize("cls", DECODERS)
def test_it_is_rebuilt_from_its_config(cls):
    decoder = make(cls)
    again = build_part(part_config(decoder), PixelDecoder, SPEC)
    again.load_state_dict(decoder.state_dict())
    latents, noise = torch.randn(1, 8, 2, 2), torch.randn(1, 3, 8, 8)
    assert torch.equal(again.decode(latents, noise=noise), decoder.decode(latents, noise=noise))


@pytest.mark.parametrize(
    "change",
    [
        {"prediction": "data"},
        {"uniform_share": 1.0},
        {"end_point_mass": 0.9},
        {"loss_on": "data"},
        {"condition_dropout": 0.9},
        {"pixel_mean": (0.4, 0.5, 0.6)},
        {"pixel_std": (0.2, 0.2, 0.2)},
    ],
    ids=str,
)
def test_training_settings_change_the_loss(change):
    latents, images = torch.randn(4, 8, 3, 3), torch.rand(4, 3, 12, 12)

    def loss(**kwargs):
        decoder = make(**kwargs)
        torch.manual_seed(3)
        return decoder.loss(latents, images)["flow"].item()

    assert loss() == loss()
    assert loss(**change) != loss()


@pytest.mark.parametrize(
    "change",
    [
        {"guidance": 1.5},
        {"step_schedule": "power", "step_power": 0.25},
        {"start": "zero"},
        {"prediction": "data"},
        {"pixel_mean": (0.4, 0.5, 0.6)},
        {"global_depth": 0},
        {"flow_depth": 1},
    ],
    ids=str,
)
def test_decoding_settings_change_the_picture(change):
    latents = torch.randn(1, 8, 3, 3)

    def picture(**kwargs):
        return make(**kwargs).decode(latents, steps=3, generator=torch.Generator().manual_seed(0))

    assert torch.equal(picture(), picture())
    assert not torch.equal(picture(**change), picture())


def test_zero_start_equals_given_zero_noise():
    latents = torch.randn(1, 8, 3, 3)
    assert torch.equal(make(start="zero").decode(latents), make().decode(latents, noise=torch.zeros(1, 3, 12, 12)))


def test_without_dropout_the_loss_is_the_velocity_error():
    decoder = make()
    condition, data, noise, t = torch.randn(5, 48), torch.randn(5, 48), torch.randn(5, 48), torch.rand(5)
    velocity = decoder.velocity((1 - t)[:, None] * noise + t[:, None] * data, t, condition)
    expected = (velocity - velocity_target(noise, data)).square().mean()
    torch.testing.assert_close(decoder.flow_loss(condition, data, noise, t), expected)


def test_a_data_predictor_that_knows_the_picture_paints_it_in_any_number_of_steps():
    decoder = make(prediction="data", pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1))
    images = torch.rand(1, 3, 12, 12)
    decoder.head.forward = lambda condition, x_t, t: patchify(images, 4)
    for steps in (1, 2, 10):
        # The last step of 10 starts at t = 0.9, well before the floor of 1 - t.
        torch.testing.assert_close(decoder.decode(torch.randn(1, 8, 3, 3), steps=steps), images, atol=1e-5, rtol=0)


def test_a_narrow_velocity_network_is_warned_about():
    with pytest.warns(UserWarning, match="set width >= 48 or prediction: data"):
        PatchFlowDecoder(SPEC, width=32, num_heads=2, global_depth=0, flow_depth=1)


@pytest.mark.filterwarnings("error")
def test_a_data_network_may_be_narrow():
    PatchFlowDecoder(SPEC, width=32, num_heads=2, global_depth=0, flow_depth=1, prediction="data")


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="divisible by its num_heads 5"):
        make(num_heads=5)
    with pytest.raises(ValueError, match="end_point_mass"):
        make(end_point_mass=1.5)
    with pytest.raises(ValueError, match="width divisible by 4"):
        sincos_2d(30, (2, 2))


def test_patchify_order_and_inverse():
    images = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(patches[1, 4].view(3, 4, 4), images[1, :, 4:8, 4:8])
    assert torch.equal(unpatchify(patches, 4, (2, 3)), images)


@pytest.mark.parametrize("learned_grid", [None, (3, 4)])
def test_position_embeddings_work_at_any_grid(learned_grid):
    embedding = PositionEmbedding(16, learned_grid)
    for grid in [(3, 4), (1, 1), (7, 2)]:
        tokens = torch.zeros(2, grid[0] * grid[1], 16)
        added = embedding(tokens, grid)
        assert added.shape == tokens.shape
        if learned_grid is None or grid == learned_grid:
            torch.testing.assert_close(added[0], sincos_2d(16, grid)[0])
    assert len(list(embedding.parameters())) == (0 if learned_grid is None else 1)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_a_loss_on_data_weighs_the_velocitys_error_by_the_remaining_time(prediction):
    decoder = make(prediction=prediction)
    torch.manual_seed(1)
    data, noise, condition = torch.randn(2, 6, 48), torch.randn(2, 6, 48), torch.randn(2, 6, 48)
    t = torch.rand(2, 6) * 0.9
    error = decoder.velocity((1 - t)[..., None] * noise + t[..., None] * data, t, condition) - (data - noise)
    assert decoder.flow_loss(condition, data, noise, t).item() == pytest.approx(error.square().mean().item(), rel=1e-5)
    decoder.loss_on = "data"
    expected = (error * (1 - t)[..., None]).square().mean()
    assert decoder.flow_loss(condition, data, noise, t).item() == pytest.approx(expected.item(), rel=1e-5)
