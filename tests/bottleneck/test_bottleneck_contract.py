"""What every bottleneck of the package has to do."""

import copy
import importlib
import inspect
import json
import pkgutil
from functools import partial

import pytest
import torch
from tiny import ENCODER, FLOW, fit, output_of, tiny_scenes, tiny_task

import uniflow.bottleneck
from uniflow import Tokenizer
from uniflow.bottleneck import Bottleneck, FSQBottleneck, KLBottleneck, MLPBottleneck, MultiVQBottleneck, VQBottleneck
from uniflow.core.part import build_part, part_config
from uniflow.tokenizer.summary import model_summary

SPEC = ENCODER().spec
CONTINUOUS = {
    "mlp": partial(MLPBottleneck, channels=6),
    "kl": partial(KLBottleneck, channels=6),
}
VQ = partial(VQBottleneck, codebook_size=16, codebook_dim=6)
MULTI = partial(MultiVQBottleneck, num_codebooks=3, codebook_size=16, codebook_dim=2)
DISCRETE = {
    "fsq": partial(FSQBottleneck, levels=(4, 5, 3)),
    "fsq_two": partial(FSQBottleneck, levels=(4, 5, 3), num_codebooks=2),
    "vq": VQ,
    "vq_random_start": partial(VQ, kmeans_init=False),
    "vq_cosine": partial(VQ, cosine=True),
    "vq_learnable": partial(VQ, learnable=True),
    "multi_vq": MULTI,
    "multi_vq_residual": partial(MULTI, residual=True, codebook_dim=6),
}
# At least one of each class; every class of the package has to be here (tested below).
CASES = CONTINUOUS | DISCRETE


def make(case, **kwargs):
    torch.manual_seed(0)
    return CASES[case](SPEC, **kwargs)


def trained(case, **kwargs):
    """In evaluation mode, after a few steps of training, so that codebooks are full."""
    bottleneck = make(case, **kwargs)
    for seed in range(3):
        bottleneck(output_of(features(seed=seed)))
    return bottleneck.eval()


def features(rows=4, columns=6, seed=0):
    return 3 * torch.randn(4, SPEC.embed_dim, rows, columns, generator=torch.Generator().manual_seed(seed))


def test_every_bottleneck_is_in_this_contract():
    for module in pkgutil.walk_packages(uniflow.bottleneck.__path__, "uniflow.bottleneck."):
        importlib.import_module(module.name)

    def subclasses(cls):
        return {cls}.union(*(subclasses(sub) for sub in cls.__subclasses__()))

    found = {cls for cls in subclasses(Bottleneck) if cls.__module__.startswith("uniflow.bottleneck.")}
    concrete = {cls for cls in found if not inspect.isabstract(cls)}
    assert {case(SPEC).__class__ for case in CASES.values()} == concrete
    assert all(getattr(uniflow.bottleneck, cls.__name__) is cls for cls in concrete)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("merge", [1, 2])
