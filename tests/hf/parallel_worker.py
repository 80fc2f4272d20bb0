"""One rank of a tensor- or pipeline-parallel model; saves the logits of rank 0.

Usage: parallel_worker.py tensor|pipeline RANK PORT MODEL_FOLDER RESULT_FILE
"""

from __future__ import annotations

import os
import sys


def main(kind: str, rank: str, port: str, folder: str, result: str) -> None:
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    import torch
    from modes import generate, left_padded, prompt
    from transformers import AutoModelForCausalLM

    import sift_attention as sift

    torch.set_num_threads(1)
    sizes = {"tp_size": 2} if kind == "tensor" else {"pp_size": 2}
    try:
        from transformers.distributed import DistributedConfig

        options = {"distributed_config": DistributedConfig(**sizes)}
    except (ImportError, TypeError):  # before transformers 5.17
        options = {"tp_plan": "auto"}
    sift.hf  # noqa: B018  (registers the attention before the model asks for it)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sift", **options)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    static = {"cache_implementation": "static"}
    with sift.hf.enabled(model.eval(), sift.SiftConfig(c=1.0, min_keys=0)) as handle:
        if kind == "tensor":
            runs = [{}, static]
            if "distributed_config" in options:  # before it, chunks bypass the model's hooks
                runs.append({"prefill_chunk_size": 8, **static})
            logits = [generate(model, left_padded(), **run)[1] for run in runs]
        else:
            logits = [generate(model, prompt())[1]]
        total = handle.stats().total
    if rank == "0":
        torch.save((torch.stack(logits), total.decode_calls), result)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
