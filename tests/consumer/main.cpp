// Calls the operators and the estimator as a C++ program does; exits with 1 if a result is wrong.
#include <ATen/ATen.h>
#include <sift_attention/sift_attention.h>

#include <cmath>
#include <iostream>

int main() {
  const at::Tensor q = at::randn({2, 4, 64});
  const at::Tensor k = at::randn({2, 2, 100, 64});
  const at::Tensor v = at::randn({2, 2, 100, 64});
  const at::Tensor dense =
      at::scaled_dot_product_attention(q.unsqueeze(2), k, v, {}, 0.0, false, {}, true).squeeze(2);

  const sift::DecodeResult exact = sift::decode(q, k, v, sift::PowerLaw{});
  const sift::DecodeResult sifted =
      sift::decode(q, k, v, sift::PowerLaw::uniform(2.0), {.v_sum = v.sum(2)});
  const double error = (exact.out - dense).abs().max().item<double>();
  const int64_t num_loaded = sifted.num_loaded.sum().item<int64_t>();
  std::cout << "error " << error << ", " << num_loaded << " of 400 rows loaded\n";

  const double theta_error = std::abs(sift::PowerLaw::uniform(2.0).predict(100.0) - 0.02);
  return error < 1e-5 && num_loaded < 400 && theta_error < 1e-12 ? 0 : 1;
}
