"""`uniflow evaluate` on clips: numbers over time, the noise, Frechet distance of clips' features."""

import csv
import json

import pytest
import torch
from tiny import ENCODER, FLOW
from torch import nn

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.cli import main
from uniflow.data import SceneClips
from uniflow.evaluation.clips import ClipEvaluation, noise_digests
from uniflow.metrics.distribution import frechet_distance, moments
from uniflow.metrics.protocol import ReconstructionProtocol
from uniflow.metrics.video_features import I3DFeatures, VideoMAEFeatures
from uniflow.tools.evaluate import evaluate


class TinyI3D(nn.Module):
    """A network with the interface of the published file."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert rescale
        assert resize
        assert return_features
        return torch.cat([x.mean(dim=(2, 3, 4)), x.diff(dim=2).abs().mean(dim=(2, 3, 4))], dim=1)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d.pt"
    torch.jit.script(TinyI3D()).save(path)
    return str(path)


@pytest.fixture(scope="module")
def videomae(tmp_path_factory):
    from transformers import VideoMAEConfig, VideoMAEModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    folder = tmp_path_factory.mktemp("videomae")
    VideoMAEModel(VideoMAEConfig(image_size=32, patch_size=16, num_frames=12, **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    model = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec))
    for parameter in model.decoder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("tokenizer")
    model.save_pretrained(folder)
    return str(folder)


def scenes(length=4, clips=3):
    return SceneClips(32, length, test_length=clips, batch_size=2, num_workers=0)


def test_evaluate_judges_clips(tokenizer, videomae, tmp_path, capsys):
    def results(name, length=4, **options):
        protocol = ReconstructionProtocol(sets=())
        evaluate(tokenizer, data=scenes(length), out=tmp_path / name, worst=0, protocol=protocol, **options)
        return json.loads((tmp_path / name / "results.json").read_text())

    shared, independent = results("shared"), results("independent", noise="independent")
    assert "clip_flicker" in capsys.readouterr().out
    assert shared["clip_flicker"] < independent["clip_flicker"] / 2
    assert shared["clip_difference_psnr"] > independent["clip_difference_psnr"] + 1
    assert shared["clip_psnr"] == pytest.approx(shared["psnr"], rel=1e-6)
    assert shared["protocol/fingerprint"] != independent["protocol/fingerprint"]
    assert shared["protocol/settings"]["length"] == 4
    with open(tmp_path / "shared" / "clips.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == ["scene 000000", "scene 000001", "scene 000002"]
    data = ["--data", "SceneClips", "--data.size", "32", "--data.length", "12", "--data.test_length", "2"]
    features = ["--video_features", "VideoMAEFeatures", "--video_features.path", videomae]
    quick = ["--data.num_workers", "0", "--protocol.sets", "[]", "--out", str(tmp_path / "fvd")]
    assert main(["evaluate", tokenizer, *data, *features, *quick]) == 0
    whole = json.loads((tmp_path / "fvd" / "results.json").read_text())
    assert whole["rfvd_videomae"] > 0
    identity = whole["protocol/settings"]["clips"]["features"]
    assert identity.startswith("VideoMAE mean token, 12 frames of 32 px, weights ")
    assert identity in capsys.readouterr().out  # the hash is printed


def test_noise_is_drawn_by_the_first_frame_of_each_clip():
    digests = ["a", "b", "c", "d"]
    assert noise_digests(digests, 2, "shared") == ["a", "a", "c", "c"]
    assert noise_digests(digests, 2, "independent") == digests


def test_rfvd_is_the_frechet_distance_of_the_features(i3d):
    torch.manual_seed(0)
    original = torch.randint(0, 256, (5 * 10, 3, 16, 16), dtype=torch.uint8)
    decoded = (original.float() / 255 * 0.8 + 0.1).clamp(0, 1)
    evaluation = ClipEvaluation(I3DFeatures(i3d))
    for part in (slice(0, 20), slice(20, 50)):
        evaluation.update(decoded[part], original[part], 10)

    def features(clips):
        clips = clips.unflatten(0, (5, 10)).float()
        return torch.cat([clips.mean(dim=(1, 3, 4)), clips.diff(dim=1).abs().mean(dim=(1, 3, 4))], dim=1)

    rounded = (decoded * 255).round()  # what a file would hold
    expected = frechet_distance(*moments(features(rounded)), *moments(features(original)))
    assert evaluation.compute()["rfvd_i3d"] == pytest.approx(expected, rel=1e-5)
    same = ClipEvaluation(I3DFeatures(i3d))
    same.update(original.float() / 255, original, 10)
    assert same.compute()["rfvd_i3d"] == pytest.approx(0, abs=1e-6)


def test_videomae_reads_uint8_clips_of_its_own_length(videomae):
    features = VideoMAEFeatures(videomae)
    clips = torch.randint(0, 256, (2, 12, 3, 40, 48), dtype=torch.uint8)
    found = features(clips)
    assert found.shape == (2, 16)
    assert not torch.allclose(found, features(clips.flip(1)))  # the order of frames counts
    assert "12 frames of 32 px, weights " in features.identity()
    with pytest.raises(ValueError, match="videomae reads clips of 12 frames, got 11"):
        features(clips[:, :11])
    with pytest.raises(ValueError, match=r"reads clips uint8 \(B, T, 3, H, W\), got torch\.float32"):
        features(clips.float())


def test_what_is_not_such_a_file_is_one_line(i3d, videomae, tmp_path):
    with pytest.raises(ValueError, match="i3d reads clips of 10 or more frames, got 9"):
        I3DFeatures(i3d)(torch.zeros(1, 9, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="should begin with abc"):
        I3DFeatures(i3d, sha256="abc")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(ValueError, match="is not a TorchScript file"):
        I3DFeatures(str(tmp_path / "text.pt"))
    with pytest.raises(ValueError, match="no such file"):
        VideoMAEFeatures(str(tmp_path))
    with pytest.raises(ValueError, match="should begin with 123"):
        VideoMAEFeatures(videomae, sha256="123")
