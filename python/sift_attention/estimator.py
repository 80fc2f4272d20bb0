"""The estimator of the threshold's power law, for single heads and notebooks.

It is the C++ class sift::PowerLawEstimator; `sift_attention.fit_power_law` is the same fit over
tensors, all heads at once.
"""

from sift_attention._estimator import PowerLawEstimator, PowerLawFit

__all__ = ["PowerLawEstimator", "PowerLawFit"]
