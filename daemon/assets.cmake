# Embeds the dashboard's files in the daemon. As a module: bitpager_embed_assets(TARGET). As a script:
#   cmake -DOUT=FILE -DFILES=PATH=FILE;... -P assets.cmake
# writes one C++ source with every FILE, to be found by its PATH (assets.h).

if(NOT CMAKE_SCRIPT_MODE_FILE)
  # Every file of tools/dashboards/web/ as /assets/NAME, index.html as /, and Chart.js as distributions ship it.
  function(bitpager_embed_assets target)
    set(folder ${CMAKE_SOURCE_DIR}/tools/dashboards/web)
    file(GLOB_RECURSE files CONFIGURE_DEPENDS ${folder}/*)
    find_file(CHART_JS chart.min.js PATHS /usr/share/javascript/chart.js /usr/share/javascript/chartjs NO_DEFAULT_PATH)
    if(NOT CHART_JS)
      message(FATAL_ERROR "Chart.js was not found. Hint: apt-get install libjs-chart.js")
    endif()
    set(entries "/assets/chart.min.js=${CHART_JS}")
    foreach(file IN LISTS files)
      file(RELATIVE_PATH name ${folder} ${file})
      if(name STREQUAL "index.html")
        list(APPEND entries "/=${file}")
      else()
        list(APPEND entries "/assets/${name}=${file}")
      endif()
    endforeach()
    set(out ${CMAKE_CURRENT_BINARY_DIR}/assets_data.cc)
    add_custom_command(OUTPUT ${out}
      COMMAND ${CMAKE_COMMAND} -DOUT=${out} "-DFILES=${entries}" -P ${CMAKE_CURRENT_SOURCE_DIR}/assets.cmake
      DEPENDS ${files} ${CHART_JS} ${CMAKE_CURRENT_SOURCE_DIR}/assets.cmake
      COMMENT "Embedding the dashboard" VERBATIM)
    target_sources(${target} PRIVATE ${out})
  endfunction()
  return()
endif()

cmake_minimum_required(VERSION 3.22)

# By file name's end. Anything else is refused: a browser must never have to guess.
function(content_type file out)
  string(REGEX REPLACE ".*\\." "" end "${file}")
  set(text_html html)
  set(text_javascript js mjs)
  set(text_css css)
  set(text_plain txt)
  set(image_svg+xml svg)
  set(image_png png)
  set(image_x-icon ico)
  set(application_json json)
  set(application_manifest+json webmanifest)
  set(font_woff2 woff2)
  foreach(type IN ITEMS text_html text_javascript text_css text_plain image_svg+xml image_png image_x-icon
                        application_json application_manifest+json font_woff2)
    if(end IN_LIST ${type})
      string(REPLACE "_" "/" name "${type}")
      if(type MATCHES "^text_")
        string(APPEND name "; charset=utf-8")
      endif()
      set(${out} "${name}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "${file}: no content type is known for its name. Hint: add it to daemon/assets.cmake")
endfunction()

set(data "")
set(table "")
set(count 0)
foreach(entry IN LISTS FILES)
  string(REGEX MATCH "^([^=]*)=(.*)$" matched "${entry}")
  set(path "${CMAKE_MATCH_1}")
  set(file "${CMAKE_MATCH_2}")
  content_type("${file}" type)
  file(SHA256 "${file}" hash)
  string(SUBSTRING ${hash} 0 32 hash)
  file(READ "${file}" hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  file(SIZE "${file}" size)
  # One byte more, so that an empty file is no empty array.
  string(APPEND data "constexpr unsigned char kFile${count}[] = {${bytes}0};\n")
  string(APPEND table "    Asset{\"${path}\", \"${type}\", \"\\\"${hash}\\\"\", TextOf(kFile${count}, ${size})},\n")
  math(EXPR count "${count} + 1")
endforeach()
file(WRITE "${OUT}" "// Written by daemon/assets.cmake.
#include <cstddef>

#include \"daemon/assets.h\"

namespace bitpager::daemon {
namespace {

${data}
std::string_view TextOf(const unsigned char* bytes, std::size_t count) {
  return {reinterpret_cast<const char*>(bytes), count};
}

}  // namespace

const Asset* FindAsset(std::string_view path) {
  static const Asset kAssets[] = {
${table}  };
  for (const Asset& asset : kAssets) {
    if (asset.path == path) return &asset;
  }
  return nullptr;
}

}  // namespace bitpager::daemon
")
