// Calls an operator on a GPU, where there is one.
#include <ATen/Context.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <sift_attention/cuda.h>

#include <iostream>

bool is_right() {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("sift_attention::decode", "");
  if (!op.hasKernelForDispatchKey(c10::DispatchKey::CUDA)) return false;
  if (!at::hasCUDA()) {
    std::cout << "there is no GPU\n";
    return true;
  }
  const auto half = at::TensorOptions(at::kCUDA).dtype(at::kHalf);
  const at::Tensor q = at::randn({2, 4, 64}, half);
  const at::Tensor kv = at::randn({2, 2, 100, 64}, half);
  const at::Tensor dense =
      at::scaled_dot_product_attention(q.unsqueeze(2), kv, kv, {}, 0.0, false, {}, true).squeeze(2);
  const at::Tensor out = sift::decode(q, kv, kv, sift::PowerLaw{}).out;
  const double error = out.sub(dense).abs().max().item().toDouble();
  std::cout << "error " << error << '\n';
  return error < 4e-3;
}
