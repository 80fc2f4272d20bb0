"""What runs on the CPU elsewhere runs here at each of its instruction-set levels."""

import pytest

from devices import DEVICES
from levels import at_level, supported_levels


@pytest.fixture(params=[*supported_levels(), *DEVICES[1:]])
def device(request):
    """Where the test creates its tensors, and what the operators use."""
    if request.param == "cuda":
        request.getfixturevalue("cuda")
        yield
    else:
        with at_level(request.param):
            yield
