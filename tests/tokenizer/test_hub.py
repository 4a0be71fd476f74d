"""Tokenizers on Hugging Face's hub: names, cache, offline, what is fetched and what is uploaded."""

import copy
import json
import pickle
import socket
from pathlib import Path

import pytest
import torch
from cli_fixtures import REPOSITORY
from fake_hub import COMMIT, FakeHub, write_cache
from huggingface_hub import HfApi, ModelHubMixin, constants
from PIL import Image

from uniflow import Tokenizer
from uniflow.cli import main
from uniflow.core.specs import LatentSpec
from uniflow.decoders import RegressionDecoder

GOLDEN = REPOSITORY / "tests" / "fixtures" / "golden_tokenizer"
FILES = {name: (GOLDEN / name).read_bytes() for name in ("config.json", "model.safetensors")}
NAME = "someone/golden"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, a current directory without a tokenizer, and no way into the network."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("UNIFLOW_DEBUG", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def online(cache, monkeypatch):
    """A hub on this machine that offers the golden tokenizer and files that nobody asked for."""
    more = {"README.md": b"# Golden", "evil.py": b"print('evil')", "pytorch_model.bin": b"\x80\x02}q\x00."}
    with FakeHub(NAME, FILES | more) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{")[2]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.address}/{{{template}")
        yield hub


def refused(capfd, *arguments):
    capfd.readouterr()
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith("uniflow: error: ")
    assert error.count("\n") == 1
    return error


def same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_the_mixin_changes_nothing_about_the_model():
    tokenizer = Tokenizer.from_pretrained(GOLDEN)
    assert isinstance(tokenizer, ModelHubMixin)
    again = Tokenizer(tokenizer.encoder, tokenizer.bottleneck, tokenizer.decoder)
    assert again.state_dict().keys() == tokenizer.state_dict().keys()
    assert again._hub_mixin_config is None
    for copied in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert same_weights(copied, tokenizer)
        assert copied.config() == tokenizer.config()
    named = Tokenizer(encoder=tokenizer.encoder, bottleneck=tokenizer.bottleneck, decoder=tokenizer.decoder)
    assert named.config() == tokenizer.config()
    assert Tokenizer.from_config(tokenizer.config()).config() == tokenizer.config()
    other = RegressionDecoder(LatentSpec(8, 8), width=16, num_heads=2, global_depth=1, head_depth=1)
    with pytest.raises(ValueError, match="expects"):
        Tokenizer(tokenizer.encoder, tokenizer.bottleneck, other)


def test_a_name_is_read_from_the_cache_when_offline(cache, tmp_path):
    write_cache(cache, NAME, FILES)
    golden = Tokenizer.from_pretrained(GOLDEN)
    assert same_weights(Tokenizer.from_pretrained(NAME), golden)
    assert same_weights(Tokenizer.from_pretrained(NAME, revision=COMMIT), golden)
    write_cache(tmp_path / "other", "someone/else", FILES, revision="v2")
    assert same_weights(Tokenizer.from_pretrained("someone/else", revision="v2", cache_dir=tmp_path / "other"), golden)
    with pytest.raises(FileNotFoundError, match=r"hf download someone/else config\.json .* --revision v3 "):
        Tokenizer.from_pretrained("someone/else", revision="v3", cache_dir=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="hf download someone/else"):
        Tokenizer.from_pretrained("someone/else")


def test_without_network_the_cache_is_used(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def unreachable(*args, **kwargs):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(FileNotFoundError, match="cannot be reached") as caught:
        Tokenizer.from_pretrained(NAME)
    assert "\n" not in str(caught.value)
    write_cache(cache, NAME, FILES)
    Tokenizer.from_pretrained(NAME)


def test_what_exists_here_wins(cache, monkeypatch, tmp_path):
    write_cache(cache, NAME, {"config.json": b"{}", "model.safetensors": b""})
    Tokenizer.from_pretrained(GOLDEN).save_pretrained(NAME)
    monkeypatch.setattr("uniflow.tokenizer.saving.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    Tokenizer.from_pretrained(NAME)
    Tokenizer.from_pretrained(tmp_path / "work" / NAME)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (NAME, "hf download someone/golden config.json model.safetensors --local-dir FOLDER"),
        (
            "runs/tokeniser",
            "there is no such folder or checkpoint here, and Hugging Face's hub cannot be reached",
        ),
        ("runs/mine/tokeniser", "nor a valid name on the Hugging Face hub"),
        ("/nowhere/tokenizer", "nor a valid name on the Hugging Face hub"),
        ("../tokenizer", "nor a valid name on the Hugging Face hub"),
        ("tokeniser", "a name such as organisation/name"),
    ],
)
def test_a_mistyped_path_gives_one_line_about_both_possibilities(cache, capfd, name, expected):
    for arguments in (["summary", name], ["reconstruct", "photo.png", "--tokenizer", name]):
        assert expected in refused(capfd, *arguments)


def test_an_incomplete_copy_in_the_cache_is_said(cache, capfd):
    write_cache(cache, NAME, {"config.json": FILES["config.json"]})
    assert "has no model.safetensors" in refused(capfd, "summary", NAME)


def test_tools_take_names(cache, capfd):
    write_cache(cache, NAME, FILES)
    Image.new("RGB", (16, 16), "red").save("photo.png")
    assert main(["reconstruct", "photo.png", "--tokenizer", NAME]) == 0
    assert "PSNR" in capfd.readouterr().out
    assert main(["summary", NAME]) == 0


