// Links the operators for CUDA, which exported programs call by name; part of the program where the
// package has them.
#include <sift_attention/cuda.h>
