"""`uniflow look`: features, similarity, latents and errors of one picture."""

import pytest
import torch
from PIL import Image
from skimage import data as photographs
from tiny import ENCODER, FLOW

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.cli import main
from uniflow.encoders import SceneViT
from uniflow.tools.look import first_encoder, layer_numbers, look_at, similarity_map, strongest_channels

PHOTO = torch.from_numpy(photographs.chelsea()[:45, :61].copy()).permute(2, 0, 1)


def tiny_tokenizer(encoder=None):
    torch.manual_seed(0)
    encoder = encoder or ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    model = Tokenizer(encoder, bottleneck, FLOW(bottleneck.spec)).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():  # zero-initialised layers would hide everything
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def model():
    return tiny_tokenizer()


def pictures(found):
    return {name: picture for name, (_, picture) in found.panels.items()}


@pytest.mark.parametrize("size", [(45, 61), (8, 8), (9, 40), (33, 5)])
def test_pictures_of_any_size(model, size):
    found = look_at(model, PHOTO[:, : size[0], : size[1]])
    names = ["original", "reconstruction", "difference"]
    names += [f"{kind}_layer{layer:02d}" for kind in ("pca", "similarity") for layer in (1, 2, 3)]
    assert list(found.panels) == [*names, "latents"]
    for name, picture in pictures(found).items():
        assert picture.shape == (3, *size) or name == "latents"
        assert picture.isfinite().all()
        assert 0 <= picture.min() <= picture.max() <= 1
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    factor = round(112 / max(rows, columns))
    assert found.panels["latents"][1].shape == (3, rows * factor + 4, 8 * (columns * factor + 2) + 2)
    assert found.sheet().width > 3 * 200 or min(size) < 10


def test_it_is_the_same_every_time_and_settings_change_it(model):
    def look(image=PHOTO, **kwargs):
        return pictures(look_at(model, image, **kwargs))

    one = look()
    assert all(torch.equal(picture, one[name]) for name, picture in look().items())
    torch.testing.assert_close(look(PHOTO / 255)["pca_layer03"], one["pca_layer03"])
    assert not torch.equal(look(steps=3)["reconstruction"], one["reconstruction"])
    other = look(patch=(0, 1))
    assert not torch.equal(other["similarity_layer03"], one["similarity_layer03"])
    assert not torch.equal(other["original"], one["original"])  # the frame
    assert torch.equal(other["pca_layer03"], one["pca_layer03"])
    assert [name for name in look(layers=[2, -1]) if "pca" in name] == ["pca_layer02", "pca_layer03"]


def test_difference_and_caption_fit_the_reconstruction(model):
    found = look_at(model, PHOTO)
    painted, difference = found.panels["reconstruction"][1], found.panels["difference"][1]
    torch.testing.assert_close(difference, ((painted - PHOTO / 255).abs() * 4).clamp(0, 1))
    mse = (painted - PHOTO / 255).square().mean()
    assert f"PSNR {-10 * mse.log10():.2f} dB, SSIM" in found.panels["reconstruction"][0]
    assert "SSIM" not in look_at(model, PHOTO[:, :8, :8]).panels["reconstruction"][0]


def test_the_frame_stands_around_the_patch(model):
    original = look_at(model, PHOTO, patch=(1, 2)).panels["original"][1]
    changed = (original != PHOTO / 255).any(dim=0)
    assert not changed[8:16, 16:24].any()
    assert changed[7, 15:25].all()
    assert changed[7:17, 15:25].sum() == changed.sum() == 10 * 10 - 8 * 8


def test_similarity_is_the_cosine_with_the_chosen_patch():
    features = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0))
    found = similarity_map(features, (2, 3))
    assert found.shape == (4, 5)
    assert found[2, 3] == pytest.approx(1, abs=1e-6)
    assert found.argmax() == 2 * 5 + 3
    expected = torch.cosine_similarity(features[:, 0, 1], features[:, 2, 3], dim=0)
    assert found[0, 1] == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(similarity_map(features * 3, (2, 3)), found)
    assert similarity_map(features.bfloat16(), (2, 3)).dtype == torch.float32


