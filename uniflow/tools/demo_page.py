"""The demo page: its layout, what its buttons call, and its server. The computing is in `demo_work`."""

from __future__ import annotations

import html
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from uniflow.core.errors import one_line
from uniflow.tools import demo_work as work
from uniflow.tools.demo_work import Limits, Parts

STYLE = Path(__file__).with_suffix(".css")
WAITING = 16  # calls in the queue; a further one is refused
SESSIONS = 32  # of which the server keeps features
# One call computes at a time, whatever it is: two beside each other take twice the memory and are no faster.
ALONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}


def require_gradio() -> None:
    """Refuse to go on without gradio, which is not imported yet: it reads where its files shall be when it is.

    Raises:
        ImportError: if it is not installed.
    """
    if find_spec("gradio") is None:
        raise ImportError("the demo page needs gradio: pip install 'uniflow[demo]'")


@contextmanager
def running(parts: Parts, limits: Limits, host: str = "127.0.0.1", port: int | None = None) -> Iterator[Any]:
    """The page while it is served from a thread of its own.

    All files are in a temporary folder, which is removed at the end. Nothing is fetched and nothing is reported.

    Args:
        parts: what it shows.
        limits: of uploads.
        host: address that the server is bound to.
        port: None takes the first free one from 7860 on.

    Yields:
        The page, a `gradio.Blocks` that is launched.

    Raises:
        ImportError: without gradio.
        OSError: if the port is taken.
    """
    require_gradio()
    with TemporaryDirectory(prefix="uniflow_demo_") as folder, _private(Path(folder)):
        import gradio

        page = build_page(parts, limits, Path(folder))
        page.queue(max_size=WAITING)
        look = gradio.themes.Default(
            primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ).set(
            button_primary_background_fill="*primary_700",  # white letters need a dark ground
            button_primary_background_fill_hover="*primary_800",
            color_accent="*primary_700",
        )
        try:
            page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                quiet=True,
                footer_links=[],
                max_file_size=limits.max_bytes,
                state_session_capacity=SESSIONS,
                theme=look,
                css=STYLE.read_text(encoding="utf-8"),
            )
            yield page
        finally:
            page.close(verbose=False)


