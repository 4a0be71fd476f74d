"""The table and the plot of the ablation on a real encoder, from numbers given by hand."""

import pytest
from PIL import Image

from benchmarks.real_layers import COLUMNS, main, plot, table

VALUES = {"psnr": 30.0, "psnr_steps4": 29.5, "ssim": 0.9, "cosine": 0.99, "knn": 0.5, "probe": 0.75}
VALUES |= {"latent_probe": 0.25, "latent_r2": 0.7}
NAMES = ["last layer, frozen, start=random", "all layers, adaptive, start=Regression (images 2)"]
RESULTS = {NAMES[0]: [VALUES], NAMES[1]: [VALUES, VALUES | {"psnr": 32.0}]}


def test_table_has_means_and_spreads():
    head, rule, alone, several = table(RESULTS).splitlines()
    assert head.count("|") == rule.count("|") == alone.count("|") == len(COLUMNS) + 2
    assert alone.startswith(f"| {NAMES[0]} | 30.00 dB | 29.50 dB | 0.900 | 0.990 | 50.0% | 75.0% | 25.0% | 0.70 |")
    assert f"| {NAMES[1]} | 31.00 dB ± 1.41 dB | 29.50 dB ± 0.00 dB |" in several


def test_plot_has_a_row_for_each_number_of_channels(tmp_path):
    heights = []
    for channels in ((64,), (64, 16)):
        results = {f"{name}, channels={c}, start=random": runs for name, runs in RESULTS.items() for c in channels}
        plot(results, tmp_path / "plot.png")
        heights.append(Image.open(tmp_path / "plot.png").height)
    assert Image.open(tmp_path / "plot.png").width > 600
    assert heights[1] == 2 * heights[0]


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), "--encoder", "e.safetensors", "--photographs", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"real_layers: error: no finished runs in {tmp_path}\n"


@pytest.mark.parametrize("key", COLUMNS)
def test_every_column_is_measured(key):
    assert key in VALUES
