"""Encoding and decoding as programs that run without this package: `torch.export` and ONNX."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from uniflow.core.disk import require_space
from uniflow.core.errors import one_line
from uniflow.tokenizer import Tokenizer

TOLERANCE = 1e-4


def export(
    tokenizer: str,
    out: Path,
    format: Literal["torch", "onnx", "both"] = "both",
    size: int | tuple[int, int] | None = None,
    static_size: bool = False,
    steps: int | None = None,
    normalize: bool = False,
    opset: int = 20,
) -> None:
    """Write a tokenizer's `encode` and `decode` as programs, each checked against the tokenizer itself.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, `embedded`, or its name on the hub.
        out: folder for encode.pt2 and decode.pt2 (torch.export), encode.onnx and decode.onnx.
        format: which of the two formats to write.
        size: side, or [height, width], in pixels of the images to trace with; by default the encoder's pretraining
            size.
        static_size: whether the programs take images of that size only, for parts that cannot be traced for any size.
        steps: sampler steps of a flow decoder; by default the decoder's own number.
        normalize: whether the programs give and take latents normalised by the tokenizer's statistics.
        opset: version of ONNX's operators.

    Raises:
        ValueError: if a part cannot be exported, a size is not a multiple of the patch size, or a program differs.
        ImportError: if ONNX is asked for and its packages are missing.
    """
    if format != "torch":
        _require_onnx()
    model = Tokenizer.from_pretrained(tokenizer)
    # Before writing: with a full disk the writers of these formats end the process, or leave half of a file.
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    require_space(out, 2 * weights + 2**20)
    out.mkdir(parents=True, exist_ok=True)
    for traced in trace(model, size=size, static_size=static_size, steps=steps, normalize=normalize):
        if format != "onnx":
            path = out / f"{traced.name}.pt2"
            torch.export.save(traced.program, path)
            _check(traced, path, load_torch)
        if format != "torch":
            path = out / f"{traced.name}.onnx"
            write_onnx(traced, path, opset)
            _check(traced, path, load_onnx)


@dataclass
class Traced:
    """One exported program.

    Attributes:
        name: "encode" or "decode".
        module: what it was made from.
        program: the program.
        inputs: names of its inputs.
        output: name of its output.
        cases: inputs to check it with: those it was traced with, then other batches and, unless `static_size`, sizes.
        static_size: whether it was made for one image size.
    """

    name: str
    module: nn.Module
    program: ExportedProgram
    inputs: tuple[str, ...]
    output: str
    cases: list[tuple[Tensor, ...]]
    static_size: bool

    def signature(self) -> str:
        """What goes in and what comes out, in words."""
        sizes = f"of {self.cases[0][0].shape[-2]} x {self.cases[0][0].shape[-1]}" if self.static_size else "of any size"
        return f"{' and '.join(self.inputs)} {sizes} -> {self.output}"

    def difference(self, run: Callable[..., Tensor]) -> float:
        """The largest difference between `run` and the tokenizer over all cases.

        Raises:
            ValueError: if `run` fails or differs by more than 1e-4, absolute and relative.
        """
        worst = 0.0
        for case in self.cases:
            with torch.no_grad():
                expected = self.module(*case)
                try:
                    result = run(*case)
                except Exception as error:  # whatever runs the program has errors of its own
                    raise ValueError(
                        f"{self._fails_for(case)} ({one_line(error, 400)}){_advice(self.static_size)}"
                    ) from error
            if result.shape != expected.shape or not torch.allclose(result, expected, atol=TOLERANCE, rtol=TOLERANCE):
                raise ValueError(f"{self._fails_for(case)}: it gives something else than the tokenizer")
            worst = max(worst, (result - expected).abs().max().item())
        return worst

    def _fails_for(self, case: tuple[Tensor, ...]) -> str:
        return f"the exported {self.name} does not work for {self.inputs[0]} of {tuple(case[0].shape)}"


def trace(
    tokenizer: Tokenizer,
    *,
    size: int | tuple[int, int] | None = None,
    static_size: bool = False,
    steps: int | None = None,
    normalize: bool = False,
) -> list[Traced]:
    """`encode` and `decode` of a tokenizer as programs, for any batch and, unless `static_size`, any image size.

    `encode` takes images (B, 3, H, W), float in [0, 1], whose sides are multiples of the patch size, at least two.
    `decode` takes latents (B, C, h, w), h and w at least two, and of a decoder that draws noise also noise, standard
    normal (B, 3, H, W).

    Args:
        tokenizer: in evaluation mode, on the CPU.
        size: as for `export`.
        static_size: as for `export`.
        steps: as for `export`.
        normalize: as for `export`.

    Raises:
        ValueError: as for `export`, and if there are no statistics to normalise with.
    """
    multiple = max(tokenizer.patch_size, tokenizer.encoder.spec.patch_size)
    height, width = _sides(size or tokenizer.encoder.spec.image_size, multiple)
    other = (height, width) if static_size else (2 * multiple, 3 * multiple)
    shapes = [(2, 3, height, width), (3, 3, *other), (1, 3, *other)]
    images = [torch.rand(shape) for shape in shapes]
    noise = [torch.randn(shape) for shape in shapes]
    with torch.no_grad():
        latents = [tokenizer.encode(batch, normalize=normalize).contiguous() for batch in images]
        draws = tokenizer.decoder.draw_noise(latents[0]) is not None
    encode = _Encode(_with_only(tokenizer, "encoder", "bottleneck"), normalize)
    decode = _Decode(_with_only(tokenizer, "decoder"), steps, normalize)
    decoding = {"latents": (latents, 1), **({"noise": (noise, tokenizer.patch_size)} if draws else {})}
    return [
        _trace("encode", encode, {"images": (images, multiple)}, "latents", static_size),
        _trace("decode", decode, decoding, "images", static_size),
    ]


def load_torch(path: str | os.PathLike[str]) -> Callable[..., Tensor]:
    """The function that a `.pt2` file holds: tensors in, tensor out."""
    return torch.export.load(path).module()


def write_onnx(traced: Traced, path: Path, opset: int) -> None:
    """Write a program as ONNX; weights of more than 1.5 GB go into a file beside it.

    Raises:
        ValueError: if it cannot be expressed in ONNX.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                traced.program,
                traced.cases[0],
                input_names=traced.inputs,
                output_names=(traced.output,),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except Exception as error:  # the converter raises errors of its own and of onnx's
        raise ValueError(f"{traced.name} cannot be written as ONNX: {one_line(error, 400)}") from error


