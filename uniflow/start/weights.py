"""How a training starts from weights alone: those of a checkpoint, or of a saved tokenizer or generator."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from uniflow.core.errors import one_line
from uniflow.core.tensors import refuse_nonfinite
from uniflow.pretrained import packaged
from uniflow.sharding.checkpoint import is_sharded_checkpoint
from uniflow.sharding.shard import reshard, spread_like
from uniflow.tokenizer.saving import check_fit, checkpoint_content, read_directory

# What stands before the names of a saved folder's weights in a task, by the kind of the folder; a tokenizer says none.
_PREFIXES = {None: "tokenizer.", "generator": ""}


def load_initial(task: nn.Module, path: str) -> None:
    """Load weights into a task, which may be sharded; every process has to call it.

    Args:
        task: changed in place.
        path: a checkpoint, of which all weights have to fit, averaged ones (EMA) where it has them; or the folder of a
            tokenizer, or "embedded", whose weights have to be those of the task's `tokenizer`; or RUN/generator. What
            else the task has stays as it is, and so do modules that start as the identity, such as attention over time,
            where the weights are of a model without them.

    Raises:
        ValueError: if there is nothing at `path`, it cannot be read safely, or its weights do not fit.
    """
    source = Path(path) if Path(path).exists() else packaged(path)
    if source is None:
        raise ValueError(f"init_from: there is no checkpoint, tokenizer or generator at {path}")
    reshard(task)
    current = task.state_dict()
    expected = current
    is_saved = source.is_dir() and not is_sharded_checkpoint(source)
    try:
        tensors = _of_folder(source) if is_saved else _of_checkpoint(source)
    except OSError as error:  # as a ValueError, which is the user's to put right also when the trainer runs
        raise ValueError(f"init_from: {one_line(error)}") from error
    if is_saved:
        new = _lacking_identities(task, tensors)
        parts = {name.partition(".")[0] for name in tensors}
        expected = {n: value for n, value in current.items() if n.partition(".")[0] in parts and n not in new}
    check_fit(expected, tensors, source, "the model that is to be trained")
    refuse_nonfinite(tensors, source)
    task.load_state_dict({name: spread_like(current[name], value) for name, value in tensors.items()}, strict=False)


def _lacking_identities(task: nn.Module, tensors: dict[str, Tensor]) -> set[str]:
    """Names of the weights of modules that start as the identity and of which `tensors` has nothing."""
    modules = {name: module for name, module in task.named_modules() if getattr(module, "starts_as_identity", False)}
    lacking = {name: m for name, m in modules.items() if not any(key.startswith(f"{name}.") for key in tensors)}
    return {f"{name}.{key}" for name, module in lacking.items() for key in module.state_dict()}


def _of_folder(source: Path) -> dict[str, Tensor]:
    config, tensors = read_directory(source)
    kind = config.get("kind")
    if not isinstance(kind, str | None) or kind not in _PREFIXES:
        raise ValueError(f"init_from: {source} holds neither a tokenizer nor a generator, but a {str(kind)[:40]}")
    return {_PREFIXES[kind] + name: tensor for name, tensor in tensors.items()}


def _of_checkpoint(source: Path) -> dict[str, Tensor]:
    content = checkpoint_content(source)
    state, ema = content.get("state_dict"), content.get("ema", {})
    if not (isinstance(state, dict) and isinstance(ema, dict)):
        raise ValueError(f"init_from: {source} is not a checkpoint of uniflow fit")
    tensors = {**state, **ema}
    if not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"init_from: {source} holds weights that are not tensors")
    return tensors
