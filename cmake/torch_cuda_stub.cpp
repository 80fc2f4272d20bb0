// What the CUDA operators use of libtorch_cuda.so, for linking where torch lacks that library.
extern "C" void aoti_torch_get_current_cuda_stream() {}
