"""Quality and cost of a decoder against sampler steps, start noise, and noise on the latents."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from uniflow.core.numbers import NonNegativeFloat
from uniflow.core.pixels import to_unit_range
from uniflow.data.base import ImageDataModule
from uniflow.metrics import Evaluation, ReconstructionProtocol, fingerprint, image_digests, noise_for, write_table
from uniflow.tokenizer import Tokenizer
from uniflow.tokenizer.latent_noise import add_latent_noise
from uniflow.tokenizer.summary import model_summary
from uniflow.tools.common import check_numbers, evaluation_batches, load_tokenizer, print_rows

Start = Literal["zero", "random"]
ANY_START = "any"  # of a decoder that ignores start and steps
Row = dict[str, Any]


def sweep_steps(
    tokenizers: list[str],
    images: list[Path] | None = None,
    data: ImageDataModule | None = None,
    steps: Sequence[int] = (1, 2, 4, 8, 16),
    starts: Sequence[Start] = ("zero", "random"),
    latent_noise: Sequence[NonNegativeFloat] = (0.0,),
    out: Path = Path("sweep"),
    size: int | None = None,
    crop: float = 1.0,
    batch_size: int = 16,
    num_workers: int = 2,
    repeats: int = 5,
    protocol: ReconstructionProtocol | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    fast_cpu: bool = True,
) -> None:
    """Decode with several numbers of sampler steps, from zeros and from noise: quality, time and GFLOP of each.

    Writes `sweep.csv` and `sweep.json`, and with matplotlib `sweep.png` and `sweep.svg`. A decoder that ignores
    steps and start, such as the regression decoder, has one row. With several amounts of `latent_noise` there are rows
    for each, and the plot is over them: a decoder for generation is chosen by how it decodes noised latents.

    Args:
        tokenizers: tokenizers' folders (RUN/tokenizer, shown as RUN), checkpoints, or hub ids.
        images: image files, or folders of them.
        data: a data module instead of images, such as configs/data/scenes.yaml; its own crops and batches are used.
        steps: numbers of sampler steps.
        starts: what decoding starts from: "random" noise, each image's own, or "zero".
        latent_noise: amounts of noise on the latents, each image's own, in standard deviations of each channel; other
            amounts than 0 need latent statistics.
        out: folder for the results.
        size: side in pixels of the images' central crop; by default the size that the first tokenizer's encoder was
            pretrained at.
        crop: share of the resized short side that the crop keeps.
        batch_size: images at a time; times are those of a batch, divided by its number of images.
        num_workers: processes that read pictures.
        repeats: how often a time is taken; the median counts.
        protocol: what to compute; by default PSNR and SSIM, and no metrics of sets.
        device: where to compute; auto takes a GPU if there is one.
        fast_cpu: on a CPU, whether to use oneDNN where it is faster (AMD processors with AVX-512).

    Raises:
        ValueError: if neither images nor data are named, or both are, none can be read, or an option is out of range.
    """
    if not steps or min(steps) < 1:
        raise ValueError(f"steps must list numbers of at least 1, got {list(steps)}")
    check_numbers(size, steps, batch_size, num_workers)
    if not starts:
        raise ValueError("name a start: --starts '[zero, random]'")
    if not latent_noise or min(latent_noise) < 0:
        raise ValueError(f"latent_noise must list numbers of at least 0, got {list(latent_noise)}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    steps, starts, amounts = sorted(set(steps)), list(dict.fromkeys(starts)), sorted(set(latent_noise))
    protocol = protocol or ReconstructionProtocol(sets=())
    names = _names(tokenizers)
    rows: list[Row] = []
    settings: dict[str, Any] = {}
    for name, path in zip(names, tokenizers, strict=True):
        model, picked = load_tokenizer(path, device, fast_cpu)
        if max(amounts) > 0 and model.latent_std is None:
            raise ValueError(
                f"{path} has no latent statistics, the unit of latent_noise: measure them by uniflow stats"
            )
        size = size or model.encoder.spec.image_size
        batches, crops = evaluation_batches(size, images, data, size, crop, batch_size, num_workers)
        evaluation = Evaluation(protocol)
        tokenizer_rows = sweep_one(model, batches, evaluation, steps, starts, repeats, amounts)
        noised = {"latent_noise": amounts} if amounts != [0] else {}
        settings = evaluation.settings(**crops, steps=steps, starts=starts, **noised, precision="32-true")
        rows += [{"tokenizer": name, **row} for row in tokenizer_rows]
    print_rows(rows, f"{settings['num_images']} images, decoded on {picked} in batches of up to {batch_size}")
    print(f"protocol {fingerprint(settings)}")
    out.mkdir(parents=True, exist_ok=True)
    write_table(rows, out / "sweep.csv")
    results = {"protocol/fingerprint": fingerprint(settings), "protocol/settings": settings, "device": picked}
    (out / "sweep.json").write_text(json.dumps({**results, "rows": rows}, indent=2) + "\n")
    try:
        plot_sweep(rows, out / "sweep.png", out / "sweep.svg")
    except ImportError as error:
        print(f"no plot: {error}", file=sys.stderr)


@torch.inference_mode()
def sweep_one(
    tokenizer: Tokenizer,
    batches: Iterable[Mapping[str, Any]],
    evaluation: Evaluation,
    steps: Sequence[int],
    starts: Sequence[Start],
    repeats: int = 5,
    latent_noise: Sequence[float] = (0.0,),
) -> list[Row]:
    """One tokenizer's rows, one for each amount of noise on the latents, start and number of steps.

    Args:
        tokenizer: on the device to compute on.
        batches: dicts with "image" (B, 3, H, W), uint8 or float in [0, 1]. The first one is used for the times.
        evaluation: an empty one; afterwards it knows the settings.
        steps: numbers of sampler steps, ascending.
        starts: what to start from.
        repeats: how often a time is taken.
        latent_noise: amounts of noise on the latents, in standard deviations of each channel.

    Returns:
        Dicts with "latent_noise", unless it is 0 throughout, "start" and "steps"; the mean of each of the protocol's
        metrics; "ms_per_image" and "time_ratio", that to one step; and "gflop", what the decoder computes for an image
        (10^9 operations).

    Raises:
        ValueError: if there are no images.
    """
    device = next(tokenizer.parameters()).device
    cases: list[tuple[float, str, int]] = []
    costs: dict[int, Row] = {}
    for batch in batches:
        images = batch["image"].to(device)
        latents, digests = tokenizer.encode(images), image_digests(images)
        if not cases:
            fixed = ignores_start_and_steps(tokenizer, latents)
            pairs = [(ANY_START, 1)] if fixed else [(start, count) for start in starts for count in steps]
            cases = [(amount, *pair) for amount in latent_noise for pair in pairs]
            costs = _costs(tokenizer, images, latents, [1] if fixed else steps, repeats)
        evaluation.add_originals(to_unit_range(images), digests)
        seed = evaluation.protocol.noise_seed
        noised = {amount: _noised(tokenizer, latents, digests, amount, seed) for amount in latent_noise}
        for amount, start, count in cases:
            noise = _start(tokenizer, start, latents, digests, seed)
            decoded = tokenizer.decode(noised[amount], steps=count, noise=noise).float()
            evaluation.add(decoded[..., : images.shape[-2], : images.shape[-1]], _suffix(amount, start, count))
    if not cases:
        raise ValueError("none of the images can be read")
    numbers = evaluation.compute()
    return [
        {
            **({"latent_noise": amount} if any(latent_noise) else {}),
            "start": start,
            "steps": count,
            **{key.removesuffix(end): value for key, value in numbers.items() if key.endswith(end)},
            **costs[count],
        }
        for amount, start, count in cases
        for end in (_suffix(amount, start, count),)
    ]


def ignores_start_and_steps(tokenizer: Tokenizer, latents: Tensor) -> bool:
    """Whether one step from zeros and two from noise decode `latents` (B, C, h, w) to the same, up to rounding."""
    zeros = torch.zeros(_image_shape(tokenizer, latents), device=latents.device)
    noise = torch.randn(zeros.shape, generator=torch.Generator().manual_seed(0)).to(latents.device)
    one, two = (tokenizer.decode(latents, steps=n, noise=x, clamp=False) for n, x in ((1, zeros), (2, noise)))
    return torch.allclose(one, two, rtol=0, atol=1e-5)


def _start(tokenizer: Tokenizer, start: str, latents: Tensor, digests: Sequence[str], seed: int) -> Tensor:
    shape = _image_shape(tokenizer, latents)
    noise = noise_for(digests, shape[1:], seed) if start == "random" else torch.zeros(shape)
    return noise.to(latents.device)


def _noised(tokenizer: Tokenizer, latents: Tensor, digests: Sequence[str], amount: float, seed: int) -> Tensor:
    if amount == 0:
        return latents
    assert tokenizer.latent_std is not None
    # Two more, not one: noise_for gives 2 k and 2 k + 1 the same noise, and this is not the decoder's start.
    noise = noise_for(digests, tuple(latents.shape[1:]), seed + 2).to(latents.device)  # type: ignore[arg-type]
    return add_latent_noise(latents, noise, amount, tokenizer.latent_std)


def _image_shape(tokenizer: Tokenizer, latents: Tensor) -> tuple[int, int, int, int]:
    p = tokenizer.patch_size
    return (latents.shape[0], 3, latents.shape[-2] * p, latents.shape[-1] * p)


def _suffix(amount: float, start: str, count: int) -> str:
    return f" at {amount} from {start} in {count}"


def _costs(tokenizer: Tokenizer, images: Tensor, latents: Tensor, steps: Sequence[int], repeats: int) -> dict[int, Row]:
    """Time and GFLOP of the decoder for each number of steps."""
    noise = torch.zeros(_image_shape(tokenizer, latents), device=latents.device)
    counts = sorted({1, *steps})
    calls = {count: lambda count=count: tokenizer.decode(latents, steps=count, noise=noise) for count in counts}
    seconds = _medians(calls, repeats, latents.device)
    size = (images.shape[-2], images.shape[-1])
    return {
        count: {
            "ms_per_image": 1000 * seconds[count] / len(images),
            "time_ratio": seconds[count] / seconds[1],
            "gflop": model_summary(tokenizer, size, count)["decoder"]["gflop"],
        }
        for count in counts
    }


def _medians(calls: Mapping[int, Callable[[], Any]], repeats: int, device: torch.device) -> dict[int, float]:
    """Median time of each call in seconds, after one that does not count."""
    times: dict[int, list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    # In turn, so that whatever else the machine does meets all of them alike.
    for _ in range(repeats):
        for key, call in calls.items():
            _synchronize(device)
            begin = time.perf_counter()
            call()
            _synchronize(device)
            times[key].append(time.perf_counter() - begin)
    return {key: statistics.median(values) for key, values in times.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _names(tokenizers: Sequence[str]) -> list[str]:
    """A short name for each: its run's folder; the whole path where that would name two."""
    paths = [Path(tokenizer) for tokenizer in tokenizers]
    short = [path.absolute().parent.name if path.name == "tokenizer" else path.name for path in paths]
    names = [name if short.count(name) == 1 else given for name, given in zip(short, tokenizers, strict=True)]
    if len(set(names)) < len(names):
        raise ValueError(f"a tokenizer is named twice: {', '.join(tokenizers)}")
    return names