def test_shapes_losses_and_gradients(case, merge):
    bottleneck = make(case, merge=merge)
    assert bottleneck.spec.patch_size == SPEC.patch_size * merge
    given = features().requires_grad_()
    latents, losses = bottleneck(output_of(given))
    assert latents.shape == (4, bottleneck.spec.channels, 4 // merge, 6 // merge)
    assert all(loss.ndim == 0 and loss.dtype == torch.float32 and loss >= 0 for loss in losses.values())
    target = torch.randn(latents.shape)
    ((latents - target).square().mean() + sum(losses.values())).backward()
    assert given.grad.abs().sum() > 0
    for name, parameter in bottleneck.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("case", CASES)
def test_merging_takes_squares_of_neighbours(case):
    bottleneck = trained(case, merge=2)
    given = features(4, 8)
    latents, _ = bottleneck(output_of(given))
    changed = given.clone()
    changed[:, :, :2, 4:6] = torch.randn(4, SPEC.embed_dim, 2, 2)
    moved = (bottleneck(output_of(changed))[0] - latents).abs().sum(dim=(0, 1)) > 0
    assert moved.nonzero().tolist() == [[0, 2]]
    with pytest.raises(ValueError, match=r"2 x 2 tokens.*grid of 3 x 8.*multiples of 16 pixels") as caught:
        bottleneck(output_of(features(3, 8)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_changes_and_draws_nothing(case):
    bottleneck = trained(case)
    before = copy.deepcopy(bottleneck.state_dict())
    first, _ = bottleneck(output_of(features(seed=7)))
    state = torch.get_rng_state()
    assert torch.equal(bottleneck(output_of(features(seed=7)))[0], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bottleneck.state_dict().items())
    assert not torch.equal(bottleneck(output_of(features(seed=8)))[0], first)


@pytest.mark.parametrize("case", CASES)
def test_before_any_training_evaluation_leaves_the_start_alone(case):
    bottleneck = make(case).eval()
    before = copy.deepcopy(bottleneck.state_dict())
    assert torch.isfinite(bottleneck(output_of(features()))[0]).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in bottleneck.state_dict().items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_under_autocast_latents_stay_in_float32(case, training):
    bottleneck = make(case).train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents, losses = bottleneck(output_of(features()))
    # The paper's projection is all linear layers: it follows autocast.
    assert latents.dtype == (torch.bfloat16 if case == "mlp" else torch.float32)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_module_can_be_cast_and_copied_after_training(case, dtype):
    bottleneck = make(case)
    latents, losses = bottleneck(output_of(features()))
    (latents.sum() + sum(losses.values())).backward()
    bottleneck = copy.deepcopy(bottleneck.to(dtype))
    latents, losses = bottleneck(output_of(features().to(dtype)))
    assert latents.dtype == dtype
    assert all(loss.dtype == torch.promote_types(dtype, torch.float32) for loss in losses.values())
    assert bottleneck.eval()(output_of(features().to(dtype)))[0].dtype == dtype


@pytest.mark.parametrize("case", CASES)
def test_it_is_rebuilt_from_its_config_and_state(case):
    bottleneck = trained(case, merge=2)
    config = json.loads(json.dumps(part_config(bottleneck)))
    assert config["class_path"] == f"uniflow.bottleneck.{type(bottleneck).__name__}"
    again = build_part(config, Bottleneck, SPEC)
    assert part_config(again) == config
    again.load_state_dict(bottleneck.state_dict())
    assert torch.equal(again.eval()(output_of(features()))[0], bottleneck(output_of(features()))[0])
    # The codebook is not begun anew, in training neither.
    given = features(seed=5)
    for part in (again.train(), bottleneck.train()):
        torch.manual_seed(1)
        part(output_of(given))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in bottleneck.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_a_tokenizer_with_it_is_saved_measured_and_trained(case, tmp_path, monkeypatch):
    monkeypatch.setattr("uniflow.tasks.start.CALIBRATION_IMAGES", 8)
    task = tiny_task(bottleneck=partial(CASES[case], merge=2), decoder=FLOW)
    _, losses = fit(task, tiny_scenes(), tmp_path, steps=2)
    assert len(losses) == 2
    task.tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    images = torch.randint(0, 256, (2, 3, 40, 33), dtype=torch.uint8)
    latents = tokenizer.encode(images)
    assert latents.shape == (2, tokenizer.latent_channels, 3, 3)
    assert torch.equal(latents, task.tokenizer.eval().encode(images))
    assert tokenizer.reconstruct(images).shape == images.shape
    assert model_summary(tokenizer, 32)["bottleneck"]["gflop"] > 0


@pytest.mark.parametrize("case", DISCRETE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_indices_are_the_latents(case, dtype):
    bottleneck = trained(case).to(dtype)
    given = features(seed=9).to(dtype)
    indices = bottleneck.indices(output_of(given))
    assert indices.dtype == torch.int64
    assert indices.shape == (4, 4, 6, bottleneck.num_codebooks)
    assert indices.min() >= 0
    assert indices.max() < bottleneck.codebook_size
    latents, _ = bottleneck(output_of(given))
    assert torch.equal(bottleneck.from_indices(indices), latents)
    assert torch.equal(bottleneck.from_indices(indices.to(torch.int32)), latents)
    assert indices.unique().numel() > 3


@pytest.mark.parametrize("case", sorted(DISCRETE.keys() - {"multi_vq_residual"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_latents_say_their_indices_after_rounding_too(case, dtype):
    bottleneck = trained(case)
    latents, _ = bottleneck(output_of(features(seed=9)))
    indices = bottleneck.to_indices(latents.to(dtype))
    assert indices.dtype == torch.int64
    assert torch.equal(bottleneck.from_indices(indices), latents)


def test_sums_of_residual_codebooks_do_not_say_their_indices():
    bottleneck = trained("multi_vq_residual")
    with pytest.raises(ValueError, match="do not say their indices; a generator of codes needs residual false"):
        bottleneck.to_indices(bottleneck(output_of(features()))[0])
    single = trained("multi_vq_residual", num_codebooks=1)
    latents, _ = single(output_of(features()))
    assert torch.equal(single.from_indices(single.to_indices(latents)), latents)


@pytest.mark.parametrize("case", DISCRETE)
def test_indices_are_the_latents_under_autocast(case):
    bottleneck = trained(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices, (latents, _) = bottleneck.indices(output_of(features())), bottleneck(output_of(features()))
    assert torch.equal(bottleneck.from_indices(indices), latents)


@pytest.mark.parametrize("case", DISCRETE)
def test_training_gives_the_same_codes_up_to_rounding(case):
    bottleneck = trained(case).train()
    given = features(seed=4)
    indices, codes = bottleneck.indices(output_of(given)), None
    codes = bottleneck.from_indices(indices)
    latents, _ = bottleneck(output_of(given))
    torch.testing.assert_close(latents, codes, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", DISCRETE)
def test_indices_leave_training_alone(case):
    bottleneck = trained(case).train()
    before = copy.deepcopy(bottleneck.state_dict())
    state = torch.get_rng_state()
    bottleneck.indices(output_of(features()))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bottleneck.state_dict().items())


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"mlp"}))
def test_the_encoder_s_scale_does_not_matter(case):
    bottleneck = trained(case)
    torch.testing.assert_close(
        bottleneck(output_of(100 * features()))[0], bottleneck(output_of(features()))[0], atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("case", DISCRETE)
def test_bad_indices_are_refused(case):
    bottleneck = trained(case)
    good = bottleneck.indices(output_of(features()))
    cases = [
        (good[..., 0], rf"must be \(B, h, w, {bottleneck.num_codebooks}\), got \(4, 4, 6\)"),
        (torch.cat([good, good], dim=-1), "must be"),
        (good.float(), "must be integers, got torch.float32"),
        (good.bool(), "must be integers"),
        (good - bottleneck.codebook_size, f"between 0 and {bottleneck.codebook_size - 1}"),
        (good + bottleneck.codebook_size, f"between 0 and {bottleneck.codebook_size - 1}"),
    ]
    for indices, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            bottleneck.from_indices(indices)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", CONTINUOUS)
def test_continuous_ones_have_no_codes(case):
    bottleneck = make(case)
    assert bottleneck.codebook_size is None
    assert bottleneck.num_codebooks is None
    for call in (bottleneck.indices, bottleneck.from_indices, bottleneck.to_indices):
        with pytest.raises(ValueError, match=r"is continuous.*FSQBottleneck, VQBottleneck and MultiVQ") as caught:
            call(features())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (MLPBottleneck, {"merge": 0}, "merge must be an integer >= 1"),
        (MLPBottleneck, {"channels": 0}, "must be an integer >= 1"),
        (KLBottleneck, {"weight": -1.0}, "weight must be a finite number >= 0"),
        (FSQBottleneck, {"levels": (8, 2)}, "at least 3 each"),
        (FSQBottleneck, {"levels": ()}, "at least 3 each"),
        (FSQBottleneck, {"levels": (8,) * 9}, "at most 2\\^24"),
        (FSQBottleneck, {"num_codebooks": 0}, "must be an integer >= 1"),
        (VQBottleneck, {"codebook_size": 1}, "codebook_size must be an integer >= 2"),
        (VQBottleneck, {"codebook_dim": 0}, "must be an integer >= 1"),
        (VQBottleneck, {"decay": 1.0}, r"VQBottleneck.decay must be a number in \[0, 1\)"),
        (VQBottleneck, {"commitment_weight": -0.1}, "must be a finite number >= 0"),
        (VQBottleneck, {"dead_code_threshold": -0.1}, "must be a finite number >= 0"),
        (VQBottleneck, {"learnable": True, "cosine": True}, "choose one"),
        (MultiVQBottleneck, {"num_codebooks": 0}, "num_codebooks must be an integer >= 1"),
        (MultiVQBottleneck, {"residual": True, "cosine": True}, "choose one"),
    ],
)
def test_bad_settings_are_refused(cls, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        cls(SPEC, **arguments)
    assert "\n" not in str(caught.value)
