#include "daemon/device_room.h"

#include <algorithm>

namespace bitpager::daemon {

void DeviceRoom::Freed(std::uint64_t now_ns) {
  give_back_ns_ = now_ns + kUnusedNs;
}

void DeviceRoom::Refused(std::uint64_t now_ns) {
  // A refusal long after the last is a new shortage.
  if (refused_ns_ != 0 && now_ns - refused_ns_ > 4 * kLongestRetryNs) wait_ns_ = kFirstRetryNs;
  refused_ns_ = now_ns;
  retry_ns_ = now_ns + wait_ns_;
  wait_ns_ = std::min(2 * wait_ns_, kLongestRetryNs);
}

void DeviceRoom::AskAgain() {
  retry_ns_ = 0;
  static_cast<void>(pager_.SetDeviceFrames(wanted_frames_).ok());  // growing is never refused
}

wire::Status DeviceRoom::SetWanted(std::uint64_t frames) {
  wire::Status taken = pager_.SetDeviceFrames(frames);
  if (taken.ok()) wanted_frames_ = frames;
  return taken;
}

bool DeviceRoom::Poll(std::uint64_t now_ns) {
  bool changed = false;
  if (give_back_ns_ != 0 && give_back_ns_ <= now_ns) {
    give_back_ns_ = 0;
    pager_.GiveBackUnused();
    changed = true;
  }
  if (retry_ns_ != 0 && retry_ns_ <= now_ns) {
    AskAgain();
    changed = true;
  }
  return changed;
}

std::optional<std::uint64_t> DeviceRoom::NextDeadlineNs() const {
  if (give_back_ns_ == 0 && retry_ns_ == 0) return std::nullopt;
  if (give_back_ns_ == 0 || retry_ns_ == 0) return std::max(give_back_ns_, retry_ns_);
  return std::min(give_back_ns_, retry_ns_);
}

}  // namespace bitpager::daemon
