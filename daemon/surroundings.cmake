# Everything around the daemon's core: settings, facts of the machine, log, snapshot, telemetry, service manager.
# The command line tool links it too.
find_path(TOMLPLUSPLUS_INCLUDE_DIR toml++/toml.h)
if(NOT TOMLPLUSPLUS_INCLUDE_DIR)
  message(FATAL_ERROR "toml++ was not found. Hint: apt-get install libtomlplusplus-dev")
endif()
find_path(ZMQ_INCLUDE_DIR zmq.hpp)
find_library(ZMQ_LIBRARY zmq)
if(NOT ZMQ_INCLUDE_DIR OR NOT ZMQ_LIBRARY)
  message(FATAL_ERROR "ZeroMQ was not found. Hint: apt-get install libzmq3-dev cppzmq-dev")
endif()

add_library(bitpager_daemon_surroundings STATIC
  accept_guard.cc budgets.cc cgroup.cc config.cc config_file.cc config_settings.cc config_units.cc log.cc machine.cc notify.cc
  snapshot.cc snapshot_text.cc telemetry.cc)
target_link_libraries(bitpager_daemon_surroundings
  PUBLIC bitpager_wire bitpager_options spdlog::spdlog nlohmann_json::nlohmann_json
  PRIVATE CLI11::CLI11 ${ZMQ_LIBRARY} Threads::Threads)
# GCC 12 sees an overlap in "literal" + std::string that cannot be (its bug 105651).
target_compile_options(bitpager_daemon_surroundings PUBLIC $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)
target_include_directories(bitpager_daemon_surroundings SYSTEM PRIVATE ${TOMLPLUSPLUS_INCLUDE_DIR}
                           ${ZMQ_INCLUDE_DIR})
