// Fuzzes the client's side: completions, cursors and lease slots of the shared segment overwritten, and
// replies of garbage on the socket. The client says that the session is over, or goes on; it never crashes,
// waits for ever or keeps an fd. One thread.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <optional>

#include "client/lease.h"
#include "client/socket_calls.h"
#include "client/timeline.h"
#include "tests/fuzz/check.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/support/raw_client.h"

namespace bitpager::testing {
namespace {

using client::SocketCalls;
using client::Timeline;
using wire::Code;

std::size_t OpenDescriptors() {
  std::size_t count = 0;
  for (int fd = 0; fd < 1024; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0) ++count;
  }
  return count;
}

class Target {
 public:
  Target() : memory_(MakeMemory(wire::kSegmentBytes)), segment_(memory_.get(), wire::kSegmentBytes) {
    FUZZ_CHECK(segment_.base() != nullptr);
    frames_ = MakeMemory(1 << 20);
    RenewTimeline();
    RenewCalls();
    fds_ = OpenDescriptors();
  }

  void One(Input input) {
    ++count_;
    switch (input.Take<std::uint8_t>() % 4) {
      case 0:
      case 1:
        return Completions(input);
      case 2:
        return Replies(input);
      default:
        return Leases(input);
    }
  }
  void Finish() {
    std::printf("%llu ends, %llu hints, %llu leases\n", static_cast<unsigned long long>(failures_),
                static_cast<unsigned long long>(hints_), static_cast<unsigned long long>(leases_));
    FUZZ_CHECK(failures_ > count_ / 100 && hints_ > count_ / 100 && leases_ > count_ / 1'000);
    FUZZ_CHECK(OpenDescriptors() == fds_);
  }

 private:
  [[nodiscard]] wire::SegmentView view() const { return {segment_.base()}; }

  void RenewTimeline() {
    timeline_.reset();
    wire::SegmentHeader* header = new (segment_.base()) wire::SegmentHeader;
    header->total_bytes = wire::kSegmentBytes;
    completed_ = 0;
    pushed_ = 0;
    // A peer that has hung up: no wait lasts.
    int ends[2];
    FUZZ_CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    hung_up_.Reset(ends[0]);
    ::close(ends[1]);
    timeline_.emplace(view(), wire::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
                      wire::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), hung_up_.get());
  }
  void RenewCalls() {
    int ends[2];
    FUZZ_CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    daemon_.Reset(ends[1]);
    calls_.emplace(wire::UniqueFd(ends[0]));
    sequence_ = 0;
  }

  // What a daemon would answer to the oldest hint.
  void CompleteOne() {
    view().header().request_head.word.store(pushed_);
    if (completed_ == pushed_) return;
    wire::CompletionRecord record;
    record.ticket = ++completed_;
    record.op = wire::Op::kPhase;
    view().completions()[(completed_ - 1) % wire::kCompletionSlots] = record;
    view().header().completion_tail.word.store(completed_);
  }
  void Completions(Input& input) {
    switch (input.Take<std::uint8_t>() % 32) {
      case 0:
        view().header().completion_tail.word.store(completed_ + input.Nasty());
        break;
      case 1:
        view().header().request_head.word.store(input.Nasty());
        break;
      case 2: {
        CompleteOne();
        wire::CompletionRecord& record = view().completions()[input.Below(wire::kCompletionSlots)];
        input.Mutate(&record, sizeof(record), 6);
        break;
      }
      case 3:
        if (input.Take<std::uint8_t>() % 4 == 0) view().header().failed.word.store(input.Nasty());
        break;
      default:
        CompleteOne();
    }
    const bool waits = input.Take<std::uint16_t>() % 4'096 == 0;
    const wire::Status said = waits ? timeline_->Run(wire::Op::kNoop, wire::PhaseBody{}).status()
                                    : timeline_->Hint(wire::Op::kPhase, wire::PhaseBody{});
    if (said.ok()) {
      ++pushed_;
      ++hints_;
      return;
    }
    FUZZ_CHECK(!said.message().empty());
    // `failed` may hold anything: a session that is over must not look like one that is only busy.
    if (said.code() == Code::kFull && timeline_->failure().ok()) return;
    FUZZ_CHECK(said.code() > Code::kNotResident && said.code() != Code::kInterrupted);
    // It stays over, with the same words.
    FUZZ_CHECK(timeline_->Hint(wire::Op::kPhase, wire::PhaseBody{}).message() ==
               timeline_->failure().message());
    ++failures_;
    RenewTimeline();
  }

