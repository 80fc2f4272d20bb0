// Compares a run with the reference: positions of NaN first, then values within bounds.
#include <cmath>
#include <stdexcept>
#include <string>

#include "decode_case.h"
#include "reference_decode.h"

namespace sift {
namespace {

// Half a unit in the last place, of a result x in dtype.
double rounding(double x, DType dtype) {
  const double relative = dtype == DType::kBFloat16  ? 0x1p-8
                          : dtype == DType::kFloat16 ? 0x1p-11
                                                     : 0x1p-24;
  const double least = dtype == DType::kFloat16 ? 0x1p-25 : 0x1p-130;
  return std::max(std::fabs(x) * relative, least);
}

void expect_close(double x, double expected, double error, std::string& report, const char* what) {
  const bool agrees = std::isnan(expected) || std::isinf(expected)
                          ? (std::isnan(x) && std::isnan(expected)) || x == expected
                          : std::fabs(x - expected) <= error;
  if (!agrees && report.empty()) {
    report = std::string(what) + " must be " + std::to_string(expected) + " within " +
             std::to_string(error) + ", got " + std::to_string(x);
  }
}

}  // namespace

Counts check_decode(const DecodeParams& p, const DecodeOutputs& outputs) {
  Counts counts;
  const int64_t group_size = p.num_q_heads / p.num_kv_heads;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t hk = 0; hk < p.num_kv_heads; ++hk) {
      const reference::DecodedGroup expected = reference::decode_group(p, b, hk);
      const int32_t num_loaded = outputs.num_loaded[b * p.num_kv_heads + hk];
      std::string report;
      expect_close(num_loaded, static_cast<double>(expected.num_loaded),
                   static_cast<double>(expected.num_borderline), report, "num_loaded");
      counts.keys += static_cast<int64_t>(reference::attended(p.keys, b, p.capacity).size());
      counts.loaded += num_loaded;
      counts.borderline += expected.num_borderline;

      for (int64_t g = 0; g < group_size; ++g) {
        const reference::DecodedGroup::Head& head = expected.heads[g];
        const int64_t i = b * p.num_q_heads + hk * group_size + g;
        expect_close(outputs.lse[i], head.lse, head.lse_error, report, "lse");
        expect_close(outputs.kept_mass[i], head.kept_mass, head.kept_mass_error, report,
                     "kept_mass");
        const std::vector<double> out =
            reference::row(outputs.out.data(), i * p.head_dim, p.head_dim, p.dtype);
        for (int64_t d = 0; d < p.head_dim; ++d) {
          const double error = head.out_error[d] + rounding(head.out[d], p.dtype) * 1.001;
          expect_close(out[d], head.out[d], error, report, "out");
        }
      }
      if (!report.empty()) {
        throw std::runtime_error("batch row " + std::to_string(b) + ", KV head " +
                                 std::to_string(hk) + ": " + report);
      }
    }
  }
  return counts;
}

}  // namespace sift
