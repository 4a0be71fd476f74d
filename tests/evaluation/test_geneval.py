"""GenEval's rules on boxes whose answers are known, and the tool on tiny models of transformers."""

import json

import pytest
import torch
from PIL import Image

from uniflow.evaluation import geneval
from uniflow.evaluation.detectors import ColorJudge, ObjectDetector, _inside
from uniflow.evaluation.geneval import COLORS, Found, failures, relations, scores

LEFT, RIGHT, LOW = (0.0, 40.0, 20.0, 60.0), (60.0, 40.0, 80.0, 60.0), (0.0, 90.0, 20.0, 100.0)
CAT, DOG = Found("cat", 0.95, LEFT), Found("dog", 0.9, RIGHT)


def check(found, colors=(), **metadata):
    return failures(found, {"tag": "any", **metadata}, lambda boxes, name: list(colors)[: len(boxes)])


def test_as_many_objects_as_asked_for_are_needed_and_more_are_well():
    two = [{"class": "cat", "count": 2}]
    assert check([CAT], include=two) == ["1 of cat, 2 expected"]
    assert check([CAT] * 3, include=two) == []
    assert check([CAT] * 3, include=two, exclude=[{"class": "cat", "count": 3}]) == ["3 of cat, fewer than 3 expected"]
    assert check([DOG], include=[{"class": "cat", "count": 1}]) == ["0 of cat, 1 expected"]


def test_unsure_objects_do_not_count_and_less_so_where_numbers_are_asked():
    one = [{"class": "cat", "count": 1}]
    unsure = Found("cat", 0.8, LEFT)
    assert failures([unsure], {"tag": "single_object", "include": one}, list) == []
    assert failures([unsure], {"tag": "counting", "include": one}, list) == ["0 of cat, 1 expected"]
    assert check([Found("cat", 0.3, LEFT)], include=one) == ["0 of cat, 1 expected"]


def test_names_are_those_of_the_prompts():
    wanted = [{"class": "tv remote", "count": 1}]
    assert check([Found("remote", 0.9, LEFT)], include=wanted) == []
    assert check([Found("tv", 0.9, LEFT)], include=wanted) != []


def test_colors_are_of_the_surest_objects():
    red = [{"class": "cat", "count": 1, "color": "red"}]
    assert check([CAT], ["red"], include=red) == []
    assert check([CAT, CAT], ["blue", "red"], include=red) == ["cat is blue, red expected"]
    asked = []
    failures(
        [Found("cat", 0.5, RIGHT), CAT], {"tag": "colors", "include": red}, lambda b, n: asked.append((b, n)) or []
    )
    assert asked == [([LEFT], "cat")]


def test_positions_are_to_an_entry_that_is_there():
    wanted = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}]
    assert check([CAT, DOG], include=wanted) == []
    assert check([CAT, Found("dog", 0.9, LOW)], include=wanted) == ["dog is not right of"]
    assert check([DOG], include=wanted) == ["0 of cat, 1 expected", "dog has nothing to be right of"]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (LEFT, set()),
        (RIGHT, {"right of"}),
        (LOW, {"below"}),
        ((60.0, 100.0, 80.0, 120.0), {"right of", "below"}),
        ((0.0, -60.0, 20.0, -40.0), {"above"}),
        ((-3.0, 40.0, 17.0, 60.0), set()),  # nearer than a tenth of both sides
        ((-60.0, 40.0, -40.0, 60.0), {"left of"}),
    ],
)
def test_relations_are_clear_or_none(box, expected):
    assert relations(box, LEFT) == expected


def test_the_whole_score_is_the_mean_over_tasks():
    found = scores([("colors", True), ("colors", False), ("colors", False), ("colors", False), ("position", True)])
    assert found == {"colors": 0.25, "position": 1, "overall": 0.625}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([], 'needs a "tag"'),
        ({"tag": "x"}, 'needs "include" or "exclude"'),
        ({"tag": "x", "include": {}}, '"include" is a list of entries'),
        ({"tag": "x", "include": [{"class": "cat"}]}, '"count" of at least 1'),
        ({"tag": "x", "include": [{"class": "cat", "count": 1, "color": "mauve"}]}, '"color" is one of red'),
        (
            {"tag": "x", "include": [{"class": "cat", "count": 1, "position": ["in", 0]}]},
            '"position" is one of left of',
        ),
        ({"tag": "x", "include": [{"class": "cat", "count": 1, "position": ["above", -1]}]}, "by its number from 0"),
    ],
)
def test_lines_of_other_files_are_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        geneval.check_metadata(metadata)


