from uniflow.data.scenes import Scenes as Scenes
