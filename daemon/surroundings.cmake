# Everything around the daemon's core: settings, facts of the machine, log, snapshot, telemetry, service manager.
# The command line tool links it too.
find_path(TOMLPLUSPLUS_INCLUDE_DIR toml++/toml.h)
if(NOT TOMLPLUSPLUS_INCLUDE_DIR)
  message(FATAL_ERROR "toml++ was not found. Hint: apt-get install libtomlplusplus-dev")
endif()
find_path(BOOST_BEAST_INCLUDE_DIR boost/beast/http.hpp)
if(NOT BOOST_BEAST_INCLUDE_DIR)
  message(FATAL_ERROR "Boost.Beast was not found. Hint: apt-get install libboost-dev")
endif()
find_path(ZMQ_INCLUDE_DIR zmq.hpp)
find_library(ZMQ_LIBRARY zmq)
if(NOT ZMQ_INCLUDE_DIR OR NOT ZMQ_LIBRARY)
  message(FATAL_ERROR "ZeroMQ was not found. Hint: apt-get install libzmq3-dev cppzmq-dev")
endif()
# Programs that run on other machines carry their C++ libraries inside, so that none of this machine's C++
# runtime, the newest thing they would need, has to come along. ZeroMQ's static library names what it needs in
# its pkg-config file; the C libraries among them stay shared.
option(BITPAGER_PORTABLE "Link the C++ libraries of programs statically, where they are there" ON)
set(zmq_link ${ZMQ_LIBRARY})
set(spdlog_target spdlog::spdlog)
add_library(bitpager_program INTERFACE)  # every program links it
if(BITPAGER_PORTABLE AND NOT BITPAGER_SANITIZE)
  find_library(ZMQ_STATIC libzmq.a)
  find_library(PGM_STATIC libpgm.a)
  find_library(SODIUM_STATIC libsodium.a)
  find_library(GSSAPI_LIBRARY gssapi_krb5 PATH_SUFFIXES mit-krb5)
  find_library(BSD_LIBRARY bsd)
  if(ZMQ_STATIC AND PGM_STATIC AND SODIUM_STATIC AND GSSAPI_LIBRARY)
    add_library(bitpager_zmq_without_norm STATIC zmq_without_norm.cc)
    set(zmq_link ${ZMQ_STATIC} bitpager_zmq_without_norm ${PGM_STATIC} ${SODIUM_STATIC} ${GSSAPI_LIBRARY})
    if(BSD_LIBRARY)
      list(APPEND zmq_link ${BSD_LIBRARY})
    endif()
    find_package(fmt REQUIRED)
    add_library(bitpager_spdlog INTERFACE)
    get_target_property(spdlog_include spdlog::spdlog_header_only INTERFACE_INCLUDE_DIRECTORIES)
    target_include_directories(bitpager_spdlog SYSTEM INTERFACE ${spdlog_include})
    target_compile_definitions(bitpager_spdlog INTERFACE SPDLOG_FMT_EXTERNAL)
    target_link_libraries(bitpager_spdlog INTERFACE fmt::fmt-header-only Threads::Threads)
    set(spdlog_target bitpager_spdlog)
    target_link_options(bitpager_program INTERFACE -static-libstdc++ -static-libgcc)
    # GCC's static runtime asks for arc4random, which glibc has since 2.36 only; it comes last, so that the
    # linker would not see the need for this in time.
    if(BSD_LIBRARY)
      target_link_libraries(bitpager_program INTERFACE "-Wl,--push-state,--no-as-needed,${BSD_LIBRARY},--pop-state")
    endif()
    message(STATUS "bitpager: programs carry their C++ libraries")
  else()
    message(STATUS "bitpager: programs use this machine's shared C++ libraries (a static ZeroMQ or one of its needs is missing)")
  endif()
endif()

add_library(bitpager_zmq INTERFACE)
target_link_libraries(bitpager_zmq INTERFACE ${zmq_link})
target_include_directories(bitpager_zmq SYSTEM INTERFACE ${ZMQ_INCLUDE_DIR})

add_library(bitpager_daemon_surroundings STATIC
  accept_guard.cc background.cc budgets.cc cgroup.cc config.cc config_file.cc config_settings.cc config_units.cc event.cc http_address.cc http_connection.cc http_server.cc http_site.cc log.cc machine.cc
  metrics_label.cc metrics_sums.cc metrics_text.cc notify.cc page_map.cc
  snapshot.cc snapshot_merge.cc snapshot_text.cc telemetry.cc user_namespace.cc)
include(assets.cmake)
bitpager_embed_assets(bitpager_daemon_surroundings)
target_link_libraries(bitpager_daemon_surroundings
  PUBLIC bitpager_wire bitpager_options ${spdlog_target} nlohmann_json::nlohmann_json
  PRIVATE CLI11::CLI11 bitpager_zmq Threads::Threads)
# GCC 12 sees an overlap in "literal" + std::string that cannot be (its bug 105651).
target_compile_options(bitpager_daemon_surroundings PUBLIC $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)
target_include_directories(bitpager_daemon_surroundings SYSTEM PRIVATE ${TOMLPLUSPLUS_INCLUDE_DIR})
