"""The protocol inside validation, `uniflow test` and `uniflow evaluate`: the same numbers whatever the batches."""

import csv
import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from tiny import fit, tiny_scenes, tiny_task
from torchvision.utils import save_image

from uniflow.callbacks import ResultsFile
from uniflow.cli import main
from uniflow.metrics import ReconstructionProtocol


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    task = tiny_task(
        eval_steps=(1, 2), protocol=ReconstructionProtocol(images=["psnr", "ssim", "legacy_ssim"], sets=["frechet"])
    )
    fit(task, tiny_scenes(), root, steps=3)
    return task


def run_test(task, root, batch_size=8, callbacks=(), **kwargs):
    trainer = Trainer(
        default_root_dir=root, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ResultsFile(), *callbacks], **({"accelerator": "cpu"} | kwargs),
    )  # fmt: skip
    trainer.test(task, tiny_scenes(test_length=9, batch_size=batch_size), verbose=False)
    return json.loads((root / "test_results.json").read_text())


def test_numbers_and_fingerprint_do_not_depend_on_batch_size_or_processes(trained, tmp_path):
    one = run_test(trained, tmp_path / "one")
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    others = {
        "small": run_test(trained, tmp_path / "small", batch_size=2),
        "two": run_test(trained, tmp_path / "two", batch_size=3, strategy=ddp, devices=2),
    }
    exact = [key for key in one if not key.startswith("protocol/") and "frechet" not in key]
    assert {"test/psnr", "test/psnr_steps2", "test/legacy_ssim", "test/cosine", "test_layers/cosine_1"} <= set(exact)
    for results in others.values():
        assert {k: results[k] for k in exact} == pytest.approx({k: one[k] for k in exact}, abs=1e-6)
        # 9 images in 128 dimensions: roots of eigenvalues that are zero but for rounding.
        assert results["test/frechet_scene_vit"] == pytest.approx(one["test/frechet_scene_vit"], rel=1e-3)
        assert results["protocol/fingerprint"] == one["protocol/fingerprint"]
    tables = [list(csv.DictReader((tmp_path / n / "test_images.csv").open())) for n in ("one", "two")]
    assert len(tables[0]) == len(tables[1]) == 9
    assert [row["image"] for row in tables[0]] == [f"scene {number:06d}" for number in range(9)]
    assert [row["image"] for row in tables[1]] == [row["image"] for row in tables[0]]
    slices = [list(csv.DictReader((tmp_path / n / "test_slices.csv").open())) for n in ("one", "two")]
    assert {"all", "texture: highest third", "chroma: lowest third"} <= {row["slice"] for row in slices[0]}
    for left, right in zip(*slices, strict=True):
        assert (left["slice"], left["count"]) == (right["slice"], right["count"])
        assert float(left["psnr_steps2"]) == pytest.approx(float(right["psnr_steps2"]), abs=1e-5)
    assert float(slices[0][0]["psnr"]) == pytest.approx(one["test/psnr"], abs=1e-5)
    mean = sum(float(row["psnr"]) for row in tables[0]) / 9
    assert one["test/psnr"] == pytest.approx(mean, abs=1e-5)
    assert one["protocol/settings"]["num_images"] == 9


def test_the_fingerprint_knows_precision_and_steps(trained, tmp_path):
    one = run_test(trained, tmp_path / "one")
    low = run_test(trained, tmp_path / "low", precision="bf16-mixed")
    assert low["protocol/fingerprint"] != one["protocol/fingerprint"]
    trained.eval_steps = (1,)
    assert run_test(trained, tmp_path / "steps")["protocol/fingerprint"] != one["protocol/fingerprint"]
    trained.eval_steps = (1, 2)


def test_callbacks_get_what_the_networks_gave(trained, tmp_path):
    class Look(Callback):
        seen = 0

        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            assert outputs["latents"].shape[0] == len(batch["image"])
            assert len(outputs["student"].hidden_states) == len(outputs["teacher"].hidden_states) == 3
            self.seen += 1

    look = Look()
    run_test(trained, tmp_path, callbacks=[look])
    assert look.seen == 2


