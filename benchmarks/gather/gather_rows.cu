// How fast can a GPU gather scattered 256-byte rows? One JSON object per line on standard output.
//
//   nvcc -O3 -std=c++20 -arch=native benchmarks/gather/gather_rows.cu -o gather_rows && ./gather_rows
//
// Measured: three ways to load, several numbers of rows in flight, kept fractions from 100 to 1 %,
// one layer at batch 1 (a CUDA graph with a launch per layer) and at batch 64 (one launch).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "gather_kernels.h"

namespace gather {
namespace {

constexpr int kNumLayers = 64;
constexpr int kLayerRows = 8 * 32768;  // 8 KV heads, 32,768 keys
constexpr size_t kNumRows = size_t{kNumLayers} * kLayerRows;
constexpr size_t kFlushBytes = size_t{1} << 30;
constexpr int kRepeats = 7;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "gather_rows: %s must succeed, got %s.\n", what, cudaGetErrorString(error));
  std::exit(1);
}

struct Kernel {
  const char* instruction;
  void (*function)(Gather);
  int depth;  // rows in flight per warp
  bool uses_shared_memory;
  int first_major;  // of the compute capability

  int shared_bytes() const { return uses_shared_memory ? kWarps * depth * kRowBytes : 0; }
};

constexpr Kernel kKernels[] = {
    {"cp.async", gather_cp_async<8>, 8, true, 8},
    {"cp.async", gather_cp_async<16>, 16, true, 8},
    {"cp.async", gather_cp_async<32>, 32, true, 8},
    {"ld.global.nc.v4", gather_registers<8>, 8, false, 8},
    {"ld.global.nc.v4", gather_registers<16>, 16, false, 8},
    {"ld.global.nc.v4", gather_registers<32>, 32, false, 8},
    {"cp.async.bulk", gather_bulk<8>, 8, true, 9},
    {"cp.async.bulk", gather_bulk<16>, 16, true, 9},
    {"cp.async.bulk", gather_bulk<32>, 32, true, 9},
};

template <class T>
T* allocate(size_t count) {
  void* pointer = nullptr;
  check(cudaMalloc(&pointer, count * sizeof(T)), "cudaMalloc");
  return static_cast<T*>(pointer);
}

struct Timing {
  double median_ms, min_ms, spread;  // spread: distance of the quartiles over the median
};

// Times what `enqueue()` puts on the stream, each time after a flush of the L2.
class Clock {
 public:
  explicit Clock(cudaStream_t stream)
      : stream_(stream), flush_(allocate<uint4>(kFlushBytes / 16)), sink_(allocate<uint32_t>(1)) {
    check(cudaEventCreate(&start_), "cudaEventCreate");
    check(cudaEventCreate(&stop_), "cudaEventCreate");
    fill<<<4096, 256, 0, stream>>>(reinterpret_cast<uint32_t*>(flush_), kFlushBytes / 4);
  }

  template <class Enqueue>
  Timing time(Enqueue enqueue) const {
    std::vector<float> times(kRepeats + 1);  // the first warms up
    for (float& ms : times) {
      read_all<<<4096, 256, 0, stream_>>>(flush_, kFlushBytes / 16, sink_);
      check(cudaEventRecord(start_, stream_), "cudaEventRecord");
      enqueue();
      check(cudaEventRecord(stop_, stream_), "cudaEventRecord");
      check(cudaEventSynchronize(stop_), "the measured work");
      check(cudaEventElapsedTime(&ms, start_, stop_), "cudaEventElapsedTime");
    }
    times.erase(times.begin());
    std::sort(times.begin(), times.end());
    const double median = times[kRepeats / 2];
    return {median, times.front(), (times[kRepeats * 3 / 4] - times[kRepeats / 4]) / median};
  }

  uint4* flush_buffer() const { return flush_; }
  uint32_t* sink() const { return sink_; }

 private:
  cudaStream_t stream_;
  uint4* flush_;
  uint32_t* sink_;
  cudaEvent_t start_, stop_;
};

