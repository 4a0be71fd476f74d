"""How far `DINOv2("s14")` is from transformers' `Dinov2Model` with the same weights: one JSON line a size of image.

Each number is the largest absolute difference of any value of any block's output, class token included, in float32,
for two photographs of scikit-image; "largest" is the largest value there. "ours" is the family's default, "antialiased"
is `pos_embed_antialias: true`, as timm has it, and "offset" is the default against the code of the DINOv2 paper, which
adds 0.1 to the sides of the grid before it divides them by those of the table.

    python benchmarks/reference.py dinov2_s14.safetensors [--sizes 224x224 518x518 448x336] [--attention eager]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from types import MethodType
from typing import Any

import skimage.data
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import interpolate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uniflow.encoders import DINOv2
from uniflow.encoders.loading import read_safetensors

# timm's names -> transformers'.
RENAMES = {
    r"^(cls_token)$": r"embeddings.\1",
    r"^pos_embed$": "embeddings.position_embeddings",
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^blocks\.": "encoder.layer.",
    r"\.attn\.proj\.": ".attention.o_proj.",
    r"\.ls(\d)\.gamma$": r".layer_scale\1.lambda1",
    r"^norm\.": "layernorm.",
}


def reference(state: dict[str, Tensor], attention: str = "sdpa") -> Any:
    """transformers' model with the weights of a file of timm's ViT-S."""
    renamed: dict[str, Tensor] = {"embeddings.mask_token": torch.zeros(1, 384)}
    for key, value in state.items():
        for ours, theirs in RENAMES.items():
            key = re.sub(ours, theirs, key)
        names = [key.replace("attn.qkv", f"attention.{part}_proj") for part in "qkv"] if ".qkv." in key else [key]
        renamed.update(zip(names, value.chunk(len(names)), strict=True))
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    model = transformers.Dinov2Model(config)
    model.set_attn_implementation(attention)
    report = model.load_state_dict(renamed, strict=False)
    lacking = [key for key in report.missing_keys if not key.startswith("layernorm.")]  # behind the blocks
    if lacking or report.unexpected_keys:
        raise SystemExit(f"the file is not a DINOv2 ViT-S: {lacking + report.unexpected_keys}")
    return model.eval()


def with_offset(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """Position embeddings (1, 1 + N, D) resampled as in the paper's code."""
    table = embeddings.position_embeddings
    side = round((table.shape[1] - 1) ** 0.5)
    if height == width == 14 * side:
        return table
    grid = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = ((height // 14 + 0.1) / side, (width // 14 + 0.1) / side)
    grid = interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def photographs(height: int, width: int) -> Tensor:
    """Two photographs (2, 3, H, W) in [0, 1]."""
    pictures = [torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 for picture in
                (skimage.data.astronaut(), skimage.data.coffee())]  # fmt: skip
    size = (height, width)
    return torch.cat([interpolate(p, size, mode="bicubic", antialias=True) for p in pictures]).clamp(0, 1)


def outputs(blocks: nn.ModuleList, run: Any) -> list[Tensor]:
    """What the blocks give while `run` runs."""
    found: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: found.append(call[-1])) for block in blocks]
    run()
    for hook in hooks:
        hook.remove()
    return [output[0] if isinstance(output, tuple) else output for output in found]


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("weights", help="a safetensors file in timm's keys")
    parser.add_argument(
        "--sizes", nargs="+", default=["224x224", "518x518", "448x336"], help="height x width in pixels"
    )
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"], help="of the reference")
    given = parser.parse_args()
    model = reference(read_safetensors(given.weights), given.attention)
    ours = DINOv2("s14", weights=given.weights).eval()
    antialiased = DINOv2("s14", weights=given.weights, pos_embed_antialias=True).eval()
    for size in given.sizes:
        images = photographs(*map(int, size.split("x")))
        pixels = ours.normalize(images)
        theirs = outputs(model.encoder.layer, lambda pixels=pixels: model(pixels))
        states = outputs(ours.blocks, lambda images=images: ours(images))
        line = {
            "size": size,
            "ours": distance(states, theirs),
            "antialiased": distance(outputs(antialiased.blocks, lambda images=images: antialiased(images)), theirs),
            "largest": max(state.abs().max().item() for state in theirs),
        }
        own = model.embeddings.interpolate_pos_encoding
        model.embeddings.interpolate_pos_encoding = MethodType(with_offset, model.embeddings)
        line["offset"] = distance(states, outputs(model.encoder.layer, lambda pixels=pixels: model(pixels)))
        model.embeddings.interpolate_pos_encoding = own
        print(json.dumps({key: float(f"{v:.3g}") if isinstance(v, float) else v for key, v in line.items()}))


if __name__ == "__main__":
    main()
