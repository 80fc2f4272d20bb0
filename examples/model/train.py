"""Train the byte model of the demo and the tests: a small Llama that copies, recalls, reads code.

    python examples/model/train.py --minutes 42 --out MODEL
    python examples/model/train.py --minutes 70 --model MODEL --out examples/model

The length of the sequences grows with the time spent, since heads that look back form fast on short
sequences; a second run goes on from a model with longer ones. Muon trains the matrices of the
layers, AdamW the rest. Ctrl-C keeps what was learnt.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import evidence
import numpy as np
import torch
from muon import Muon
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from sift_attention.eval.corpus import read_standard_library
from sift_attention.eval.tasks import TASKS
from sift_attention.eval.tokens import BOS, VOCAB_SIZE, stacked

# Share of the sequences that each task gets.
SHARES = {
    "text": 0.20,
    "repeats": 0.16,
    "mqar": 0.13,
    "needles": 0.15,
    "passkey": 0.07,
    "tracking": 0.13,
    "frequent": 0.08,
    "common": 0.08,
}
# From this share of the time on: tokens per sequence and sequences per step.
FROM_SCRATCH = [
    (0.00, 64, 48),
    (0.06, 128, 24),
    (0.24, 256, 14),
    (0.44, 512, 8),
    (0.63, 1024, 4),
    (0.82, 2048, 2),
]
CONTINUED_RATE = 0.3  # of the rates below; at the full rates a trained model forgets recall
CONTINUED = [
    (0.00, 64, 48),
    (0.10, 128, 24),
    (0.20, 256, 16),
    (0.30, 512, 8),
    (0.45, 1024, 4),
    (0.65, 2048, 2),
    (0.90, 4096, 1),
]
MUON_LR = 0.02
ADAM_LR = 0.004


def new_model() -> LlamaForCausalLM:
    """The untrained model: residual branches start small, embeddings large."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=8192,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=0.014)
        torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.014)
    return model


def learning_rate(step: int, progress: float) -> float:
    """Factor on both rates: 60 steps of warm-up, then flat, then linear to 3 % from 60 % on."""
    return min(1.0, (step + 1) / 60) * min(1.0, (1 - progress) / 0.4 + 0.03)


class Batches:
    """Endless mixed batches of all tasks, drawn from one seeded generator."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._corpus = read_standard_library("train")

    def draw(self, num_sequences: int, length: int) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """Tokens [B, T], weights [B, T] and the task index of each row [B]."""
        kinds = self._rng.choice(len(TASKS), num_sequences, p=[SHARES[name] for name in TASKS])
        tasks = list(TASKS.values())
        samples = [tasks[kind](self._rng, length, self._corpus) for kind in kinds]
        tokens, weights = stacked(samples, "tokens", "weights")
        return tokens, weights, kinds


class Losses:
    """Running mean per task, in nats per token, of the tokens that carry the most weight."""

    def __init__(self) -> None:
        self._mean: dict[str, float] = {}

    def add(self, nats: Tensor, weights: Tensor, kinds: NDArray[np.int64]) -> None:
        for index, name in enumerate(TASKS):
            rows = torch.from_numpy(kinds == index)
            if not rows.any():
                continue
            heaviest = weights[rows] == weights[rows].max()
            loss = float(nats[rows][heaviest].mean())
            self._mean[name] = 0.95 * self._mean.get(name, loss) + 0.05 * loss

    def __str__(self) -> str:
        return " ".join(f"{name} {loss:.3f}" for name, loss in self._mean.items())


def nats_per_token(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Loss of every token but the first: tokens [B, T] to float32 [B, T - 1]."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    targets = tokens[:, 1:]
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def train(
    model: LlamaForCausalLM,
    curriculum: list[tuple[float, int, int]],
    rate: float,
    seconds: float,
    seed: int,
    folder: Path,
) -> int:
    """Train for a given time, saving once a minute; returns the number of steps taken."""
    hidden = [p for p in model.model.layers.parameters() if p.ndim == 2]
    is_hidden = {id(parameter) for parameter in hidden}
    others = [p for p in model.parameters() if id(p) not in is_hidden]
    muon = Muon(hidden)
    adam = torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0)
    batches, losses = Batches(seed), Losses()

    step, saved_at, start = 0, 0.0, time.monotonic()
    bar = tqdm(total=round(seconds), unit="s", bar_format="{l_bar}{bar}| {n}/{total} s {postfix}")
    try:
        while (elapsed := time.monotonic() - start) < seconds:
            progress = elapsed / seconds
            _, length, num_sequences = [s for s in curriculum if s[0] <= progress][-1]
            tokens, weights, kinds = batches.draw(num_sequences, length)
            nats = nats_per_token(model, tokens)
            weights = weights[:, 1:]
            ((nats * weights).sum() / weights.sum()).backward()

            factor = rate * learning_rate(step, progress)
            muon.step(MUON_LR * factor)
            for group in adam.param_groups:
                group["lr"] = ADAM_LR * factor
            adam.step()
            adam.zero_grad()
            losses.add(nats.detach(), weights, kinds)
            step += 1
            bar.set_postfix_str(f"step {step} length {length} {losses}", refresh=False)
            bar.update(round(elapsed) - bar.n)
            if elapsed - saved_at > 60:
                model.save_pretrained(folder)
                saved_at = elapsed
    except KeyboardInterrupt:
        bar.write("stopped early")
    finally:
        bar.close()
        model.save_pretrained(folder)
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=42.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, help="folder of a model to go on from")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and evidence")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.model is None:
        model, curriculum, rate, runs = new_model(), FROM_SCRATCH, 1.0, []
    else:
        model = LlamaForCausalLM.from_pretrained(arguments.model, local_files_only=True).train()
        curriculum, rate = CONTINUED, CONTINUED_RATE
        runs = json.loads((arguments.model / "evidence.json").read_text())["training"]
    start = time.monotonic()
    num_steps = train(
        model, curriculum, rate, 60 * arguments.minutes, arguments.seed, arguments.out
    )
    run = {
        "seconds": round(time.monotonic() - start),
        "steps": num_steps,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    evidence.write(arguments.out, model.eval(), [*runs, run])


if __name__ == "__main__":
    main()
