"""k-NN and logistic regression at test time equal scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from uniflow.heads.fitted import FittedClassifiers
from uniflow.metrics import LogisticRegression as Ours
from uniflow.metrics import linear_probe

CLASSES, N = 8, 400


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 900)
    features = rng.normal(size=(CLASSES, 12))[labels] + 1.2 * rng.normal(size=(900, 12))
    return features, labels


def fitted(data, rows=slice(N, 900), **changed):
    features, labels = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    settings = {"neighbours": [10, 20, 100], "temperature": 0.07, "logistic_l2": 1e-3} | changed
    classifiers = FittedClassifiers(features[:N], labels[:N], CLASSES, **settings)
    for start in range(rows.start, rows.stop, 170):
        part = slice(start, min(start + 170, rows.stop))
        classifiers.update(features[part], labels[part])
    return classifiers.compute()


def test_knn_equals_scikit_learn(data):
    features, labels = data
    found = fitted(data)
    for k in (10, 20, 100):
        model = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        model.fit(features[:N], labels[:N])
        assert found[f"knn_{k}"] == pytest.approx(model.score(features[N:], labels[N:]), abs=1e-6)
        if k == 100:  # with fewer neighbours many classes have no vote
            five = top_k_accuracy_score(labels[N:], model.predict_proba(features[N:]), k=5)
            assert found["knn_100_top5"] == pytest.approx(five, abs=1e-3)


def test_logistic_regression_equals_scikit_learn(data):
    features, labels = data
    mean, std = features[:N].mean(0), features[:N].std(0)
    model = LogisticRegression(C=1 / (2 * 1e-3 * N), max_iter=2000, tol=1e-8)
    model.fit((features[:N] - mean) / std, labels[:N])
    found, x = fitted(data), (features[N:] - mean) / std
    assert found["logistic"] == pytest.approx(model.score(x, labels[N:]), abs=1e-3)
    five = top_k_accuracy_score(labels[N:], model.predict_proba(x), k=5)
    assert found["logistic_top5"] == pytest.approx(five, abs=1e-3)
    ours = Ours(torch.from_numpy(features[:N]), torch.from_numpy(labels[:N]), CLASSES)
    shares = ours.logits(torch.from_numpy(features[N:])).softmax(dim=1).numpy()
    np.testing.assert_allclose(shares, model.predict_proba(x), atol=1e-3)


def test_logistic_regression_is_the_probe(data):
    x, y = (torch.from_numpy(array) for array in data)
    assert fitted(data)["logistic"] == pytest.approx(linear_probe(x[:N], y[:N], x[N:], y[N:]), abs=1e-6)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"temperature": 0.7}, {"knn_100"}),
        ({"logistic_l2": 1.0}, {"logistic"}),
        ({"neighbours": [1]}, None),
        ({"logistic_l2": None}, None),
    ],
)
def test_every_setting_changes_the_numbers(data, changed, names):
    before, after = fitted(data), fitted(data, **changed)
    if names is None:
        assert before.keys() != after.keys()
    else:
        assert all(before[name] != after[name] for name in names)


def test_more_neighbours_than_images_are_all_of_them(data):
    found = fitted(data, neighbours=[N, 10_000], logistic_l2=None)
    assert found[f"knn_{N}"] == found["knn_10000"]