def test_boxes_are_cut_to_the_image_and_never_empty():
    assert _inside((-5.0, 2.4, 8.2, 200.0), (10, 20)) == (0, 2, 9, 20)
    assert _inside((30.0, 30.0, 40.0, 40.0), (10, 20)) == (9, 19, 10, 20)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A detector and a CLIP of random weights, saved as transformers saves them."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.YolosConfig(
        **small, image_size=[32, 32], patch_size=16, num_detection_tokens=6, num_labels=3,
        id2label={0: "cat", 1: "dog", 2: "remote"},
    )  # fmt: skip
    transformers.YolosForObjectDetection(config).save_pretrained(folder / "detector")
    size = {"shortest_edge": 32, "longest_edge": 64}
    transformers.YolosImageProcessor(size=size).save_pretrained(folder / "detector")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    words |= {f"{letter}{end}": 0 for letter in "abcdefghijklmnopqrstuvwxyz-" for end in ("", "</w>")}
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    text = transformers.CLIPTextConfig(**small, vocab_size=len(vocabulary), bos_token_id=0, eos_token_id=1)
    vision = transformers.CLIPVisionConfig(**small, image_size=32, patch_size=16)
    both = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    transformers.CLIPModel(both).save_pretrained(folder / "clip")
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder / "clip")
    return folder


def test_a_detector_gives_names_scores_and_boxes_in_pixels(models):
    detect, image = ObjectDetector(str(models / "detector")), torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    found = detect(image, 0.0)
    assert len(found) == 6
    assert {one.name for one in found} <= {"cat", "dog", "remote"}
    assert all(0 < one.score < 1 and one.box[0] < one.box[2] <= 128 for one in found)
    assert len(detect(image, 0.999)) == 0


def test_a_judge_of_colors_takes_the_nearest_prompts(models, monkeypatch):
    judge, image = ColorJudge(str(models / "clip")), torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    named = judge(image, [LEFT, RIGHT], "cat")
    assert len(named) == 2
    assert set(named) <= set(COLORS)
    # Prompts whose embeddings are the image's own: that color is found.
    pixels = judge.processor(images=[Image.new("RGB", (32, 32), "red")], return_tensors="pt")
    own = judge.model.get_image_features(**pixels)
    own = own if isinstance(own, torch.Tensor) else own.pooler_output
    judge._colors["dog"] = torch.nn.functional.normalize(torch.cat([-own, own, *[-own] * 8]), dim=-1)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32)
    assert judge(red, [(0.0, 0.0, 32.0, 32.0)], "dog") == [COLORS[1]]


def write(folder, number, metadata, images=1):
    samples = folder / f"{number:05d}" / "samples"
    samples.mkdir(parents=True)
    for image in range(images):
        Image.new("RGB", (48, 32), (200, 30 * image, 0)).save(samples / f"{image:04d}.png")
    (samples.parent / "metadata.jsonl").write_text(json.dumps(metadata))


def test_the_tool_scores_what_sample_writes(models, tmp_path, uniflow, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "made", 0, {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}, images=2)
    write(tmp_path / "made", 1, {"tag": "counting", "exclude": [{"class": "cat", "count": 1}]})
    words = ("geneval", "made", "--detector", str(models / "detector"), "--device", "cpu")
    result = uniflow(*words, "--out", "out")
    assert result.code == 0, result.err
    numbers = json.loads((tmp_path / "out/results.json").read_text())
    assert numbers["images"] == 3
    assert numbers["overall"] == (numbers["single_object"] + numbers["counting"]) / 2
    rows = [json.loads(line) for line in (tmp_path / "out/images.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"{n}/samples/{i}.png" for n, i in
                                             (("00000", "0000"), ("00000", "0001"), ("00001", "0000"))]  # fmt: skip
    assert all(row["correct"] == (not row["wrong"]) for row in rows)
    write(tmp_path / "made", 2, {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]})
    assert "name a CLIP model" in uniflow(*words).error
    assert uniflow(*words, "--clip", str(models / "clip")).code == 0


def test_what_cannot_be_scored_is_one_line(models, tmp_path, uniflow, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detector = ("--detector", str(models / "detector"), "--device", "cpu")
    (tmp_path / "empty").mkdir()
    assert "empty has no folders with metadata.jsonl" in uniflow("geneval", "empty", *detector).error
    write(tmp_path / "made", 0, {"tag": "x", "include": [{"class": "cat", "count": 1}]})
    assert "--detector none cannot be loaded" in uniflow("geneval", "made", "--detector", "none").error
    (tmp_path / "made/00000/samples/0000.png").unlink()
    assert "samples holds no images" in uniflow("geneval", "made", *detector).error
    (tmp_path / "made/00000/metadata.jsonl").write_text("{")
    assert "is not a line of GenEval's file" in uniflow("geneval", "made", *detector).error
