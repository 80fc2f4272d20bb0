"""What the operators leave behind when a call cannot be made."""

import os
import subprocess
import sys

import pytest
import torch

from cases import Case, make_call
from test_decode_bits import assert_same_bits

# Scores of 2 million keys for 8 heads take 64 MB; the keys themselves are one row, seen often.
SHORT_OF_MEMORY = """
import resource, torch
import sift_attention as sift

torch.manual_seed(0)
q, row = torch.randn(1, 8, 32), torch.randn(2, 1, 1, 1, 32)
k, v = row.expand(2, 1, 1, 2_000_000, 32)
calls = [
    lambda: sift.decode(q, k, v, sift.PowerLaw.uniform(0.5)),
    lambda: sift.score_quantile(q[:, :, None], k, torch.full((1, 1), 2_000_000).int(), 0.5),
]
expected = [call() for call in calls]
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (16 << 20), resource.RLIM_INFINITY))
for _ in range(3):
    for call in calls:
        try:
            call()
        except RuntimeError as error:
            print(str(error).split(" A tensor of ")[0])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(all(torch.equal(call(), want) for call, want in zip(calls, expected)))
"""


@pytest.mark.row(40)
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer's memory has no limit")
def test_out_of_memory():
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, timeout=120
    )
    sentence = "sift_attention: cpu is out of memory.\n"
    assert done.stdout == 6 * sentence + "True\n", done.stderr


@pytest.mark.row(40)
@pytest.mark.usefixtures("device")
def test_a_refused_call_leaves_its_tensors_alone():
    call = make_call(Case(law="per_head", masked=True, seq_lens=(130, 77), sinks=True))
    expected = call.run()
    for bad in ({"softcap": -1.0}, {"scale": float("nan")}, {"v_sum": torch.zeros(1)}):
        with pytest.raises(ValueError, match="must"):
            call.with_options(**bad).run()
    assert_same_bits(call.run(), expected)
