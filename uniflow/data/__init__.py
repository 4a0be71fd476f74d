"""Lightning data modules: procedural scenes, folders and shards of images, and clips."""

from uniflow.data.base import ImageDataModule as ImageDataModule
from uniflow.data.images.crops import CroppedImages as CroppedImages
from uniflow.data.images.folder import ImageFolder as ImageFolder
from uniflow.data.images.webdataset import WebDataset as WebDataset
from uniflow.data.latents import CachedLatents as CachedLatents
from uniflow.data.scenes import Scenes as Scenes
from uniflow.data.understanding.coco import COCODetection as COCODetection
from uniflow.data.understanding.depth import DepthFolder as DepthFolder
from uniflow.data.understanding.depth import NYUv2 as NYUv2
from uniflow.data.understanding.segmentation import ADE20K as ADE20K
from uniflow.data.understanding.segmentation import MaskFolder as MaskFolder
from uniflow.data.video import ClipFolder as ClipFolder
from uniflow.data.video import ClipShards as ClipShards
from uniflow.data.video import SceneClips as SceneClips
