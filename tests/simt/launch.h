// The launch seam, host side: the functions of csrc/decode/cuda/ptx/launch.h for kernels that run as
// fibers, before the call returns.
#pragma once

#include <cstdint>

#include "simt.h"

namespace sift::dev {

using Stream = void*;

struct LaunchShape {
  int num_blocks;
  int num_threads;
  int shared_bytes;
};

template <class Params>
void launch(const char* name, void (*kernel)(Params), LaunchShape shape, Stream,
            const Params& params) {
  simt::run({name, shape.num_blocks, shape.num_threads, shape.shared_bytes, false},
            [&] { kernel(params); });
}

template <class Params>
void launch_cooperative(const char* name, void (*kernel)(Params), LaunchShape shape, Stream,
                        const Params& params) {
  simt::run({name, shape.num_blocks, shape.num_threads, shape.shared_bytes, true},
            [&] { kernel(params); });
}

template <class Params>
int max_resident_blocks(void (*)(Params), int, int) {
  return simt::machine().max_resident_blocks;
}
inline int64_t l2_bytes() { return simt::machine().l2_bytes; }
inline int max_shared_bytes() { return simt::machine().max_shared_bytes; }

}  // namespace sift::dev
