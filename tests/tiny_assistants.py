"""Tiny multimodal models of transformers: inputs for each family, and a LLaVA with processor that answers questions."""

from pathlib import Path

import torch
from tiny_towers import MODELS, build, fill

WORDS = "yes no a b c red green is there the dog cat in image ? . answer using one word or phrase single"
IMAGE = 31  # token that stands for a patch


def inputs(model: torch.nn.Module, count: int = 2) -> dict[str, torch.Tensor]:
    """Pixels and token ids that a tiny model of `tiny_towers` takes: an image, then three words."""
    generator = torch.Generator().manual_seed(3)
    vision, kind = model.config.vision_config, model.config.model_type
    if "qwen" in kind:
        patch, tokens = vision.patch_size, 4
        pixels = torch.randn(count * 16, 3 * vision.temporal_patch_size * patch * patch, generator=generator)
        extra = {"image_grid_thw": torch.tensor([[1, 4, 4]] * count)}
    else:
        side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
        pixels, extra = torch.rand(count, 3, side, side, generator=generator) * 2 - 1, {}
        tokens = {"internvl": 4}.get(kind, 16)
        if kind == "llava_onevision":
            pixels, extra = pixels[:, None].repeat(1, 3, 1, 1, 1), {"image_sizes": torch.tensor([[side, side]] * count)}
            tokens = 16 + 16 + 4  # the whole picture, its one tile, and a mark at the end of each row
    ids = torch.cat([torch.full((count, tokens), IMAGE), torch.randint(1, 20, (count, 3), generator=generator)], 1)
    if "qwen" in kind:
        extra["mm_token_type_ids"] = (ids == IMAGE).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **extra}


def multimodal(name: str) -> torch.nn.Module:
    """A tiny model of a family, whose images stand for `IMAGE`."""
    import transformers

    model, _ = build(name)
    config = model.config
    config.image_token_id = config.image_token_index = IMAGE
    if name == "internvl":
        config.image_seq_length = 4
    if name == "llava_onevision":
        config.image_grid_pinpoints = [[56, 56]]
    if "qwen" in name:  # the merger's output has the language model's width
        setattr(config.vision_config, "hidden_size" if name == "qwen2_vl" else "out_hidden_size", 16)
        config.text_config.bos_token_id = config.text_config.eos_token_id = None
    model = getattr(transformers, MODELS[name][0])(config).eval()
    fill(model)
    return model


# Begins with the token <s>, which the tokenizer puts in front as well.
TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def save_llava(folder: Path) -> torch.nn.Module:
    """A tiny LLaVA with random weights and its processor, in a folder; what it answers means nothing."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS.split()]
    vocabulary = {word: number for number, word in enumerate(words)} | {"<image>": IMAGE}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(
        images, fast, patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    model = multimodal("llava")
    with torch.no_grad():  # so that answers depend on the image
        for parameter in [*model.model.multi_modal_projector.parameters(), *model.model.language_model.parameters()]:
            parameter.mul_(4)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model