@contextmanager
def _private(folder: Path) -> Iterator[None]:
    """gradio's files in `folder`, no reports of its use, and no record of runs."""
    wanted = {
        "GRADIO_TEMP_DIR": str(folder / "files"),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def build_page(parts: Parts, limits: Limits, folder: Path) -> Any:
    """The page as a `gradio.Blocks`; `folder` gets the example pictures.

    Raises:
        ImportError: without gradio.
    """
    require_gradio()
    import gradio as gr

    examples = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(work.example_pictures()):
        examples.append(str(folder / f"scene_{number}.png"))
        to_pil_image(picture).save(examples[-1])
    # Files that are older than an hour go, every ten minutes.
    with gr.Blocks(title="uniflow demo", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_heading(parts), padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=280):
                picture = _upload(gr, examples[0])
                gr.Examples(examples, picture, label="Or take a rendered scene", cache_examples=False)
                gr.HTML(
                    _note(f"Up to {limits.max_bytes / 2**20:.3g} MB and {limits.max_pixels:,} pixels."), padding=False
                )
            with gr.Column(scale=5, min_width=320), gr.Tabs():
                with gr.Tab("Reconstruct"):
                    _reconstruct_tab(gr, page, parts, limits, picture)
                with gr.Tab("Features"):
                    _features_tab(gr, page, parts, limits, picture)
                if parts.generator is not None:
                    with gr.Tab("Generate"):
                        _generate_tab(gr, parts)
                if parts.assistant is not None:
                    with gr.Tab("Chat"):
                        _chat_tab(gr, parts, limits, picture)
    return page


def _heading(parts: Parts) -> str:
    tokenizer = parts.tokenizer
    names = [type(part).__name__ for part in tokenizer.parts]
    device = next(tokenizer.parameters()).device.type
    told = f"{' + '.join(names)}, one latent for {tokenizer.patch_size} x {tokenizer.patch_size} pixels, on {device}"
    return (
        "<h1>uniflow</h1><p class='note'>One visual tokenizer: features to understand pictures with, latents that "
        f"decode back to them.<br>Tokenizer <b>{html.escape(parts.name)}</b>: {html.escape(told)}.</p>"
    )


def _upload(gr: Any, value: str) -> Any:
    """A picture to upload; functions get its path."""
    shown = gr.Image(
        value, type="filepath", label="Picture", sources=["upload", "clipboard"], height=260, elem_id="picture"
    )
    # gradio's own would open the file with PIL, and answer a broken one with an error of its own.
    shown.preprocess = lambda payload: None if payload is None else payload.path
    return shown


def _output(gr: Any, label: str) -> Any:
    return gr.Image(
        label=label,
        format="png",
        interactive=False,
        height=280,
        min_width=180,
        buttons=["download", "fullscreen"],
        elem_classes="pixels",
    )


def _reconstruct_tab(gr: Any, page: Any, parts: Parts, limits: Limits, picture: Any) -> None:
    own_steps = getattr(parts.tokenizer.decoder, "steps", None)  # of decoders with a sampler
    side = parts.tokenizer.encoder.spec.image_size
    with gr.Row():
        value = min(own_steps or 1, work.MOST_STEPS)
        steps = gr.Slider(
            1, work.MOST_STEPS, value, step=1, label="Steps", visible=own_steps is not None, min_width=140
        )
        seed = gr.Number(0, label="Seed of the noise", precision=0, min_width=140)
    own_size = gr.Checkbox(
        False, label=f"Keep the picture's size, decode by tiles (else its short side is {side} pixels)"
    )
    button = gr.Button("Reconstruct", variant="primary", elem_classes="run")
    text = gr.HTML(padding=False)
    with gr.Row():
        shown = [_output(gr, label) for label in ("Original", "Reconstruction", f"Error x {work.GAIN}")]

    def run(path: str | None, count: float, seed: float, own: bool) -> list[Any]:
        number = None if own_steps is None else count
        made = work.reconstruct_picture(parts.tokenizer, work.read_picture(path, limits), number, seed, own)
        return [_note(made.text, made.quality), *map(_pil, (made.original, made.result, made.error))]

    called = {"fn": _guarded(gr, run, 3), "inputs": [picture, steps, seed, own_size], "outputs": [text, *shown]} | ALONE
    gr.on([button.click, picture.change, page.load], **called, api_name="reconstruct")


def _features_tab(gr: Any, page: Any, parts: Parts, limits: Limits, picture: Any) -> None:
    depth = parts.tokenizer.encoder.spec.num_layers
    names = ["student", "latents", *(["teacher"] if parts.teacher is not None else [])]
    layer = gr.Slider(1, depth, depth, step=1, label="Layer of the encoder")
    button = gr.Button("Show features", variant="primary", elem_classes="run")
    state = gr.State(None, time_to_live=3600)
    with gr.Row():
        framed = _output(gr, "Click a patch here")
        colours = [_output(gr, f"{name.capitalize()}: colours") for name in names]
    with gr.Row():
        with gr.Column(min_width=180):  # below the picture that is clicked
            text = gr.HTML(padding=False)
        maps = [_output(gr, f"{name.capitalize()}: cosine") for name in names]

    def run(path: str | None, chosen: float) -> list[Any]:
        made = work.extract_features(parts.tokenizer, work.read_picture(path, limits), chosen, parts.teacher)
        painted = work.feature_colours(made)
        height, width = made.picture.shape[-2:]
        return [*compare(made, (width // 2, height // 2)), made, *(_pil(painted[name]) for name in names)]

    def compare(made: work.FeatureMaps, place: tuple[float, float]) -> list[Any]:
        picture, heat, told = work.feature_similarities(made, *place)
        return [_note(told), _pil(picture), *(_pil(heat[name]) for name in names)]

    def pick(made: work.FeatureMaps | None, event: Any) -> list[Any]:
        if made is None:
            raise ValueError("Show the features first.")
        return compare(made, (event.index[0], event.index[1]))

    compared = [text, framed, *maps]
    outputs = [*compared, state, *colours]
    called = {"fn": _guarded(gr, run, len(outputs) - 1), "inputs": [picture, layer], "outputs": outputs} | ALONE
    gr.on([button.click, picture.change, page.load, layer.release], **called, api_name="features")
    picked = _guarded(gr, pick, len(compared) - 1)

    def on_select(made: Any, event: Any) -> list[Any]:
        return picked(made, event)

    on_select.__annotations__ = {"event": gr.SelectData}  # gradio asks for it; the name is not known to this module
    for shown in [framed, *colours, *maps]:
        shown.select(on_select, [state], compared, **ALONE, api_visibility="private")


def _generate_tab(gr: Any, parts: Parts) -> None:
    generator = parts.generator
    assert generator is not None  # else there is no such tab
    classes = work.number_of_classes(generator)
    network: Any = generator.network
    if classes is not None:
        names = list(parts.class_names) or [f"class {number}" for number in range(classes)]
        choices = [(name, str(number)) for number, name in enumerate(names)]
        told = gr.Dropdown(choices, multiselect=True, label="Classes, in turn; none leaves it open")
    else:
        told = gr.Textbox(
            label="Prompt; none leaves it open",
            max_length=work.MOST_CHARACTERS,
            visible=generator.condition.field is not None,
        )
    with gr.Row():
        count = gr.Slider(1, work.MOST_IMAGES, 4, step=1, label="Pictures", min_width=140)
        own = min(network.steps or 1, work.MOST_STEPS)
        chosen = network.steps is not None
        steps = gr.Slider(1, work.MOST_STEPS, own, step=1, label="Steps", min_width=140, visible=chosen)
        strength = min(float(getattr(network, "guidance", 1.0)), work.MOST_GUIDANCE)
        guidance = gr.Slider(0, work.MOST_GUIDANCE, strength, step=0.1, label="Guidance", min_width=140)
        seed = gr.Number(0, label="Seed of the noise", precision=0, min_width=140)
    button = gr.Button("Generate", variant="primary", elem_classes="run")
    text = gr.HTML(padding=False)
    shown = gr.Gallery(label="Pictures", format="png", columns=4, height="auto", elem_classes="pixels")

    def run(said: Any, count: float, steps: float, guidance: float, seed: float) -> list[Any]:
        words = list(said or []) if classes is not None else [said.strip()] if said and said.strip() else []
        made = work.generate_pictures(generator, words, count, steps if chosen else None, guidance, seed)
        return [
            _note(f"{len(made)} pictures of {made[0].shape[-1]} x {made[0].shape[-2]} pixels."),
            list(map(_pil, made)),
        ]

    button.click(
        _guarded(gr, run, 1), [told, count, steps, guidance, seed], [text, shown], **ALONE, api_name="generate"
    )


def _chat_tab(gr: Any, parts: Parts, limits: Limits, picture: Any) -> None:
    assistant = parts.assistant
    assert assistant is not None  # else there is no such tab
    turns = gr.State([], time_to_live=3600)
    shown = gr.Chatbot(label="About the picture", height=360, render_markdown=False, buttons=["copy_all"])
    text = gr.HTML(padding=False)
    with gr.Row():
        asked = gr.Textbox(
            label="Question", placeholder="What is in the picture?", max_length=work.MOST_CHARACTERS, scale=4
        )
        button = gr.Button("Ask", variant="primary", scale=1, min_width=100)

    def ask(path: str | None, question: str, history: list[tuple[str, str]]) -> Iterator[list[Any]]:
        for answer in work.stream_answer(assistant, work.read_picture(path, limits), question, history):
            said = [*history, (question, answer)]
            yield ["", _messages(said), said, ""]

    called = {"inputs": [picture, asked, turns], "outputs": [text, shown, turns, asked]} | ALONE
    gr.on([button.click, asked.submit], _guarded_stream(gr, ask, 3), **called, api_name="ask")
    for forgotten in (picture.change, shown.clear):
        forgotten(lambda: ("", [], []), None, [text, shown, turns], api_visibility="private")


def _messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    pairs = [(("user", question), ("assistant", answer)) for question, answer in turns]
    return [{"role": role, "content": content} for pair in pairs for role, content in pair]


def _guarded(gr: Any, function: Callable[..., list[Any]], others: int) -> Callable[..., list[Any]]:
    """The function, whose first output is a text; an error is told there, and its `others` outputs stay as they are."""

    def guarded(*values: Any) -> list[Any]:
        try:
            return function(*values)
        except Exception as error:  # a page shows no traceback
            return [_problem(error), *(gr.skip() for _ in range(others))]

    return guarded


def _guarded_stream(
    gr: Any, function: Callable[..., Iterator[list[Any]]], others: int
) -> Callable[..., Iterator[list[Any]]]:
    """`_guarded` for a function whose outputs come bit by bit."""

    def guarded(*values: Any) -> Iterator[list[Any]]:
        try:
            yield from function(*values)
        except Exception as error:  # as above
            yield [_problem(error), *(gr.skip() for _ in range(others))]

    return guarded


def _note(text: str, strong: str = "") -> str:
    first = f"<b>{html.escape(strong)}</b>\n" if strong else ""
    return f"<p class='note'>{first}{html.escape(text)}</p>"


def _problem(error: Exception) -> str:
    """One line for the page; what is not the user's doing goes to the terminal in full."""
    text = one_line(error, 300)
    if not isinstance(error, ValueError):
        traceback.print_exception(error)
        text = f"This could not be computed ({text}). The terminal of `uniflow demo` says more."
    return f"<p class='problem' role='alert'>{html.escape(text)}</p>"


def _pil(image: Tensor) -> Image.Image:
    return to_pil_image(image)
