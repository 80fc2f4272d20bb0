# Sets SIFT_TORCH_DIR, the folder of Python's torch. The operators need its headers and its
# libraries, no find_package(Torch). Asking where torch lies does not import it, which would take
# seconds.
include(cmake/python.cmake)
set(SIFT_MIN_TORCH 2.11)  # its stable ABI is what the operators use

sift_ask_python(SIFT_TORCH_DIR
  "from importlib.util import find_spec; print(find_spec('torch').submodule_search_locations[0])")
sift_ask_python(torch_version
  "from importlib.metadata import version; print(version('torch').partition('+')[0])")
if(NOT SIFT_TORCH_DIR)
  set(torch_version none)
endif()
if(NOT torch_version VERSION_GREATER_EQUAL ${SIFT_MIN_TORCH})
  message(FATAL_ERROR
    "torch must be ${SIFT_MIN_TORCH} or newer, got ${torch_version} in ${Python_EXECUTABLE}.")
endif()
message(STATUS "Found torch ${torch_version}: ${SIFT_TORCH_DIR}")

# What code with operators takes from torch: nothing but the stable ABI as it was in 2.11.
function(sift_use_torch target)
  target_compile_definitions(${target}
    PRIVATE TORCH_TARGET_VERSION=0x020b000000000000 TORCH_STABLE_ONLY)
  target_include_directories(${target} SYSTEM PRIVATE ${SIFT_TORCH_DIR}/include)
  target_link_libraries(${target} PRIVATE ${SIFT_TORCH_DIR}/lib/libtorch_cpu.so)
  target_link_options(${target} PRIVATE LINKER:--no-undefined)
  set_target_properties(${target} PROPERTIES
    BUILD_RPATH ${SIFT_TORCH_DIR}/lib
    INSTALL_RPATH $ORIGIN/../../torch/lib)
endfunction()
