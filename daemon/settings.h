// What the dispatcher needs to know, resolved: bytes and frames, no defaults left open. Made by main from the
// configuration and the machine; constant afterwards.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "paging/pager.h"

namespace bitpager::daemon {

struct Settings {
  paging::PagerConfig pager;
  double job_weight = 1.0;
  std::uint64_t job_device_quota_bytes = 0;  // 0: none but the budget
  std::uint64_t job_host_quota_bytes = 0;
  std::int64_t linger_ms = 0;
  bool share_weights = true;  // equal weights of one share domain lie in the same pages
  std::uint32_t max_sessions = 256;
  std::uint32_t max_sessions_of_user = 256;  // of each uid but root and owner_uid
  std::uint64_t host_budget_bytes = 0;
  std::string disk_folder;  // of the file for pager.disk_frames
  // Memory that pages leave free for others, where it is the device's own; elsewhere only its nearness is
  // told.
  std::uint64_t free_watermark_bytes = 0;
  std::uint64_t heartbeat_interval_ms = 200;   // asked of clients that pass no pidfd
  std::uint64_t heartbeat_timeout_ms = 900;    // without a beat for so long, such a client is taken for dead
  std::uint64_t lease_return_ms = 5'000;       // a revoked lease that is used longer counts as used memory
  std::uint64_t spin_ns = 30'000;              // looked for work before sleeping
  std::uint64_t silent_spin_ns = 1'000'000;    // likewise, while a device works that rings no bell: longer
                                               // than a window's time on the link
  std::optional<std::uint32_t> ambiguous_uid;  // stands for several users: refused; see user_namespace.h
  std::uint32_t owner_uid = 0;                 // the daemon's own uid: may drain, like root
  std::string served_devices;                  // for the message to who asks for another
};

}  // namespace bitpager::daemon
