"""benchmarks/bench_generate.py: every mode decodes the same text, and counts what it claims."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NUM_KEYS = 600


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import bench_generate
    finally:
        sys.path.remove(str(BENCHMARKS))
    return bench_generate


@pytest.fixture(scope="module")
def model(bench):
    bench.register_grouped_matmul(NUM_KEYS)
    return bench.build_model(num_layers=1, vocab_size=256)


@pytest.fixture(scope="module")
def logits(bench, model):
    return bench.Writer(bench.MODES[0], model, NUM_KEYS, 2).warm_up()


@pytest.mark.parametrize("index", range(7))
def test_a_mode_decodes_what_sdpa_does(bench, model, logits, index):
    mode = bench.MODES[index]
    writer = bench.Writer(mode, model, NUM_KEYS, bench.WARM_UP_TOKENS + mode.num_tokens)
    error = (writer.warm_up() - logits).norm() / logits.norm()
    writer.write()

    assert len(writer.seconds_per_token) == mode.num_tokens
    assert writer.text.shape[1] == NUM_KEYS + 1 + bench.WARM_UP_TOKENS + mode.num_tokens
    if mode.attention is bench.SIFTED:
        assert error < 0.2
        assert 0.05 < writer.loaded_fraction < 0.3
    else:
        assert error < 0.05
        assert writer.loaded_fraction == 1.0


def test_a_token_reads_weights_and_keys_and_loaded_values(bench, model):
    weights = 2 * model.num_parameters()
    rows = NUM_KEYS * 8 * 64 * 2

    assert bench.num_bytes(model, 0, 1.0) == weights
    assert bench.num_bytes(model, NUM_KEYS, 0.25) == weights + rows * 5 // 4
