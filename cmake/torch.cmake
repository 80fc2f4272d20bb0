# Sets SIFT_TORCH_DIR, the folder of Python's torch. The operators need its headers and one library,
# no find_package(Torch). Asking where torch lies does not import it, which would take seconds.
include(cmake/python.cmake)

sift_ask_python(SIFT_TORCH_DIR
  "from importlib.util import find_spec; print(find_spec('torch').submodule_search_locations[0])")
sift_ask_python(torch_version
  "from importlib.metadata import version; print(version('torch').partition('+')[0])")
if(NOT SIFT_TORCH_DIR)
  set(torch_version none)
endif()
if(NOT torch_version VERSION_GREATER_EQUAL 2.11)
  message(FATAL_ERROR
    "torch must be 2.11 or newer, got ${torch_version} in ${Python_EXECUTABLE}.")
endif()
message(STATUS "Found torch ${torch_version}: ${SIFT_TORCH_DIR}")
