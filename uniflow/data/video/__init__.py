"""Clips: video files, folders of frames, shards of video files, moving scenes."""

from uniflow.data.video.folder import ClipFolder as ClipFolder
from uniflow.data.video.scenes import SceneClips as SceneClips
from uniflow.data.video.shards import ClipShards as ClipShards
