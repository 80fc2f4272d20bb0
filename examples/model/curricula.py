"""The three runs that train the byte model: from scratch, on with long sequences, and a finish."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Curriculum:
    """What one run draws, and how fast it learns.

    Attributes:
        shares: share of the sequences that each task gets.
        lengths: from this share of the time on, sequences of so many tokens and so many of them per
            step; of several pairs each step draws one.
        rate: factor on the learning rates.
        warm_up: steps over which the rates rise.
        flat_until: share of the time from which on the rates fall, linearly to 3 %.
    """

    shares: dict[str, float]
    lengths: list[tuple[float, list[tuple[int, int]]]]
    rate: float
    warm_up: int
    flat_until: float

    def sizes(self, progress: float) -> list[tuple[int, int]]:
        """Tokens per sequence and sequences per step, to draw from at a share of the time."""
        return [sizes for begin, sizes in self.lengths if begin <= progress][-1]

    def learning_rate(self, step: int, progress: float) -> float:
        """Factor on both rates, which rise, stay and fall."""
        falling = (1 - progress) / (1 - self.flat_until) + 0.03
        return self.rate * min(1.0, (step + 1) / self.warm_up) * min(1.0, falling)


ALL_TASKS = {
    "text": 0.20,
    "repeats": 0.16,
    "mqar": 0.13,
    "needles": 0.15,
    "passkey": 0.07,
    "tracking": 0.13,
    "frequent": 0.08,
    "common": 0.08,
}
# Heads that look back form fast on short sequences.
FROM_SCRATCH = Curriculum(
    ALL_TASKS,
    [
        (0.00, [(64, 48)]),
        (0.06, [(128, 24)]),
        (0.24, [(256, 14)]),
        (0.44, [(512, 8)]),
        (0.63, [(1024, 4)]),
        (0.82, [(2048, 2)]),
    ],
    rate=1.0,
    warm_up=60,
    flat_until=0.6,
)
# At the full rates a trained model forgets recall.
CONTINUED = Curriculum(
    ALL_TASKS,
    [
        (0.00, [(64, 48)]),
        (0.10, [(128, 24)]),
        (0.20, [(256, 16)]),
        (0.30, [(512, 8)]),
        (0.45, [(1024, 4)]),
        (0.65, [(2048, 2)]),
        (0.90, [(4096, 1)]),
    ],
    rate=0.3,
    warm_up=60,
    flat_until=0.6,
)
# From the mean of both models' weights; all lengths at once, since the newest displaces the others.
FINISH = Curriculum(
    {
        "text": 0.17,
        "repeats": 0.28,
        "mqar": 0.12,
        "needles": 0.18,
        "passkey": 0.06,
        "tracking": 0.13,
        "frequent": 0.03,
        "common": 0.03,
    },
    [(0.00, [(256, 16), (512, 8), (1024, 4), (1024, 4), (2048, 2), (2048, 2)])],
    rate=0.12,
    warm_up=20,
    flat_until=0.0,
)
