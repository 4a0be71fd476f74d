"""Lightning data modules: procedural scenes, folders and shards of images."""

from uniflow.data.base import ImageDataModule as ImageDataModule
from uniflow.data.folder import ImageFolder as ImageFolder
from uniflow.data.scenes import Scenes as Scenes
from uniflow.data.webdataset import WebDataset as WebDataset
