"""Mask2Former's decoder for semantic segmentation."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from uniflow.core.numbers import Int2, NonNegativeFloat, NonNegativeInt, PositiveInt
from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.heads.four_maps import FourScales, transformers_module
from uniflow.heads.segmentation import SegmentationHead

GROUPS = 32  # of the group norms inside


class Queries(NamedTuple):
    """What the queries say after each block of the decoder, and before the first.

    Attributes:
        masks: logits, each (B, Q, h, w), over the area of the patch grid.
        classes: logits, each (B, Q, num_classes + 1); the last class is "nothing".
        area: rows and columns in pixels of the patch grid.
    """

    masks: list[Tensor]
    classes: list[Tensor]
    area: tuple[int, int]


class Mask2Former(SegmentationHead):
    """Pixel decoder, masked attention and matching of Mask2Former (arXiv 2112.01527), all of transformers, on a pyramid
    of a ViT's feature maps.

    In training the prediction is that of the queries, and the loss is Mask2Former's: queries and the classes of an
    image are matched, matched ones learn class and mask (cross entropy and dice at random points), the others
    "nothing"; after each block. In evaluation it is a map like that of other heads: the log of each class's share, sum
    over the queries of p(class) p(mask), and the loss is its cross entropy. Pixels without a class belong to no mask.

    A source of one map gives all four scales; give 4 layers for ViT-Adapter's kind of setting.

    Args:
        spec: of the features, with 1 or 4 layers.
        num_classes: classes, from 0 on.
        width: channels of both decoders, a multiple of 32.
        queries: number of masks that are predicted.
        pixel_blocks: blocks of the pixel decoder.
        blocks: blocks of the transformer decoder.
        heads: attention heads, a divisor of `width`.
        points: random points of a mask that matching and loss look at.
        nothing_weight: weight of the class "nothing" in the cross entropy.
        ignore_index: label of pixels that count neither in the masks nor in the scores.
        weight: factor on the loss.

    Raises:
        ImportError: without transformers or scipy.
        ValueError: if there are not 1 or 4 layers, `width` does not fit, or `ignore_index` is one of the classes.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: Int2,
        width: PositiveInt = 256,
        queries: PositiveInt = 100,
        pixel_blocks: PositiveInt = 6,
        blocks: PositiveInt = 9,
        heads: PositiveInt = 8,
        points: PositiveInt = 12544,
        nothing_weight: NonNegativeFloat = 0.1,
        ignore_index: NonNegativeInt = 255,
        weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(spec, num_classes, ignore_index, weight)
        if width % GROUPS or width % heads:
            raise ValueError(f"Mask2Former.width must be a multiple of {GROUPS} and of heads = {heads}, got {width}")
        self.pyramid = FourScales("Mask2Former", spec.embed_dim, spec.num_layers)
        modeling = _modeling()
        config = modeling.Mask2FormerConfig(
            num_labels=num_classes, feature_size=width, mask_feature_size=width, hidden_dim=width, num_queries=queries,
            encoder_layers=pixel_blocks, decoder_layers=blocks + 1, num_attention_heads=heads,
            dropout=0.0,  # transformers takes it for the share of blocks to skip, too, which fails in training
            encoder_feedforward_dim=4 * width, dim_feedforward=8 * width, train_num_points=points,
            no_object_weight=nothing_weight,
        )  # fmt: skip
        self.pixels = modeling.Mask2FormerPixelDecoder(config, [spec.embed_dim] * 4)
        self.decode = modeling.Mask2FormerTransformerModule(width, config)
        self.classify = nn.Linear(width, num_classes + 1)
        # What follows would be done by transformers' model class, which takes no other backbone than its own.
        owner = modeling.Mask2FormerPreTrainedModel(config)
        for part in (self.pixels, self.decode):
            for module in part.modules():
                owner._init_weights(module)
        factors = {"cross_entropy": config.class_weight, "mask": config.mask_weight, "dice": config.dice_weight}
        self.factors = {f"loss_{name}": float(factor) for name, factor in factors.items()}
        self.criterion = modeling.Mask2FormerLoss(config, self.factors)

    def asked(self, features: EncoderOutput) -> Queries:
        """What the queries say about each image."""
        pixels = self.pixels(self.pyramid(features), return_dict=True)
        decoded = self.decode(pixels.multi_scale_features, pixels.mask_features, output_hidden_states=True)
        classes = [self.classify(state.transpose(0, 1)) for state in decoded.intermediate_hidden_states]
        rows, columns = features.grid
        area = rows * self.patch_size, columns * self.patch_size
        return Queries([masks.float() for masks in decoded.masks_queries_logits], [c.float() for c in classes], area)

    def values(self, features: EncoderOutput) -> Tensor:
        said = self.asked(features)
        shares = said.classes[-1].softmax(dim=-1)[..., :-1]
        total = torch.einsum("bqc,bqhw->bchw", shares, said.masks[-1].sigmoid())
        return total.clamp_min(1e-8).log()

    def forward(self, features: EncoderOutput) -> Any:
        """In training `Queries`; else logits in the pixels of the patch grid, (B, num_classes, H, W)."""
        return self.asked(features) if self.training else super().forward(features)

    def loss(self, prediction: Any, batch: dict[str, Any]) -> Tensor:
        """Mask2Former's loss of `Queries`, the mean cross entropy of a map."""
        if not isinstance(prediction, Queries):
            return super().loss(prediction, batch)
        mask = self._over(prediction.area, self.target(batch), batch)
        if isinstance(mask, FakeTensor):  # `uniflow plan` computes without values, and nothing can be matched
            return torch.stack([part.mean() for part in (*prediction.masks, *prediction.classes)]).sum()
        present = [one.unique() for one in mask]
        classes = [labels[labels != self.ignore_index] for labels in present]
        masks = [(one == labels[:, None, None]).float() for one, labels in zip(mask, classes, strict=True)]
        pairs = zip(prediction.masks[:-1], prediction.classes[:-1], strict=True)
        earlier = [{"masks_queries_logits": m, "class_queries_logits": c} for m, c in pairs]
        losses = self.criterion(prediction.masks[-1], prediction.classes[-1], masks, classes, earlier)
        named = ((name, value) for name, value in losses.items())
        return torch.stack([self._factor(name) * value for name, value in named]).sum()

    def _factor(self, name: str) -> float:
        return next(factor for key, factor in self.factors.items() if name.startswith(key))

    def _over(self, area: tuple[int, int], mask: Tensor, batch: dict[str, Any]) -> Tensor:
        """The mask over the area of the patch grid, which may be larger than the images: nothing is known there."""
        sides = zip(mask.shape[-2:], area, batch["image"].shape[-2:], strict=True)
        bottom, right = (round(own * whole / image) - own for own, whole, image in sides)
        return F.pad(mask, (0, right, 0, bottom), value=self.ignore_index)


def _modeling() -> Any:
    module = transformers_module("Mask2Former", "mask2former")
    try:
        importlib.import_module("scipy")
    except ImportError as error:
        raise ImportError("Mask2Former needs scipy, to match queries and masks: pip install scipy") from error
    return module.modeling_mask2former
