"""The public release's numbers (tests/fixtures), and ours for the same inputs under the same names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from uniflow import Tokenizer
from uniflow.distill import Adaptive, DepthPrior, UniformWeighting, cosine_distances
from uniflow.flow import interpolate
from uniflow.layers.adaln import TimeEmbedding, time_frequencies
from uniflow.layers.grid import sincos_2d, unpatchify
from uniflow.tokenizer.official import official_name

FIXTURES = Path(__file__).parent / "fixtures"
OFFICIAL = FIXTURES / "official_tiny"
LOSSES = FIXTURES / "losses"
# Times (of 1000) at which the release's time embedding was recorded.
EMBEDDED_TIMES = (0.0, 250.0, 333.25, 999.0)
EMBEDDING = "timestep_embedding_t0_250_333.25_999"

# The weightings that the losses were recorded with.
DISTILLATION = {
    **{f"beta{beta}": Adaptive(float(beta)) for beta in (0, 1, 2, 4)},
    "prior_only": DepthPrior(),
    "uniform": UniformWeighting(),
}


def reference_frequencies() -> Tensor:
    """The float32 time frequencies of the machine that computed the fixtures, (128,).

    Its `exp` rounded some of them otherwise than correctly. Each is our value, unless one of its two neighbours fits
    the recorded cosines and sines clearly better.
    """
    cosines, sines = load_file(OFFICIAL / "outputs.safetensors")[EMBEDDING].double().chunk(2, dim=1)
    ours = time_frequencies(cosines.shape[1], torch.device("cpu"))
    candidates = torch.stack([ours, *(torch.nextafter(ours, torch.full_like(ours, end)) for end in (0.0, 2.0))])
    angles = (torch.tensor(EMBEDDED_TIMES)[:, None] * candidates[:, None]).double()
    error = ((angles.cos() - cosines).abs() + (angles.sin() - sines).abs()).sum(dim=1)
    # A frequency that is right still misses by the rounding of what was recorded.
    best = torch.where(error.min(dim=0).values < 0.8 * error[0], error.argmin(dim=0), 0)
    return candidates.gather(0, best[None])[0]


def changed_frequencies() -> list[int]:
    """Indices k at which `reference_frequencies` are not ours."""
    recovered = reference_frequencies()
    return (recovered != time_frequencies(len(recovered), torch.device("cpu"))).nonzero().flatten().tolist()


@contextmanager
def reference_time_embedding() -> Iterator[None]:
    """Within it, every time embedding uses `reference_frequencies`."""
    frequencies = reference_frequencies()
    with patch("uniflow.layers.adaln.time_frequencies", lambda count, device: frequencies.to(device)):
        yield


def tolerance(dtype: torch.dtype, *, reference_frequencies: bool) -> float:
    """How far ours may lie from the release's numbers, absolutely; these are of the order of 1 to 10."""
    if reference_frequencies and (dtype == torch.float32 or _sines_agree()):
        return {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    return {torch.float32: 5e-5, torch.float64: 1e-5}[dtype]


def _sines_agree() -> bool:
    """Whether this machine rounds float32 sines and cosines as the reference's; both enter float64 models, too."""
    with reference_time_embedding():
        return torch.equal(_embedding_values()[EMBEDDING], references(torch.float32)[EMBEDDING])


def references(dtype: torch.dtype) -> dict[str, Tensor]:
    """What the release computed: all intermediates in float32, some in float64."""
    return load_file(OFFICIAL / ("outputs.safetensors" if dtype == torch.float32 else "outputs_f64.safetensors"))


def official_config() -> dict[str, Any]:
    """The config of the release's checkpoint."""
    return json.loads((OFFICIAL / "config.json").read_text())


def loss_references(dtype: torch.dtype) -> dict[str, Tensor]:
    """The flow loss, its prediction and its gradients on the release's checkpoint; distillation in float64 only."""
    tensors, expected = load_file(LOSSES / "training.safetensors"), json.loads((LOSSES / "expected.json").read_text())
    suffix = "f32" if dtype == torch.float32 else "f64"
    found = {"flow_loss": expected[f"flow_loss_{suffix}"], "grad_norm_z": expected[f"grad_norm_z_{suffix}"]}
    found |= {f"grad_norm {name}": value for name, value in expected[f"grad_norms_{suffix}"].items()}
    if dtype == torch.float32:
        return {"v_pred": tensors["v_pred"], "grad_z": tensors["grad_z"], **_as_tensors(found)}
    for case in ("independent", "correlated"):
        for name in DISTILLATION:
            values = expected[f"dist_{case}"][name]
            found |= {f"dist {case} {name} {key}": value for key, value in values.items()}
        found[f"dist {case} distances"] = expected[f"dist_{case}"]["a_l"]
    return {"v_pred": tensors["v_pred_f64"], **_as_tensors(found)}


def losses(dtype: torch.dtype) -> dict[str, Tensor]:
    """Ours, under the names of `loss_references`."""
    decoder: Any = Tokenizer.from_official(OFFICIAL).to(dtype).decoder
    tensors = load_file(LOSSES / "training.safetensors")
    x0, x1, t, z = (tensors[name].to(dtype) for name in ("x0", "x1", "t", "z"))
    loss = decoder.flow_loss(z.requires_grad_(), x1, x0, t)
    loss.backward()
    found: dict[str, Any] = {"flow_loss": loss.detach(), "grad_z": z.grad, "grad_norm_z": z.grad.norm()}
    found["v_pred"] = decoder.velocity(interpolate(x0, x1, t[:, None]), t, z).detach()
    for name, parameter in decoder.head.named_parameters():
        official = official_name(f"decoder.head.{name}").removeprefix("flow_head.net.")
        found[f"grad_norm {official}"] = parameter.grad.norm()
    for case in ("independent", "correlated"):
        teacher = tensors[f"dist.{case}.H_teacher"]
        for name, weighting in DISTILLATION.items():
            student = tensors[f"dist.{case}.H_student"].clone().requires_grad_()
            distances = cosine_distances(list(student), list(teacher))
            weights = weighting(distances, progress=0.5)
            (weights * distances).sum().backward()
            values = {"loss": (weights * distances).sum().detach(), "weights": weights}
            values["grad_norm_H_student"] = student.grad.norm()
            found |= {f"dist {case} {name} {key}": value for key, value in values.items()}
        found[f"dist {case} distances"] = distances.detach()
    return found


def _as_tensors(values: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


@torch.no_grad()
def intermediates(dtype: torch.dtype) -> dict[str, Tensor]:
    """Ours, under the names of `references`, of the release's checkpoint read by `Tokenizer.from_official`."""
    tokenizer = Tokenizer.from_official(OFFICIAL).to(dtype)
    inputs = {name: tensor.to(dtype) for name, tensor in load_file(OFFICIAL / "inputs.safetensors").items()}
    found = _encoder_values(tokenizer, inputs) | _embedding_values()
    latents = tokenizer.encode(_to_pixels(tokenizer, inputs["pixel_values"]))
    found["latent_tokens"] = latents.flatten(2).mT
    found |= _condition_values(tokenizer, latents)
    return found | _decoder_values(tokenizer, latents, inputs["noise"])


def _encoder_values(tokenizer: Tokenizer, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    with _outputs({"hidden_states.0": tokenizer.encoder.get_submodule("model.norm_pre")}, found):
        output = tokenizer.encoder(_to_pixels(tokenizer, inputs["pixel_values"]))
    for i, parts in enumerate(zip(output.prefix_tokens, output.hidden_states, strict=True), start=1):
        found[f"hidden_states.{i}"] = torch.cat(parts, dim=1)
    other = tokenizer.encoder(_to_pixels(tokenizer, inputs["pixel_values_84"]))
    found["encoder84_last_hidden_state"] = torch.cat([other.prefix_tokens[-1], other.hidden_states[-1]], dim=1)
    return found


def _embedding_values() -> dict[str, Tensor]:
    embedding, seen = TimeEmbedding(8), {}
    embedding.fc1.register_forward_pre_hook(lambda module, args: seen.update({EMBEDDING: args[0]}))
    embedding(torch.tensor(EMBEDDED_TIMES, dtype=torch.float64) / 1000)
    return {"sincos_pos_embed": sincos_2d(64, (4, 4))[0], **seen}


def _condition_values(tokenizer: Tokenizer, latents: Tensor) -> dict[str, Tensor]:
    stage, found = tokenizer.decoder.get_submodule("global_stage"), {}
    watched = {
        "condition_unproj": stage.get_submodule("up"),
        "condition_after_global_blocks": list(stage.get_submodule("blocks"))[-1],
        "condition_final": stage,
    }
    with _outputs(watched, found):
        stage(latents)
    return found


def _decoder_values(tokenizer: Tokenizer, latents: Tensor, noise: Tensor) -> dict[str, Tensor]:
    decoder: Any = tokenizer.decoder
    b, grid = len(latents), (latents.shape[-2], latents.shape[-1])
    start = unpatchify(noise.view(b, -1, noise.shape[-1]), tokenizer.patch_size, grid)
    found: dict[str, Tensor] = {}
    calls: list[tuple[Tensor, Tensor]] = []
    hook = decoder.head.register_forward_hook(lambda module, args, output: calls.append((args[2], output)))

    def decode(name: str, steps: int, **settings: Any) -> None:
        calls.clear()
        with patch.dict(vars(decoder), settings):
            images = tokenizer.decode(latents, steps=steps, noise=start, clamp=False)
        mean, std = _statistics(tokenizer, images)
        found[f"reconstruction_{name}"] = (images - mean) / std
        if not settings:
            found.update({f"{name}.t{i}": 1000 * t.unique() for i, (t, _) in enumerate(calls)})
            found.update({f"{name}.v{i}": v.flatten(0, 1) for i, (_, v) in enumerate(calls)})

    decode("steps1", 1)
    decode("steps4", 4)
    decode("steps4_pow_0.25", 4, step_schedule="power", step_power=0.25)
    decode("steps4_cfg1.5", 4, guidance=1.5)
    hook.remove()
    return found


@contextmanager
def _outputs(modules: dict[str, nn.Module], found: dict[str, Tensor]) -> Iterator[None]:
    """Within it, the output of each module that is called goes into `found`."""
    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: found.update({name: output}))
        for name, module in modules.items()
    ]
    yield
    for hook in hooks:
        hook.remove()


def _to_pixels(tokenizer: Tokenizer, normalized: Tensor) -> Tensor:
    """ImageNet-normalised images as the pixels that the encoder takes."""
    mean, std = _statistics(tokenizer, normalized)
    return normalized * std + mean


def _statistics(tokenizer: Tokenizer, like: Tensor) -> list[Tensor]:
    spec = tokenizer.encoder.spec
    return [torch.tensor(values, dtype=like.dtype).view(3, 1, 1) for values in (spec.mean, spec.std)]
