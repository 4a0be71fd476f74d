"""Two processes share folders and shards: nothing twice, nothing lost, one line for each odd file."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from uniflow.data.base import ImageDataModule
from uniflow.data.images.folder import ImageFolder
from uniflow.data.images.webdataset import WebDataset
from uniflow.data.sampler import EvaluationSampler, batch_sizes
from uniflow.data.skipped import SkipLog
from uniflow.tools.pack import pack

IMAGES = 61


def ids(loader: Any) -> list[int]:
    return [int(image[0, 4, 4]) // 4 for batch in loader for image in batch["image"]]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def worker(rank: int, world_size: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    shards = Path(root) / "shards"
    modules: dict[str, ImageDataModule] = {
        "folder": ImageFolder(f"{root}/images", 8, val_fraction=0.3, test_fraction=0.2, batch_size=3, num_workers=2)
    }
    for name, resample in (("dealt", False), ("resampled", True)):
        modules[name] = WebDataset(
            *(str(shards / f"{split}-*.tar") for split in ("train", "val", "test")),
            size=8, batch_size=4, num_workers=2, resample=resample,
        )  # fmt: skip
    found: dict[str, Any] = {}
    for name, module in modules.items():
        module.skip_log = SkipLog(Path(root) / name / "skipped_images.log")
        module.setup()
        loaders = {"train": module.train_dataloader(), "val": module.val_dataloader(), "test": module.test_dataloader()}
        found[name] = {split: [ids([batch]) for batch in loader] for split, loader in loaders.items()}
    (Path(root) / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    root = tmp_path_factory.mktemp("distributed")
    images = root / "images"
    images.mkdir()
    for i in range(IMAGES):
        Image.new("L", (16, 16), 4 * i).save(images / f"{i:02d}.png")
    pack(images, root / "shards", shard_size=8, hold_out=0.2, validation=0.3)
    data = ImageFolder(str(images), 8, val_fraction=0.3, test_fraction=0.2)
    # Broken after packing: only the folder has broken files.
    for split in ("train", "val"):
        (images / data.split_files()[split][1][2]).write_bytes(b"broken")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked: a process that is spawned takes seconds to import torch.
    mp.start_processes(worker, (2, port, str(root)), nprocs=2, start_method="fork")
    return root, [json.loads((root / f"rank{rank}.json").read_text()) for rank in range(2)]


def splits(root: Path) -> dict[str, list[int]]:
    data = ImageFolder(str(root / "images"), 8, val_fraction=0.3, test_fraction=0.2)
    return {split: [int(name[:2]) for name in names] for split, (_, names) in data.split_files().items()}


@pytest.mark.parametrize("module", ["folder", "dealt", "resampled"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_is_complete_and_without_repeats(results: Any, module: str, split: str) -> None:
    root, (first, second) = results
    expected = set(splits(root)[split])
    if module == "folder" and split == "val":
        expected -= {splits(root)["val"][2]}
    shares = [flat(found[module][split]) for found in (first, second)]
    assert sorted(shares[0] + shares[1]) == sorted(expected)
    assert abs(len(shares[0]) - len(shares[1])) <= 2
    assert len(first[module][split]) == len(second[module][split])


def test_training_shares_are_disjoint_and_equally_long(results: Any) -> None:
    root, (first, second) = results
    train = splits(root)["train"]
    for module, size in (("folder", 3), ("dealt", 4), ("resampled", 4)):
        assert len(first[module]["train"]) == len(second[module]["train"]) == len(train) // (2 * size)
    shares = [flat(found["folder"]["train"]) for found in (first, second)]
    # One file is broken and the next one, which may be in the other share, stands in for it.
    assert sum(shares[0].count(i) + shares[1].count(i) for i in train) == len(shares[0]) + len(shares[1])
    assert len(set(shares[0]) | set(shares[1])) >= len(shares[0]) + len(shares[1]) - 1
    assert train[2] not in [*shares[0], *shares[1]]
    dealt = [set(flat(found["dealt"]["train"])) for found in (first, second)]
    assert not dealt[0] & dealt[1]
    assert first["resampled"]["train"] != second["resampled"]["train"]


def test_broken_files_are_named_once_for_all_processes(results: Any) -> None:
    root, _ = results
    lines = (root / "folder" / "skipped_images.log").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == ["train", "val"]
    assert not (root / "dealt" / "skipped_images.log").exists()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_all_ranks_get_the_same_number_of_batches(batch_size: int, world_size: int) -> None:
    for total in [0, *range(world_size, 60)]:
        sizes = [batch_sizes(total, rank, world_size, batch_size) for rank in range(world_size)]
        assert len({len(s) for s in sizes}) == 1
        assert sum(map(sum, sizes)) == total
        assert all(1 <= size <= max(batch_size, 2) for s in sizes for size in s)
        order = [list(EvaluationSampler(range(total), world_size, r, batch_size)) for r in range(world_size)]  # type: ignore[arg-type]
        assert sorted(i for batches in order for batch in batches for i in batch) == list(range(total))


def test_fewer_images_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 evaluation images cannot be shared by 3 processes"):
        batch_sizes(2, 0, 3, 4)
