"""`uniflow sweep-steps`: a row for each start and number of steps, one for a decoder that knows neither."""

import csv
import json
import sys

import pytest
import torch
from PIL import Image
from tiny import ENCODER, FLOW, REGRESSION
from torchvision.utils import save_image

from uniflow import Tokenizer
from uniflow.bottleneck import MLPBottleneck
from uniflow.cli import main
from uniflow.metrics import Evaluation, ReconstructionProtocol
from uniflow.tokenizer.summary import model_summary
from uniflow.tools.sweep import ignores_start_and_steps, plot_sweep, sweep_one


def tiny_tokenizer(decoder=FLOW):
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    model = Tokenizer(encoder, bottleneck, decoder(bottleneck.spec)).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():  # zero-initialised layers would hide everything
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batches(batch_size=3):
    images = (torch.rand(3, 3, 30, 32, generator=torch.Generator().manual_seed(1)) * 255).byte()
    return [{"image": part} for part in images.split(batch_size)]


def sweep(model, batch_size=3, protocol=None, **kwargs):
    settings = {"steps": [1, 2, 4], "starts": ["zero", "random"], "repeats": 1} | kwargs
    return sweep_one(model, batches(batch_size), Evaluation(protocol or ReconstructionProtocol(sets=[])), **settings)


@pytest.fixture(scope="module")
def swept():
    """A tokenizer with a flow decoder and its rows; not to be changed."""
    model = tiny_tokenizer()
    return model, sweep(model)


def test_every_start_and_number_of_steps_has_a_row(swept):
    _, rows = swept
    assert [(row["start"], row["steps"]) for row in rows] == [(s, n) for s in ("zero", "random") for n in (1, 2, 4)]
    assert set(rows[0]) == {"start", "steps", "psnr", "ssim", "ms_per_image", "time_ratio", "gflop"}
    assert len({row["psnr"] for row in rows}) == 6
    assert [row["time_ratio"] for row in rows if row["steps"] == 1] == [1, 1]
    assert all(row["ms_per_image"] > 0 for row in rows)


def test_numbers_are_those_of_decode_and_do_not_depend_on_the_batch(swept):
    model, rows = swept
    images = torch.cat([batch["image"] for batch in batches()])
    painted = model.reconstruct(images, steps=4, noise=torch.zeros(3, 3, 32, 32))
    expected = ReconstructionProtocol().of_images(painted.detach(), images / 255)
    assert rows[2]["psnr"] == pytest.approx(expected["psnr"].mean().item(), abs=1e-5)
    assert rows[2]["ssim"] == pytest.approx(expected["ssim"].mean().item(), abs=1e-5)
    noisy = sweep(model, batch_size=2, steps=[2], protocol=ReconstructionProtocol(sets=[], noise_seed=8))
    assert noisy[0]["psnr"] == pytest.approx(rows[1]["psnr"], abs=1e-5)
    assert abs(noisy[1]["psnr"] - rows[4]["psnr"]) > 1e-3
    same = sweep(model, batch_size=2, steps=[2], starts=["random"])
    assert same[0]["psnr"] == pytest.approx(rows[4]["psnr"], abs=1e-5)


def test_cost_counts_the_steps(swept):
    model, rows = swept
    gflop = {row["steps"]: row["gflop"] for row in rows}
    assert gflop[1] == model_summary(model, (30, 32))["decoder"]["gflop"]
    assert gflop[4] - gflop[2] == pytest.approx(2 * (gflop[2] - gflop[1]))
    assert gflop[2] > gflop[1] > 0


def test_metrics_of_sets_if_asked_for():
    rows = sweep(
        tiny_tokenizer(), protocol=ReconstructionProtocol(images=["psnr"], sets=["frechet"]), steps=[2], starts=["zero"]
    )
    assert [set(row) & {"psnr", "ssim", "frechet_scene_vit"} for row in rows] == [{"psnr", "frechet_scene_vit"}]


def test_noise_on_the_latents_has_rows_of_its_own_and_does_not_depend_on_the_batch():
    model = tiny_tokenizer()
    model.set_latent_statistics([0.0] * 8, [0.5] * 8, 5)
    chosen = {"steps": [1, 2], "starts": ["zero"]}
    clean, rows = sweep(model, **chosen), sweep(model, latent_noise=[0.0, 0.5], **chosen)
    assert [(row["latent_noise"], row["steps"]) for row in rows] == [(0.0, 1), (0.0, 2), (0.5, 1), (0.5, 2)]
    assert [row["psnr"] for row in rows[:2]] == [row["psnr"] for row in clean]
    assert all(abs(noised["psnr"] - row["psnr"]) > 1e-3 for noised, row in zip(rows[2:], clean, strict=True))
    again = sweep(model, batch_size=2, latent_noise=[0.5], **chosen)
    assert [row["psnr"] for row in again] == pytest.approx([row["psnr"] for row in rows[2:]], abs=1e-5)
    control = tiny_tokenizer(REGRESSION)
    control.set_latent_statistics([0.0] * 8, [0.5] * 8, 5)
    assert [row["latent_noise"] for row in sweep(control, latent_noise=[0.0, 0.1])] == [0.0, 0.1]


