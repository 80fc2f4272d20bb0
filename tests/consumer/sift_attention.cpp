// Calls the operators and the estimator as a C++ program does.
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <sift_attention/sift_attention.h>

#include <cmath>
#include <iostream>

bool is_right() {
  const at::Tensor q = at::randn({2, 4, 64});
  const at::Tensor k = at::randn({2, 2, 100, 64});
  const at::Tensor v = at::randn({2, 2, 100, 64});
  const at::Tensor dense =
      at::scaled_dot_product_attention(q.unsqueeze(2), k, v, {}, 0.0, false, {}, true).squeeze(2);

  const sift::DecodeResult exact = sift::decode(q, k, v, sift::PowerLaw{});
  const sift::DecodeResult sifted =
      sift::decode(q, k, v, sift::PowerLaw::uniform(2.0), {.v_sum = v.sum(2)});
  const double error = exact.out.sub(dense).abs().max().item().toDouble();
  const int64_t num_loaded = sifted.num_loaded.sum().item().toLong();
  std::cout << "error " << error << ", " << num_loaded << " of 400 rows loaded\n";

  const double theta_error = std::abs(sift::PowerLaw::uniform(2.0).predict(100.0) - 0.02);
  return error < 1e-5 && num_loaded < 400 && theta_error < 1e-12;
}