def test_evaluate_judges_a_folder_of_pictures(trained, tmp_path, capsys):
    trained.tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        save_image(torch.rand(3, 40, 50 + number), tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    command = ["evaluate", str(tmp_path / "tokenizer"), "--images", f"[{tmp_path / 'pictures'}]", "--num_workers", "0"]

    def run(name, *options):
        assert main([*command, "--out", str(tmp_path / name), *options]) == 0
        return json.loads((tmp_path / name / "results.json").read_text())

    one = run("one", "--size", "32")
    captured = capsys.readouterr()
    assert "broken.png" in captured.err
    assert one["protocol/fingerprint"] in captured.out
    single = run("single", "--size", "32", "--batch_size", "1")
    assert single["psnr"] == pytest.approx(one["psnr"], abs=1e-6)
    assert single["protocol/fingerprint"] == one["protocol/fingerprint"]
    cropped = run("cropped", "--size", "32", "--crop", "0.8")
    assert cropped["protocol/fingerprint"] != one["protocol/fingerprint"]
    assert "frechet_scene_vit" not in run(
        "plain", "--size", "32", "--protocol.sets", "[]", "--protocol.images", "[psnr]"
    )
    names = [row["image"] for row in csv.DictReader((tmp_path / "one" / "images.csv").open())]
    assert names == ["0.png", "1.png", "2.png"]


def test_evaluate_shows_slices_and_the_worst(trained, tmp_path, capsys):
    trained.tokenizer.save_pretrained(tmp_path / "tokenizer")
    for folder, count in (("faces", 2), ("text/fine", 3)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            save_image(torch.rand(3, 32, 32) * (number + 1) / 3, tmp_path / folder / f"{number}.png")
    folders = f"[{tmp_path / 'faces'}, {tmp_path / 'text'}, {tmp_path / 'text' / 'fine' / '0.png'}]"
    command = ["evaluate", str(tmp_path / "tokenizer"), "--images", folders, "--size", "32", "--num_workers", "0"]

    def run(name, *options):
        assert main([*command, "--protocol.sets", "[]", "--out", str(tmp_path / name), *options]) == 0
        return capsys.readouterr().out

    assert "lowest third" not in run("quiet", "--worst", "0")
    assert not (tmp_path / "quiet" / "worst.png").exists()
    printed = run("one", "--slices", "true", "--worst", "2")
    rows = list(csv.DictReader((tmp_path / "one" / "slices.csv").open()))
    assert {row["slice"]: row["count"] for row in rows if "third" not in row["slice"]} == {
        "all": "6", "folder: faces": "2", "folder: text": "4",
    }  # fmt: skip
    assert all(row["slice"] in printed for row in rows)
    images = list(csv.DictReader((tmp_path / "one" / "images.csv").open()))
    assert [row["image"] for row in images][1:4] == ["faces/1.png", "text/fine/0.png", "text/fine/0.png"]
    assert images[0]["brightness"] < images[1]["brightness"]
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert float(rows[0]["psnr"]) == results["psnr"]
    assert "brightness" not in results
    with Image.open(tmp_path / "one" / "worst.png") as two:
        run("single", "--worst", "2", "--batch_size", "1", "--protocol.images", "[psnr]")
        with Image.open(tmp_path / "single" / "worst.png") as psnr_only:
            assert psnr_only.size == (two.width // 2, two.height)
    assert main([*command, "--worst", "-1"]) == 2


def test_evaluate_says_what_is_wrong(trained, tmp_path, capsys):
    trained.tokenizer.save_pretrained(tmp_path / "tokenizer")
    for options, message in (
        ([], "either --images FOLDER or --data"),
        (["--images", f"[{tmp_path / 'none'}]"], "no such image or folder"),
        (["--images", f"[{tmp_path / 'tokenizer'}]"], "none of the images"),
        (["--data", "Scenes", "--protocol.sets", "[fid]"], "fid"),
    ):
        assert main(["evaluate", str(tmp_path / "tokenizer"), "--num_workers", "0", *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_evaluate_takes_a_data_module(trained, tmp_path):
    trained.tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = ["--data", "Scenes", "--data.size", "32", "--data.test_length", "9", "--data.num_workers", "0"]
    assert main(["evaluate", str(tmp_path / "tokenizer"), *options, "--out", str(tmp_path / "out")]) == 0
    offline = json.loads((tmp_path / "out" / "results.json").read_text())
    online = run_test(trained, tmp_path / "online")
    assert offline["psnr"] == pytest.approx(online["test/psnr"], abs=1e-5)
