"""Clips: video files, folders of frames, moving scenes."""

from uniflow.data.video.folder import ClipFolder as ClipFolder
from uniflow.data.video.scenes import SceneClips as SceneClips
