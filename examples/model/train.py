"""Train the byte model of the demo and the tests: a small Llama that copies, recalls, reads code.

    python examples/model/train.py --minutes 42 --out FIRST
    python examples/model/train.py --minutes 56 --model FIRST --out SECOND
    python examples/model/train.py --minutes 10 --model FIRST --average SECOND --out examples/model

Each run goes on from the one before (`curricula.py`); the last starts from the mean of two models'
weights. Muon trains the matrices of the layers, AdamW the rest. Ctrl-C keeps what was learnt.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import evidence
import numpy as np
import torch
from curricula import CONTINUED, FINISH, FROM_SCRATCH, Curriculum
from muon import Muon
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from sift_attention.eval.corpus import read_standard_library
from sift_attention.eval.tasks import TASKS
from sift_attention.eval.tokens import BOS, VOCAB_SIZE, stacked

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


class Batches:
    """Endless mixed batches of all tasks, drawn from one seeded generator."""

    def __init__(self, curriculum: Curriculum, seed: int) -> None:
        self._curriculum = curriculum
        self._rng = np.random.default_rng(seed)
        self._corpus = read_standard_library("train")

    def draw(self, progress: float) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """Tokens [B, T], weights [B, T] and the task index of each row [B]."""
        sizes = self._curriculum.sizes(progress)
        length, num_sequences = sizes[self._rng.integers(len(sizes))]
        shares = [self._curriculum.shares[name] for name in TASKS]
        kinds = self._rng.choice(len(TASKS), num_sequences, p=shares)
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


def load(folder: Path) -> LlamaForCausalLM:
    """A model that was trained before, ready to go on."""
    return LlamaForCausalLM.from_pretrained(folder, local_files_only=True).train()


def take_mean(model: LlamaForCausalLM, other: LlamaForCausalLM) -> None:
    """Replace each weight by the mean of both models' own (model soups, arXiv 2203.05482)."""
    weights = other.state_dict()
    model.load_state_dict({name: (w + weights[name]) / 2 for name, w in model.state_dict().items()})


def training_of(folder: Path) -> list[dict[str, Any]]:
    """The runs that a model went through."""
    runs: list[dict[str, Any]] = json.loads((folder / "evidence.json").read_text())["training"]
    return runs


def nats_per_token(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Loss of every token but the first: tokens [B, T] to float32 [B, T - 1]."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    targets = tokens[:, 1:]
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def train(
    model: LlamaForCausalLM,
    curriculum: Curriculum,
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
    batches, losses = Batches(curriculum, seed), Losses()

    step, saved_at, start = 0, 0.0, time.monotonic()
    bar = tqdm(total=round(seconds), unit="s", bar_format="{l_bar}{bar}| {n}/{total} s {postfix}")
    try:
        while (elapsed := time.monotonic() - start) < seconds:
            progress = elapsed / seconds
            tokens, weights, kinds = batches.draw(progress)
            nats = nats_per_token(model, tokens)
            weights = weights[:, 1:]
            ((nats * weights).sum() / weights.sum()).backward()

            factor = curriculum.learning_rate(step, progress)
            muon.step(MUON_LR * factor)
            for group in adam.param_groups:
                group["lr"] = ADAM_LR * factor
            adam.step()
            adam.zero_grad()
            losses.add(nats.detach(), weights, kinds)
            step += 1
            bar.set_postfix_str(f"step {step} length {tokens.shape[1]} {losses}", refresh=False)
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
    parser.add_argument("--average", type=Path, help="another one: start from the mean, and finish")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and evidence")
    arguments = parser.parse_args()
    if arguments.average is not None and arguments.model is None:
        parser.error("--model must name the model to average with --average, got none")

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.model is None:
        model, curriculum, runs = new_model(), FROM_SCRATCH, []
    elif arguments.average is None:
        model, curriculum = load(arguments.model), CONTINUED
        runs = training_of(arguments.model)
    else:
        model, curriculum = load(arguments.model), FINISH
        take_mean(model, load(arguments.average))
        runs = training_of(arguments.average)
    start = time.monotonic()
    num_steps = train(model, curriculum, 60 * arguments.minutes, arguments.seed, arguments.out)
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
