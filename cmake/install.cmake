# The installed tree, the same in a wheel (under sift_attention/) and under an install prefix:
# lib/, include/sift_attention/, share/cmake/SiftAttention/ and the Python module.
include(CMakePackageConfigHelpers)
set(package_dir share/cmake/SiftAttention)
set(generated_dir ${CMAKE_CURRENT_BINARY_DIR}/package)
set(CMAKE_INSTALL_MESSAGE LAZY)

install(TARGETS sift_attention EXPORT SiftAttentionTargets
  LIBRARY DESTINATION lib
  INCLUDES DESTINATION include)
if(SIFT_BUILD_CUDA)
  set_target_properties(sift_attention_cuda PROPERTIES EXPORT_NAME cuda)
  install(TARGETS sift_attention_cuda EXPORT SiftAttentionTargets
    LIBRARY DESTINATION lib
    INCLUDES DESTINATION include)
  # Python loads the library only into a torch of the same CUDA major version.
  file(WRITE ${generated_dir}/cuda_version "${CMAKE_CUDA_COMPILER_VERSION}\n")
  install(FILES ${generated_dir}/cuda_version DESTINATION lib)
else()
  install(CODE [[  # an earlier build's, whose operators may have other arguments
    file(REMOVE "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/lib/libsift_attention_cuda.so"
      "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/lib/cuda_version")]])
endif()
install(TARGETS _estimator LIBRARY DESTINATION .)
install(DIRECTORY include/sift_attention DESTINATION include FILES_MATCHING PATTERN "*.h")
install(EXPORT SiftAttentionTargets NAMESPACE SiftAttention:: DESTINATION ${package_dir})

configure_package_config_file(
  cmake/SiftAttentionConfig.cmake.in ${generated_dir}/SiftAttentionConfig.cmake
  INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(
  ${generated_dir}/SiftAttentionConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${generated_dir}/SiftAttentionConfig.cmake ${generated_dir}/SiftAttentionConfigVersion.cmake
  DESTINATION ${package_dir})
