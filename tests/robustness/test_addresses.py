"""Where tensors lie: far away, overlapping, with strides that no loop may multiply in 32 bits."""

import math
import mmap

import pytest
import torch

import sift_attention as sift
from cases import Case, best_dtype, make_call, on_cuda, tolerance
from test_decode_bits import assert_same_bits

FAR = 2**31 + 64  # elements
on_every_device = pytest.mark.usefixtures("device")


def far_apart(tensor, dim=0):
    """The same numbers, FAR elements from one index of the first dimension with several."""
    strides = list(tensor.contiguous().stride())
    strides[dim] = FAR
    num_elements = (tensor.shape[dim] - 1) * FAR + math.prod(tensor.shape[dim + 1 :])
    storage = torch.empty(num_elements, dtype=tensor.dtype)  # its pages are used as touched
    return storage.as_strided(tensor.shape, strides).copy_(tensor)


@on_every_device
@pytest.mark.row(15)
@pytest.mark.parametrize("name", ["q", "k", "v", "key_mask", "block_table"])
def test_batches_far_apart(name):
    layout = "paged" if name == "block_table" else "contiguous"
    call = make_call(Case(capacity=48, masked=True, layout=layout, dtype=torch.float16))
    expected = call.run()
    if name in call.options:
        call.options[name] = far_apart(call.options[name])
    else:
        setattr(call, name, far_apart(getattr(call, name)))
    assert_same_bits(call.run(), expected)


@on_every_device
@pytest.mark.row(15)
def test_heads_and_pages_far_apart():
    call = make_call(Case(batch=1, num_q_heads=2, capacity=40, dtype=torch.float16))
    expected = call.run()
    call.k = far_apart(call.k, dim=1)
    assert_same_bits(call.run(), expected)
    call = make_call(Case(batch=1, num_q_heads=2, capacity=16, layout="paged", dtype=torch.float16))
    call.options["block_table"] = torch.ones_like(call.options["block_table"])
    call.k, call.v = call.k[:2].contiguous(), call.v[:2].contiguous()
    call.k[1], call.v[1] = 0.5, torch.randn_like(call.v[1])
    call.options["v_sum"] = call.v[1:].sum(1, dtype=torch.float32)
    expected = call.run()
    call.v = far_apart(call.v)
    assert_same_bits(call.run(), expected)


@pytest.mark.row(15)
def test_a_cache_of_more_than_32_bits():
    """2^31 elements and some, all zero but the last key, which alone matters."""
    head_dim, num_keys = 256, 2**31 // 256 + 1000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # untouched pages are all the same one of zeros
    memory = mmap.mmap(-1, num_keys * head_dim * 2, flags)
    kv = torch.frombuffer(memory, dtype=torch.bfloat16).view(1, 1, num_keys, head_dim)
    kv[0, 0, -1] = torch.arange(head_dim) / 64.0 + 1.0
    q = torch.ones(1, 1, head_dim, dtype=torch.bfloat16)
    out, stats = sift.decode(q, kv, kv, sift.PowerLaw.uniform(2.0), return_stats=True)
    torch.testing.assert_close(out[0, 0], kv[0, 0, -1])
    assert stats.num_loaded.item() == 1


@on_every_device
@pytest.mark.row(16)
@pytest.mark.parametrize("heads", [(65_536, 1, 1), (8193, 8, 8), (1, 65_544, 8193)], ids=str)
def test_more_heads_than_a_grid_dimension(heads):
    """All of them see the same three keys."""
    batch, num_q_heads, num_kv_heads = heads
    q = torch.randn(1, 1, 64).to(best_dtype()).expand(batch, num_q_heads, 64)
    kv = torch.randn(1, 1, 3, 64).to(best_dtype()).expand(batch, num_kv_heads, 3, 64)
    out, stats = sift.decode(q, kv, kv, return_stats=True)
    expected = sift.reference.decode(q[:1, :1].double(), kv[:1, :1].double(), kv[:1, :1].double())
    assert torch.equal(out, out[:1, :1].expand_as(out))
    torch.testing.assert_close(out[:1, :1].double(), expected, **tolerance(out.dtype))
    assert (stats.num_loaded == 3).all()


@on_every_device
@pytest.mark.row(17)
@pytest.mark.parametrize("stride", [0, 3, 2**31 + 1, 2**62])
def test_strides_of_dimensions_of_size_one(stride):
    """PyTorch leaves them to chance, so nobody may use them."""
    q, kv = (torch.randn(1, 1, *shape).to(best_dtype()) for shape in ((64,), (1, 64)))
    mask, lengths = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, dtype=torch.int32)
    law = sift.PowerLaw(*torch.zeros(2, 1, 1))
    expected = sift.decode(q, kv, kv, law, key_mask=mask, seq_lens=lengths, return_stats=True)
    q = q.as_strided(q.shape, (stride, stride, 1))
    kv = kv.as_strided(kv.shape, (stride, stride, stride, 1))
    mask, lengths = mask.as_strided((1, 1), (stride, stride)), lengths.as_strided((1,), (stride,))
    law = sift.PowerLaw(law.log_alpha.as_strided((1, 1), (stride, stride)), law.beta)
    got = sift.decode(q, kv, kv, law, key_mask=mask, seq_lens=lengths, return_stats=True)
    assert_same_bits(got, expected)


@on_every_device
@pytest.mark.row(17)
def test_transposed_and_sliced():
    """[B, N, HK, D], as projections leave it; every second key; every second head."""
    call = make_call(Case(capacity=120))
    for view in (
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2],
        lambda x: x.repeat_interleave(3, dim=1)[:, 1::3],
        lambda x: torch.cat([x, x], dim=3)[..., 64:],
    ):
        expected = call.run()
        k, v = call.k, call.v
        call.k, call.v = view(k), view(v)
        assert not call.k.is_contiguous()
        assert_same_bits(call.run(), expected)
        call.k, call.v = k, v


@on_every_device
@pytest.mark.row(18)
def test_expanded_and_shared():
    """One row for all keys, one cache for all sequences and heads, K that is V."""
    row = torch.randn(1, 1, 1, 64).to(best_dtype())
    q = torch.randn(3, 8, 64).to(best_dtype())
    kv = row.expand(3, 2, 100, 64)
    mask = torch.ones(1, 100, dtype=torch.bool).expand(3, 100)
    got = sift.decode(q, kv, kv, sift.PowerLaw.uniform(0.5), key_mask=mask, return_stats=True)
    packed = kv.contiguous()
    expected = sift.decode(q, packed, packed.clone(), sift.PowerLaw.uniform(0.5), return_stats=True)
    if on_cuda():
        torch.testing.assert_close(got[0], expected[0])
    else:
        assert_same_bits(got, expected)
    results = (got[0], *got[1])
    assert len({result.untyped_storage().data_ptr() for result in results}) == len(results)
