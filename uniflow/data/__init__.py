"""Lightning data modules: procedural scenes, and folders and shards of images."""

from uniflow.data.base import ImageDataModule as ImageDataModule
from uniflow.data.crops import CroppedImages as CroppedImages
from uniflow.data.folder import ImageFolder as ImageFolder
from uniflow.data.scenes import Scenes as Scenes
from uniflow.data.webdataset import WebDataset as WebDataset