def test_only_two_files_are_fetched(online, cache, monkeypatch):
    golden = Tokenizer.from_pretrained(GOLDEN)
    assert same_weights(Tokenizer.from_pretrained(NAME), golden)
    fetched = {path.rpartition("/")[2] for path in online.asked if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors"}
    names = {path.name for path in cache.rglob("*") if path.is_symlink()}
    assert names == {"config.json", "model.safetensors"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(online.asked)
    assert same_weights(Tokenizer.from_pretrained(NAME), golden)
    assert len(online.asked) == asked


def test_what_the_hub_does_not_have_is_said(online, capfd):
    assert "hub has no someone/else, or it is private" in refused(capfd, "summary", "someone/else")
    with pytest.raises(FileNotFoundError, match="has no revision 'v9'"):
        Tokenizer.from_pretrained(NAME, revision="v9")


def test_a_repository_of_something_else_is_said(cache, monkeypatch, capfd):
    with FakeHub(NAME, {"weights.bin": b""}) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        with pytest.raises(FileNotFoundError, match=r"someone/golden on Hugging Face's hub.*has no config\.json"):
            Tokenizer.from_pretrained(NAME)


class Uploads:
    """Records what the client would send."""

    def __init__(self, monkeypatch):
        self.repositories, self.files = [], {}

        def create_repo(api, repo_id, **options):
            self.repositories.append((repo_id, options))
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(api, *, repo_id, folder_path, allow_patterns=None, **options):
            files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
            self.files = {name: files[name] for name in allow_patterns or files}
            return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})()

        monkeypatch.setattr(HfApi, "create_repo", create_repo)
        monkeypatch.setattr(HfApi, "upload_folder", upload_folder)


@pytest.fixture
def uploads(cache, monkeypatch):
    return Uploads(monkeypatch)


def test_push_to_hub_uploads_three_files(uploads, tmp_path):
    tokenizer = Tokenizer.from_pretrained(GOLDEN)
    card = {"recipe": {"trainer": {"max_steps": 7}}, "results": {"test/psnr": 21.5}}
    tokenizer.push_to_hub(NAME, private=True, model_card_kwargs=card)
    [(name, options)] = uploads.repositories
    assert (name, options["private"]) == (NAME, True)
    assert uploads.files.keys() == {"README.md", "config.json", "model.safetensors"}
    assert json.loads(uploads.files["config.json"]) == tokenizer.config()
    assert b"max_steps: 7" in uploads.files["README.md"]
    assert b"| `test/psnr` | 21.5 |" in uploads.files["README.md"]
    tokenizer.save_pretrained(tmp_path / "golden", push_to_hub=True, repo_id="someone/else")
    assert uploads.repositories[-1][0] == "someone/else"
    with pytest.raises(TypeError, match="its own config"):
        tokenizer.save_pretrained(tmp_path / "golden", config={"a": 1})


@pytest.fixture
def run(cache):
    """A run's folder, as an older version left it: without a card."""
    run = Path("run")
    Tokenizer.from_pretrained(GOLDEN).save_pretrained(run / "tokenizer")
    (run / "tokenizer" / "README.md").unlink()
    (run / "tokenizer" / "notes.txt").write_text("private")
    (run / "config.yaml").write_text("trainer: {max_steps: 7}\nrun: /home/me/run\n")
    (run / "test_results.json").write_text('{"test/psnr": 21.5}')
    return run


def test_push_uploads_the_files_as_they_are(uploads, run, capfd):
    assert main(["push", "run", NAME, "--private", "true"]) == 0
    assert f"https://hub/{NAME}/commit/1" in capfd.readouterr().out
    assert uploads.repositories == [(NAME, {"private": True, "exist_ok": True})]
    assert uploads.files == {name: (run / "tokenizer" / name).read_bytes() for name in ("README.md", *FILES)}
    text = uploads.files["README.md"].decode()
    assert "max_steps: 7" in text
    assert "| `test/psnr` | 21.5 |" in text
    assert "/home/me" not in text
    (run / "tokenizer" / "README.md").write_text("My own words.\n")
    assert main(["push", "run/tokenizer", NAME]) == 0
    assert uploads.repositories[-1][1]["private"] is None
    assert uploads.files["README.md"] == b"My own words.\n"


def test_a_dry_run_uploads_and_writes_nothing(uploads, run, capfd):
    before = sorted(run.rglob("*"))
    assert main(["push", "run", NAME, "--dry_run", "true"]) == 0
    printed = capfd.readouterr().out
    assert f"would upload to {NAME}: README.md, config.json (" in printed
    assert "max_steps: 7" in printed
    assert sorted(run.rglob("*")) == before
    assert not uploads.repositories


def test_what_cannot_be_pushed_gives_one_line(cache, run, capfd, monkeypatch):
    assert "no tokenizer at nowhere" in refused(capfd, "push", "nowhere", NAME)
    assert f"cannot upload to {NAME}" in refused(capfd, "push", "run", NAME)  # offline
    (run / "tokenizer" / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(HfApi, "create_repo", lambda *a, **k: pytest.fail("uploaded"))
    assert "not a valid safetensors file" in refused(capfd, "push", "run", NAME)
