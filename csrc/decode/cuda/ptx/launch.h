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
#include <utility>

namespace sift::dev {

using Stream = void*;

struct LaunchShape {
  int num_blocks;
  int num_threads;   // per block, whole warps
  int shared_bytes;  // of dynamic shared memory per block
};

[[noreturn]] inline void fail(cudaError_t status, const std::string& requirement) {
  cudaGetLastError();  // an error that was reported once must not be found by the next check
  throw std::runtime_error("sift_attention: " + requirement + ", got " +
                           cudaGetErrorString(status));
}
inline void check(cudaError_t status, const char* requirement) {
  if (status != cudaSuccess) fail(status, requirement);
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "a CUDA device must be current");
  return device;
}

// Calls of the CUDA runtime whose answers stay the same: find(), asked once for every key.
template <class Key, class Find>
int remember(const Key& key, const Find& find) {
  static std::mutex mutex;
  static std::map<Key, int> known;
  const std::lock_guard lock(mutex);
  if (const auto entry = known.find(key); entry != known.end()) return entry->second;
  return known[key] = find();
}

inline int device_attribute(cudaDeviceAttr attribute) {
  const int device = current_device();
  return remember(std::pair(device, attribute), [&] {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "a device must tell its attributes");
    return value;
  });
}

inline int64_t l2_bytes() { return device_attribute(cudaDevAttrL2CacheSize); }
// The most dynamic shared memory that a block may ask for.
inline int max_shared_bytes() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// Lets blocks of the kernel ask for all the dynamic shared memory there is, not just 48 KB.
template <class Params>
void allow_shared_memory(void (*kernel)(Params)) {
  remember(std::pair(current_device(), kernel), [&] {
    const char* what = "this library must hold kernels for the device";
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), what);
    const int bytes = max_shared_bytes() - static_cast<int>(attributes.sharedSizeBytes);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
    return bytes;
  });
}

// The blocks of this kernel that the whole current device holds at the same time.
template <class Params>
int max_resident_blocks(void (*kernel)(Params), int num_threads, int shared_bytes) {
  allow_shared_memory(kernel);
  return remember(std::tuple(current_device(), kernel, num_threads, shared_bytes), [&] {
    int per_multiprocessor = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, num_threads,
                                                        static_cast<size_t>(shared_bytes)),
          "the device must tell how many blocks it holds");
    return per_multiprocessor * device_attribute(cudaDevAttrMultiProcessorCount);
  });
}

template <class Params>
void launch_as(const char* name, void (*kernel)(Params), LaunchShape shape, Stream stream,
               const Params& params, bool is_cooperative) {
  allow_shared_memory(kernel);
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
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, params);
  if (status == cudaSuccess) return;
  fail(status, "kernel " + std::string(name) + " must launch with " +
                   std::to_string(shape.num_blocks) + " blocks of " +
                   std::to_string(shape.num_threads) + " threads and " +
                   std::to_string(shape.shared_bytes) + " bytes of shared memory");
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
