"""CKA against its definition and closed forms; nearest neighbours against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from uniflow.metrics import knn_accuracy, leave_one_out_knn_accuracy, linear_cka, similarity


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka_by_definition(x, y):
    """HSIC(K, L) = tr(K H L H) / (n - 1)^2 of the Gram matrices, normalised."""
    n = len(x)
    h = torch.eye(n, dtype=x.dtype) - 1 / n

    def hsic(k, other):
        return torch.trace(k @ h @ other @ h) / (n - 1) ** 2

    k, other = x @ x.T, y @ y.T
    return float(hsic(k, other) / (hsic(k, k) * hsic(other, other)).sqrt())


@pytest.mark.parametrize("sizes", [(30, 5, 7), (6, 40, 9), (12, 12, 12), (2, 3, 1)])
def test_cka_is_its_definition_by_either_route(sizes):
    n, d, e = sizes
    x, y = normal(n, d) + 3, normal(n, e, seed=1)
    y[:, 0] += x[:, 0]
    assert linear_cka(x, y) == pytest.approx(cka_by_definition(x, y), abs=1e-12)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), abs=1e-12)


def test_cka_closed_forms():
    x = torch.tensor([[1.0], [-1], [0], [0]])
    assert linear_cka(x, torch.tensor([[1.0], [0], [-1], [0]])) == pytest.approx(1 / 4)
    assert linear_cka(x, torch.tensor([[0.0], [0], [1], [-1]])) == 0
    assert linear_cka(x, x) == pytest.approx(1)


def test_cka_sees_no_rotation_scale_shift_or_order():
    x, y = normal(20, 6), normal(20, 6, seed=1)
    rotation = torch.linalg.qr(normal(6, 6, seed=2)).Q
    value = linear_cka(x, y)
    assert linear_cka(x, -5 * y @ rotation + 100) == pytest.approx(value, abs=1e-10)
    assert linear_cka(x, 0.1 * x @ rotation) == pytest.approx(1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    assert linear_cka(x[order], y[order]) == pytest.approx(value, abs=1e-12)
    assert linear_cka(x[order], y) != pytest.approx(value, abs=1e-3)


def test_cka_computes_in_double_precision_whatever_it_is_given():
    x, y = normal(50, 4), normal(50, 4, seed=1)
    far, other = (1000 + x).float(), (1000 + y).float()
    assert linear_cka(far, other) == pytest.approx(
        cka_by_definition(far.double() - 1000, other.double() - 1000), abs=1e-9
    )
    assert linear_cka(x.bfloat16(), y) == pytest.approx(linear_cka(x, y), abs=0.02)


def test_collapsed_features_share_nothing():
    x = normal(10, 4)
    for constant in (torch.zeros(10, 3), torch.full((10, 3), 0.1), torch.full((10, 3), 1e8 / 3)):
        assert linear_cka(x, constant) == 0
        assert linear_cka(constant, constant) == 0


def test_cka_says_what_is_wrong():
    for x, y in ((normal(4, 2), normal(5, 2)), (normal(1, 2), normal(1, 2)), (normal(4, 2, 2), normal(4, 2))):
        with pytest.raises(ValueError, match=r"N >= 2, got \("):
            linear_cka(x, y)


def clusters(n, classes=5, dims=8, spread=1.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, dims))
    return torch.from_numpy(centres[labels] + spread * rng.normal(size=(n, dims))), torch.from_numpy(labels)


def reference(k, temperature):
    def weigh(distance):
        return np.exp((1 - distance) / temperature)

    return KNeighborsClassifier(n_neighbors=k, metric="cosine", weights=weigh, algorithm="brute")


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (50, 0.5)])
def test_knn_equals_scikit_learn(k, temperature):
    (x, y), (x_test, y_test) = clusters(300), clusters(150, seed=1)
    expected = reference(k, temperature).fit(x, y).score(x_test, y_test)
    assert 0.4 < expected < 1
    assert knn_accuracy(x, y, x_test, y_test, k=k, temperature=temperature) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 20])
def test_leaving_one_out_equals_scikit_learn(k):
    x, y = clusters(60)
    features, labels = x.numpy(), y.numpy()
    right = [
        reference(k, 0.07).fit(np.delete(features, i, 0), np.delete(labels, i)).predict(features[[i]]) == labels[i]
        for i in range(60)
    ]
    assert 0.3 < np.mean(right) < 1
    assert leave_one_out_knn_accuracy(x, y, k=k) == pytest.approx(np.mean(right))
    assert knn_accuracy(x, y, x, y, k=1) == 1  # with itself among the neighbours


def test_chunks_change_nothing(monkeypatch):
    (x, y), (x_test, y_test) = clusters(60), clusters(50, seed=1)
    whole = knn_accuracy(x, y, x_test, y_test), leave_one_out_knn_accuracy(x, y)
    monkeypatch.setattr(similarity, "_CHUNK", 7)
    assert (knn_accuracy(x, y, x_test, y_test), leave_one_out_knn_accuracy(x, y)) == whole


def test_settings_count():
    x, y = torch.tensor([[1.0, 0], [1, 0.3], [1, -0.3]]), torch.tensor([4, 7, 7])
    query = torch.tensor([[1.0, 0]])

    def says(label, **settings):
        return knn_accuracy(x, y, query, torch.tensor([label]), **settings) == 1

    assert says(4, k=1)
    assert says(7, k=3)  # two near votes against one
    assert says(4, k=3, temperature=0.01)  # the nearest weighs more than both
    assert says(7, k=99)
    assert says(4, k=3, temperature=1e-6)  # no overflow
    assert knn_accuracy(x.bfloat16(), y, query.float(), torch.tensor([7])) == 1


def test_equal_neighbours_all_vote_and_equal_votes_go_to_the_lowest_class():
    # One image three times, with classes 2, 1, 1; the nearest neighbour alone would be a matter of chance.
    x, labels = torch.tensor([[1.0, 2, 3]] * 3 + [[-1, 0, 1]]), torch.tensor([2, 1, 1, 0])
    query = torch.tensor([[2.0, 4, 6.1]])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        assert knn_accuracy(x[order], labels[order], query, torch.tensor([1]), k=1) == 1
    for classes in ([5, 2], [2, 5]):
        assert knn_accuracy(x[:2], torch.tensor(classes), query, torch.tensor([2]), k=1) == 1


def test_order_changes_nothing():
    x, y = clusters(200, spread=2.0)
    x[100:150] = x[:50]  # twice the same image, with another class
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    (x_test, y_test), shuffled = clusters(100, seed=1), (x[order], y[order])
    for k in (1, 20):
        assert knn_accuracy(x, y, x_test, y_test, k=k) == knn_accuracy(*shuffled, x_test, y_test, k=k)
        assert leave_one_out_knn_accuracy(x, y, k=k) == leave_one_out_knn_accuracy(*shuffled, k=k)


def test_knn_says_what_is_wrong():
    x, y = clusters(10)
    with pytest.raises(ValueError, match=r"train split needs .* got \(10, 8\) and \(9,\)"):
        knn_accuracy(x, y[:9], x, y)
    with pytest.raises(ValueError, match="test split"):
        knn_accuracy(x, y, x[:0], y[:0])
    with pytest.raises(ValueError, match="N >= 2"):
        leave_one_out_knn_accuracy(x[:1], y[:1])
    for settings in ({"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match="k >= 1 and a temperature above 0"):
            knn_accuracy(x, y, x, y, **settings)
