"""Lightning's strategy for models spread over processes."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh

from uniflow.core.atomic import beside, existing, put_in_place
from uniflow.core.numbers import CheckedNumbers, PositiveInt
from uniflow.core.resuming import HINT, refuse_other_optimizer
from uniflow.core.torch_files import load_plain
from uniflow.sharding.checkpoint import (
    AVERAGE,
    META_NAME,
    is_sharded_checkpoint,
    load_into,
    read_meta,
    stored_tensors,
)
from uniflow.sharding.shard import Sharding, reshard, shard, spread_like

Path_ = str | os.PathLike[str]
# Seen with 2.8 and gloo, now and then; 2.9 and 2.10 were not tried.
CPU_SINCE = "2.11"


class FSDP2(CheckedNumbers, ModelParallelStrategy):
    """Fully sharded data parallelism (arXiv 2304.11277, in torch's second version): parameters, gradients, optimizer
    states, averages and the teacher are spread over processes, and a block's parameters are gathered while it is used.

    `--trainer.strategy fsdp2`. Losses are those of DDP. Checkpoints are folders, to which each process writes its own
    piece; any number of processes can go on from them, and `Tokenizer.from_pretrained` reads them.

    Args:
        shard_size: processes that share one copy of the model, such as those of a node; there are as many copies as
            world_size / shard_size. None is all processes, one copy.
        gather_dtype: type in which parameters are gathered. "bfloat16" halves the traffic under bf16-mixed precision,
            where matrix products use that type anyway; norms and position embeddings are rounded to it too.
        reshard_after_forward: give a block's parameters back after its forward pass, and gather them again for the
            backward pass. False takes more memory and a third less traffic.
        async_save: write checkpoints in the background; training waits only until they have been copied to the CPU.
        process_group_backend: of torch.distributed; None is the device's usual one.

    Raises:
        ValueError: if `shard_size` does not divide the number of processes, `gather_dtype` does not fit the
            precision, or on CPUs with a torch before 2.11.
    """

    def __init__(
        self,
        shard_size: PositiveInt | None = None,
        gather_dtype: Literal["float32", "bfloat16"] = "float32",
        reshard_after_forward: bool = True,
        async_save: bool = False,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(process_group_backend=process_group_backend)
        self.shard_size = shard_size
        self.gather_dtype = gather_dtype
        self.reshard_after_forward = reshard_after_forward
        self.async_save = async_save
        self._pending: Future[Any] | None = None
        self._publisher = ThreadPoolExecutor(max_workers=1)
        self._save_group: Any = None

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every process has its own data."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def setup_environment(self) -> None:
        """Start the processes' group, and lay the mesh over it.

        Raises:
            ValueError: for settings that do not fit, see `FSDP2`.
        """
        if self.root_device.type == "cpu" and torch.__version__ < CPU_SINCE:
            raise ValueError(f"fsdp2 on CPUs needs torch {CPU_SINCE}: before, some gradients came out as zero there")
        self._setup_distributed()
        size = self.shard_size or self.world_size
        if self.world_size % size:
            raise ValueError(f"FSDP2.shard_size {size} does not divide the {self.world_size} processes")
        if self.gather_dtype == "bfloat16" and self.precision_plugin.precision != "bf16-mixed":
            raise ValueError("FSDP2.gather_dtype bfloat16 needs --trainer.precision bf16-mixed")
        shape = (self.world_size,) if size == self.world_size else (self.world_size // size, size)
        names = ("shard",) if len(shape) == 1 else ("replicate", "shard")
        self._device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def sharding(self) -> Sharding:
        """How the task's parts are to be spread."""
        dtype = None if self.gather_dtype == "float32" else torch.bfloat16
        return Sharding(self.device_mesh, dtype, self.reshard_after_forward)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The model's parameters and buffers, as DTensors where they are sharded."""
        assert self.model is not None
        reshard(self.model)
        return get_model_state_dict(self.model, options=StateDictOptions(cpu_offload=True))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Path_, storage_options: Any = None) -> None:
        """Write a folder, which replaces an older one only when it is complete."""
        if storage_options is not None:
            raise TypeError("FSDP2 writes folders, and takes no storage_options")
        self.finish_saving()
        path = Path(self.broadcast(os.fspath(filepath)))
        part = beside(path)
        if self.global_rank == 0:
            shutil.rmtree(part, ignore_errors=True)  # of a save that was killed
            part.mkdir(parents=True)
        self.barrier()
        tensors = {"state_dict": checkpoint.pop("state_dict"), "ema": checkpoint.pop("ema", {})}
        tensors |= {f"optimizer_{i}": state for i, state in enumerate(checkpoint.pop("optimizer_states", []))}
        if self.global_rank == 0:
            torch.save(checkpoint, part / META_NAME)
        if not self.async_save:
            dcp.save(tensors, checkpoint_id=part)
            self.barrier()
            self._publish(path)
            self.barrier()
            return
        if self._save_group is None:  # a separate one, since it is used from another thread
            self._save_group = dist.new_group(backend="gloo")
        written = dcp.async_save(tensors, checkpoint_id=part, process_group=self._save_group)
        assert isinstance(written, Future)
        # Process 0 has written its own piece last of all: it adds the index when the others have reported theirs.
        self._pending = self._publisher.submit(self._publish_when_written, written, path)

    def _publish_when_written(self, written: Future[Any], path: Path) -> None:
        written.result()
        self._publish(path)

    def _publish(self, path: Path) -> None:
        if self.global_rank == 0:
            put_in_place(path)

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written in the background, if there is one."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
            self.barrier()

    def load_checkpoint(self, checkpoint_path: Path_, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore model and optimizers; returns everything else."""
        path = Path(self.broadcast(os.fspath(checkpoint_path)))
        path = existing(path) or path
        if not is_sharded_checkpoint(path):  # one file, from a run without sharding
            return self._load_file(path)
        assert self.model is not None
        meta = read_meta(path)
        model = get_model_state_dict(self.model)
        load_into({"state_dict": model}, path)
        self.model.load_state_dict(model)
        for index, optimizer in enumerate(self.optimizers):
            state = get_optimizer_state_dict(self.model, optimizer)
            refuse_other_optimizer(optimizer, meta.get("optimizer_class"))
            try:
                load_into({f"optimizer_{index}": state}, path)
            except ValueError as error:
                raise ValueError(f"{error}; {HINT}") from error
            set_optimizer_state_dict(self.model, optimizer, state)
        return {**meta, "ema": self._averages(path)}

    def _averages(self, path: Path) -> dict[str, Tensor]:
        assert self.model is not None
        names = stored_tensors(path, AVERAGE)
        averages = {n: torch.empty_like(p).detach() for n, p in self.model.named_parameters() if n in names}
        if averages:
            load_into({AVERAGE + name: tensor for name, tensor in averages.items()}, path)
        return averages

    def _load_file(self, path: Path) -> dict[str, Any]:
        """Restore from the one file of a run without sharding."""
        assert self.model is not None
        checkpoint = load_plain(path, mmap=True)
        current = self.model.state_dict()
        state, averages = checkpoint.pop("state_dict"), checkpoint.get("ema", {})
        self.model.load_state_dict({name: spread_like(current.get(name), value) for name, value in state.items()})
        checkpoint["ema"] = {name: spread_like(current.get(name), value) for name, value in averages.items()}
        for optimizer, saved in zip(self.optimizers, checkpoint.pop("optimizer_states", []), strict=False):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for number, values in saved["state"].items():
                parameter = parameters[number]
                saved["state"][number] = {
                    key: spread_like(parameter, value) if getattr(value, "shape", None) == parameter.shape else value
                    for key, value in values.items()
                }
            optimizer.load_state_dict(saved)
        return checkpoint

    def teardown(self) -> None:
        """Wait for the last checkpoint, then end."""
        self.finish_saving()
        super().teardown()


def spread(parts: list[nn.Module], strategy: Strategy) -> None:
    """Shard the parts of a task if its strategy is `FSDP2`, and leave them alone for others.

    Raises:
        ValueError: for another strategy that shards: those know nothing of averages, teachers and checkpoints here.
    """
    if isinstance(strategy, FSDP2):
        for part in parts:
            shard(part, strategy.sharding)
    elif isinstance(strategy, ModelParallelStrategy | FSDPStrategy | DeepSpeedStrategy):
        raise ValueError(
            f"{type(strategy).__name__} is not supported: to shard a model, set trainer.strategy to fsdp2 "
            "(uniflow.sharding.strategy.FSDP2)"
        )


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2, description="torch's fully sharded data parallelism, second version")
