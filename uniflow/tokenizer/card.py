"""The model card: the README.md in a tokenizer's folder, here and on the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from uniflow.bottleneck import Bottleneck
from uniflow.core.atomic import replacing
from uniflow.core.json_files import read_json
from uniflow.core.yaml_files import read_yaml
from uniflow.decoders.base import PixelDecoder
from uniflow.encoders.base import VisionEncoder

Parts = tuple[VisionEncoder, Bottleneck, PixelDecoder]
CARD_NAME = "README.md"
BEGIN = "<!-- uniflow: from here on generated, and written anew by fit, test and save_pretrained -->"
END = "<!-- uniflow: end of what is generated -->"
# Options that say where a run was, not what it did.
_PLACES = {"run", "ckpt_path", "config"}

_BODY = """{begin}
# A unified visual tokenizer: {encoder}

Images become latents of {channels} channels, one for each {patch} x {patch} pixels, and latents become images again;
the encoder's features still understand images. Made with `uniflow`, which adapts a pretrained vision encoder by
layer-wise self-distillation (UniFlow, [arXiv 2510.10575](https://arxiv.org/abs/2510.10575)).

| part | class | parameters |
|---|---|---|
{parts}

## Use

```python
from uniflow import Tokenizer
tokenizer = Tokenizer.from_pretrained("the folder of this file, or its name on the hub")
images = tokenizer.decode(tokenizer.encode(images))  # (B, 3, H, W), uint8 or in [0, 1]; latents (B, {channels}, h, w)
```

## Recipe

{recipe}

## Measured results

{results}
{end}
"""


def model_card(parts: Parts, recipe: Mapping[str, Any] | None, results: Mapping[str, Any] | None) -> str:
    """A model card in the hub's format. It names no licence: that is for those to say who publish the weights.

    Args:
        parts: encoder, bottleneck and decoder of the tokenizer.
        recipe: the options of its run (RUN/config.yaml), if they are known.
        results: name -> value, as `uniflow test` measured them (RUN/test_results.json), if it did.

    Returns:
        Markdown with a YAML header.
    """
    header = ModelCardData(
        library_name="uniflow",
        pipeline_tag="image-feature-extraction",
        tags=["uniflow", "visual-tokenizer", "image-reconstruction"],
        base_model=parts[0].base_model,
    )
    named = dict(zip(("encoder", "bottleneck", "decoder"), parts, strict=True))
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in named.items()}
    rows = [f"| {name} | `{type(part).__name__}` | {counts[name]:,} |" for name, part in named.items()]
    body = _BODY.format(
        begin=BEGIN,
        end=END,
        encoder=type(parts[0]).__name__,
        channels=parts[1].spec.channels,
        patch=parts[1].spec.patch_size,
        parts="\n".join([*rows, f"| total | | {sum(counts.values()):,} |"]),
        recipe="Not recorded." if recipe is None else _recipe(recipe),
        results="Not measured." if results is None else _results(results),
    )
    return f"---\n{header.to_yaml()}\n---\n{body}"


def write_card(directory: Path, card: str) -> None:
    """Write `card` as README.md into `directory`.

    If there is a README.md already, only its generated part is replaced: its header, and the text before and after that
    part, are the user's. One without a generated part is not changed.
    """
    path = directory / CARD_NAME
    if path.is_file():
        card = _merge(path.read_text(encoding="utf-8"), card)
    with replacing(path) as new:
        new.write_text(card, encoding="utf-8")


def read_run(run: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Recipe and test results in a run's folder, for `model_card`; None for those that are missing.

    Raises:
        ValueError: if one of the files is damaged.
    """
    return _read(run / "config.yaml", read_yaml), _read(run / "test_results.json", read_json)


def _read(path: Path, read: Callable[[Path], Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content = read(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no names with values")
    return content


def _merge(old: str, new: str) -> str:
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return old
    generated = new.partition(BEGIN)[2].partition(END)[0]
    return f"{before}{BEGIN}{generated}{END}{after}"


def _recipe(recipe: Mapping[str, Any]) -> str:
    options = yaml.safe_dump({key: value for key, value in recipe.items() if key not in _PLACES}, sort_keys=False)
    command = "`uniflow fit -c config.yaml`, where `config.yaml` holds"
    return f"{command}\n\n<details><summary>these options</summary>\n\n```yaml\n{options}```\n\n</details>"


def _results(results: Mapping[str, Any]) -> str:
    rows = [f"| `{name}` | {json.dumps(value)} |" for name, value in sorted(results.items())]
    return "\n".join(["By `uniflow test` on the recipe's test data:", "", "| metric | value |", "|---|---|", *rows])