def plot_sweep(rows: Sequence[Mapping[str, Any]], *paths: Path) -> None:
    """Draw each metric over the number of steps, a line for each tokenizer and start, and the time.

    A decoder that has but one row is a level line, since its images do not depend on the steps. With several amounts of
    noise on the latents they take the place of the steps, with a line for each number of steps, and without the time.

    Args:
        rows: of `sweep_steps`.
        *paths: files to write; their endings say what kind.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'uniflow[report]'") from error
    titles = {"psnr": "PSNR, dB", "ssim": "SSIM", "ms_per_image": "ms an image"}
    over = "latent_noise" if len({row.get("latent_noise") for row in rows}) > 1 else "steps"
    left_out = {"tokenizer", "start", "steps", "latent_noise", "time_ratio", "gflop"}
    columns = [key for key in rows[0] if key not in left_out | ({"ms_per_image"} if over == "latent_noise" else set())]
    names = list(dict.fromkeys(row["tokenizer"] for row in rows))
    ticks = sorted({row["steps"] for row in rows})
    # The same rows give the same file, and a dollar in a name is a dollar.
    with mpl.rc_context({"svg.hashsalt": "uniflow", "text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(3.6 * len(columns) + 0.4, 3.6), layout="constrained")
        for axis, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
            for number, name in enumerate(names):
                for start in dict.fromkeys(row["start"] for row in rows if row["tokenizer"] == name):
                    if column == "ms_per_image" and start == "zero" and _has_both(rows, name):
                        continue  # a start costs nothing
                    own = [r for r in rows if (r["tokenizer"], r["start"]) == (name, start)]
                    if over == "latent_noise":
                        for count in dict.fromkeys(row["steps"] for row in own):
                            _line(axis, [r for r in own if r["steps"] == count], column, number, over)
                    else:
                        _line(axis, own, column, number, over)
            if over == "steps":
                axis.set_xscale("log", base=2)
                axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.set_xlabel("sampler steps" if over == "steps" else "noise on the latents, standard deviations")
            axis.set_title(titles.get(column, column), fontsize=10)
            axis.grid(color="#d5d9de", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_axisbelow(True)
            if column == "ms_per_image":
                axis.set_ylim(bottom=0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _has_both(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return {"zero", "random"} <= {row["start"] for row in rows if row["tokenizer"] == name}


def _line(axis: Any, rows: Sequence[Mapping[str, Any]], column: str, number: int, over: str) -> None:
    start, color = rows[0]["start"], f"C{number % 10}"
    label = rows[0]["tokenizer"] + ("" if start == ANY_START else f", {start} start")
    if start == ANY_START and over == "steps":
        axis.axhline(rows[0][column], color=color, linestyle=":", label=label)
        return
    style: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"} if start == "zero" else {}
    if over == "latent_noise" and start != ANY_START:
        style["alpha"] = max(0.3, 1 / rows[0]["steps"] ** 0.5)
        label += f", {rows[0]['steps']} steps"
    axis.plot([r[over] for r in rows], [r[column] for r in rows], marker="o", color=color, label=label, **style)
