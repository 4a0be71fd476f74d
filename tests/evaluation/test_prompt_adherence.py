"""Whether images show what captions say, on features whose answers are known."""

import pytest
import torch
from torch import Tensor

from uniflow.data.scenes.dataset import ScenesDataset
from uniflow.data.scenes.language import _BACKGROUND_WORDS, _DIRECTIONS, _PLACES, _TEXTURE_WORDS
from uniflow.data.scenes.scene import BACKGROUNDS, COLOR_NAMES
from uniflow.data.scenes.shapes import CLASS_NAMES
from uniflow.data.scenes.textures import TEXTURES
from uniflow.evaluation.prompts import PromptAdherence
from uniflow.metrics import EncoderFeatures, FeatureExtractor, LogisticRegression, PictureFeatures


class Mean(FeatureExtractor):
    """The mean colour, from which "color" 0 (red) and 1 (blue) can be read, and "shape" cannot."""

    name = "mean"

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean(dim=(-2, -1))

    def identity(self) -> str:
        return "mean colour"


def batch(colors: list[int], shapes: list[int], seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.rand(len(colors), 3, 8, 8, generator=generator)
    for image, color in zip(images, colors, strict=True):
        image[2 * color] += 0.5
    return {
        "image": images,
        "label": torch.tensor(shapes),
        "facts": {"color": torch.tensor(colors), "shape": torch.tensor(shapes)},
    }


@pytest.fixture
def numbers() -> dict[str, float]:
    held_out, test = batch([0, 1] * 20, [0, 0, 1, 1] * 10, seed=1), batch([0, 1, 1, 1] * 5, [0, 1] * 10, seed=2)
    generated = {"": batch([0, 1, 1, 1] * 5, [0] * 20, seed=3), "_g2": batch([0] * 20, [0] * 20, seed=4)}
    judge = PromptAdherence(Mean())
    images = {"real": test["image"]} | {suffix: made["image"] for suffix, made in generated.items()}
    for half in (slice(0, 10), slice(10, 20)):
        facts = {name: values[half] for name, values in test["facts"].items()}
        judge.update({name: pictures[half] for name, pictures in images.items()}, {"facts": facts})
    return judge.compute(judge.of_real(held_out))


def test_what_captions_say_is_judged_one_by_one(numbers: dict[str, float]) -> None:
    assert numbers["prompt_color"] == numbers["prompt_color_real"] == 1
    assert numbers["prompt_color_g2"] == 0.25  # all red; a quarter was to be
    assert numbers["prompt_shape_real"] < 1  # the mean colour does not know it
    assert numbers["prompt"] == pytest.approx((1 + numbers["prompt_shape"]) / 2)
    assert numbers["prompt_real"] == pytest.approx((1 + numbers["prompt_shape_real"]) / 2)


def test_chance_is_what_images_of_other_captions_would_get(numbers: dict[str, float]) -> None:
    assert numbers["prompt_color_chance"] == pytest.approx(0.25**2 + 0.75**2)


def test_images_whose_captions_do_not_state_a_fact_do_not_count() -> None:
    def unsaid(made: dict, fact: list[int]) -> dict:
        return {**made, "facts": {"color": made["facts"]["color"], "sometimes": torch.tensor(fact)}}

    held_out, test = batch([0, 1] * 10, [0] * 20, seed=1), batch([0, 1, 1, 1], [0] * 4, seed=2)
    judge = PromptAdherence(Mean())
    judge.update({"real": test["image"], "": test["image"]}, unsaid(test, [0, -1, 1, -1]))
    numbers = judge.compute(judge.of_real(unsaid(held_out, [0, 1] * 5 + [-1] * 10)))
    assert numbers["prompt_sometimes"] == numbers["prompt_sometimes_real"] == 1
    assert "prompt_sometimes" not in judge.compute(judge.of_real(unsaid(held_out, [-1] * 20)))


def test_without_facts_there_are_no_numbers() -> None:
    plain, judge = {"image": torch.rand(4, 3, 8, 8)}, PromptAdherence(Mean())
    judge.update({"real": plain["image"], "": plain["image"]}, plain)
    assert judge.of_real(plain) == {}
    assert judge.compute({}) == {}


def test_the_default_judge_reads_colors_and_shapes_of_scenes() -> None:
    extractor, placing = PictureFeatures(), PictureFeatures(grid=3)
    rows: dict[str, list[Tensor]] = {"": [], "3": []}
    facts: dict[str, list[Tensor]] = {"color": [], "position": []}
    for stream, length in ((0, 240), (1, 96)):
        dataset = ScenesDataset(0, length, fields=("facts",), stream=stream, max_objects=1, positions=True)
        samples = [dataset[number] for number in range(length)]
        images = torch.stack([sample["image"] for sample in samples]) / 255
        rows["3"].append(placing(images))
        plain = extractor(images[:2])
        torch.testing.assert_close(plain, rows["3"][-1][:2, : plain.shape[1]])
        rows[""].append(rows["3"][-1][:, : plain.shape[1]])  # the cells come last
        for name, values in facts.items():
            values.append(torch.tensor([sample["facts"][name] for sample in samples]))

    def accuracy(features: str, fact: str) -> float:
        (known, asked), (fitted, wanted) = rows[features], facts[fact]
        classifier = LogisticRegression(known, fitted, int(fitted.max()) + 1, l2=1e-2, iterations=60)
        return float((classifier.logits(asked).argmax(dim=1) == wanted).double().mean())

    assert accuracy("", "color") > 0.85
    assert accuracy("3", "position") > 0.75 > accuracy("", "position")
    assert placing.identity() != extractor.identity()
    with pytest.raises(ValueError, match="at least 8 x 8 pixels"):
        extractor(torch.rand(1, 3, 4, 8))
    assert extractor.identity() != EncoderFeatures().identity()


def test_scenes_say_what_their_captions_say() -> None:
    """In words the caption has the names that the numbers stand for."""
    dataset = ScenesDataset(0, 40, fields=("caption", "facts"))
    for number in range(40):
        sample = dataset[number]
        caption, facts = sample["caption"], sample["facts"]
        assert facts["shape"] == sample["label"]
        assert f"{COLOR_NAMES[facts['color']]} {CLASS_NAMES[facts['shape']]}" in caption
        assert _TEXTURE_WORDS[TEXTURES[facts["texture"]]] in caption
        assert caption.endswith(_BACKGROUND_WORDS[BACKGROUNDS[facts["background"]]])
        others = ("in front of", "behind it", "farther away")
        assert (facts["count"] > 0) == any(words in caption for words in others)


def test_scenes_say_positions_if_asked() -> None:
    plain, placed = (
        ScenesDataset(0, 40, fields=("caption", "facts"), max_objects=2, positions=positions)
        for positions in (False, True)
    )
    seen: dict[str, set[int]] = {"position": set(), "relation": set()}
    for number in range(40):
        sample, without = placed[number], plain[number]
        caption, facts = sample["caption"], sample["facts"]
        assert torch.equal(sample["image"], without["image"])
        assert {**without["facts"], "position": facts["position"], "relation": facts["relation"]} == facts
        assert _PLACES[facts["position"]] in caption
        assert not any(words in without["caption"] for words in _PLACES)
        said = [words in caption for words in _DIRECTIONS]
        assert said == [index == facts["relation"] for index in range(4)]
        assert (facts["relation"] == -1) == (facts["count"] == 0)
        for name, values in seen.items():
            values.add(facts[name])
    assert seen == {"position": {0, 1, 2}, "relation": {-1, 0, 1, 2, 3}}
