// Where HTTP is answered. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "client/wire/status.h"

namespace bitpager::daemon {

struct HttpAddress {
  std::string ip;          // "127.0.0.1", "::1"
  std::uint16_t port = 0;  // 0: any
  bool loopback = false;
};

// "127.0.0.1:9790", "localhost:9790", "[::1]:9790". kInvalidArgument with a hint.
[[nodiscard]] wire::Result<HttpAddress> ParseHttpAddress(std::string_view text);
// As ParseHttpAddress reads it.
[[nodiscard]] std::string ToText(const HttpAddress& address);

// Whether a request's Host header names this machine itself: localhost, 127.0.0.1 or [::1], with a port or
// without. A page of another origin that had its name resolved to us sends its own.
[[nodiscard]] bool IsOwnHost(std::string_view host);

}  // namespace bitpager::daemon
