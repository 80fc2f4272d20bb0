"""One rank of two: loads every model split in every way, and saves what its runs gave.

Usage: parallel_worker.py RANK PORT FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def load(split: str, folder: Path) -> Any:
    """A model, split; ready to generate as the whole one does."""
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if split in ("tensor", "experts", "pipeline"):
        try:
            from transformers.distributed import DistributedConfig

            sizes: dict[str, Any] = {"pp_size" if split == "pipeline" else "tp_size": 2}
            if split == "experts" and hasattr(DistributedConfig, "ep_size"):
                sizes["ep_size"] = 2
            elif split == "experts":
                sizes["enable_expert_parallel"] = True
            options["distributed_config"] = DistributedConfig(**sizes)
        except (ImportError, TypeError):  # before transformers 5.17
            options["tp_plan"] = "auto"
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    if split == "sharded":
        from torch.distributed.fsdp import fully_shard

        for layer in model.model.layers:
            fully_shard(layer.self_attn)
            fully_shard(layer)
        fully_shard(model)
    if split == "replicated":
        model = torch.nn.parallel.DistributedDataParallel(model).module
    return model


def main(rank: str, port: str, folder: str) -> None:
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    import torch
    from parallel_runs import SPLITS, record

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    results = {}
    for split, families in SPLITS.items():
        for family, modes in families.items():
            model = load(split, Path(folder) / family)
            for mode in modes:
                results[split, family, mode] = record(model, mode, int(rank))
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