// The checksum that `enqueue()` leaves.
template <class Enqueue>
uint32_t checksum_of(Enqueue enqueue, uint32_t* checksum, cudaStream_t stream) {
  uint32_t value = 0;
  check(cudaMemsetAsync(checksum, 0, sizeof(value), stream), "cudaMemsetAsync");
  enqueue();
  check(cudaGetLastError(), "the launch of a gather");
  check(cudaMemcpyAsync(&value, checksum, sizeof(value), cudaMemcpyDeviceToHost, stream),
        "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream), "a gather");
  return value;
}

// A launch for each layer's part of `all`, or one for everything.
void enqueue(const Kernel& kernel, const Gather& all, int num_launches, int num_blocks,
             cudaStream_t stream) {
  Gather part = all;
  part.num_kept = all.num_kept / num_launches;
  for (int launch = 0; launch < num_launches; ++launch) {
    kernel.function<<<num_blocks, kThreads, kernel.shared_bytes(), stream>>>(part);
    check(cudaGetLastError(), kernel.instruction);
    part.rows += int64_t{part.num_kept} * part.window * kLanesPerRow;
  }
}

void measure(const Kernel& kernel, const Gather& all, int num_launches, int blocks_per_sm,
             int num_sms, const Clock& clock, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  enqueue(kernel, all, num_launches, blocks_per_sm * num_sms, stream);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
  const Timing timing =
      clock.time([&] { check(cudaGraphLaunch(replay, stream), "cudaGraphLaunch"); });
  check(cudaGraphExecDestroy(replay), "cudaGraphExecDestroy");
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  std::printf(
      "{\"load\": \"%s\", \"instruction\": \"%s\", \"kept\": %.2f, \"rows_in_flight\": %d, "
      "\"blocks_per_sm\": %d, \"rows\": %d, \"median_ms\": %.6f, \"min_ms\": %.6f, "
      "\"spread\": %.3f, \"gb_per_s\": %.1f}\n",
      num_launches == 1 ? "batch 64" : "batch 1", kernel.instruction, 1.0 / all.window,
      kernel.depth * kWarps * blocks_per_sm, blocks_per_sm, all.num_kept / num_launches,
      timing.median_ms / num_launches, timing.min_ms / num_launches, timing.spread,
      double(all.num_kept) * kRowBytes / timing.median_ms / 1e6);
  std::fflush(stdout);
}

int run() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  const int num_sms = device.multiProcessorCount;
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  uint4* rows = allocate<uint4>(kNumRows * kLanesPerRow);
  fill<<<4096, 256, 0, stream>>>(reinterpret_cast<uint32_t*>(rows), kNumRows * kRowBytes / 4);
  const Clock clock(stream);

  const Timing copy = clock.time([&] {
    check(
        cudaMemcpyAsync(clock.flush_buffer(), rows, kFlushBytes, cudaMemcpyDeviceToDevice, stream),
        "cudaMemcpyAsync");
  });
  const Timing read = clock.time(
      [&] { read_all<<<4096, 256, 0, stream>>>(rows, kNumRows * kLanesPerRow, clock.sink()); });
  std::printf(
      "{\"gpu\": \"%s\", \"sms\": %d, \"l2_bytes\": %d, \"copy_gb_per_s\": %.1f, "
      "\"read_gb_per_s\": %.1f}\n",
      device.name, num_sms, device.l2CacheSize, 2.0 * kFlushBytes / copy.median_ms / 1e6,
      double(kNumRows) * kRowBytes / read.median_ms / 1e6);

  uint32_t* checksum = allocate<uint32_t>(1);
  int num_wrong = 0;
  for (uint32_t window : {1, 2, 4, 10, 20, 50, 100}) {
    // As many rows from each layer, a whole number.
    const Gather gather = {rows, kNumLayers * int(kLayerRows / window), window, checksum};
    const uint32_t expected =
        checksum_of([&] { gather_plainly<<<4096, 32, 0, stream>>>(gather); }, checksum, stream);
    for (const Kernel& kernel : kKernels) {
      if (device.major < kernel.first_major) continue;
      check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 kernel.shared_bytes()),
            "cudaFuncSetAttribute");
      auto gather_once = [&] { enqueue(kernel, gather, 1, num_sms, stream); };
      if (checksum_of(gather_once, checksum, stream) != expected) {
        std::fprintf(stderr, "gather_rows: checksum of %s, %d rows per warp, 1 in %u, is wrong.\n",
                     kernel.instruction, kernel.depth, window);
        ++num_wrong;
      }
      for (int num_launches : {kNumLayers, 1}) {
        for (int blocks_per_sm : {1, 2, 4}) {
          measure(kernel, gather, num_launches, blocks_per_sm, num_sms, clock, stream);
        }
      }
    }
  }
  return num_wrong > 0;
}

}  // namespace
}  // namespace gather

int main() { return gather::run(); }