def test_the_chosen_patch_is_white_in_its_picture(model):
    picture = look_at(model, PHOTO, patch=(2, 3)).panels["similarity_layer03"][1]
    assert picture[:, 16:24, 24:32].min() == pytest.approx(1, abs=1e-5)
    assert picture[:, ::8, ::8].sum(dim=0).min() == 0  # and the farthest is black


def test_strongest_channels():
    spread = torch.tensor([0.1, 3.0, 0.0, 2.0]).view(4, 1, 1)
    ramp = torch.linspace(-1, 1, 12).view(1, 3, 4)
    maps, channels = strongest_channels(5 + spread * ramp, count=3)
    assert channels == [1, 3, 0]
    torch.testing.assert_close(maps[1], (ramp[0] + 1) / 2)
    assert strongest_channels(torch.ones(2, 3, 4))[0].tolist() == torch.zeros(2, 3, 4).tolist()


def test_layers_count_from_one():
    assert layer_numbers(24) == [6, 12, 18, 24]
    assert layer_numbers(2) == [1, 2]
    assert layer_numbers(1) == [1]
    assert layer_numbers(12, [1, -1, -12]) == [1, 12, 1]
    for layer in (0, 13, -13):
        with pytest.raises(ValueError, match=f"layers 1 to 12, there is no layer {layer}"):
            layer_numbers(12, [layer])


def test_the_teacher_gives_the_colours():
    student = tiny_tokenizer(SceneViT())
    with torch.no_grad():
        student.encoder.blocks[-1].mlp.fc2.weight.mul_(3)
    teacher = first_encoder(student)
    found = look_at(student, PHOTO, layers=[1, 6], teacher=teacher)
    shown = pictures(found)
    assert torch.equal(shown["teacher_pca_layer01"], shown["pca_layer01"])
    assert not torch.equal(shown["teacher_pca_layer06"], shown["pca_layer06"])
    alone = pictures(look_at(student, PHOTO, layers=[1, 6]))
    assert not torch.equal(alone["pca_layer06"], shown["pca_layer06"])
    assert torch.equal(alone["similarity_layer06"], shown["similarity_layer06"])
    own = pictures(look_at(tiny_tokenizer(SceneViT()), PHOTO, layers=[1, 6]))
    assert torch.equal(own["similarity_layer06"], shown["teacher_similarity_layer06"])


def test_the_command_writes_a_sheet_and_its_pictures(tmp_path, capsys):
    tiny_tokenizer(SceneViT()).save_pretrained(tmp_path / "tokenizer")
    Image.fromarray(photographs.chelsea()[:45, :61]).save(tmp_path / "cat.png")
    command = ["look", str(tmp_path / "tokenizer"), str(tmp_path / "cat.png"), "--out", str(tmp_path / "out")]
    assert main([*command, "--layers", "[3]", "--patch", "[0, 2]", "--teacher", "true", "--size", "0"]) == 0
    assert "PSNR" in capsys.readouterr().out
    names = {"original", "reconstruction", "difference", "latents", "look"}
    names |= {f"{teacher}{kind}_layer03" for teacher in ("", "teacher_") for kind in ("pca", "similarity")}
    assert {path.stem for path in (tmp_path / "out").iterdir()} == names
    with Image.open(tmp_path / "out" / "pca_layer03.png") as picture:
        assert picture.size == (61, 45)
    assert main([*command, "--size", "32"]) == 0
    with Image.open(tmp_path / "out" / "original.png") as picture:
        assert picture.size == (43, 32)


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    Image.new("RGB", (40, 24)).save(tmp_path / "black.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for image, options, message in (
        ("black.png", ["--patch", "[3, 0]"], "3 rows and 5 columns"),
        ("black.png", ["--layers", "[4]"], "there is no layer 4"),
        ("black.png", ["--teacher", "true"], "does not say where its encoder's weights came from"),
        ("broken.png", [], "broken.png: not an image"),
        ("none.png", [], "cannot be opened"),
    ):
        command = ["look", str(tmp_path / "tokenizer"), str(tmp_path / image), "--size", "0", *options]
        assert main([*command, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
