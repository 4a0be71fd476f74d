"""A tokenizer's folder to Hugging Face's hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from uniflow.core.errors import one_line
from uniflow.tokenizer import Tokenizer
from uniflow.tokenizer.card import CARD_NAME, model_card, read_run, write_card
from uniflow.tokenizer.saving import CONFIG_NAME, WEIGHTS_NAME

FILES = (CARD_NAME, CONFIG_NAME, WEIGHTS_NAME)


def push(folder: Path, repo_id: str, private: bool = False, dry_run: bool = False) -> None:
    """Upload a tokenizer with its card to Hugging Face's hub, as the account of `hf auth login`.

    The files go up as they are. A folder without a card gets one, with recipe and results if it is a run's.

    Args:
        folder: a run's folder (RUN), or a tokenizer's (RUN/tokenizer).
        repo_id: where to, such as organisation/name; it is made if needed.
        private: whether only its owners can see it, if it is made.
        dry_run: print what would be uploaded, and change nothing, here or there.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no tokenizer that can be loaded.
        OSError: if the hub refuses it or cannot be reached.
    """
    directory = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if not directory.is_dir():
        raise FileNotFoundError(f"no tokenizer at {folder}: give a run's folder, or a tokenizer's")
    tokenizer = Tokenizer.from_pretrained(directory)
    has_card = (directory / CARD_NAME).is_file()
    if has_card:
        card = (directory / CARD_NAME).read_text(encoding="utf-8")
    else:
        card = model_card(tokenizer.parts, *read_run(directory.parent if directory.name == "tokenizer" else directory))
    if dry_run:
        sizes = [f"{name} ({(directory / name).stat().st_size:,} bytes)" for name in FILES[1:]]
        print(f"would upload to {repo_id}: {CARD_NAME}, {', '.join(sizes)}\n\n{card}")
        return
    if not has_card:
        write_card(directory, card)
    try:
        api = HfApi()
        name = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name, folder_path=directory, allow_patterns=list(FILES), commit_message="Upload a uniflow tokenizer"
        )
    except Exception as error:  # the hub client raises errors of several HTTP libraries
        raise OSError(f"cannot upload to {repo_id}: {one_line(error, 400)}") from error
    print(f"uploaded {directory} to {commit.commit_url}")
