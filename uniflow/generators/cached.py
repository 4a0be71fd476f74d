"""Whose latents a generator makes, and cached ones are: they fit one encoder and bottleneck only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uniflow.core.tensors import state_hash, weights_hash
from uniflow.tokenizer import Tokenizer


def latents_hash(tokenizer: Tokenizer) -> str:
    """`weights_hash` of the encoder and the bottleneck: the decoder does not change the latents."""
    state = tokenizer.state_dict()
    return state_hash({name: state[name] for name in state if name.startswith(("encoder.", "bottleneck."))})


def latent_identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """Hash of the weights, spec and statistics of the latents, ready for JSON: two equal ones give equal latents."""
    spec = tokenizer.bottleneck.spec
    return {
        "weights": latents_hash(tokenizer),
        "spec": {"channels": spec.channels, "patch_size": spec.patch_size},
        "statistics": tokenizer.latent_statistics,
    }


def accepted_hashes(tokenizer: Tokenizer) -> tuple[str, str]:
    """By which hashes a file may name the tokenizer: `latents_hash`, or, before 2026-11-28, that of all its weights."""
    return latents_hash(tokenizer), weights_hash(tokenizer)


def check_cached(
    identity: Mapping[str, Any] | None, tokenizer: Tokenizer, name: str, hashes: Sequence[str] | None = None
) -> None:
    """Refuse latents of another tokenizer.

    Args:
        identity: what `latent_identity` gave when they were made; None if the data does not say.
        tokenizer: whose latents are needed.
        name: its name.
        hashes: of the tokenizer, as `accepted_hashes` gave them before it took another decoder.

    Raises:
        ValueError: if they are of another encoder or bottleneck, shape, or statistics.
    """
    own = latent_identity(tokenizer)
    again = "encode the images again with `uniflow encode`"
    if identity is None:
        raise ValueError("data with cached latents has to say whose they are: `tokenizer_identity`, as CachedLatents")
    if identity.get("spec") != own["spec"]:
        raise ValueError(f"the cached latents are {identity.get('spec')}, those of {name} are {own['spec']}; {again}")
    if identity.get("weights") not in (hashes or accepted_hashes(tokenizer)):
        raise ValueError(
            f"the cached latents are of another tokenizer (weights {identity.get('weights')}) than {name} (weights "
            f"{own['weights']}); {again}"
        )
    if identity.get("statistics") != own["statistics"]:
        raise ValueError(f"the cached latents were normalised by other statistics than those of {name}; {again}")


def take_decoder(tokenizer: Tokenizer, path: str) -> None:
    """Give a tokenizer the decoder of another one with the same encoder and bottleneck.

    Args:
        tokenizer: changed in place; it keeps its latent statistics.
        path: the other tokenizer: a folder, a checkpoint, or its name on the hub.

    Raises:
        ValueError: if its latents are others.
    """
    other = Tokenizer.from_pretrained(path)
    own, given = latents_hash(tokenizer), latents_hash(other)
    if own != given or tokenizer.bottleneck.spec != other.bottleneck.spec:
        raise ValueError(
            f"the decoder of {path} is for other latents (encoder and bottleneck {given}) than those here ({own}): "
            "train it with init_from and train_only: decoder"
        )
    device = next(tokenizer.decoder.parameters()).device
    tokenizer.decoder = other.decoder.to(device).train(tokenizer.training)