  // Writes a reply, spoiled or not, before the question that it answers.
  void PutReply(Input& input, wire::MessageType type, const wire::ReplyBody& valid, int fd) {
    wire::ReplyBody body = valid;
    wire::MessageHeader header;
    header.type = type;
    header.sequence = ++sequence_;
    header.body_bytes = sizeof(body);
    const std::uint8_t how = input.Take<std::uint8_t>();
    if (how % 4 == 0) input.Mutate(&body, 4, 1);
    if (how % 4 == 1) input.Mutate(&body, sizeof(body), 3);
    if (how % 16 == 2) input.Mutate(&header, sizeof(header), 1);
    if (how % 32 == 3) std::memset(body.message, 'x', sizeof(body.message));
    std::array<std::byte, sizeof(header) + sizeof(body)> bytes;
    std::memcpy(bytes.data(), &header, sizeof(header));
    std::memcpy(bytes.data() + sizeof(header), &body, sizeof(body));
    const std::size_t size = how % 64 == 5 ? 1 + input.Below(bytes.size()) : bytes.size();
    std::array<int, 4> fds{fd, fd, fd, fd};
    const std::size_t count = how % 8 == 6 ? input.Below(5) : (fd >= 0 ? 1 : 0);
    FUZZ_CHECK(wire::SendPacket(daemon_.get(), {bytes.data(), size}, {fds.data(), fd >= 0 ? count : 0}).ok());
  }
  void DropQuestion() {
    wire::Packet packet;
    (void)wire::ReceivePacket(daemon_.get(), packet).ok();
  }
  void Replies(Input& input) {
    PutReply(input, wire::MessageType::kUsage, {}, input.Below(2) == 0 ? frames_.get() : -1);
    const auto reply = calls_->AskBare(wire::MessageType::kUsage, 100);
    DropQuestion();
    if (!reply.ok()) FUZZ_CHECK(!reply.status().message().empty());
    if (!calls_->broken()) return;
    ++failures_;
    FUZZ_CHECK(!calls_->AskBare(wire::MessageType::kUsage, 100).ok());
    RenewCalls();
  }

  // A lease whose slot and frame table are spoiled, and whose mapping may be answered with anything.
  void Leases(Input& input) {
    client::LeaseGrant grant{input.Below(8), 1 + input.Below(3), 5, 1 + input.Below(4), 4096};
    wire::LeaseSlot& slot = view().leases()[grant.slot];
    slot.revoke.store(0);
    slot.generation.store(grant.generation);
    slot.extent = grant.extent;
    slot.first_frame = input.Below(16);
    slot.frames = grant.pages;
    for (std::uint64_t i = 0; i < 32; ++i) view().lease_frames()[i] = {1 + i / 16, i * 4096};
    if (input.Below(2) == 0) input.Mutate(&slot, sizeof(slot), 3);
    if (input.Below(2) == 0) input.Mutate(view().lease_frames(), 32 * sizeof(wire::LeaseFrame), 4);
    if (input.Below(8) == 0) input.Mutate(&grant, sizeof(grant), 1);
    wire::ReplyBody reply;
    reply.values[0] = 1 << 20;
    for (int i = 0; i < 2; ++i) PutReply(input, wire::MessageType::kMapDomain, reply, frames_.get());
    ::shutdown(daemon_.get(), SHUT_WR);  // further questions meet a hang-up
    {
      client::DomainMaps domains;
      SocketCalls calls(std::move(*calls_));
      const bool named = grant.slot < wire::kLeaseSlots;
      const std::uint64_t before = named ? view().leases()[grant.slot].in_use.load() : 0;
      const auto lease = client::TakeLease(view(), calls, domains, grant);
      if (lease.ok()) {
        std::uint64_t sum = 0;  // every page that it names can be read whole
        for (const std::byte* page : lease->pages) sum += std::to_integer<unsigned>(page[4095]);
        FUZZ_CHECK(sum == 0);
        ++leases_;
        FUZZ_CHECK(lease->pages.size() == grant.pages);
      } else {
        FUZZ_CHECK(!lease.status().message().empty());
      }
      // Taking is no use yet, or one that has ended.
      FUZZ_CHECK(!named || view().leases()[grant.slot].in_use.load() == before);
    }
    RenewCalls();
  }

  wire::UniqueFd memory_;
  SharedMap segment_;
  wire::UniqueFd frames_;
  wire::UniqueFd hung_up_;
  std::optional<Timeline> timeline_;
  wire::UniqueFd daemon_;
  std::optional<SocketCalls> calls_;
  std::uint32_t sequence_ = 0;
  std::uint64_t pushed_ = 0;
  std::uint64_t completed_ = 0;
  std::uint64_t count_ = 0;
  std::uint64_t failures_ = 0;
  std::uint64_t hints_ = 0;
  std::uint64_t leases_ = 0;
  std::size_t fds_ = 0;
};

}  // namespace
}  // namespace bitpager::testing

FUZZ_TARGET(bitpager::testing::Target)
