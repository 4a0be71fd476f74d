"""The evaluation protocol: closed forms, invariance, and what moves the fingerprint."""

import hashlib

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file
from skimage import data as photographs
from skimage.metrics import structural_similarity

from uniflow.losses.lpips import LPIPSNetwork
from uniflow.metrics import (
    LPIPS,
    EncoderFeatures,
    Evaluation,
    FeatureExtractor,
    InceptionFeatures,
    ReconstructionProtocol,
    cmmd,
    fingerprint,
    frechet_distance,
    image_digests,
    kid,
    legacy_ssim,
    moments,
    ms_ssim,
    noise_for,
    psnr,
    ssim,
)


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_equals_the_closed_form_of_gaussians():
    mean1, mean2 = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, -1.0, 2.5])
    std1, std2 = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 1.0])
    expected = (mean1 - mean2).square().sum() + (std1 - std2).square().sum()
    found = frechet_distance(mean1, std1.square().diag(), mean2, std2.square().diag())
    assert found == pytest.approx(expected.item(), abs=1e-9)


def test_frechet_distance_equals_scipys_matrix_root_and_a_rank_deficient_one_is_zero():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, 8, generator=generator, dtype=torch.float64) * s for s in (1.0, 1.7))
    (m1, s1), (m2, s2) = moments(x), moments(y)
    root = scipy.linalg.sqrtm((s1 @ s2).numpy()).real
    expected = float((m1 - m2).square().sum() + s1.trace() + s2.trace()) - 2 * np.trace(root)
    assert frechet_distance(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-9)
    few = moments(x[:4])
    assert frechet_distance(*few, *few) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(s1.numpy(), np.cov(x.numpy().T), atol=1e-12)


