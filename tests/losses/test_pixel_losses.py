"""The losses on painted images: LPIPS against torchmetrics', each side of the adversarial game against its own loss."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as reference
from lpips_weights import SHORT, write_lpips
from safetensors.torch import load_file

from uniflow.core.part import build_part, part_config
from uniflow.losses import Adversarial, Perceptual, PixelLoss


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Backbone -> path of its file."""
    folder = tmp_path_factory.mktemp("lpips")
    return {backbone: write_lpips(folder / f"{backbone}.safetensors", backbone) for backbone in SHORT}


def torchmetrics_lpips(path, backbone):
    with torch.device("meta"):  # nothing random, nothing downloaded
        network = reference._LPIPS(pretrained=False, net=SHORT[backbone], pnet_rand=True)
    network.scaling_layer = reference.ScalingLayer()
    tensors = load_file(path)
    own = network.state_dict()
    state = {k: tensors["features." + k.split(".", 2)[2]] for k in own if k.startswith("net.")}
    state |= {k: tensors[k.replace("lins.", "lin")] for k in own if k.startswith("lin")}
    network.load_state_dict(state, assign=True)
    return network.eval()


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(2, 3, 32, 40, generator=generator) for _ in range(2))


@pytest.mark.parametrize("backbone", SHORT)
def test_perceptual_is_lpips(weights, pair, backbone):
    estimate, images = pair
    ours, theirs = estimate.clone().requires_grad_(), estimate.clone().requires_grad_()
    loss = Perceptual(weights[backbone], backbone, weight=2.0)(ours, images)
    expected = 2.0 * torchmetrics_lpips(weights[backbone], backbone)(theirs, images, normalize=True).mean()
    assert list(loss) == ["perceptual"]
    assert expected > 0.01
    torch.testing.assert_close(loss["perceptual"], expected, rtol=1e-5, atol=0)
    loss["perceptual"].backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-7)


def test_perceptual_of_equal_images_is_zero_with_a_finite_gradient(weights):
    images = torch.zeros(1, 3, 32, 32)  # flat: many activations are zero
    estimate = images.clone().requires_grad_()
    loss = Perceptual(weights["alexnet"], "alexnet")(estimate, images)["perceptual"]
    loss.backward()
    assert loss == 0
    assert torch.isfinite(estimate.grad).all()


def test_perceptual_keeps_its_network_out_of_the_module(weights, pair):
    loss = Perceptual(weights["alexnet"], "alexnet").train()
    assert not loss.state_dict()
    assert not list(loss.parameters())
    assert not any(module.training for module in loss._network.modules())
    assert not any(p.requires_grad for p in loss._network.parameters())
    estimate, images = pair
    in_full = loss(estimate, images)["perceptual"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(estimate, images)["perceptual"], in_full)
    assert loss.bfloat16()(estimate.bfloat16(), images)["perceptual"].dtype == torch.float32


