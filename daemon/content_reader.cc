#include "daemon/content_reader.h"

#include <algorithm>

namespace bitpager::daemon {
namespace {

// Pages are pinned, and the device copies, for so much at once: little beside a step of another job.
constexpr std::uint64_t kPieceBytes = 4U << 20;

}  // namespace

std::uint64_t ContentReader::PieceBlocks(const Weight& weight) const {
  const std::uint64_t pages =
      std::clamp<std::uint64_t>(kPieceBytes / core_.page_bytes(), 1, core_.settings.pager.window_pages);
  return pages * weight.format.layout.blocks_per_page;
}

void ContentReader::Begin(wire::ExtentId paged, wire::JobId job, const Weight& weight) {
  reading_.emplace(
      Reading{paged, job, weight, HashOf(weight, weight.blocks()), 0, {}, 0, false, false, false});
  const std::uint64_t blocks = std::min(PieceBlocks(weight), weight.blocks());
  if (!piece_.Fits(weight.format.layout, blocks)) {
    piece_ = {};  // first: both at once may be too much
    piece_ = WeightPiece(core_.device, weight.format.layout, blocks);
  }
  reading_->failed = !piece_;
  ++asked_;  // also where it failed: Poll has the outcome
  if (piece_) Ask();
}

void ContentReader::Stop() {
  if (!reading_ || reading_->stopped) return;
  reading_->stopped = true;
  if (reading_->request) {
    ++asked_;
    core_.pager.Cancel(reading_->request);
  }
  static_cast<void>(Poll());
}

void ContentReader::Ask() {
  Reading& now = *reading_;
  const std::uint64_t end = std::min(now.next_block + PieceBlocks(now.weight), now.weight.blocks());
  const std::uint64_t end_element = std::min(end * now.weight.format.layout.blocksize, now.weight.elements);
  piece_.Aim(now.weight, {now.next_block, end, end_element});
  now.launched = 0;
  const wire::Result<wire::RequestId> request = core_.pager.Submit(
      {now.job, paging::Access::kRead, Cover(now.paged, now.weight, piece_.range()), false});
  if (request.ok()) {
    ++asked_;
    now.request = *request;
  } else {
    now.failed = true;
  }
}

kernels::Event ContentReader::Launch(std::span<const ResidentPage> pages) {
  reading_->launched += pages.size();
  return piece_.Out(core_.device, pages);
}

void ContentReader::Finished() {
  Reading& now = *reading_;
  const std::uint64_t asked = Cover(now.paged, now.weight, piece_.range()).front().count;
  now.request = {};
  if (now.stopped) return;
  if (now.launched < asked) {  // it was cancelled: the weight is gone, or there is no room
    now.failed = true;
    return;
  }
  now.hashing = true;
  thread_.Start(now.hash, piece_.Planes());
}

void ContentReader::CancelStarved() {
  if (reading_ && reading_->request && !core_.pager.Servable(reading_->request)) {
    core_.pager.Cancel(reading_->request);
  }
}

std::optional<ContentReader::Outcome> ContentReader::Poll() {
  if (!reading_ || reading_->request) return std::nullopt;
  Reading& now = *reading_;
  if (now.hashing) {
    if (!thread_.Done()) return std::nullopt;
    now.hashing = false;
    now.next_block = piece_.range().end;
  }
  const bool whole = now.next_block == now.weight.blocks();
  if (!now.stopped && !now.failed && !whole) {
    Ask();
    return std::nullopt;
  }
  std::optional<Outcome> outcome;
  if (!now.stopped) outcome.emplace(Outcome{now.paged, std::nullopt});
  if (outcome && !now.failed) outcome->digest = now.hash.Finish();
  reading_.reset();
  return outcome;
}

}  // namespace bitpager::daemon
