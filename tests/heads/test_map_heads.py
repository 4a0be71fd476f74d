"""Heads that predict maps: shapes on any source, losses by hand, and that each setting does what it says."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.features import BlankSource
from uniflow.heads import DPTDepth, LinearDepth, LinearSegmentation, Mask2Former, UPerNet
from uniflow.heads.depth import gradient_loss

SPEC = FeatureSpec(embed_dim=16, patch_size=8, num_layers=4, num_prefix_tokens=1, image_size=64)
ONE = FeatureSpec(embed_dim=16, patch_size=8, num_layers=1, num_prefix_tokens=0, image_size=64)
SMALL_DPT = partial(DPTDepth, width=8, neck=(8, 8, 8, 8))
HEADS = {
    "linear": partial(LinearSegmentation, num_classes=5),
    "upernet": partial(UPerNet, num_classes=5, width=8),
    "linear_depth": partial(LinearDepth, bins=16),
    "dpt": SMALL_DPT,
}


def features(spec=SPEC, grid=(3, 5), images=2):
    generator = torch.Generator().manual_seed(0)
    shape = (images, grid[0] * grid[1], spec.embed_dim)
    states = tuple(torch.randn(shape, generator=generator) for _ in range(spec.num_layers))
    prefix = torch.randn(images, spec.num_prefix_tokens, spec.embed_dim, generator=generator)
    return EncoderOutput(states, (prefix,) * spec.num_layers, grid)


def make(head, spec=SPEC, **settings):
    torch.manual_seed(0)
    return head(spec, **settings)


def batch(**fields):
    return {"image": torch.zeros(2, 3, 24, 40), **fields}


@pytest.mark.parametrize("spec", [SPEC, ONE], ids=["four layers", "one map"])
@pytest.mark.parametrize("name", HEADS)
def test_a_prediction_has_the_images_pixels_and_its_loss_a_gradient(name, spec):
    head = make(HEADS[name], spec)
    prediction = head(features(spec))
    assert prediction.shape == (2, 5 if "depth" not in name and name != "dpt" else 1, 24, 40)
    assert prediction.dtype == torch.float32
    generator = torch.Generator().manual_seed(1)
    target = {"mask": torch.randint(0, 5, (2, 24, 40), generator=generator), "depth": torch.rand(2, 24, 40) * 9}
    head.loss(prediction, batch(**target)).backward()
    gradients = {name: p.grad for name, p in head.named_parameters()}
    missing = [name for name, gradient in gradients.items() if gradient is None]
    # DPT's first fusion block has nothing to add to what it starts from.
    assert all("fusion_stage.layers.0.residual_layer1" in name for name in missing)
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


@pytest.mark.parametrize("name", ["linear", "linear_depth"])
def test_blank_features_give_every_pixel_the_same_answer(name):
    source = BlankSource(patch_size=8, embed_dim=16)
    prediction = make(HEADS[name], source.spec)(source(torch.zeros(2, 3, 32, 32))).detach()
    torch.testing.assert_close(prediction, prediction[:1, :, :1, :1].expand_as(prediction))


def test_cross_entropy_is_that_of_the_pixels_with_a_class():
    head = make(HEADS["linear"])
    prediction = torch.randn(2, 5, 24, 40, generator=torch.Generator().manual_seed(2))
    mask = torch.randint(0, 5, (2, 24, 40), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    mask[:, :10] = 255
    expected = F.cross_entropy(prediction[:, :, 10:], mask[:, 10:].long())
    torch.testing.assert_close(head.loss(prediction, batch(mask=mask)), expected)
    changed = prediction.clone()
    changed[:, :, :10] = 9.0
    torch.testing.assert_close(head.loss(changed, batch(mask=mask)), expected)
    assert head.loss(prediction, batch(mask=torch.full_like(mask, 255))) == 0


def test_labels_are_not_reduced_by_the_head():
    """Label 0 is a class of its own, and predicting it is right."""
    head = make(HEADS["linear"])
    mask = torch.zeros(2, 24, 40, dtype=torch.uint8)
    right = F.one_hot(mask.long(), 5).movedim(-1, 1) * 50.0
    metrics = head.metrics()
    head.update_metrics(metrics, right, batch(mask=mask))
    assert head.loss(right, batch(mask=mask)) < 1e-6
    assert metrics.compute()["miou"] == 1


def test_predictions_are_resized_to_the_mask_and_padding_is_cut():
    head = make(HEADS["linear"])
    logits = torch.zeros(2, 5, 24, 40)
    logits[:, 1], logits[:, 2, :, 37:] = 1.0, 99.0  # columns 37 to 39 are padding
    fitted = head.fitted(logits, {"image": torch.zeros(2, 3, 24, 37), "mask": torch.zeros(2, 48, 74)})
    assert fitted.shape == (2, 5, 48, 74)
    assert (fitted.argmax(dim=1) == 1).all()


@pytest.mark.parametrize("setting", [{"layers": "all"}, {"dropout": 0.5}])
def test_settings_of_the_linear_head(setting):
    plain, changed = (make(HEADS["linear"], **s) for s in ({}, setting))
    assert not torch.equal(plain(features()), changed(features()))


@pytest.mark.parametrize(
    "setting",
    [{"bins": 8}, {"layers": "all"}, {"class_token": True}, {"upsample": 1}, {"max_depth": 5.0}, {"min_depth": 3.0}],
)
def test_settings_of_the_linear_depth_head(setting):
    plain, changed = (make(partial(LinearDepth, **{"bins": 16} | s)) for s in ({}, setting))
    before, after = plain(features()).detach(), changed(features()).detach()
    assert not torch.allclose(before, after)
    assert changed.min_depth <= float(after.min())
    assert float(after.max()) <= changed.max_depth


@pytest.mark.parametrize(
    "setting",
    [
        {"width": 16},
        {"neck": (8, 8, 8, 16)},
        {"readout": "add"},
        {"readout": "project"},
        {"max_depth": 5.0},
        {"min_depth": 5.23},
    ],
)
def test_settings_of_dpt(setting):
    plain, changed = (make(partial(SMALL_DPT, **s))(features()) for s in ({}, setting))
    assert not torch.allclose(plain, changed)


M2F = partial(Mask2Former, num_classes=5, width=32, queries=6, pixel_blocks=1, blocks=2, heads=2, points=64)
HALVES = torch.zeros(2, 24, 40, dtype=torch.long)
HALVES[..., 20:] = 3


@pytest.mark.parametrize("spec", [SPEC, ONE], ids=["four layers", "one map"])
def test_mask2former_is_a_map_in_evaluation_and_trains_all_its_weights(spec):
    head = make(M2F, spec)
    head.loss(head(features(spec)), batch(mask=HALVES)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    shares = head.eval()(features(spec)).exp()
    assert shares.shape == (2, 5, 24, 40)
    # Six queries, each with p(class) p(mask) at most 1.
    assert shares.min() > 0
    assert shares.max() <= 6
    scores = head.metrics()
    head.update_metrics(scores, head(features(spec)), batch(mask=HALVES))
    assert 0 <= scores.compute()["miou"] <= 1


def test_mask2former_learns_an_image():
    head = make(M2F)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        losses.append(head.loss(head(features()), batch(mask=HALVES)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 3
    assert (head.eval()(features()).argmax(dim=1) == HALVES).float().mean() > 0.95


def test_mask2former_without_labels_and_on_padded_images():
    head = make(M2F)
    unknown = torch.full_like(HALVES, 255)
    assert head.loss(head(features()), batch(mask=unknown)).isfinite()
    padded = {"image": torch.zeros(2, 3, 22, 38)}
    torch.manual_seed(0)
    cut = head.loss(head(features()), {**padded, "mask": HALVES[:, :22, :38]})
    whole = HALVES.clone()
    whole[:, 22:] = whole[..., 38:] = 255
    torch.manual_seed(0)
    assert torch.equal(cut, head.loss(head(features()), batch(mask=whole)))
    torch.manual_seed(0)  # the same at twice the size: points lie where they lay
    double = whole.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :44, :76]
    torch.testing.assert_close(head.loss(head(features()), {**padded, "mask": double}), cut, rtol=0.05, atol=0)


def test_every_setting_of_mask2former_counts():
    def loss(**settings):
        head = make(M2F, **settings)
        torch.manual_seed(1)
        return head.loss(head(features()), batch(mask=HALVES))

    usual = loss()
    others = {
        "width": 64, "queries": 7, "pixel_blocks": 2, "blocks": 1, "heads": 4, "points": 32,
        "nothing_weight": 0.5,
    }  # fmt: skip
    assert torch.equal(loss(), usual)
    for name, value in others.items():
        assert not torch.equal(loss(**{name: value}), usual), name
    with pytest.raises(ValueError, match="a multiple of 32 and of heads = 5, got 32"):
        make(M2F, heads=5)


def test_settings_of_upernet():
    assert not torch.equal(make(HEADS["upernet"])(features()), make(HEADS["upernet"], width=16)(features()))


def test_the_class_token_is_read_only_where_it_is_asked_for():
    for readout, reads in (("ignore", False), ("add", True), ("project", True)):
        head, one, two = make(SMALL_DPT, readout=readout), features(), features()
        two.prefix_tokens = tuple(prefix + 1 for prefix in two.prefix_tokens)
        assert torch.equal(head(one), head(two)) != reads


def test_bins_are_weighted_as_in_dinov2():
    head = make(partial(LinearDepth, bins=4, upsample=1, max_depth=8.0)).eval()
    logits = torch.tensor([1.0, -2.0, 0.5, 0.0])
    torch.nn.init.zeros_(head.predict[1].weight)
    head.predict[1].bias.data = logits
    weights = logits.relu() + 0.1
    expected = (weights / weights.sum() * torch.linspace(0.001, 8.0, 4)).sum()
    torch.testing.assert_close(head(features()), expected.expand(2, 1, 24, 40))


def test_the_scale_invariant_loss_in_closed_form():
    """For a prediction that is `c` times the truth it is sqrt(1 - invariance) |log c|; no gradient is wrong."""
    truth = 1 + 5 * torch.rand(2, 24, 40, generator=torch.Generator().manual_seed(0))
    for invariance in (0.0, 0.85):
        head = make(partial(LinearDepth, invariance=invariance))
        loss = head.loss(1.5 * truth.unsqueeze(1), batch(depth=truth))
        torch.testing.assert_close(loss, torch.tensor((1 - invariance) ** 0.5 * 0.4055), atol=1e-3, rtol=1e-3)


def test_unmeasured_depth_is_not_trained_on():
    head = make(partial(LinearDepth, bins=16))
    prediction = head(features()).detach()
    truth = torch.full((2, 24, 40), 4.0)
    truth[:, :12] = torch.tensor([0.0, float("nan"), 11.0, float("inf")]).repeat(10)
    changed = prediction.clone()
    changed[:, :, :12] = 9.0
    loss = head.loss(prediction, batch(depth=truth))
    assert loss.isfinite()
    torch.testing.assert_close(head.loss(changed, batch(depth=truth)), loss)
    assert head.loss(prediction, batch(depth=torch.zeros(2, 24, 40))) == 0


def test_gradients_are_compared_between_measured_neighbours():
    errors = torch.arange(8.0).repeat(1, 4, 1)
    known = torch.ones(1, 4, 8, dtype=torch.bool)
    assert gradient_loss(errors, known, scales=1) == 1  # one a column, none a row
    assert gradient_loss(errors, known, scales=2) == 1 + 2
    errors[:, :, 3] = 100.0
    known[:, :, 3] = False
    assert gradient_loss(errors, known, scales=1) == 1
    assert gradient_loss(errors[:, :1, :1], known[:, :1, :1]) == 0


def test_the_gradients_weight_changes_the_loss():
    prediction = make(partial(LinearDepth, bins=16))(features()).detach()
    truth = batch(depth=1 + torch.rand(2, 24, 40))
    losses = [make(partial(LinearDepth, bins=16, gradient_weight=w)).loss(prediction, truth) for w in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(losses[1] - losses[0], losses[2] - losses[1])
    assert losses[1] > losses[0]


THREE = FeatureSpec(16, 8, 3, 0, 64)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearSegmentation(SPEC, 5, ignore_index=4), "ignore_index must not be one of the classes 0 to 4"),
        (lambda: LinearSegmentation(SPEC, 1), "num_classes must be an integer >= 2"),
        (lambda: UPerNet(THREE, 5), "UPerNet reads 1 or 4 layers of a source, which has 3"),
        (lambda: DPTDepth(THREE), "DPTDepth reads 1 or 4 layers of a source, which has 3"),
        (lambda: DPTDepth(ONE, readout="project"), "no class token to project; set it to ignore"),
        (lambda: DPTDepth(ONE, neck=(8, 8)), "needs 4 numbers in neck"),
        (lambda: LinearDepth(ONE, class_token=True), "these features have no class token"),
        (lambda: LinearDepth(ONE, min_depth=20.0), "min_depth 20.0 must be below max_depth 10.0"),
        (lambda: make(HEADS["upernet"])(features(images=1)), "UPerNet trains with 2 images"),
        (lambda: make(HEADS["linear"]).target(batch()), "no 'mask'; name a data module .* fields: \\[mask\\]"),
        (lambda: make(HEADS["linear"]).target(batch(mask=torch.zeros(2, 1, 24, 40))), "must have shape"),
        (lambda: make(HEADS["linear"]).target(batch(mask=torch.full((2, 4, 4), 7))), "has the label 7; labels must be"),
        (lambda: make(HEADS["linear"]).target(batch(mask=torch.full((2, 4, 4), -1))), "has the label -1"),
    ],
)
def test_bad_input_is_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_without_transformers_the_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers.models.upernet.modeling_upernet", None)
    with pytest.raises(ImportError, match=r"^UPerNet needs transformers: pip install 'uniflow\[transformers\]'$"):
        UPerNet(SPEC, 5)