def test_perceptual_refuses_what_it_cannot_use(weights, tmp_path, pair):
    vgg, alexnet = weights["vgg16"], weights["alexnet"]
    with pytest.raises(FileNotFoundError, match=r"no such file: 'none.safetensors'; docs/decoders.md has a script"):
        Perceptual("none.safetensors")
    with pytest.raises(ValueError, match=r"no LPIPS for vgg16: missing or misshapen are features\.0\.weight.* more"):
        Perceptual(alexnet)
    with pytest.raises(ValueError, match="one of vgg16, alexnet, got 'vgg19'"):
        Perceptual(vgg, "vgg19")
    (tmp_path / "a.pth").write_text("no tensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        Perceptual(str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match=r"Perceptual\.weight must be a finite number >= 0"):
        Perceptual(alexnet, "alexnet", weight=-1)
    with pytest.raises(ValueError, match="alexnet needs images of at least 31 pixels a side, got 30 x 64"):
        Perceptual(alexnet, "alexnet")(torch.rand(1, 3, 30, 64), torch.rand(1, 3, 30, 64))
    checksum = hashlib.sha256(Path(alexnet).read_bytes()).hexdigest()
    assert Perceptual(alexnet, "alexnet", sha256=checksum.upper())(*pair)
    with pytest.raises(ValueError, match=f"SHA-256 {checksum}, expected 00ff"):
        Perceptual(alexnet, "alexnet", sha256="00ff")


@pytest.mark.parametrize(("backbone", "side"), [("vgg16", 16), ("alexnet", 31)])
def test_the_smallest_images_work(weights, backbone, side):
    assert Perceptual(weights[backbone], backbone)(torch.zeros(1, 3, side, side), torch.ones(1, 3, side, side))


def adversarial(**kwargs):
    torch.manual_seed(0)
    return Adversarial(**({"weight": 0.3, "width": 8, "depth": 2} | kwargs))


def test_each_side_of_the_game_has_its_own_gradient(pair):
    estimate, images = pair
    estimate.requires_grad_()
    loss = adversarial()
    sum(loss(estimate, images).values()).backward()
    discriminator = loss.discriminator
    true, painted = discriminator(images * 2 - 1), discriminator(estimate * 2 - 1)
    [expected] = torch.autograd.grad(-0.3 * painted.mean(), [estimate], retain_graph=True)
    torch.testing.assert_close(estimate.grad, expected)
    assert expected.abs().sum() > 0
    hinge = 0.5 * ((1 - true).clamp_min(0).mean() + (1 + painted).clamp_min(0).mean())
    gradients = torch.autograd.grad(hinge, list(discriminator.parameters()))
    for parameter, gradient in zip(discriminator.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
        assert gradient.abs().sum() > 0
    terms = loss(estimate, images)
    assert list(terms) == ["adversarial", "discriminator"]
    torch.testing.assert_close(terms["adversarial"], -0.3 * painted.mean())
    torch.testing.assert_close(terms["discriminator"], hinge)


def test_the_discriminator_learns_to_tell(pair):
    loss, images = adversarial(), torch.rand(4, 3, 16, 16)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    start = loss(images.mean(dim=(2, 3), keepdim=True).expand_as(images), images)
    for _ in range(40):
        optimizer.zero_grad()
        terms = loss(images.mean(dim=(2, 3), keepdim=True).expand_as(images), images)
        sum(terms.values()).backward()
        optimizer.step()
    assert terms["discriminator"] < 0.3 * start["discriminator"]
    assert terms["adversarial"] > start["adversarial"]


@pytest.mark.parametrize("change", [{"weight": 1.0}, {"width": 16}, {"depth": 3}], ids=str)
def test_adversarial_settings_change_the_losses(pair, change):
    estimate, images = pair
    terms = adversarial(**change)(estimate, images)
    assert terms["adversarial"] != adversarial()(estimate, images)["adversarial"]
    same = terms["discriminator"] == adversarial()(estimate, images)["discriminator"]
    assert same == (change == {"weight": 1.0})  # the discriminator's own loss is not weighted


def test_the_discriminator_judges_each_image_alone(pair):
    estimate, images = pair
    loss = adversarial()
    halves = [loss(estimate[i : i + 1], images[i : i + 1]) for i in range(2)]
    for name, value in loss(estimate, images).items():
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2)


def test_adversarial_precision(pair):
    estimate, images = pair
    loss = adversarial()
    in_full = loss(estimate, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(value, in_full[name]) for name, value in loss(estimate, images).items())
    assert all(value.dtype == torch.float32 for value in loss.bfloat16()(estimate, images).values())


def test_adversarial_refuses_what_it_cannot_use(pair):
    with pytest.raises(ValueError, match="width must be a multiple of 8, got 12"):
        adversarial(width=12)
    with pytest.raises(ValueError, match="depth must be an integer >= 1, got 0"):
        adversarial(depth=0)
    with pytest.raises(ValueError, match=r"Adversarial\.weight must be a finite number >= 0, got -1"):
        adversarial(weight=-1)
    with pytest.raises(ValueError, match="depth 6 needs images of at least 64 pixels a side, got 32 x 40"):
        adversarial(depth=6)(*pair)


def test_pixel_losses_are_parts(weights):
    for loss in (adversarial(), Perceptual(weights["alexnet"], "alexnet", weight=0.5)):
        again = build_part(part_config(loss), PixelLoss)
        assert again.init_args == loss.init_args
        assert again.weight == loss.weight