def test_a_decoder_without_a_flow_has_one_row():
    control = tiny_tokenizer(REGRESSION)
    with torch.inference_mode():
        latents = control.encode(batches()[0]["image"])
        assert ignores_start_and_steps(control, latents)
        assert not ignores_start_and_steps(tiny_tokenizer(), latents)
    (row,) = sweep(control)
    assert (row["start"], row["steps"], row["time_ratio"]) == ("any", 1, 1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    for name, decoder in (("flow", FLOW), ("control", REGRESSION)):
        tiny_tokenizer(decoder).save_pretrained(root / name / "tokenizer")
    (root / "pictures").mkdir()
    for number in range(2):
        save_image(torch.rand(3, 40, 50), root / "pictures" / f"{number}.png")
    return root


def command(runs, *options):
    tokenizers = [str(runs / name / "tokenizer") for name in ("flow", "control")]
    common = ["--size", "32", "--num_workers", "0", "--repeats", "1"]
    return ["sweep-steps", *tokenizers, "--images", f"[{runs / 'pictures'}]", *common, *options]


def test_the_command_writes_tables_and_plots(runs, tmp_path, capsys):
    assert main(command(runs, "--steps", "[2, 1]", "--out", str(tmp_path / "out"))) == 0
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    rows = [(row["tokenizer"], row["start"], row["steps"]) for row in found["rows"]]
    assert rows == [*(("flow", start, n) for start in ("zero", "random") for n in (1, 2)), ("control", "any", 1)]
    assert found["protocol/settings"]["num_images"] == 2
    printed = capsys.readouterr().out
    assert found["protocol/fingerprint"] in printed
    assert printed.count("control") == 1
    with open(tmp_path / "out" / "sweep.csv") as file:
        assert [float(row["psnr"]) for row in csv.DictReader(file)] == [row["psnr"] for row in found["rows"]]
    with Image.open(tmp_path / "out" / "sweep.png") as picture:
        assert picture.width > picture.height
    assert "control" in (tmp_path / "out" / "sweep.svg").read_text()
    plot_sweep(found["rows"], tmp_path / "sweep.png", tmp_path / "sweep.svg")
    assert (tmp_path / "sweep.svg").read_bytes() == (tmp_path / "out" / "sweep.svg").read_bytes()


def test_the_command_sweeps_noise_on_latents(runs, tmp_path, capsys):
    model = Tokenizer.from_pretrained(runs / "flow" / "tokenizer")
    model.set_latent_statistics([0.0] * 8, [0.5] * 8, 5)
    model.save_pretrained(tmp_path / "known")
    words = ["sweep-steps", str(tmp_path / "known"), "--images", f"[{runs / 'pictures'}]", "--size", "32"]
    words += ["--num_workers", "0", "--repeats", "1", "--steps", "[1]", "--starts", "[zero]"]
    assert main([*words, "--latent_noise", "[0, 0.4]", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [row["latent_noise"] for row in found["rows"]] == [0, 0.4]
    assert found["protocol/settings"]["latent_noise"] == [0, 0.4]
    assert "noise on the latents" in (tmp_path / "out" / "sweep.svg").read_text()
    assert "latent_noise" in capsys.readouterr().out


def test_without_matplotlib_there_are_tables_and_a_note(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(command(runs, "--steps", "[1]", "--starts", "[zero]", "--out", str(tmp_path / "out"))) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sweep.csv", "sweep.json"]
    assert "pip install 'uniflow[report]'" in capsys.readouterr().err


def test_the_command_says_what_is_wrong(runs, tmp_path, capsys):
    flow = str(runs / "flow" / "tokenizer")
    for arguments, message in (
        (command(runs, "--steps", "[0]"), "numbers of at least 1"),
        (command(runs, "--steps", "[]"), "numbers of at least 1"),
        (command(runs, "--starts", "[]"), "name a start"),
        (command(runs, "--starts", "[noise]"), "zero, random"),
        (command(runs, "--latent_noise", "[-1]"), "latent_noise"),
        (command(runs, "--latent_noise", "[0.1]"), "has no latent statistics, the unit of latent_noise"),
        (command(runs, "--repeats", "0"), "repeats must be at least 1"),
        (["sweep-steps", flow], "either --images FOLDER or --data"),
        (["sweep-steps", flow, flow, "--images", f"[{runs / 'pictures'}]"], "named twice"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