def test_kernel_distances_equal_sums_over_pairs():
    x, y = draw(7, 5).double(), draw(6, 5, seed=1).double() + 0.5

    def mmd(x, y, k):
        pairs = lambda a, b: [[k(p, q) for q in b] for p in a]  # noqa: E731
        xx, yy, xy = (np.array(pairs(*p)) for p in ((x, x), (y, y), (x, y)))
        n, m = len(x), len(y)
        return (xx.sum() - xx.trace()) / n / (n - 1) + (yy.sum() - yy.trace()) / m / (m - 1) - 2 * xy.mean()

    assert kid(x, y) == pytest.approx(mmd(x, y, lambda a, b: float((a @ b / 5 + 1) ** 3)), rel=1e-9)
    u, v = (f / f.norm(dim=1, keepdim=True) for f in (x, y))
    expected = 1000 * mmd(u, v, lambda a, b: float(torch.exp(-(a - b).square().sum() / 200)))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-6)
    assert kid(x, y) == pytest.approx(kid(x.flip(0), y.flip(0)), rel=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        kid(x[:1], y)


@pytest.mark.parametrize("count", [2, 3, 50])
@pytest.mark.parametrize("distance", [kid, cmmd])
def test_kernel_distances_of_pairs_are_zero_for_perfect_reconstructions(distance, count):
    x = 10 * torch.randn(count, 8, generator=torch.Generator().manual_seed(count))
    assert distance(x, x.clone(), paired=True) == 0
    assert distance(x, x.clone()) < 0  # which takes the sets to be independent


def test_kernel_distances_of_pairs_leave_out_each_images_own_reconstruction():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    y = x + torch.randn(6, 4, generator=generator, dtype=torch.float64)

    def kernel(a, b):
        return float((a @ b / 4 + 1) ** 3)

    terms = [
        kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    assert kid(x, y, paired=True) == pytest.approx(sum(terms) / 30, rel=1e-9)
    with pytest.raises(ValueError, match="as many images in both sets, got 6 and 5"):
        kid(x, y[:5], paired=True)


def test_kernel_distances_of_pairs_are_unbiased():
    """x is N(0, 1) and y = x + 1 in one dimension: MMD^2 for the kernel (xy + 1)^3 is known from the moments."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(5, 1, generator=generator, dtype=torch.float64) for _ in range(3000)]
    estimates = torch.tensor([kid(x, x + 1, paired=True) for x in draws])
    # (ab + 1)^3 has the features 1, a sqrt 3, a^2 sqrt 3, a^3: moments of N(0, 1) are 0, 1, 0, of N(1, 1) 1, 2, 4.
    truth = 3 * (1 - 0) ** 2 + 3 * (2 - 1) ** 2 + (4 - 0) ** 2
    error = estimates.std() / len(draws) ** 0.5
    assert abs(estimates.mean() - truth) < 4 * error
    biased = torch.tensor([kid(x, x + 1) for x in draws[:1000]]).mean()
    assert abs(biased - truth) > 10 * error


def test_a_perfect_reconstruction_has_no_kernel_distance_in_an_evaluation():
    evaluation = Evaluation(ReconstructionProtocol(sets=["kid", "cmmd"], features=[Colours()]))
    images = torch.rand(50, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for batch in images.split(20):
        evaluation.add_originals(batch, image_digests(batch))
        evaluation.add(batch)
    results = evaluation.compute()
    assert {name: value for name, value in results.items() if "kid" in name or "cmmd" in name} == {
        f"kid_{Colours().name}": 0, f"cmmd_{Colours().name}": 0,
    }  # fmt: skip


def test_only_protocols_with_kernel_distances_have_new_fingerprints():
    assert "kernel_distances" not in ReconstructionProtocol(sets=["frechet"]).settings()
    assert ReconstructionProtocol(sets=["frechet", "kid"]).settings()["kernel_distances"] == "pairs"


@pytest.mark.parametrize("photo", ["astronaut", "chelsea", "coffee"])
def test_ssim_equals_scikit_images_on_photographs(photo):
    image = torch.from_numpy(getattr(photographs, photo)()[:160, :200].copy()).permute(2, 0, 1)[None] / 255
    noisy = (image + 0.2 * (draw(*image.shape) - 0.5)).clamp(0, 1)
    arrays = [t[0].permute(1, 2, 0).double().numpy() for t in (image, noisy)]
    settings = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for metric, data_range in ((ssim, 1.0), (legacy_ssim, 2.0)):
        expected = structural_similarity(*arrays, data_range=data_range, **settings)
        assert metric(noisy, image).item() == pytest.approx(expected, abs=5e-6)  # float32 against float64
    assert legacy_ssim(noisy, image) > ssim(noisy, image) + 0.01
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(image[..., :8], image[..., :8])


@pytest.mark.parametrize("metric", [psnr, ssim, ms_ssim])
def test_metrics_are_not_blurred_by_autocast(metric):
    image = torch.from_numpy(photographs.moon()[:176, :176].copy())[None, None].expand(-1, 3, -1, -1) / 255
    noisy = (image + 0.02 * (draw(*image.shape) - 0.5)).clamp(0, 1)
    expected = metric(noisy, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert metric(noisy, image).item() == pytest.approx(expected.item(), abs=1e-6)


def test_ms_ssim_is_per_image_and_refuses_small_ones():
    image = torch.from_numpy(photographs.astronaut()[:176, :176].copy()).permute(2, 0, 1)[None] / 255
    noisy = (image + 0.2 * (draw(*image.shape) - 0.5)).clamp(0, 1)
    both = ms_ssim(torch.cat([noisy, image]), torch.cat([image, image]))
    assert both.shape == (2,)
    assert both[1] == pytest.approx(1)
    assert ssim(noisy, image) < both[0] < 1
    with pytest.raises(ValueError, match="160"):
        ms_ssim(image[..., :160, :], image[..., :160, :])


class Colours(FeatureExtractor):
    """A third party's features: mean and spread of each colour."""

    name = "colours"

    def __call__(self, images):
        return torch.cat([images.mean(dim=(2, 3)), images.std(dim=(2, 3))], dim=1)

    def identity(self):
        return "colours, version 1"


def evaluate(order, batch_size, protocol=None):
    originals = (draw(10, 3, 16, 24) * 255).byte()
    painted = (originals / 255 + 0.1 * draw(10, 3, 16, 24, seed=1)).clamp(0, 1)
    evaluation = Evaluation(protocol or ReconstructionProtocol(sets=["frechet", "kid", "cmmd"], features=[Colours()]))
    for batch in torch.tensor(order).split(batch_size):
        evaluation.add_originals(originals[batch] / 255, image_digests(originals[batch]), [f"{i}.png" for i in batch])
        evaluation.add(painted[batch])
        evaluation.add(originals[batch] / 255, "_perfect")
    return evaluation, evaluation.compute()


def test_numbers_do_not_depend_on_batch_size_or_order():
    evaluation, reference = evaluate(range(10), 10)
    for order, batch_size in ((range(10), 3), ([7, 2, 9, 0, 1, 5, 4, 3, 8, 6], 4), (range(9, -1, -1), 1)):
        other, results = evaluate(order, batch_size)
        assert results == pytest.approx(reference, abs=1e-6)
        assert [row["image"] for row in other.rows] == [row["image"] for row in evaluation.rows]
        assert fingerprint(other.settings()) == fingerprint(evaluation.settings())
    assert reference["psnr_perfect"] == 100
    assert reference["frechet_colours_perfect"] == pytest.approx(0, abs=1e-6)
    assert reference["frechet_colours"] > 1e-3
    assert reference["psnr"] == pytest.approx(np.mean([row["psnr"] for row in evaluation.rows]))
    assert len(evaluation.rows) == 10


def test_a_networks_features_depend_on_the_batch_by_rounding_only():
    # Ten images in 128 dimensions: the roots of eigenvalues that are zero but for rounding enlarge it.
    (_, one), (_, other) = (evaluate(range(10), size, ReconstructionProtocol()) for size in (10, 3))
    assert one["frechet_scene_vit"] > 0.1
    assert other == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_noise_belongs_to_the_image():
    images = (draw(4, 3, 8, 8) * 255).byte()
    digests = image_digests(images)
    noise = noise_for(digests, (3, 8, 8))
    torch.testing.assert_close(noise_for(digests[2:], (3, 8, 8)), noise[2:])
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise_for(digests, (3, 8, 8), seed=2), noise)
    assert abs(noise.mean()) < 0.15
    assert len(set(digests)) == 4
    assert image_digests(images.view(4, 3, 4, 16)) != digests  # the same bytes, another shape


def test_a_wrong_crop_and_every_setting_move_the_fingerprint():
    images = (draw(2, 3, 20, 20) * 255).byte()

    def mark(crop=slice(2, 18), protocol=None, **more):
        evaluation = Evaluation(protocol or ReconstructionProtocol(), with_sets=False)
        cropped = images[..., crop, crop]
        evaluation.add_originals(cropped / 255, image_digests(cropped))
        evaluation.add(cropped / 255)
        evaluation.compute()
        return fingerprint(evaluation.settings(**({"steps": 1, "precision": "32"} | more)))

    marks = [
        mark(),
        mark(slice(1, 17)),
        mark(slice(0, 20)),
        mark(steps=4),
        mark(precision="bf16"),
        mark(protocol=ReconstructionProtocol(images=["psnr"])),
        mark(protocol=ReconstructionProtocol(sets=["kid"])),
        mark(protocol=ReconstructionProtocol(sets=[])),
    ]
    assert len(set(marks)) == len(marks)
    assert mark() == marks[0]


def test_lpips_takes_a_local_file_only(tmp_path):
    torch.manual_seed(0)
    network = LPIPSNetwork("alexnet")
    tensors = {key: torch.rand_like(value) * 0.1 for key, value in network.state_dict().items()}
    path = tmp_path / "alexnet.safetensors"
    save_file({key.replace("heads.", "lin") + (".model.1.weight" if "heads" in key else ""): v for key, v in
               tensors.items()}, path)  # fmt: skip
    metric = LPIPS(str(path))
    images = draw(2, 3, 48, 40)
    assert metric(images, images).tolist() == [0, 0]
    far = metric(1 - images, images)
    assert far.shape == (2,)
    assert (far > 0).all()
    protocol = ReconstructionProtocol(sets=[], lpips=metric)
    assert protocol.of_images(images, images)["lpips"].tolist() == [0, 0]
    assert fingerprint(protocol.settings()) != fingerprint(ReconstructionProtocol(sets=[]).settings())
    with pytest.raises(ValueError, match="should begin with 12345"):
        LPIPS(str(path), sha256="12345")
    with pytest.raises(ValueError, match="no such file"):
        LPIPS("nowhere.safetensors")


def test_inception_features_need_the_published_file(tmp_path):
    path = tmp_path / "weights-inception.pth"
    torch.save({"fc.bias": torch.zeros(1008)}, path)
    with pytest.raises(ValueError, match="6726825d"):
        InceptionFeatures(str(path))
    with pytest.raises(ValueError, match="no such file"):
        InceptionFeatures(str(tmp_path / "none.pth"))


def test_inception_features_on_random_weights(tmp_path):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "random.pth"
    # The class cannot be built without a file: its layers are, for the shapes.
    network = object.__new__(module.FeatureExtractorInceptionV3)
    shapes = {}

    class Caught(Exception):
        pass

    def stop(self, state):
        shapes.update({key: torch.randn(value.shape) * 0.05 for key, value in self.state_dict().items()})
        raise Caught

    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", stop)
        with pytest.raises(Caught):
            network.__init__("random", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
    torch.save({key: value.abs() if "var" in key else value for key, value in shapes.items()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    features = InceptionFeatures(str(path), sha256=digest)
    out = features(draw(2, 3, 32, 32))
    assert out.shape == (2, 2048)
    again, logits = features.with_logits(draw(2, 3, 32, 32))
    assert torch.equal(again, out)
    assert logits.shape == (2, 1008)
    assert out.dtype == torch.float32
    assert digest[:12] in features.identity()


def test_encoder_features_and_their_identity():
    features = EncoderFeatures()
    out = features(draw(2, 3, 20, 33))  # cut to whole patches
    assert out.shape == (2, 128)
    assert features.identity() == EncoderFeatures(name="other").identity()
    with torch.no_grad():
        before = features.identity()
        next(features.encoder.parameters()).add_(1)
    assert features.identity() != before
    with pytest.raises(ValueError, match="at least 8 x 8"):
        features(draw(2, 3, 4, 33))
    with pytest.raises(ValueError, match="names must differ"):
        ReconstructionProtocol(features=[EncoderFeatures(), EncoderFeatures()])
    with pytest.raises(ValueError, match="no metric 'fid'"):
        ReconstructionProtocol(sets=["fid"])
