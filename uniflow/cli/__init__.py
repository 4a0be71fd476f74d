"""The command `uniflow`: training on LightningCLI, and the tools beside it.

Nothing here imports torch: `uniflow --help` and `uniflow --version` answer at once.
"""

from __future__ import annotations

import difflib
import gc
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from uniflow.cli.early import RUN_OPTIONS, arguments_of, refuse_unknown_options
from uniflow.cli.errors import UserError, who_stopped
from uniflow.core.exit_codes import BAD_INPUT, INTERRUPTED

# Lightning's entry points: name -> what it does.
RUNS = {
    "fit": "train a model; writes checkpoints, curves and images into one folder",
    "validate": "evaluate on the validation data",
    "test": "evaluate on the test data; writes test_results.json into the run's folder",
    "predict": "run the model over the data",
}

# Tools that take a recipe's options: name -> (module:function of the command line, what it does).
RECIPE_TOOLS = {
    "stats": (
        "uniflow.tools.stats:run_stats",
        "measure mean and standard deviation of a tokenizer's latents, to normalise them with",
    ),
    "plan": (
        "uniflow.tools.plan:run_plan",
        "say what a fit would take: parameters, operations, memory of a GPU, hours; nothing is allocated",
    ),
}

# The other tools: name -> (module:function, what it does). A module is imported when its tool is called.
TOOLS = {
    "reconstruct": (
        "uniflow.tools.reconstruct:reconstruct",
        "write images and clips beside their reconstructions; PSNR, SSIM, flicker",
    ),
    "pack": ("uniflow.tools.pack:pack", "pack a folder of images into WebDataset shards"),
    "photos": (
        "uniflow.tools.photos:export_photos",
        "write the photographs of scikit-image and scikit-learn",
    ),
    "ablate": ("uniflow.ablation.tool:ablate", "run variants of a recipe with several seeds, and compare them"),
    "report": ("uniflow.tools.report:report", "compare runs: tables, plots and images"),
    "push": ("uniflow.tools.push:push", "upload a tokenizer with its card to Hugging Face's hub"),
    "evaluate": ("uniflow.tools.evaluate:evaluate", "judge a tokenizer on images by the evaluation protocol"),
    "understand": (
        "uniflow.tools.understand:understand",
        "what the features are good for: every task on teacher, student, latents and blank features",
    ),
    "encode": ("uniflow.tools.encode:encode", "store a tokenizer's latents of any data, to train generators on"),
    "sample": ("uniflow.tools.sample:sample", "make images with a trained generator"),
    "judge": (
        "uniflow.tools.judge:judge",
        "judge generated images against real ones: Frechet distance, KID, precision, recall",
    ),
    "geneval": (
        "uniflow.tools.geneval:geneval",
        "score images of GenEval's prompts by an object detector",
    ),
    "sweep-steps": (
        "uniflow.tools.sweep:sweep_steps",
        "quality and cost against sampler steps and start noise",
    ),
    "look": (
        "uniflow.tools.look:look",
        "show an image's features, similarities, latents and errors",
    ),
    "chat": ("uniflow.tools.chat:chat", "ask about an image: an assistant made by a fit of VisualQuestionTask answers"),
    "demo": (
        "uniflow.tools.demo:demo",
        "serve a local web page: reconstruct, look at features, generate and chat",
    ),
    "export": ("uniflow.tools.export:export", "write encode and decode as torch.export programs and as ONNX"),
    "consolidate": (
        "uniflow.tools.consolidate:consolidate",
        "turn any checkpoint, sharded or not, into a tokenizer folder",
    ),
    "summary": ("uniflow.tools.summary:summary", "parameters and GFLOP of each part of a tokenizer"),
    "convert": ("uniflow.tools.convert:convert", "checkpoints of the public UniFlow release into tokenizers, and back"),
    "answer": (
        "uniflow.tools.vqa:answer",
        "let a model answer POPE, GQA, TextVQA, MME or MMBench, and give the official score",
    ),
    "put-back": (
        "uniflow.tools.vqa:put_back_tool",
        "compare a student with its teacher inside the multimodal model that the teacher is the eyes of",
    ),
    "quickstart": ("uniflow.tools.quickstart:quickstart", "the main job, small: fit, test and report on a CPU"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: the command line without the program's name; None takes the process's.

    Returns:
        The exit code: 0; 2 for errors that the user can fix (one line on stderr); 130 when interrupted. Bugs raise.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    # A console script does not have the current directory on its path; a user's own parts live there. Last, so that
    # a file of theirs called `random.py` breaks nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return _dispatch(arguments)
    except UserError as error:
        if os.environ.get("UNIFLOW_DEBUG"):
            traceback.print_exc()
        print(f"uniflow: error: {error}", file=sys.stderr)
        return error.code
    except SystemExit as stop:
        if _of_the_parser(stop):
            raise
        print(f"uniflow: error: {who_stopped(stop)} ended the program: sys.exit({stop.code})", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("uniflow: interrupted; nothing was saved since the last checkpoint", file=sys.stderr)
        return INTERRUPTED


def _of_the_parser(stop: SystemExit) -> bool:
    """Whether --help or --print_config ended the program; a module of the user's may have called sys.exit, too."""
    return who_stopped(stop).split(".")[0] in ("argparse", "jsonargparse", "lightning", "uniflow")


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        from uniflow.version import __version__

        print(f"uniflow {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command in RUNS:
        refuse_unknown_options(RUN_OPTIONS, rest)
        with _imports():
            from uniflow.cli.app import run

        return run(command, rest)
    if command in RECIPE_TOOLS:
        with _imports():
            from uniflow.cli.tools import load_function

            tool = load_function(command, RECIPE_TOOLS[command][0])
        return tool(rest)
    if command in TOOLS:
        refuse_unknown_options(arguments_of(TOOLS[command][0]), rest)
        with _imports():
            from uniflow.cli.tools import load_function, run_tool

            load_function(command, TOOLS[command][0])
        return run_tool(command, TOOLS[command][0], rest)
    known = [*RUNS, *RECIPE_TOOLS, *TOOLS]
    close = difflib.get_close_matches(command, known, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"there is no command {command!r}; {guess}known: {', '.join(known)}")


@contextmanager
def _imports() -> Iterator[None]:
    """Import without Python's garbage collector: it takes a sixth of the time and finds nothing to free."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what has been imported stays: no later collection looks at it
        gc.enable()


def _help() -> str:
    width = max(map(len, [*RUNS, *RECIPE_TOOLS, *TOOLS]))
    lines = ["usage: uniflow COMMAND [options]", "", "train and evaluate:"]
    lines += [f"  {name:{width}}  {text}" for name, text in RUNS.items()]
    lines += [f"  {name:{width}}  {text}" for name, (_, text) in RECIPE_TOOLS.items()]
    lines += ["", "tools:"]
    lines += [f"  {name:{width}}  {text}" for name, (_, text) in TOOLS.items()]
    lines += [
        "",
        "uniflow fit -c RECIPE.yaml --model.encoder configs/encoders/dinov2_l14.yaml --run runs/mine",
        "uniflow COMMAND --help lists the options of a command; UNIFLOW_DEBUG=1 shows where an error was raised.",
    ]
    return "\n".join(lines)
