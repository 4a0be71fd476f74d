"""Sweeps of probes: which candidates there are, how each is trained, which is picked, and what a test sees of it."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassAccuracy

from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads import AttentiveProbeHead, LinearSweepHead
from uniflow.heads.pooling import pooled_blocks
from uniflow.heads.sweep import LEARNING_RATES, CandidateSums

SPEC = FeatureSpec(16, 8, num_layers=4, num_prefix_tokens=2, image_size=32)
PLAIN = FeatureSpec(16, 8, num_layers=1, num_prefix_tokens=0, image_size=32)  # latents


def features(spec=SPEC, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(tokens):
        return torch.randn(count, tokens, spec.embed_dim, generator=generator)

    layers = range(spec.num_layers)
    return EncoderOutput(tuple(draw(4) for _ in layers), tuple(draw(spec.num_prefix_tokens) for _ in layers), (2, 2))


LABELS = torch.tensor([0, 1, 2, 3, 4, 5])


def test_candidates_are_those_of_dinov2():
    head = LinearSweepHead(SPEC, 7)
    assert len(LEARNING_RATES) == 13
    assert len(head.settings) == len(head.probes) == 13 * 2 * 2
    widths = {(s["blocks"], s["pool"]): p.in_features for s, p in zip(head.settings, head.probes.values(), strict=True)}
    expected = {(1, "class"): 16, (1, "class_and_mean"): 32, (4, "class"): 64, (4, "class_and_mean"): 80}
    assert widths == expected
    assert head(features()).shape == (52, 6, 7)


def test_a_source_gives_what_it_has():
    """One map without prefix tokens: settings that become equal are trained once."""
    head = LinearSweepHead(PLAIN, 7)
    assert {(s["blocks"], s["pool"]) for s in head.settings} == {(1, "mean")}
    assert len(head.settings) == 13
    assert head(features(PLAIN)).shape == (13, 6, 7)
    assert AttentiveProbeHead(PLAIN, 7)(features(PLAIN)).shape == (4, 6, 7)


def test_pooled_features_in_closed_form():
    given = features()

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    classes = [norm(tokens[:, 0]) for tokens in given.prefix_tokens]
    mean = norm(given.hidden_states[-1]).mean(dim=1)
    torch.testing.assert_close(pooled_blocks(given, 4, "class"), torch.cat(classes, dim=1))
    torch.testing.assert_close(pooled_blocks(given, 1, "class_and_mean"), torch.cat([classes[-1], mean], dim=1))
    torch.testing.assert_close(pooled_blocks(given, 1, "mean"), mean)


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (LinearSweepHead, {"learning_rates": [0.1]}),
        (LinearSweepHead, {"blocks": [2]}),
        (LinearSweepHead, {"pools": ["mean"]}),
        (AttentiveProbeHead, {"learning_rates": [0.1]}),
        (AttentiveProbeHead, {"num_heads": 2}),
    ],
)
def test_every_setting_changes_the_prediction(make, changed):
    outputs = []
    for arguments in ({}, changed):
        torch.manual_seed(0)
        outputs.append(make(SPEC, 7, **arguments)(features()))
    assert outputs[0].shape != outputs[1].shape or not torch.allclose(*outputs)


@pytest.mark.parametrize("make", [LinearSweepHead, AttentiveProbeHead])
def test_each_candidate_trains_as_if_it_were_alone(make):
    """Its gradient is that of its own loss, and its learning rate its own, scaled by the images of a step."""
    torch.manual_seed(0)
    head = make(SPEC, 7, learning_rates=[0.01, 0.5])
    prediction = head(features())
    head.loss(prediction, {"label": LABELS}).backward()
    for number, (key, probe) in enumerate(head.probes.items()):
        alone = F.cross_entropy(head(features())[number], LABELS)
        gradients = torch.autograd.grad(alone, list(probe.parameters()))
        for (name, parameter), gradient in zip(probe.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
            rate = head.settings[number]["learning_rate"]
            assert head.lr_multiplier(f"probes.{key}.{name}", lambda: 64) == pytest.approx(rate * 64 / 256)


def logits_with(right):
    """Logits (candidates, 6, 7) whose candidate i answers the first `right[i]` images rightly."""
    logits = torch.zeros(len(right), 6, 7)
    for row, count in enumerate(right):
        for image in range(6):
            logits[row, image, LABELS[image] if image < count else 6] = 4.0
    return logits


def evaluate(head, logits, stage):
    metrics = head.metrics()
    for rows in (slice(0, 4), slice(4, 6)):
        head.update_metrics(metrics, logits[:, rows], {"label": LABELS[rows]})
    return head.results(metrics, stage)


def test_validation_picks_and_a_test_does_not():
    head = LinearSweepHead(PLAIN, 7, learning_rates=[0.1, 0.2, 0.3])
    assert head.report() == {}
    assert head.scores(logits_with([1, 1, 1])) is None
    with pytest.raises(ValueError, match="no candidate has been picked: train with a validation split first"):
        evaluate(head, logits_with([1, 5, 3]), "test")
    assert evaluate(head, logits_with([1, 5, 3]), "val")["accuracy"] == pytest.approx(5 / 6)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    assert evaluate(head, logits_with([6, 2, 6]), "test")["accuracy"] == pytest.approx(2 / 6)  # others are better there
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    report = head.report()
    assert report["picked"] == {"blocks": 1, "pool": "mean", "learning_rate": 0.2, "val_accuracy": 0.833333}
    assert [row["val_accuracy"] for row in report["candidates"]] == [0.166667, 0.833333, 0.5]
    assert head.scores(logits_with([6, 2, 6])).argmax(dim=1).eq(LABELS).sum() == 2


def test_of_equals_the_lower_loss_wins_and_nan_never():
    head = LinearSweepHead(PLAIN, 7, learning_rates=[0.1, 0.2, 0.3])
    logits = logits_with([4, 4, 4])
    logits[1] *= 0.5  # less sure of its wrong answers
    logits[2, 5, 0] = torch.nan
    evaluate(head, logits, "val")
    assert head.report()["picked"]["learning_rate"] == 0.2


def test_the_pick_is_in_checkpoints():
    head, other = (LinearSweepHead(PLAIN, 7, learning_rates=[0.1, 0.2]) for _ in range(2))
    evaluate(head, logits_with([1, 5]), "val")
    other.load_state_dict(head.state_dict())
    assert other.report() == head.report()


def test_sums_equal_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 200, 9, generator=generator), torch.randint(9, (200,), generator=generator)
    sums = CandidateSums(3, 5)
    for rows in (slice(0, 150), slice(150, 200)):
        sums.update(logits[:, rows], labels[rows])
    first, among, losses = sums.compute()
    for row in range(3):
        one, five = (MulticlassAccuracy(9, top_k=k, average="micro")(logits[row], labels) for k in (1, 5))
        assert (first[row], among[row]) == (one, five)
        assert losses[row] == pytest.approx(F.cross_entropy(logits[row], labels).item())


def test_few_classes_have_no_top5():
    head = LinearSweepHead(PLAIN, 4, learning_rates=[0.1])
    metrics = head.metrics()
    head.update_metrics(metrics, torch.eye(4)[None], {"label": torch.arange(4)})
    assert head.results(metrics, "val") == {"accuracy": 1}


def test_a_trained_sweep_reads_what_scikit_learn_reads():
    """On separable features the picked candidate is as good as logistic regression."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    centers, labels = rng.normal(size=(5, 16)), rng.integers(0, 5, 900)
    tokens = torch.from_numpy(centers[labels] + 0.9 * rng.normal(size=(900, 16))).float()[:, None]
    given, y = EncoderOutput((tokens,), (tokens[:, :0],), (1, 1)), torch.from_numpy(labels)
    pooled = pooled_blocks(given, 1, "mean").numpy()
    model = LogisticRegression(max_iter=500).fit(pooled[:300], labels[:300])
    torch.manual_seed(0)
    head = LinearSweepHead(PLAIN, 5)

    def part(rows):
        return EncoderOutput((tokens[rows],), (tokens[rows, :0],), (1, 1)), {"label": y[rows]}

    groups = [
        {"params": p.parameters(), "lr": 30 * head.lr_multiplier(f"probes.{key}.weight", lambda: 300)}
        for key, p in head.probes.items()
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    train, batch = part(slice(0, 300))
    for _ in range(100):
        optimizer.zero_grad()
        head.loss(head(train), batch).backward()
        optimizer.step()
    found = {}
    for stage, rows in (("val", slice(300, 500)), ("test", slice(500, 900))):
        metrics = head.metrics()
        inputs, batch = part(rows)
        head.update_metrics(metrics, head(inputs), batch)
        found[stage] = float(head.results(metrics, stage)["accuracy"])
    assert found["test"] == pytest.approx(model.score(pooled[500:], labels[500:]), abs=0.02)
    assert found["test"] > 0.6


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (partial(LinearSweepHead, learning_rates=[]), r"LinearSweepHead\.learning_rates is empty"),
        (partial(LinearSweepHead, blocks=[]), r"LinearSweepHead\.blocks is empty"),
        (partial(LinearSweepHead, pools=[]), r"LinearSweepHead\.pools is empty"),
        (partial(AttentiveProbeHead, learning_rates=[]), r"AttentiveProbeHead\.learning_rates is empty"),
        (partial(AttentiveProbeHead, num_heads=3), "num_heads must divide the features' width 16, got 3"),
    ],
)
def test_what_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make(SPEC, 7)
