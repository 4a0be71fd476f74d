"""How training went, from TensorBoard's files."""

import matplotlib.figure
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from uniflow.pictures.curves import plot_curves, read_curves


def write_run(folder, layers=0):
    with SummaryWriter(str(folder)) as writer:
        for step in range(3):
            writer.add_scalar("train/flow", 1 / (step + 1), step)
            for layer in range(1, layers + 1):
                writer.add_scalar(f"layers/distance_{layer:02d}", layer / 100, step)
                writer.add_scalar(f"layers/weight_{layer:02d}", layer / 300, step)
    return folder


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn."""
    drawn, save = [], matplotlib.figure.Figure.savefig

    def remember(self, *args, **kwargs):
        drawn.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", remember)
    return drawn


def test_every_layer_has_a_line_and_the_legend_stays_short(tmp_path, figures):
    runs = {name: write_run(tmp_path / name, layers) for name, layers in (("deep", 24), ("none", 0), ("few", 3))}
    assert plot_curves(runs, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1200, 900)
    axes = figures[0].axes
    assert [len(axis.lines) for axis in axes] == [1, 24, 24, 1, 0, 0, 1, 3, 3]
    assert [text.get_text() for text in axes[2].get_legend().get_texts()] == [str(n) for n in range(24, 0, -2)]
    assert [text.get_text() for text in axes[8].get_legend().get_texts()] == ["3", "2", "1"]
    colors = [line.get_color() for line in axes[1].lines]
    lightness = [0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2] for c in colors]
    assert lightness == sorted(lightness)
    assert [tuple(line.get_color()) for line in axes[2].lines] == [tuple(color) for color in colors]
    assert axes[1].lines[4].get_ydata() == pytest.approx([0.05] * 3)


def test_nothing_logged_draws_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    assert read_curves(tmp_path / "empty") == {}
    assert not plot_curves({"empty": tmp_path / "empty"}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
