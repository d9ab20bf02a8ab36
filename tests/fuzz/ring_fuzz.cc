// Fuzzes a session's rings: cursors and records of its shared segment overwritten, then looked at by the
// daemon's side. A session takes only records with consecutive tickets, never more than its limit, and says
// when the peer's cursors are impossible. One thread.
#include <memory>

#include "daemon/session.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/fuzz/check.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/support/in_process_daemon.h"

namespace bitpager::testing {
namespace {

class Target {
 public:
  Target() {
    auto opened = kernels::cpu::OpenCpuDevice(1);
    FUZZ_CHECK(opened.ok());
    device_ = std::move(*opened);
    fds_ = OpenFds();
    Renew();
  }

  void One(Input input) {
    for (std::uint64_t actions = 1 + input.Below(4); actions > 0; --actions) {
      Act(input, session_->segment().header());
    }
  }
  void Finish() {
    std::printf("%llu requests taken, %llu sessions ended\n", static_cast<unsigned long long>(taken_),
                static_cast<unsigned long long>(renewals_));
    FUZZ_CHECK(renewals_ > 10 && taken_ > renewals_);
    session_.reset();
    FUZZ_CHECK(OpenFds() == fds_);
  }

 private:
  void Renew() {
    ++renewals_;
    next_ticket_ = 1;
    pushed_ = 0;
    auto made = daemon::Session::Make({{1}, {1}, {1000, 1000, 1}, 0, "fuzz"}, *device_);
    FUZZ_CHECK(made.ok());
    session_ = std::move(*made);
  }

  void Act(Input& input, wire::SegmentHeader& header) {
    switch (input.Take<std::uint8_t>() % 16) {
      case 0:  // any cursor, near or far
        header.request_tail.word.store(pushed_ + input.Nasty());
        break;
      case 1:
        header.completion_head.word.store(input.Nasty());
        break;
      case 2:
        input.Mutate(&header, sizeof(header), 4);
        break;
      case 3: {
        wire::RequestRecord& record = session_->segment().requests()[input.Below(wire::kRequestSlots)];
        input.Mutate(&record, sizeof(record), 6);
        break;
      }
      case 4:
      case 5:
        return Complete(input);
      case 6:
        (void)session_->HeadReady();
        session_->AnnounceSleep(input.Take<std::uint8_t>() % 2 == 0);
        break;
      default:
        PushValid(input, header);
    }
    Take();
  }
  // What a client would write.
  void PushValid(Input& input, wire::SegmentHeader& header) {
    for (std::uint64_t i = 0; i <= input.Below(3); ++i) {
      wire::RequestRecord record;
      record.version = wire::kWireVersion;
      record.ticket = ++pushed_;
      record.ready = input.Take<std::uint8_t>() % 4 == 0 ? pushed_ : 0;
      session_->segment().requests()[(pushed_ - 1) % wire::kRequestSlots] = record;
    }
    header.request_tail.word.store(pushed_);
  }
  void Take() {
    const bool fine = session_->TakeRequests();
    FUZZ_CHECK(session_->pending.size() <= wire::kCompletionSlots);
    for (const wire::RequestRecord& record : session_->pending) {
      FUZZ_CHECK(record.ticket == next_ticket_);
      ++next_ticket_;
      ++taken_;
    }
    session_->pending.clear();
    if (!fine) Renew();
  }
  void Complete(Input& input) {
    wire::CompletionRecord completion;
    completion.ticket = input.Take<std::uint64_t>();
    if (!session_->Complete(completion)) return Renew();
    const std::uint64_t tail = session_->segment().header().completion_tail.word.load();
    if (input.Take<std::uint8_t>() % 8 != 0) session_->segment().header().completion_head.word.store(tail);
  }

  std::unique_ptr<kernels::Device> device_;
  std::unique_ptr<daemon::Session> session_;
  std::size_t fds_ = 0;
  std::uint64_t next_ticket_ = 1;
  std::uint64_t pushed_ = 0;
  std::uint64_t renewals_ = 0;
  std::uint64_t taken_ = 0;
};

}  // namespace
}  // namespace bitpager::testing

FUZZ_TARGET(bitpager::testing::Target)
