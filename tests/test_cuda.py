"""What only a GPU can show: streams, CUDA graphs, who waits for whom, memory."""

import dataclasses

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

import sift_attention as sift
from bad_calls import GOOD_CALLS
from cases import Call, Case, assert_same_bits, make_call, tolerance
from oracle import assert_matches_reference

pytestmark = pytest.mark.usefixtures("cuda")

# Several splits per sequence, in pages, with every extra that lies on the device.
LONG = Case(
    dtype=torch.bfloat16,
    batch=3,
    capacity=2000,
    head_dim=128,
    layout="paged",
    seq_lens=(2000, 2000, 2000),
    law="per_head",
    sinks=True,
)
LAWS = pytest.mark.parametrize("law", ["per_head", "uniform", "exact"])


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (
            Case(dtype=torch.float32),
            "decode: q must have dtype bfloat16 or float16 on CUDA, got float32",
        ),
        (Case(head_dim=32), "decode: head_dim must be 64, 80, 96, 128 or 256 on CUDA, got 32"),
    ],
)
def test_what_cuda_refuses(case, sentence):
    with pytest.raises((TypeError, ValueError)) as error:
        make_call(case).run()
    assert str(error.value) == sentence


@pytest.mark.row(23)
@pytest.mark.parametrize("op", GOOD_CALLS)
def test_tensors_on_several_devices(op):
    good = GOOD_CALLS[op]("paged")
    first, *others = (name for name, value in good.items() if isinstance(value, torch.Tensor))
    for name in others:
        message = f"^{op}: {name} must be on the device of {first} = cuda:0, got cpu$"
        with pytest.raises(RuntimeError, match=message):
            getattr(torch.ops.sift_attention, op).default(**{**good, name: good[name].cpu()})


@pytest.mark.row(23, 24)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU at most")
def test_another_device_than_the_current_one():
    with torch.device("cuda:1"):
        assert_matches_reference(make_call(LONG))
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("heads", [(32, 8), (8, 8), (28, 4), (40, 1)], ids=str)
def test_exact_equals_dense_attention(heads, head_dim, dtype):
    q = 4.0 * torch.randn(2, heads[0], head_dim, dtype=dtype)
    k, v = torch.randn(2, 2, heads[1], 5000, head_dim, dtype=dtype)
    dense = scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]
    torch.testing.assert_close(sift.decode(q, k, v), dense, **tolerance(dtype))


@pytest.mark.row(16)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [LONG, Case(capacity=40_000, batch=1), Case(batch=300)], ids=str)
def test_long_and_wide(case, dtype):
    """Many splits for one sequence, and more sequences than one launch takes."""
    assert_matches_reference(make_call(dataclasses.replace(case, dtype=dtype)))


def test_a_large_batch_is_its_sequences():
    call = make_call(Case(batch=300, num_q_heads=4, capacity=600))
    together = call.run()
    for first in (0, 127, 128, 299):
        one = slice(first, first + 1)
        options = {**call.options, "v_sum": call.options["v_sum"][one]}
        alone = Call(call.q[one], call.k[one], call.v[one], call.law, options)
        assert_same_bits(alone.run(), together, one)


@pytest.mark.row(15)
def test_a_cache_of_more_than_32_bits():
    """2^31 elements and some in K, and in V; only the last key of each head matters."""
    capacity = 2**31 // (8 * 128) + 1000
    k = torch.zeros(1, 8, capacity, 128, dtype=torch.bfloat16)
    v = torch.zeros_like(k)
    k[:, :, -1], v[:, :, -1] = 4.0, torch.randn(8, 128)
    q = torch.ones(1, 32, 128, dtype=torch.bfloat16)
    for law in (None, sift.PowerLaw.uniform(2.0)):
        out, stats = sift.decode(q, k, v, law, return_stats=True)
        torch.testing.assert_close(out, v[:, :, -1].repeat_interleave(4, 1), rtol=0.02, atol=0.02)
        assert (stats.num_loaded == (capacity if law is None else 1)).all()


@pytest.mark.row(24)
def test_runs_on_the_current_stream():
    call = make_call(LONG)
    expected, q = call.run(), call.q.clone()
    call.q.zero_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles
        call.q.copy_(q)
        got = call.run()
    stream.synchronize()
    assert_same_bits(got, expected)


