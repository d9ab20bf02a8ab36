// Room on the device for others: the pager's budget follows the device's free memory. Below the watermark, or
// when a client asks for room, pages leave until it is there; when there is room again the budget grows back.
// Only for devices with memory of their own. Dispatcher thread.
#pragma once

#include <cstdint>
#include <optional>

#include "daemon/core.h"

namespace bitpager::daemon {

class Pressure {
 public:
  explicit Pressure(Core& core) : core_(core) {}

  // Looks at the device when it is time. True when the budget changed: then the pager has decisions to make.
  [[nodiscard]] bool Poll(std::uint64_t now_ns);
  // When Poll should be called next; none while it has nothing to do.
  [[nodiscard]] std::optional<std::uint64_t> NextDeadlineNs() const;

  // How near a device's memory is to the watermark: 1 - (free - watermark) / watermark, within 0 and 1. So 0
  // from twice the watermark up; 1 where pages have to leave; 0 without a watermark.
  [[nodiscard]] static double Ratio(std::uint64_t free_bytes, std::uint64_t watermark_bytes);

  struct Room {
    std::uint64_t free_bytes = 0;     // of the device, now
    std::uint64_t leaving_bytes = 0;  // of frames on their way out
    bool final = false;  // no more can leave: one window of every job and what stays is all there is
  };
  // Makes the device have `bytes` free, and keeps it so for a while: long enough for the caller to allocate
  // them. Asked again, tells how far it is.
  Room Ask(std::uint64_t bytes, std::uint64_t now_ns);

 private:
  [[nodiscard]] bool idle() const;
  [[nodiscard]] bool applies() const { return !core_.device_info.in_host_memory; }
  // What is to be free for those who asked, beside what they have taken.
  [[nodiscard]] std::uint64_t Wish(std::uint64_t free_bytes, std::uint64_t now_ns) const;
  // Lowers or raises the budget as `free_bytes` demands. True when it changed.
  bool Adjust(std::uint64_t free_bytes, std::uint64_t now_ns);
  bool SetBudget(std::uint64_t frames);

  Core& core_;
  std::uint64_t next_look_ns_ = 0;
  std::uint64_t asked_bytes_ = 0;     // to be kept free until asked_until_ns_, less what was taken of it
  std::uint64_t asked_of_bytes_ = 0;  // free memory and pages' when it was asked for
  std::uint64_t asked_until_ns_ = 0;
  std::uint64_t calm_since_ns_ = 0;  // there has been room to grow since then; 0: there is none
};

}  // namespace bitpager::daemon
