"""`uniflow demo`: what the page computes, its endpoints, its server, its command."""

import os
import socket
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ENCODER, FLOW
from tiny_language import tiny_answerer

from uniflow import Tokenizer
from uniflow.bottleneck import FSQBottleneck, MLPBottleneck
from uniflow.cli import main
from uniflow.conditions import LabelCondition, NoCondition
from uniflow.features import BlankSource
from uniflow.generators import DiT, Generator, NextToken
from uniflow.language import Assistant
from uniflow.tools import demo as command
from uniflow.tools import demo_page, demo_work
from uniflow.tools.demo_work import Limits, Parts

PHOTO = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 56), dtype=np.uint8))


def shaken(model, amount=0.1):
    """Zero-initialised layers would hide everything."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    encoder = ENCODER()
    bottleneck = MLPBottleneck(encoder.spec, channels=8)
    model = Tokenizer(encoder, bottleneck, shaken(FLOW(bottleneck.spec))).eval()
    model.set_latent_statistics(torch.zeros(8), torch.ones(8), 1)
    return model


@pytest.fixture(scope="module")
def generator(tokenizer):
    torch.manual_seed(0)
    condition = LabelCondition(3, width=8)
    network = DiT(tokenizer.bottleneck.spec, condition.spec, width=16, depth=1, num_heads=2, steps=2)
    return Generator(tokenizer, shaken(network), condition, (2, 3)).eval()


@pytest.fixture(scope="module")
def assistant():
    torch.manual_seed(0)
    source = BlankSource(8, 4, 1)
    return Assistant(source, tiny_answerer(source.spec), (16, 16))


@pytest.fixture(scope="module")
def gradio(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        return pytest.importorskip("gradio")


@pytest.fixture
def files(tmp_path):
    Image.fromarray(PHOTO.permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    Image.new("RGB", (40, 2)).save(tmp_path / "long.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "limits", "message"),
    [
        (None, {}, "Choose a picture"),
        ("broken.png", {}, "^broken.png: not an image"),
        ("photo.png", {"max_bytes": 1000}, "photo.png: cannot be opened .*more than the 1.0 kB"),
        ("photo.png", {"max_pixels": 2000}, "56 x 40 pixels, more than 2,000"),
        ("long.png", {}, "40 x 2 pixels: one side may be at most 16 times"),
    ],
)
def test_what_may_not_be_uploaded_is_named_in_one_line(files, name, limits, message):
    with pytest.raises(ValueError, match=message) as caught:
        demo_work.read_picture(name and str(files / name), Limits(**limits))
    assert "\n" not in str(caught.value)
    assert str(files) not in str(caught.value)  # nothing about folders


def test_an_upload_within_the_limits_is_read(files):
    assert torch.equal(demo_work.read_picture(str(files / "photo.png"), Limits(10**4, 40 * 56)), PHOTO)
    with pytest.raises(ValueError, match="max_pixels must be at most"):
        Limits(max_pixels=10**9)


def test_pictures_are_brought_to_a_size():
    assert demo_work.fit_picture(PHOTO, 0) is PHOTO
    assert demo_work.fit_picture(PHOTO, 20).shape == (3, 20, 28)
    assert demo_work.fit_picture(PHOTO, 80).shape == (3, 80, 112)
    for side in (0, 80):
        small = demo_work.fit_picture(PHOTO, side, most=600)
        assert small.shape == (3, 20, 28)


def test_reconstruction(tokenizer):
    made = demo_work.reconstruct_picture(tokenizer, PHOTO, None, 0, own_size=True)
    tile = tokenizer.encoder.spec.image_size // 8
    noise = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        result = tokenizer.reconstruct(PHOTO[None], generator=noise, tile=tile if tile < 7 else None)[0]
    assert (made.result / 255 - result).abs().max() < 0.003
    assert torch.equal(made.original, PHOTO)
    error = ((made.result.float() - PHOTO).abs() * 4).clamp(0, 255)
    assert (made.error.float() - error).abs().max() <= 4
    mse = (made.result.double() / 255 - PHOTO / 255).square().mean()
    assert float(made.quality.split()[1]) == pytest.approx(-10 * mse.log10().item(), abs=0.02)
    assert "latents 7 x 5 x 8: 280 numbers, 24.0 times fewer" in made.text
    other = demo_work.reconstruct_picture(tokenizer, PHOTO, None, 0, own_size=False).original
    assert min(other.shape[1:]) == tokenizer.encoder.spec.image_size
    for steps, seed in ((3, 0), (None, 1)):
        assert not torch.equal(
            demo_work.reconstruct_picture(tokenizer, PHOTO, steps, seed, own_size=True).result, made.result
        )
    for steps, seed in ((0, 0), (1.5, 0), (101, 0), (1, -1), (1, 2**31), (1, None)):
        with pytest.raises(ValueError, match="must be a whole number from"):
            demo_work.reconstruct_picture(tokenizer, PHOTO, steps, seed, own_size=True)


def test_large_pictures_go_by_tiles(tokenizer, monkeypatch):
    asked = {}

    def reconstruct(model, image, seed, **options):
        asked.update(options)
        return image[None] / 255, image[None] / 255

    monkeypatch.setattr(demo_work, "reconstruct_image", reconstruct)
    side = tokenizer.encoder.spec.image_size
    for length, tile in ((side, None), (side + 8, side // 8)):
        asked.clear()
        demo_work.reconstruct_picture(tokenizer, torch.zeros(3, 16, length, dtype=torch.uint8), 1, 0, own_size=True)
        assert asked.get("tile") == tile


def test_size_of_codes(tokenizer):
    bottleneck = FSQBottleneck(tokenizer.encoder.spec, levels=[4, 4])
    codes = Tokenizer(tokenizer.encoder, bottleneck, FLOW(bottleneck.spec))
    assert demo_work.size_in_words(codes, 40, 56) == "Picture 56 x 40, latents 7 x 5 places with codes of 1 to 16"
    # Two channels have no three directions; the third colour is constant.
    found = demo_work.feature_colours(demo_work.extract_features(codes, PHOTO, 1))
    assert found["latents"].float().std(dim=(1, 2)).min() == 0


def test_features_and_a_click(tokenizer):
    made = demo_work.extract_features(tokenizer, PHOTO, 3)
    size = made.picture.shape
    assert list(made.maps) == ["student", "latents"]
    with torch.inference_mode():
        expected = tokenizer.features(made.picture[None])[0][0]
    torch.testing.assert_close(made.maps["student"], expected)
    colours = demo_work.feature_colours(made)
    assert colours["student"].shape == colours["latents"].shape == size
    framed, heat, told = demo_work.feature_similarities(made, 17.0, 9.0)
    assert "row 2, column 3" in told
    assert (framed != made.picture).any()
    for picture in heat.values():
        assert picture[:, 8:16, 16:24].min() == 255
        assert picture[:, ::8, ::8].sum(dim=0).min() == 0
    assert not torch.equal(demo_work.feature_similarities(made, 0, 0)[1]["student"], heat["student"])
    demo_work.feature_similarities(made, 1e6, -5)  # outside is the edge
    assert not torch.equal(demo_work.extract_features(tokenizer, PHOTO, 1).maps["student"], made.maps["student"])
    with pytest.raises(ValueError, match=r"The layer must be a whole number from 1 to 3\."):
        demo_work.extract_features(tokenizer, PHOTO, 4)


def test_the_teacher_gives_the_students_colours(tokenizer):
    alone = demo_work.feature_colours(demo_work.extract_features(tokenizer, PHOTO, 3))
    torch.manual_seed(7)
    made = demo_work.extract_features(tokenizer, PHOTO, 3, shaken(ENCODER()))
    beside = demo_work.feature_colours(made)
    assert list(beside) == ["student", "latents", "teacher"]
    assert not torch.equal(beside["student"], alone["student"])
    assert torch.equal(beside["latents"], alone["latents"])
    same = demo_work.extract_features(tokenizer, PHOTO, 3, tokenizer.encoder)
    assert torch.equal(demo_work.feature_colours(same)["teacher"], alone["student"])


def test_generation(generator):
    def make(words=("0", "1"), count=3, steps=2, guidance=1.0, seed=0):
        return torch.stack(demo_work.generate_pictures(generator, list(words), count, steps, guidance, seed))

    first = make()
    assert (first.shape, first.dtype) == ((3, 3, 16, 24), torch.uint8)
    expected = generator.sample(torch.tensor([0, 1, 0]), steps=2, guidance=1.0)
    assert (first / 255 - expected).abs().max() < 0.003
    for options in ({"words": ("1",)}, {"words": ()}, {"steps": 3}, {"guidance": 3.0}, {"seed": 1}):
        assert not torch.equal(make(**options), first), options
    assert torch.equal(make(steps=None), first)  # two are its own
    for options, message in (
        ({"count": 17}, "number of pictures must be a whole number from 1 to 16"),
        ({"steps": 101}, "Steps must be"),
        ({"guidance": 21}, "Guidance must lie between 0 and 20"),
        ({"guidance": float("nan")}, "Guidance must lie"),
        ({"seed": -1}, "The seed must be"),
        ({"words": ("3",)}, "there is no class 3"),
        ({"words": ("a" * 501,)}, "at most 500 characters"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)


def test_class_names_fit_the_generator(tokenizer, generator):
    assert Parts(tokenizer, "x", None, generator, ["a", "b", "c"]).class_names
    with pytest.raises(ValueError, match="--class_names has 2 names, but the generator has 3 classes"):
        Parts(tokenizer, "x", None, generator, ["a", "b"])
    free = NoCondition()
    network = DiT(tokenizer.bottleneck.spec, free.spec, width=16, depth=1, num_heads=2)
    for other in (None, Generator(tokenizer, network, free, (2, 2))):
        with pytest.raises(ValueError, match="there is no generator with classes"):
            Parts(tokenizer, "x", None, other, ["a", "b"])


def test_an_answer_comes_bit_by_bit(assistant, monkeypatch):
    monkeypatch.setattr(demo_work, "MOST_TOKENS", 6)
    heard = []
    pieces = list(demo_work.stream_answer(assistant, PHOTO, " what color is the star ?", [("how many ?", "3")]))
    expected = assistant.answer(PHOTO, "what color is the star ?", [("how many ?", "3")], 6)
    assert pieces[-1] == expected
    assert len(pieces) > 1
    assert all(expected.startswith(piece) for piece in pieces)
    monkeypatch.setattr(assistant, "answer", lambda *values: heard.append(values) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(demo_work.stream_answer(assistant, None, "red ?", [("x", "y")] * 20))
    assert len(heard[0][2]) == 8
    for question in (" ", "a" * 501):
        with pytest.raises(ValueError, match="1 to 500 characters"):
            list(demo_work.stream_answer(assistant, None, question, []))


def endpoints(page):
    return {call.api_name: call.fn for call in page.fns.values() if call.api_name}


def test_a_generator_of_codes_has_no_slider_of_steps(gradio, files):
    torch.manual_seed(0)
    encoder, condition = ENCODER(), LabelCondition(3, width=8)
    bottleneck = FSQBottleneck(encoder.spec, levels=(5, 4))
    codes = Tokenizer(encoder, bottleneck, shaken(FLOW(bottleneck.spec))).eval()
    codes.set_latent_statistics(torch.zeros(2), torch.ones(2), 1)
    network = NextToken(codes.latent_spec, condition.spec, width=16, depth=1, num_heads=2)
    made = Generator(codes, shaken(network), condition, (2, 3)).eval()
    page = demo_page.build_page(Parts(codes, "codes", None, made), Limits(), files / "page")
    of_decoder, of_generator = [block for block in page.blocks.values() if getattr(block, "label", "") == "Steps"]
    assert (of_decoder.visible, of_generator.visible) == (True, False)
    text, pictures = endpoints(page)["generate"](["1"], 2, 1, 1.0, 0)
    assert len(pictures) == 2, text


def test_the_pages_endpoints(gradio, tokenizer, generator, assistant, files, monkeypatch, capsys):
    monkeypatch.setattr(demo_work, "MOST_TOKENS", 3)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(files / "gradio"))
    parts = Parts(tokenizer, "<b>mine</b>", tokenizer.encoder, generator, ["sun", "moon", "star"], assistant)
    page = demo_page.build_page(parts, Limits(), files / "page")
    blocks = list(page.blocks.values())
    assert [block.label for block in blocks if type(block).__name__ == "Tab"] == [
        "Reconstruct", "Features", "Generate", "Chat",
    ]  # fmt: skip
    assert "&lt;b&gt;mine" in next(block.value for block in blocks if type(block).__name__ == "HTML")
    assert ("moon", "1") in next(block.choices for block in blocks if type(block).__name__ == "Dropdown")
    call, photo = endpoints(page), str(files / "photo.png")

    text, original, *_ = call["reconstruct"](photo, 2, 0, True)
    assert "PSNR" in text
    assert np.array_equal(np.asarray(original), PHOTO.permute(1, 2, 0))
    text, *shown = call["features"](photo, 2)
    assert "Cosine" in text
    assert len(shown) == 8  # a frame, three cosines, the features, three colours
    select = next(call.fn for call in page.fns.values() if call.targets[0][1] == "select")
    at = SimpleNamespace(index=[0, 0])
    assert "row 1, column 1;" in select(shown[4], at)[0]
    assert "Show the features first" in select(None, at)[0]
    text, pictures = call["generate"](["1"], 2, 2, 1.0, 0)
    assert len(pictures) == 2
    *_, (_, messages, turns, asked) = call["ask"](photo, "what ?", [("how ?", "3")])
    assert [message["content"] for message in messages[:3]] == ["how ?", "3", "what ?"]
    assert (len(turns), asked) == (2, "")

    broken = str(files / "broken.png")
    for answer in (
        call["reconstruct"](broken, 1, 0, False),
        call["features"](broken, 1),
        next(call["ask"](broken, "a", [])),
    ):
        assert "problem" in answer[0]
        assert "broken.png: not an image" in answer[0]
    assert not capsys.readouterr().err
    monkeypatch.setattr(demo_work, "reconstruct_picture", lambda *values: 1 / 0)
    text = call["reconstruct"](photo, 1, 0, False)[0]
    assert "could not be computed (division by zero)" in text
    assert "Traceback" not in text
    assert "Traceback" in capsys.readouterr().err  # for who runs it


def test_the_server(gradio, tokenizer, files, monkeypatch):
    from gradio_client import Client, handle_file

    (files / "here").mkdir()
    monkeypatch.chdir(files / "here")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (files / "large.png").write_bytes(bytes(30000))
    with demo_page.running(Parts(tokenizer, "mine"), Limits(max_bytes=20000), port=port) as page:
        folder = Path(os.environ["GRADIO_TEMP_DIR"]).parent
        bound = [s.getsockname() for server in page.server.servers for s in server.sockets]
        assert bound == [("127.0.0.1", port)]
        config = page.get_config_file()
        assert not config["analytics_enabled"]
        assert {part["props"].get("label") for part in config["components"] if part["type"] == "tabitem"} == {
            "Reconstruct", "Features",
        }  # fmt: skip
        client = Client(page.local_url, verbose=False, analytics_enabled=False, download_files=str(files / "got"))
        text, original, *_ = client.predict(handle_file(files / "photo.png"), 1, 0, True, api_name="/reconstruct")
        assert "PSNR" in text
        with Image.open(original) as picture:
            assert np.array_equal(np.asarray(picture), PHOTO.permute(1, 2, 0))
        text, *_ = client.predict(handle_file(files / "broken.png"), 1, 0, True, api_name="/reconstruct")
        assert "not an image" in text
        with open(files / "large.png", "rb") as file:
            answer = httpx.post(f"{page.local_url}gradio_api/upload", files={"files": file})
        assert answer.status_code == 413
        # A file of this machine that was not uploaded cannot be asked for.
        with open(files / "photo.png", "rb") as file:
            uploaded = httpx.post(f"{page.local_url}gradio_api/upload", files={"files": file}).json()
        for path, allowed in ((uploaded[0], True), (str(files / "photo.png"), False)):
            given = {"path": path, "meta": {"_type": "gradio.FileData"}}
            called = httpx.post(f"{page.local_url}gradio_api/run/reconstruct", json={"data": [given, 1, 0, True]})
            assert (called.status_code == 200) == allowed
        client.close()
    assert not folder.exists()
    assert not list((files / "here").iterdir())
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_the_command(tokenizer, generator, tmp_path, monkeypatch, capsys):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    generator.save_pretrained(tmp_path / "generator")
    given = []

    @contextmanager
    def running(*arguments):
        given.append(arguments)
        yield SimpleNamespace(local_url="http://127.0.0.1:1234/", block_thread=lambda: None)

    monkeypatch.setattr(command, "running", running)
    assert main(["demo"]) == 0
    out = capsys.readouterr()
    assert "http://127.0.0.1:1234/" in out.out
    assert not out.err
    parts, limits, host, port = given.pop()
    assert (parts.name, parts.teacher, parts.generator, parts.assistant) == ("embedded", None, None, None)
    assert (limits, host, port) == (Limits(), "127.0.0.1", None)

    words = ["demo", "--tokenizer", str(tmp_path / "tokenizer"), "--generator", str(tmp_path / "generator")]
    words += ["--class_names", "[sun, moon, star]", "--port", "8123", "--host", "0.0.0.0"]
    words += ["--max_upload_mb", "3", "--max_pixels", "1000", "--device", "cpu", "--fast_cpu", "false"]
    assert main(words) == 0
    assert "warning: --host 0.0.0.0: others can reach this page" in capsys.readouterr().err
    parts, limits, host, port = given.pop()
    assert (parts.generator.condition.num_classes, parts.class_names) == (3, ["sun", "moon", "star"])
    assert (limits, host, port) == (Limits(3 * 2**20, 1000), "0.0.0.0", 8123)

    def loader(*arguments, **options):
        return SimpleNamespace(to=lambda device: (arguments, options))

    for name in ("Assistant", "Generator"):
        monkeypatch.setattr(command, name, SimpleNamespace(from_pretrained=loader))
    monkeypatch.setattr(command, "Parts", lambda *values: values)
    monkeypatch.setattr(command, "first_encoder", lambda tokenizer: "teacher")
    words = ["demo", "--teacher", "true", "--generator", "g", "--text_encoder", "t", "--assistant", "a", "--lm", "l"]
    assert main([*words, "--gguf_file", "f"]) == 0
    _, _, teacher, made, _, answers = given.pop()[0]
    assert teacher == "teacher"
    assert made == ((Path("g"),), {"text_encoder": "t"})
    assert answers == ((Path("a"), "l", "f"), {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port must lie between 1 and 65535"),
        (["--port", "0"], "port: expected an integer >= 1"),
        (["--tokenizer", "nothing/here/at/all"], "nothing/here/at/all"),
        (["--generator", "nothing"], "is not a generator"),
        (["--assistant", "nothing"], "is not an assistant"),
        (["--class_names", "[a]"], "there is no generator with classes"),
        (["--lm", "x"], "--lm is of --assistant, which is missing"),
        (["--assistant", "x", "--gguf_file", "x"], "--gguf_file is of --lm, which is missing"),
        (["--text_encoder", "x"], "--text_encoder is of --generator, which is missing"),
        (["--max_pixels", "1000000000"], "--max_pixels must be at most"),
    ],
)
def test_the_command_says_what_is_wrong(options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setattr(demo_page, "find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "uniflow: error: the demo page needs gradio: pip install 'uniflow[demo]'\n"


def test_only_this_machine_is_loopback():
    assert all(map(command.is_loopback, ["127.0.0.1", "127.8.0.1", "::1", "localhost"]))
    assert not any(map(command.is_loopback, ["0.0.0.0", "::", "192.168.0.1", "my.machine"]))
