// What the CUDA operators use of libtorch_cuda.so, for linking where torch lacks that library.
extern "C" [[gnu::visibility("default")]] void aoti_torch_get_current_cuda_stream() {}