@pytest.mark.row(24)
def test_streams_do_not_share_scratch_memory():
    lengths = [(2000, 1, 1999), (3001, 3001, 3001), (4002, 0, 17)]
    cases = [dataclasses.replace(LONG, capacity=max(n), seq_lens=n) for n in lengths]
    calls = [make_call(case) for case in cases]
    expected = [call.run() for call in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    for _ in range(20):
        got = []
        for call, stream in zip(calls, streams, strict=True):
            with torch.cuda.stream(stream):
                got.append(call.run())
        torch.cuda.synchronize()
        for result, want in zip(got, expected, strict=True):
            assert_same_bits(result, want)


@pytest.mark.row(25)
@LAWS
def test_nothing_waits(law):
    call = make_call(dataclasses.replace(LONG, law=law))
    quantile, fit = GOOD_CALLS["score_quantile"]("paged"), GOOD_CALLS["fit_power_law"]("paged")

    def run_all():
        call.run()
        sift.score_quantile(**quantile)
        sift.fit_power_law(**fit)

    run_all()  # asks the device for its properties
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(2_000_000_000)
        run_all()
        is_done = torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not is_done


@pytest.mark.row(28)
@LAWS
def test_the_same_bits_every_time(law):
    call = make_call(dataclasses.replace(LONG, law=law, capacity=9000, seq_lens=(9000, 17, 4097)))
    expected = call.run()
    for i in range(50):
        torch.full((1 << 20, 1 + i), float("nan"))  # what the next workspace begins with
        assert_same_bits(call.run(), expected)


def test_memory_stays_flat():
    call = make_call(dataclasses.replace(LONG, law="uniform"))
    for _ in range(3):
        call.run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(2000):
        call.run()
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def capture(run):
    """A CUDA graph of a call, and the tensors that replays write."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


@pytest.mark.row(25)
@LAWS
def test_a_graph_follows_its_inputs(law):
    call = make_call(dataclasses.replace(LONG, law=law))
    graph, result = capture(call.run)
    table = call.options["block_table"]
    for seq_lens in [(2000, 1203, 0), (1, 256, 257), (0, 0, 0), (2000, 2000, 2000)]:
        call.options["seq_lens"].copy_(torch.tensor(seq_lens))
        table.copy_(table[:, torch.randperm(table.shape[1])])
        call.q.copy_(torch.randn_like(call.q))
        if law == "per_head":
            call.law.log_alpha.copy_(torch.randn_like(call.law.log_alpha))
            call.law.beta.mul_(1.01)
        graph.replay()
        assert_same_bits(result, call.run())


@pytest.mark.row(25)
def test_a_graph_of_quantiles_and_their_fit():
    arguments = GOOD_CALLS["score_quantile"]("paged")

    def run():
        quantiles = sift.score_quantile(**arguments)
        law, ok = sift.fit_power_law(arguments["lengths"], quantiles, 1.0)
        return quantiles, law.log_alpha, law.beta, ok

    graph, result = capture(run)
    for lengths in ([1, 2, 3, 4, 5, 130], [0, 0, 20, 40, 60, 80]):
        arguments["lengths"].copy_(torch.tensor([lengths, lengths[::-1]]))
        graph.replay()
        for got, want in zip(result, run(), strict=True):
            torch.testing.assert_close(got, want, atol=0, rtol=0, equal_nan=True)


def make_state_and_cache():
    """A state after a prompt of 300 keys in a static cache of 400."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 400, 64, dtype=torch.float16) for heads in (8, 2, 2))
    state = sift.SiftState(sift.SiftConfig(threshold="quantile", quantile=0.8, min_keys=0))
    causal = torch.ones(300, 400, dtype=torch.bool).tril()
    state.observe(q[:, :, :300], k, v, causal[None, None])
    return state, q, k, v


@pytest.mark.row(25)
def test_a_graph_of_a_state_is_its_steps():
    positions = torch.arange(400)

    def make_step():
        state, q, k, v = make_state_and_cache()
        now = torch.full((1,), 300)

        def step():
            query = q.index_select(2, now)[:, :, 0]
            out = state.decode(query, k, v, (positions <= now)[None, None, None])
            now.add_(1)
            return out

        return state, step

    capture(make_step()[1])  # loads what the steps need
    state, step = make_step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    eager_state, eager_step = make_step()
    for _ in range(70):
        graph.replay()
        assert torch.equal(result, eager_step())
    for counted in (state.counters, eager_state.counters):
        counted.fold()
        assert counted.calls + counted.compiled_calls.item() == 70
    assert torch.equal(state.counters.rows_loaded, eager_state.counters.rows_loaded)
    assert 0 < state.counters.rows_loaded < state.counters.keys_and_steps[0] * 2
    assert torch.equal(state.values.total, eager_state.values.total)


@pytest.mark.row(25)
def test_a_state_does_not_wait():
    state, q, k, v = make_state_and_cache()
    state.decode(q[:, :, 300], k[:, :, :301], v[:, :, :301])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for end in range(302, 400):
            state.decode(q[:, :, end - 1], k[:, :, :end], v[:, :, :end])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.row(25, 32)
@LAWS
def test_compiled_into_cuda_graphs(law):
    call = make_call(dataclasses.replace(LONG, law=law))
    options = {**call.options, "return_stats": True}

    def attend(q):
        out, stats = sift.decode(q * 1.5, call.k, call.v, call.law, **options)
        return out + 1.0, stats.lse, stats.num_loaded

    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(attend, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for seq_lens in [(2000, 2000, 2000)] * 3 + [(2000, 1203, 0), (1, 256, 257)]:
            options["seq_lens"].copy_(torch.tensor(seq_lens))
            torch.compiler.cudagraph_mark_step_begin()
            for got, want in zip(compiled(call.q), attend(call.q), strict=True):
                torch.testing.assert_close(got, want)
    assert counters["inductor"]["cudagraph_skips"] == 0
