// The dashboard's files, embedded when the daemon was built (assets.cmake). Constant; any thread.
#pragma once

#include <string_view>

namespace bitpager::daemon {

struct Asset {
  std::string_view path;  // "/", "/assets/app.js"
  std::string_view type;  // Content-Type
  std::string_view etag;  // strong, in quotes: of the content
  std::string_view body;
};

// Null when there is none of that path.
[[nodiscard]] const Asset* FindAsset(std::string_view path);

}  // namespace bitpager::daemon
