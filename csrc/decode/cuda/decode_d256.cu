#include "decode/cuda/launch_decode.h"

namespace sift {

template void launch_decode<256>(DecodeArguments arguments, dev::Stream stream);

}  // namespace sift
