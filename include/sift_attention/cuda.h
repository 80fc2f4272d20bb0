// For C++ programs that link SiftAttention::cuda: the operators of sift_attention.h then take CUDA
// tensors as well. Include it in one source file.
#pragma once

#include <sift_attention/sift_attention.h>

// Referring to the library keeps linkers from dropping it, as in sift_attention.h.
extern "C" void sift_attention_cuda_anchor();

namespace sift::detail {

[[gnu::used]] inline const auto keep_cuda_library = &sift_attention_cuda_anchor;

}  // namespace sift::detail
