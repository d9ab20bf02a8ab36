// The bodies of commands that a user gives to the daemon.
#pragma once

#include <cstdint>
#include <string>

#include "client/wire/messages.h"
#include "client/wire/text.h"

namespace bitpager::testing {

// uid: owner of the job; ~0: the caller.
[[nodiscard]] inline wire::EvictBody EvictOf(const std::string& job, std::uint32_t uid = ~0U) {
  wire::EvictBody body;
  wire::CopyText(body.job, job);
  body.uid = uid;
  return body;
}
[[nodiscard]] inline wire::LimitBody LimitOf(const std::string& job, std::uint64_t device_bytes,
                                             std::uint32_t uid = ~0U) {
  wire::LimitBody body;
  wire::CopyText(body.job, job);
  body.uid = uid;
  body.device_quota_bytes = device_bytes;
  return body;
}

}  // namespace bitpager::testing
