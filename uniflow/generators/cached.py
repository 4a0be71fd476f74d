"""Whose latents cached ones are: they fit one tokenizer only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uniflow.core.tensors import weights_hash
from uniflow.tokenizer import Tokenizer


def latent_identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """Hash of the weights, spec and statistics of the latents, ready for JSON: two equal ones give equal latents."""
    spec = tokenizer.bottleneck.spec
    return {
        "weights": weights_hash(tokenizer),
        "spec": {"channels": spec.channels, "patch_size": spec.patch_size},
        "statistics": tokenizer.latent_statistics,
    }


def check_cached(identity: Mapping[str, Any] | None, tokenizer: Tokenizer, name: str) -> None:
    """Refuse latents of another tokenizer.

    Args:
        identity: what `latent_identity` gave when they were made; None if the data does not say.
        tokenizer: whose latents are needed.
        name: its name.

    Raises:
        ValueError: if they are of another tokenizer, shape, or statistics.
    """
    own = latent_identity(tokenizer)
    again = "encode the images again with `uniflow encode`"
    if identity is None:
        raise ValueError("data with cached latents has to say whose they are: `tokenizer_identity`, as CachedLatents")
    if identity.get("spec") != own["spec"]:
        raise ValueError(f"the cached latents are {identity.get('spec')}, those of {name} are {own['spec']}; {again}")
    if identity.get("weights") != own["weights"]:
        raise ValueError(
            f"the cached latents are of another tokenizer (weights {identity.get('weights')}) than {name} (weights "
            f"{own['weights']}); {again}"
        )
    if identity.get("statistics") != own["statistics"]:
        raise ValueError(f"the cached latents were normalised by other statistics than those of {name}; {again}")
