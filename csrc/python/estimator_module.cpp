// sift_attention._estimator: the power-law estimator for Python. No Torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sift_attention/power_law.h>

#include <optional>
#include <string>

namespace py = pybind11;

namespace sift {
namespace {

std::string repr(const PowerLawEstimator& estimator) {
  return "PowerLawEstimator(" + std::to_string(estimator.num_samples()) + " samples)";
}

PowerLawEstimator make_estimator(std::optional<double> beta, int min_samples,
                                 double min_length_ratio) {
  return PowerLawEstimator(
      {.beta = beta, .min_samples = min_samples, .min_length_ratio = min_length_ratio});
}

PYBIND11_MODULE(_estimator, module) {
  module.doc() = "The power-law estimator of sift_attention, in C++.";

  py::class_<Fit>(module, "PowerLawFit", R"doc(
The outcome of PowerLawEstimator.fit: a power law, or the reason why there is none.

Attributes:
    ok (bool): whether the fit was accepted.
    status (str): the outcome in a few words: "ok", "too few samples", ...
    log_alpha (float): natural log of the threshold's scale; -inf, which keeps every key, unless ok.
    beta (float): the slope; 0 unless ok.
    r_squared (float): of log quantile against log length; 0 unless ok, negative where a given
        slope misses the samples.
    num_samples (int): samples used.
    length_range (tuple[float, float]): shortest and longest length used; zeros without samples.
    message (str): the status in one sentence with its values.
)doc")
      .def_property_readonly("ok", [](const Fit& fit) { return fit.status == FitStatus::kOk; })
      .def_property_readonly("status", [](const Fit& fit) { return describe(fit.status); })
      .def_property_readonly("log_alpha", [](const Fit& fit) { return fit.law.log_alpha; })
      .def_property_readonly("beta", [](const Fit& fit) { return fit.law.beta; })
      .def_readonly("r_squared", &Fit::r_squared)
      .def_readonly("num_samples", &Fit::num_samples)
      .def_property_readonly(
          "length_range",
          [](const Fit& fit) { return py::make_tuple(fit.min_length, fit.max_length); })
      .def_property_readonly("message", &explain)
      .def("__repr__", [](const Fit& fit) { return "PowerLawFit(" + explain(fit) + ")"; });

  py::class_<PowerLawEstimator>(module, "PowerLawEstimator", R"doc(
Fits theta(S) = exp(log_alpha) * S**-beta to (length, quantile) samples of one head.

A sample is the tau-quantile of a query row's attention probabilities over S keys. The fit is least
squares in log-log, computed in double. A quantile of 0 counts as 1.2e-38, the smallest normal
float32 number. A fit that the samples do not support is refused and then keeps every key.

Args:
    beta (float | None): the slope, finite and at least 0; None fits it.
    min_samples (int): fewer samples are refused.
    min_length_ratio (float): a free slope is refused where the longest length is less than this
        many times the shortest.

Raises:
    ValueError: an argument is out of its range.

Example:
    >>> from sift_attention import PowerLawEstimator
    >>> estimator = PowerLawEstimator()
    >>> for length in (100, 1000, 10000):
    ...     estimator.add(length, 2.0 / length)
    >>> round(estimator.predict(4000), 6)
    0.0005
    >>> estimator.fit().ok
    True
)doc")
      .def(py::init(&make_estimator), py::arg("beta") = py::none(), py::kw_only(),
           py::arg("min_samples") = 3, py::arg("min_length_ratio") = 4.0)
      .def("add", &PowerLawEstimator::add, py::arg("length"), py::arg("quantile"),
           "Add the quantile (in [0, 1]) of a row over length (at least 1) keys.")
      .def("drop_longer_than", &PowerLawEstimator::drop_longer_than, py::arg("length"),
           "Forget the samples with more than length keys, as after cropping a cache to it.")
      .def("clear", &PowerLawEstimator::clear, "Forget all samples.")
      .def("fit", &PowerLawEstimator::fit, "Fit the samples held now.")
      .def("predict", &PowerLawEstimator::predict, py::arg("length"),
           "Theta at length keys, in [0, 1]; 0, which keeps every key, where the fit is refused.")
      .def_property_readonly("num_samples", &PowerLawEstimator::num_samples, "Samples held now.")
      .def("__len__", &PowerLawEstimator::num_samples)
      .def("__repr__", &repr);
}

}  // namespace
}  // namespace sift
