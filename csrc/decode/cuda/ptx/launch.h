// The launch seam, nvcc side: how host code starts kernels and asks what the device can hold.
// The same functions for the host are in tests/simt/launch.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

namespace sift::dev {

using Stream = void*;

struct LaunchShape {
  int num_blocks;
  int num_threads;   // per block, whole warps
  int shared_bytes;  // of dynamic shared memory per block
};

inline void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that was reported once must not be found by the next check
  throw std::runtime_error("sift_attention: " + what + ", got " + cudaGetErrorString(status));
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "a CUDA device must be current");
  return device;
}

inline int device_attribute(cudaDeviceAttr attribute) {
  static std::mutex mutex;
  static std::map<std::pair<int, cudaDeviceAttr>, int> known;
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = known.try_emplace({current_device(), attribute});
  if (is_new) {
    check(cudaDeviceGetAttribute(&entry->second, attribute, entry->first.first),
          "the CUDA device must know its attributes");
  }
  return entry->second;
}

inline int64_t l2_bytes() { return device_attribute(cudaDevAttrL2CacheSize); }
// The most dynamic shared memory that a block may ask for.
inline int max_shared_bytes() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// The blocks of this kernel that the whole current device holds at the same time.
template <class Params>
int max_resident_blocks(void (*kernel)(Params), int num_threads, int shared_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<int, void (*)(Params), int, int>, int> known;
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] =
      known.try_emplace({current_device(), kernel, num_threads, shared_bytes});
  if (is_new) {
    const std::string what = "a kernel of " + std::to_string(num_threads) + " threads and " +
                             std::to_string(shared_bytes) + " bytes of shared memory must fit";
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          what);
    int per_multiprocessor = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, num_threads,
                                                        static_cast<size_t>(shared_bytes)),
          what);
    entry->second = per_multiprocessor * device_attribute(cudaDevAttrMultiProcessorCount);
  }
  return entry->second;
}

template <class Params>
void launch_as(const char* name, void (*kernel)(Params), LaunchShape shape, Stream stream,
               const Params& params, bool is_cooperative) {
  const std::string what = "kernel " + std::string(name) + " must launch with " +
                           std::to_string(shape.num_blocks) + " blocks of " +
                           std::to_string(shape.num_threads) + " threads and " +
                           std::to_string(shape.shared_bytes) + " bytes of shared memory";
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes),
      what);
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.num_blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.num_threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cooperative;
  config.numAttrs = is_cooperative ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, params), what);
}

// Starts `kernel` on the current device; throws std::runtime_error, with the name, where it cannot.
template <class Params>
void launch(const char* name, void (*kernel)(Params), LaunchShape shape, Stream stream,
            const Params& params) {
  launch_as(name, kernel, shape, stream, params, false);
}

// The same for kernels with sync_grid: all blocks run at the same time, so there must be at most
// max_resident_blocks of them.
template <class Params>
void launch_cooperative(const char* name, void (*kernel)(Params), LaunchShape shape, Stream stream,
                        const Params& params) {
  launch_as(name, kernel, shape, stream, params, true);
}

}  // namespace sift::dev