def load_onnx(path: str | os.PathLike[str]) -> Callable[..., Tensor]:
    """The function that a `.onnx` file holds, run by onnxruntime on the CPU: tensors in, tensor out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True))
        return torch.from_numpy(session.run(None, given)[0])

    return run


class _SpecOnly(nn.Module):
    """Stands for a part that a program does not run, since a program holds all weights of what it was made from."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = spec

    def to_frames(self, latents: Tensor) -> Tensor:
        """As a bottleneck has it for images."""
        return latents


def _with_only(tokenizer: Tokenizer, *parts: str) -> Tokenizer:
    """A tokenizer that shares the parts of these names, and has nothing but the specs of the others."""
    lean = copy.copy(tokenizer)
    lean._modules = {name: part if name in parts else _SpecOnly(part.spec) for name, part in lean.named_children()}
    return lean


class _Encode(nn.Module):
    def __init__(self, tokenizer: Tokenizer, normalize: bool) -> None:
        super().__init__()
        self.tokenizer, self.normalize = tokenizer, normalize

    def forward(self, images: Tensor) -> Tensor:
        with _SizesUnseen():
            return self.tokenizer.encode(images, normalize=self.normalize)


class _Decode(nn.Module):
    def __init__(self, tokenizer: Tokenizer, steps: int | None, normalize: bool) -> None:
        super().__init__()
        self.tokenizer, self.steps, self.normalize = tokenizer, steps, normalize

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Tensor:
        with _SizesUnseen():
            return self.tokenizer.decode(latents, steps=self.steps, noise=noise, normalized=self.normalize)


@contextmanager
def _sizes_unguarded() -> Iterator[None]:
    """Keeps the tracer from treating a batch of one as a special case, and convolutions from choosing by the batch."""
    one_is_like_any = fx_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]  # made at run time
    with one_is_like_any, torch.backends.mkldnn.flags(enabled=False):
        yield


class _SizesUnseen(TorchFunctionMode):
    """Has `reshape` copy: to find out whether a view will do it asks for sizes, and ties the program to B > 1."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.reshape, torch.reshape):
            args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
        return func(*args, **(kwargs or {}))


def _trace(
    name: str, module: nn.Module, inputs: dict[str, tuple[list[Tensor], int]], output: str, static_size: bool
) -> Traced:
    """Export `module`; `inputs` are by name the tensors of all cases, and of how many pixels a side's unit is."""
    cases = list(zip(*(tensors for tensors, _ in inputs.values()), strict=True))
    batch, rows, columns = Dim("batch", min=1), Dim("rows", min=2), Dim("columns", min=2)
    shapes: dict[str, dict[int, Any]] = {
        key: {0: batch} if static_size else {0: batch, 2: unit * rows, 3: unit * columns}
        for key, (_, unit) in inputs.items()
    }
    try:
        with torch.no_grad(), _quiet(), _sizes_unguarded():
            program = torch.export.export(module.eval(), cases[0], dynamic_shapes=shapes)
    except Exception as error:  # the tracer raises many types for what it cannot trace
        raise ValueError(f"{name} cannot be exported ({one_line(error, 400)}){_advice(static_size)}") from error
    return Traced(name, module, program, tuple(inputs), output, cases, static_size)


def _check(traced: Traced, path: Path, load: Callable[[Path], Callable[..., Tensor]]) -> None:
    """Compare a file with the tokenizer and say how near it comes; a file that does not work is removed."""
    try:
        off = traced.difference(load(path))
    except ValueError:
        path.unlink()
        raise
    print(f"{path}: {traced.signature()}; at most {off:.1g} off")


def _sides(size: int | tuple[int, int], multiple: int) -> tuple[int, int]:
    """Height and width to trace with."""
    height, width = size if isinstance(size, tuple) else (size, size)
    if min(height, width) < 2 * multiple or height % multiple or width % multiple:
        raise ValueError(
            f"sides must be multiples of the patch size {multiple}, and at least two of them, to export; "
            f"got {height} x {width}: give another with --size"
        )
    return height, width


def _advice(static_size: bool) -> str:
    return "" if static_size else "; it may work for images of one size: --static_size true"


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX needs packages of its own ({error}): pip install uniflow[export]") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's and the converter's notes to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
