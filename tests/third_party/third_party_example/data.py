import torch
from torch import Tensor
from torch.utils.data import Dataset

from uniflow.data import ImageDataModule
from uniflow.data.sampler import sample_generator


class RampDataset(Dataset[dict[str, Tensor]]):
    """Images that blend two random colours from left to right."""

    def __init__(self, length: int, size: int, seed: int) -> None:
        self.length, self.size, self.seed = length, size, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = sample_generator(self.seed, index)  # the same sample, whichever process asks for it
        left, right = torch.rand(2, 3, 1, 1, generator=generator)
        image = torch.lerp(left, right, torch.linspace(0, 1, self.size)).expand(3, self.size, self.size)
        return {"image": (image * 255).byte()}  # uint8 (3, H, W)


class Ramps(ImageDataModule):
    def __init__(self, length: int = 64, size: int = 32, batch_size: int = 8, num_workers: int = 0, seed: int = 0):
        super().__init__(batch_size, num_workers, seed)
        self.length, self.size = length, size

    def make_dataset(self, split: str) -> Dataset:
        offset = {"train": 0, "val": 1, "test": 2}[split]  # no image is in two splits
        return RampDataset(self.length, self.size, 3 * self.seed + offset)
