"""`uniflow demo`: a tokenizer, and what was built on it, on a web page of this machine."""

from __future__ import annotations

import ipaddress
import signal
import sys
from pathlib import Path
from typing import Literal

from uniflow.core.numbers import PositiveInt
from uniflow.generators import Generator
from uniflow.language import Assistant
from uniflow.pretrained import DEFAULT
from uniflow.tools.common import load_tokenizer
from uniflow.tools.demo_page import require_gradio, running
from uniflow.tools.demo_work import Limits, Parts
from uniflow.tools.look import first_encoder

LOOPBACK = "127.0.0.1"


def demo(
    *,
    tokenizer: str = DEFAULT,
    generator: Path | None = None,
    class_names: list[str] | None = None,
    text_encoder: str | None = None,
    assistant: Path | None = None,
    lm: str | None = None,
    gguf_file: str | None = None,
    teacher: bool = False,
    port: PositiveInt | None = None,
    host: str = LOOPBACK,
    max_upload_mb: PositiveInt = 20,
    max_pixels: PositiveInt = 50_000_000,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    fast_cpu: bool = True,
) -> None:
    """Serve a local web page: pictures reconstructed, their features; generation and chat where their parts are given.

    Args:
        tokenizer: a tokenizer's folder (RUN/tokenizer), a checkpoint, `embedded`, or a hub id.
        generator: RUN/generator of a fit of `GenerationTask`.
        class_names: names of the generator's classes, in their order; by default they are numbered.
        text_encoder: where the generator's text encoder is now, if it has moved.
        assistant: RUN/assistant of a fit of `VisualQuestionTask`.
        lm: where the assistant's language model is, if it is not where it was at training: a name on the hub or a
            folder.
        gguf_file: with lm, name of the GGUF file in it.
        teacher: whether to also show the features of the encoder that training started from; its weights are read or
            fetched from the source that the tokenizer's config names.
        port: of the server; by default the first free one from 7860 on.
        host: address that the server is bound to. Any other than this machine's own lets others use the page: it has
            no password.
        max_upload_mb: largest file that may be uploaded, in MiB.
        max_pixels: most pixels of a picture.
        device: where to compute; auto takes a GPU if there is one.
        fast_cpu: on a CPU, whether to use oneDNN where it is faster (AMD processors with AVX-512).

    Raises:
        ImportError: without gradio.
        ValueError: if something cannot be read, or does not fit.
        OSError: if the port is taken.
    """
    require_gradio()  # before anything large is loaded
    if port is not None and port > 65535:
        raise ValueError(f"--port must lie between 1 and 65535, not {port}")
    for name, value, owner, given in (
        ("text_encoder", text_encoder, "generator", generator),
        ("lm", lm, "assistant", assistant),
        ("gguf_file", gguf_file, "lm", lm),
    ):
        if value is not None and given is None:
            raise ValueError(f"--{name} is of --{owner}, which is missing")
    limits = Limits(max_upload_mb * 2**20, max_pixels)
    model, picked = load_tokenizer(tokenizer, device, fast_cpu)
    parts = Parts(
        model,
        tokenizer,
        first_encoder(model) if teacher else None,
        None if generator is None else Generator.from_pretrained(generator, text_encoder=text_encoder).to(picked),
        class_names or (),
        None if assistant is None else Assistant.from_pretrained(assistant, lm, gguf_file).to(picked),
    )
    if not is_loopback(host):
        print(f"warning: --host {host}: others can reach this page, and it has no password", file=sys.stderr)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: the files go
    try:
        with running(parts, limits, host, port) as page:
            print(f"{page.local_url}  (Ctrl-C ends it)", flush=True)
            page.block_thread()
    finally:
        signal.signal(signal.SIGTERM, before)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
