"""What holds for a SiftState whatever happens to its sequences."""

import copy
import io
import pickle
from dataclasses import dataclass

import pytest
import torch
from hits import count_hits, expects
from hypothesis import given
from hypothesis import strategies as st
from making import Draw
from strategies import SEEDS

import sift_attention as sift

HQ, HK, D = 4, 2, 32

CONFIGS = {
    "uniform": {"c": 1.5},
    "no residual": {"c": 1.5, "residual": "none"},
    "some keys": {"c": 1.5, "min_keys": 40},
    "prompt": {"threshold": "quantile", "quantile": 0.7},
    "warm-up": {"threshold": "quantile", "quantile": 0.7, "warmup_steps": 3},
    "slope": {"threshold": "quantile", "quantile": 0.7, "slope": "fit", "residual": "renormalize"},
}
CHANGES = ("prompt", "reorder", "select", "repeat", "crop", "reset")
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "save": lambda state: saved_and_loaded(state),
}


@dataclass(frozen=True)
class Program:
    """What happens to a batch: names of changes and copies, and numbers of steps."""

    config: str
    batch: int
    prompt: int
    events: tuple[str | int, ...]


def draw_program(random):
    events = (1, 3, *CHANGES, *COPIES)
    return Program(
        config=random.choice(tuple(CONFIGS)),
        batch=random.choice((1, 2, 3)),
        prompt=random.choice((0, 1, 20, 150, 200)),
        events=(*(random.choice(events) for _ in range(random.randint(1, 8))), 2),
    )


def state_property(test):
    classes = (*CONFIGS, *CHANGES, *COPIES, "no prompt", "sifted", "fitted")
    return expects(*classes)(given(st.randoms().map(draw_program), SEEDS)(test))


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Run:
    """A state beside the cache that it follows."""

    def __init__(self, config, batch):
        self.state = sift.SiftState(sift.SiftConfig(**{"min_keys": 0, **CONFIGS[config]}))
        self.k = torch.zeros(batch, HK, 0, D)
        self.v = torch.zeros(batch, HK, 0, D)

    def feed(self, q, k, v):
        """New tokens; returns what a single one gives."""
        self.k, self.v = torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)
        num_keys, num_rows = self.k.shape[2], q.shape[2]
        if num_rows == 1:
            return self.state.decode(q[:, :, 0], self.k, self.v)
        mask = torch.ones(num_keys, num_keys, dtype=torch.bool).tril()[None, None, -num_rows:]
        self.state.observe(q, self.k, self.v, mask)
        return None

    def take(self, rows):
        self.k, self.v = self.k[rows], self.v[rows]

    def crop(self, num_keys):
        self.state.crop(num_keys)
        self.k, self.v = (x[:, :, : max(x.shape[2] - num_keys, 0)] for x in (self.k, self.v))

    def reset(self):
        self.state.reset()
        self.k, self.v = self.k[:, :, :0], self.v[:, :, :0]


class Sequences:
    """A batch of sequences, and each of them alone, which must give the same."""

    def __init__(self, program, seed):
        self.draw = Draw(seed)
        self.together = Run(program.config, program.batch)
        self.alone = [Run(program.config, 1) for _ in range(program.batch)]

    def feed(self, num_tokens):
        heads = {"q": HQ, "k": HK, "v": HK}
        shape = (len(self.alone), num_tokens, D)
        new = {name: self.draw.normal(shape[0], n, *shape[1:]) for name, n in heads.items()}
        new["q"] = 3.0 * new["q"]
        out = self.together.feed(**new)
        for b, run in enumerate(self.alone):
            expected = run.feed(**{name: x[b : b + 1] for name, x in new.items()})
            if out is not None:
                torch.testing.assert_close(out[b : b + 1], expected, atol=2e-5, rtol=1e-4)

    def take(self, rows):
        self.together.take(rows)
        self.alone = [copy.deepcopy(self.alone[b]) for b in rows.tolist()]

    def happen(self, event):
        batch = len(self.alone)
        state = self.together.state
        if isinstance(event, int):
            for _ in range(event):
                self.feed(1)
        elif event == "prompt":
            self.feed(40)
        elif event == "reorder":
            rows = self.draw.below(batch, batch)
            state.reorder(rows)
            self.take(rows)
        elif event == "select":
            rows = self.draw.order(batch)[: max(batch - 1, 1)]
            state.select(rows)
            self.take(rows)
        elif event == "repeat" and batch < 4:
            state.repeat(2)
            self.take(torch.arange(batch).repeat_interleave(2))
        elif event in ("crop", "reset"):
            num_keys = (int(self.draw.below(10, 1)),) if event == "crop" else ()
            for run in (self.together, *self.alone):
                getattr(run, event)(*num_keys)
        elif event in COPIES:
            self.together.state = COPIES[event](state)
            state.reset()  # what was copied must not follow


def count_classes(program, state):
    names = (program.config, *program.events)
    count_hits({name: name in names for name in (*CONFIGS, *CHANGES, *COPIES)})
    state.counters.fold()
    count_hits(
        {
            "no prompt": program.prompt == 0,
            "sifted": state.counters.rows_loaded < state.counters.keys * HK,
            "fitted": "quantile" in CONFIGS[program.config] and (state.log_alpha > -100.0),
        }
    )


@pytest.mark.row(36)
@state_property
def test_a_batch_is_its_sequences_whatever_happens_to_it(program, seed):
    """The same steps, saved, copied and rearranged, as without interruption and alone."""
    sequences = Sequences(program, seed)
    if program.prompt > 0:
        sequences.feed(program.prompt)
    for event in program.events:
        sequences.happen(event)
    count_classes(program, sequences.together.state)
