#include "daemon/pressure.h"

#include <algorithm>

namespace bitpager::daemon {
namespace {

// Between looks. A training process that grows fills a gigabyte in some milliseconds.
constexpr std::uint64_t kLookNs = 10'000'000;
// Asking a driver takes microseconds on one machine and a millisecond on another, and this thread also keeps
// the device busy: at most one part in so many of its time, but half a second is the longest without a look.
constexpr std::uint64_t kLookShare = 200;
constexpr std::uint64_t kLongestLookNs = 500'000'000;
// What was asked for stays free so long, for the caller to take it.
constexpr std::uint64_t kKeepNs = 3'000'000'000;
// Room must have lasted before the budget grows into it: activations come and go in every step.
constexpr std::uint64_t kCalmNs = 1'000'000'000;

}  // namespace

// Without frames there is nothing to give, and without a lowered budget nothing to take back.
bool Pressure::idle() const {
  return core_.pager.allocated_frames() == 0 &&
         core_.pager.config().device_frames >= core_.settings.pager.device_frames;
}

bool Pressure::Poll(std::uint64_t now_ns) {
  if (!applies() || now_ns < next_look_ns_ || idle()) return false;
  const std::uint64_t before_ns = core_.clock.NowNs();
  const std::uint64_t free_bytes = core_.device.Memory().free_bytes;
  const std::uint64_t asking_ns = core_.clock.NowNs() - before_ns;
  next_look_ns_ = now_ns + std::clamp(kLookShare * asking_ns, kLookNs, kLongestLookNs);
  return Adjust(free_bytes, now_ns);
}

std::optional<std::uint64_t> Pressure::NextDeadlineNs() const {
  if (!applies() || idle()) return std::nullopt;
  return next_look_ns_;
}

double Pressure::Ratio(std::uint64_t free_bytes, std::uint64_t watermark_bytes) {
  if (watermark_bytes == 0 || free_bytes >= 2 * watermark_bytes) return 0;
  if (free_bytes <= watermark_bytes) return 1;
  return 1 - static_cast<double>(free_bytes - watermark_bytes) / static_cast<double>(watermark_bytes);
}

Pressure::Room Pressure::Ask(std::uint64_t bytes, std::uint64_t now_ns) {
  Room room;
  room.free_bytes = core_.device.Memory().free_bytes;
  if (!applies()) {
    room.final = true;
    return room;
  }
  asked_bytes_ = std::max(Wish(room.free_bytes, now_ns), bytes);
  asked_of_bytes_ = room.free_bytes + core_.pager.allocated_frames() * core_.page_bytes();
  asked_until_ns_ = now_ns + kKeepNs;
  Adjust(room.free_bytes, now_ns);
  const std::uint64_t page = core_.page_bytes();
  room.leaving_bytes = (core_.pager.allocated_frames() - core_.pager.staying_frames()) * page;
  room.final = room.leaving_bytes == 0 && core_.pager.staying_frames() <= core_.pager.LeastDeviceFrames();
  return room;
}

// Memory that is neither free nor pages' any more has been taken, by whoever asked for it as far as is known.
std::uint64_t Pressure::Wish(std::uint64_t free_bytes, std::uint64_t now_ns) const {
  if (now_ns >= asked_until_ns_) return 0;
  const std::uint64_t left = free_bytes + core_.pager.allocated_frames() * core_.page_bytes();
  const std::uint64_t taken = asked_of_bytes_ - std::min(asked_of_bytes_, left);
  return asked_bytes_ - std::min(asked_bytes_, taken);
}

bool Pressure::Adjust(std::uint64_t free_bytes, std::uint64_t now_ns) {
  const std::uint64_t page = core_.page_bytes();
  const std::uint64_t wanted = std::max(core_.settings.free_watermark_bytes, Wish(free_bytes, now_ns));
  const std::uint64_t staying = core_.pager.staying_frames();
  const std::uint64_t leaving = core_.pager.allocated_frames() - staying;
  const std::uint64_t coming_free = free_bytes + leaving * page;
  if (coming_free < wanted) {
    calm_since_ns_ = 0;
    const std::uint64_t short_frames = (wanted - coming_free + page - 1) / page;
    return SetBudget(staying > short_frames ? staying - short_frames : 0);
  }
  const std::uint64_t budget = core_.pager.config().device_frames;
  const std::uint64_t most = core_.settings.pager.device_frames;
  // Half a watermark above it, so that one segment more does not bring the pressure back.
  const std::uint64_t grow_above = wanted + core_.settings.free_watermark_bytes / 2;
  if (budget >= most || free_bytes <= grow_above) {
    calm_since_ns_ = 0;
    return false;
  }
  if (calm_since_ns_ == 0) calm_since_ns_ = now_ns;
  if (now_ns - calm_since_ns_ < kCalmNs) return false;
  return SetBudget(std::min(most, staying + (free_bytes - grow_above) / page));
}

bool Pressure::SetBudget(std::uint64_t frames) {
  const std::uint64_t least = core_.pager.LeastDeviceFrames();
  const std::uint64_t before = core_.pager.config().device_frames;
  const std::uint64_t wanted = std::max(frames, least);
  if (wanted == before) return false;
  if (!core_.room.SetWanted(wanted).ok()) return false;
  core_.Tell({wanted < before ? "pressure" : "pressure_over", "", wanted * core_.page_bytes(),
              "the device budget follows the device's free memory"});
  return true;
}

}  // namespace bitpager::daemon
