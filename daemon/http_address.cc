#include "daemon/http_address.h"

#include <algorithm>
#include <boost/asio/ip/address.hpp>
#include <boost/system/error_code.hpp>
#include <cctype>
#include <charconv>

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

struct Parts {
  std::string_view host;
  std::string_view port;  // empty: none was given
  bool well_formed = false;
};

// The host may stand in brackets; without them it has no colon.
Parts Split(std::string_view text) {
  Parts out;
  std::string_view rest;
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) return out;
    out.host = text.substr(1, end - 1);
    rest = text.substr(end + 1);
  } else {
    const std::size_t colon = std::min(text.find(':'), text.size());
    out.host = text.substr(0, colon);
    rest = text.substr(colon);
  }
  if (!rest.empty() && rest.front() != ':') return out;
  if (!rest.empty()) {
    out.port = rest.substr(1);
    const bool digits =
        std::all_of(out.port.begin(), out.port.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (out.port.empty() || !digits) return out;
  }
  out.well_formed = !out.host.empty();
  return out;
}

}  // namespace

Result<HttpAddress> ParseHttpAddress(std::string_view text) {
  const Status bad(Code::kInvalidArgument,
                   "'" + std::string(text) +
                       "' is no address to serve HTTP on. Hint: 127.0.0.1:9790, [::1]:9790; "
                       "port 0 takes a free one");
  const Parts parts = Split(text);
  HttpAddress out;
  const auto parsed = std::from_chars(parts.port.data(), parts.port.data() + parts.port.size(), out.port);
  if (!parts.well_formed || parts.port.empty() || parsed.ec != std::errc()) return bad;
  out.ip = parts.host == "localhost" ? "127.0.0.1" : std::string(parts.host);
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(out.ip, error);
  const bool bracketed = text.starts_with('[');
  if (error || address.is_v6() != bracketed) return bad;
  out.loopback = address.is_loopback();
  return out;
}

std::string ToText(const HttpAddress& address) {
  const bool v6 = address.ip.find(':') != std::string::npos;
  return (v6 ? "[" + address.ip + "]" : address.ip) + ":" + std::to_string(address.port);
}

bool IsOwnHost(std::string_view host) {
  const Parts parts = Split(host);
  if (!parts.well_formed) return false;
  constexpr std::string_view kLocal = "localhost";
  const bool local =
      std::equal(parts.host.begin(), parts.host.end(), kLocal.begin(), kLocal.end(),
                 [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; });
  return local || parts.host == "127.0.0.1" || parts.host == "::1";
}

}  // namespace bitpager::daemon
