# The development files of the client: cmake --install BUILD --component development. They are part of the whole
# installation too, beside what tools/packaging.cmake puts there.
#   include/bitpager.h, lib/libbitpager.so.1          the C ABI                          bitpager::c
#   include/bitpager/, lib/libbitpager_client.a       the C++ client                     bitpager::client
#   share/bitpager/torch/                             sources of the libtorch optimizers bitpager::torch
#   lib/cmake/bitpager/, lib/pkgconfig/               how CMake and pkg-config find them
include(CMakePackageConfigHelpers)

# The same places on every system: the bundle is unpacked anywhere, and the .pc files say so too.
set(library_folder lib)
set(config_folder ${library_folder}/cmake/bitpager)
set(data_folder share/bitpager/torch)
set(header_folder include/bitpager)

target_include_directories(bitpager_client_archive INTERFACE $<INSTALL_INTERFACE:${header_folder}>)
target_compile_features(bitpager_client_archive INTERFACE cxx_std_20)
target_link_libraries(bitpager_client_archive INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
target_include_directories(bitpager_shared INTERFACE $<INSTALL_INTERFACE:include>)
set_target_properties(bitpager_client_archive PROPERTIES EXPORT_NAME client)
set_target_properties(bitpager_shared PROPERTIES EXPORT_NAME c)

install(TARGETS bitpager_client_archive bitpager_shared EXPORT bitpagerTargets
        ARCHIVE DESTINATION ${library_folder} COMPONENT development
        LIBRARY DESTINATION ${library_folder} COMPONENT development)
install(EXPORT bitpagerTargets NAMESPACE bitpager:: DESTINATION ${config_folder} COMPONENT development)

install(FILES bitpager.h DESTINATION include COMPONENT development)
install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} DESTINATION ${header_folder} COMPONENT development
        FILES_MATCHING PATTERN "*.h" PATTERN "c_api*" EXCLUDE PATTERN "python" EXCLUDE PATTERN "package" EXCLUDE
                       PATTERN "examples" EXCLUDE)
install(FILES ${CMAKE_SOURCE_DIR}/quant/weight_layout.h DESTINATION ${header_folder}/quant COMPONENT development)

include(${CMAKE_CURRENT_SOURCE_DIR}/torch/sources.cmake)
list(TRANSFORM BITPAGER_TORCH_SOURCES PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/torch/)
install(FILES ${BITPAGER_TORCH_SOURCES} torch/sources.cmake DESTINATION ${data_folder} COMPONENT development)
install(DIRECTORY torch/examples DESTINATION ${data_folder} COMPONENT development)

configure_package_config_file(package/bitpagerConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/bitpagerConfig.cmake
                              INSTALL_DESTINATION ${config_folder} PATH_VARS data_folder)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/bitpagerConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/bitpagerConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/bitpagerConfigVersion.cmake package/bitpagerTorch.cmake
        DESTINATION ${config_folder} COMPONENT development)
foreach(name IN ITEMS bitpager bitpager-client)
  configure_file(package/${name}.pc.in ${CMAKE_CURRENT_BINARY_DIR}/${name}.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${name}.pc DESTINATION ${library_folder}/pkgconfig COMPONENT development)
endforeach()
