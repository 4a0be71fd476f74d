"""How a new encoder starts from one that is trained already."""

from __future__ import annotations

from collections.abc import Callable

from uniflow.encoders.base import VisionEncoder
from uniflow.encoders.loading import refuse_misfits


class CopiedWeights:
    """Gives an encoder the weights of another one, by name; what the other one does not have is left random.

    Args:
        source: makes the encoder that is copied from, with its weights. The new encoder must have all its tensors.
    """

    def __init__(self, source: Callable[[], VisionEncoder]) -> None:
        self.source = source

    def __call__(self, encoder: VisionEncoder) -> None:
        """Change `encoder` in place.

        Raises:
            ValueError: naming the source's tensors that the encoder does not have, or has in another shape.
        """
        source = self.source()
        given, own = source.state_dict(), encoder.state_dict()
        shared = given.keys() & own.keys()
        refuse_misfits(
            f"the copied {type(source).__name__}",
            missing=(),
            unexpected=given.keys() - shared,
            misshapen=[(k, given[k].shape, own[k].shape) for k in shared if given[k].shape != own[k].shape],
        )
        encoder.load_state_dict(given, strict=False)
