"""The devices that tests run on.

Without a GPU, or the operators for it, tests on CUDA are left out; under SIFT_REQUIRE_CUDA=1 they
fail.
"""

import os

import torch

from sift_attention._library import HAS_CUDA

REQUIRE_CUDA = os.environ.get("SIFT_REQUIRE_CUDA") == "1"
CAN_USE_CUDA = HAS_CUDA and torch.cuda.is_available()
DEVICES = ["cpu", "cuda"] if REQUIRE_CUDA or CAN_USE_CUDA else ["cpu"]
