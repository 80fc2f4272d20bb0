# The installed tree, the same in a wheel (under sift_attention/) and under an install prefix:
# lib/, include/sift_attention/, share/cmake/SiftAttention/ and the Python module.
include(CMakePackageConfigHelpers)
set(package_dir share/cmake/SiftAttention)
set(generated_dir ${CMAKE_CURRENT_BINARY_DIR}/package)
set(CMAKE_INSTALL_MESSAGE LAZY)

install(TARGETS sift_attention EXPORT SiftAttentionTargets
  LIBRARY DESTINATION lib
  INCLUDES DESTINATION include)
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
