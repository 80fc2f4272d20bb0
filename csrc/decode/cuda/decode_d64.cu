#include "decode/cuda/launch_decode.h"

namespace sift {

template void launch_decode<64>(DecodeArguments arguments, dev::Stream stream);

}  // namespace sift
