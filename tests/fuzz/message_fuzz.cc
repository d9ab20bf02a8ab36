// Fuzzes the handshake and every other message: valid bodies with a few fields overwritten, wrong sizes,
// bare bytes, with fds of all kinds beside them. Afterwards nothing may be left: no session, job, extent,
// import or fd; and a neighbour's numbers stay right. One thread.
#include <fcntl.h>
#include <sys/eventfd.h>

#include <map>

#include "tests/fuzz/input.h"
#include "tests/fuzz/neighbour.h"
#include "tests/fuzz/target.h"

namespace bitpager::testing {
namespace {

using wire::MessageType;

constexpr std::uint64_t kMessagesPerConnection = 48;

daemon::Settings FuzzSettings() {
  daemon::Settings settings = TestSettings();
  settings.max_sessions = 6;
  return settings;
}

class Target {
 public:
  Target() : daemon_(FuzzSettings()), neighbour_(daemon_) {
    memory_ = MakeMemory(64 << 10);
    sealed_ = MakeMemory(64 << 10);
    FUZZ_CHECK(::fcntl(sealed_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    event_.Reset(::eventfd(0, EFD_CLOEXEC));
    null_.Reset(::open("/dev/null", O_RDWR | O_CLOEXEC));
    pidfd_ = PidfdOf(::getpid());
    OpenDomain();
    imports_ = daemon_.device->imports;
    fds_ = OpenFds();
  }

  void One(Input input) {
    if (client_ == nullptr) {
      client_ = daemon_.Connect({1000, 1000, 1});
      left_ = kMessagesPerConnection;
      // Most connections begin well, or nothing behind hello would be reached.
      if (input.Take<std::uint8_t>() % 8 != 0) (void)client_->Hello(Hello(input));
    }
    Say(input);
    if (input.Take<std::uint8_t>() % 4 == 0) Request(input);
    daemon_.Turn();
    if (!Hear() || --left_ == 0) client_.reset();
    ++count_;
    if (count_ % 5'000 == 0) daemon_.CheckInvariants();
    if (count_ % 50'000 == 0) neighbour_.StepAndCheck();
    if (count_ % 100'000 == 0) ExpectNothingLeft();
  }
  void Finish() {
    neighbour_.StepAndCheck();
    ExpectNothingLeft();
    // Every kind of message was taken and refused, or the mutations are too weak or too strong.
    for (const MessageType type :
         {MessageType::kHello, MessageType::kCreateBuffer, MessageType::kRegisterBuffer,
          MessageType::kReleaseBuffer, MessageType::kCreateArena, MessageType::kCreateWeight,
          MessageType::kDropExtent, MessageType::kLimit, MessageType::kEvict}) {
      const Answers& answers = answers_[type];
      std::printf("message %u: %llu ok, %llu refused\n", static_cast<unsigned>(type),
                  static_cast<unsigned long long>(answers.ok),
                  static_cast<unsigned long long>(answers.refused));
      FUZZ_CHECK(answers.ok > count_ / 2'000 && answers.refused > count_ / 1'000);
    }
  }

 private:
  struct Answers {
    std::uint64_t ok = 0;
    std::uint64_t refused = 0;
  };

  // The share domain of a user stays open once it had frames.
  void OpenDomain() {
    auto client = daemon_.Open("first");
    const RawBuffer memory = client->MakeBuffer(4096);
    wire::CreateWeightBody body;
    body.elements = 1000;
    const Reply weight = client->Ask(MessageType::kCreateWeight, body);
    wire::QuantizeBody quantize;
    quantize.extent = weight.value(0);
    quantize.in = memory.Place();
    FUZZ_CHECK(RawClient::CodeOf(client->Run(wire::Op::kQuantize, quantize)) == wire::Code::kOk);
    client.reset();
    daemon_.Settle();
  }
  void ExpectNothingLeft() {
    client_.reset();
    daemon_.Settle();
    daemon_.notices.clear();
    FUZZ_CHECK(daemon_.sessions() == 1);
    FUZZ_CHECK(daemon_.jobs() == 1);
    FUZZ_CHECK(daemon_.device->imports == imports_);
    FUZZ_CHECK(daemon_.device->scratches == 0);
    FUZZ_CHECK(OpenFds() == fds_);
    daemon_.CheckInvariants();
  }

  wire::HelloBody Hello(Input& input) {
    return RawClient::HelloBodyOf("job" + std::to_string(input.Below(2)), 0);
  }

  template <typename Body>
  void Send(Input& input, MessageType type, Body body) {
    if (input.Take<std::uint8_t>() % 4 != 0) input.Mutate(&body, sizeof(body), 2);
    wire::MessageHeader header;
    header.type = type;
    header.body_bytes = sizeof(Body);
    std::array<std::byte, sizeof(header) + sizeof(Body)> bytes;
    std::size_t size = bytes.size();
    if (input.Take<std::uint8_t>() % 32 == 0) input.Mutate(&header, sizeof(header), 1);
    std::memcpy(bytes.data(), &header, sizeof(header));
    std::memcpy(bytes.data() + sizeof(header), &body, sizeof(body));
    if (input.Take<std::uint8_t>() % 64 == 0) size = 1 + input.Below(size);
    std::array<int, wire::kMaxMessageFds> fds{};
    const std::size_t count = Fds(input, type, fds);
    (void)wire::SendPacket(client_->socket(), {bytes.data(), size}, {fds.data(), count}).ok();
  }
  std::size_t Fds(Input& input, MessageType type, std::array<int, wire::kMaxMessageFds>& fds) {
    const int kinds[] = {memory_.get(), sealed_.get(), event_.get(), null_.get(), pidfd_.get()};
    if (type == MessageType::kRegisterBuffer && input.Take<std::uint8_t>() % 2 == 0) {
      fds[0] = memory_.get();
      return 1;
    }
    if (input.Take<std::uint8_t>() % 4 != 0) return 0;
    const std::size_t count = input.Below(wire::kMaxMessageFds + 1);
    for (std::size_t i = 0; i < count; ++i) fds[i] = kinds[input.Below(std::size(kinds))];
    return count;
  }

  void Say(Input& input) {
    switch (input.Take<std::uint8_t>() % 14) {
      case 0:
        return Send(input, MessageType::kHello, Hello(input));
      case 1:
        return Send(input, MessageType::kCreateBuffer, wire::CreateBufferBody{64 << 10});
      case 2:
      case 3:
        return Send(input, MessageType::kRegisterBuffer,
                    wire::RegisterBufferBody{1 + input.Below(70'000), 1, 0, {}});
      case 4:
        return Send(input, MessageType::kReleaseBuffer, wire::ReleaseBufferBody{1 + input.Below(4)});
      case 5:
      case 6:
        return Send(input, MessageType::kCreateArena, Arena(input));
      case 7:
        return Send(input, MessageType::kCreateWeight, Weight(input));
      case 8:
        return Send(input, MessageType::kDropExtent, wire::DropExtentBody{last_extent_});
      case 9:
        return Send(input, MessageType::kMapDomain, wire::MapDomainBody{input.Below(64)});
      case 10:
        return Send(input, MessageType::kLimit, Limit(input));
      case 11: {
        wire::EvictBody body;
        wire::CopyText(body.job, "job0");
        return Send(input, MessageType::kEvict, body);
      }
      case 12:
        (void)wire::SendBare(client_->socket(),
                             input.Below(16) == 0 ? MessageType::kDetach : MessageType::kUsage, 1)
            .ok();
        return;
      default:
        return Bytes(input);
    }
  }
  // Nothing that looks like a message.
  void Bytes(Input& input) {
    if (input.Take<std::uint8_t>() % 8 != 0) return;
    std::array<std::byte, 64> bytes{};
    const std::size_t size = 1 + input.Below(bytes.size());
    input.Fill(bytes.data(), size);
    (void)wire::SendPacket(client_->socket(), {bytes.data(), size}).ok();
  }
  // The first buffer of a session usually is where the element counts are.
  wire::CreateArenaBody Arena(Input& input) {
    wire::CreateArenaBody body;
    wire::CopyText(body.optimizer, "o" + std::to_string(input.Below(3)));
    body.tensors = 1 + static_cast<std::uint32_t>(input.Below(3));
    body.table = {1 + input.Below(2), 0};
    body.rule = static_cast<wire::Rule>(input.Below(2));
    body.bits = input.Below(2) == 0 ? wire::StateBits::k8 : wire::StateBits::k32;
    body.resume = static_cast<wire::Resume>(input.Below(2));
    return body;
  }
  static wire::CreateWeightBody Weight(Input& input) {
    wire::CreateWeightBody body;
    body.elements = 1 + input.Below(60'000);
    body.nested = static_cast<std::uint8_t>(input.Below(2));
    body.unshared = static_cast<std::uint8_t>(input.Below(2));
    return body;
  }
  static wire::LimitBody Limit(Input& input) {
    wire::LimitBody body;
    wire::CopyText(body.job, "job" + std::to_string(input.Below(2)));
    body.device_quota_bytes = (2 + input.Below(12)) * kTestPageBytes;
    return body;
  }

  // A request of the session, so that messages meet work that is under way.
  void Request(Input& input) {
    if (!client_->attached() || client_->failed() != wire::Code::kOk) return;
    switch (input.Take<std::uint8_t>() % 3) {
      case 0:
        client_->Push(RawClient::RecordOf(wire::Op::kPrefetch, wire::PrefetchBody{last_extent_, 0, 0}));
        break;
      case 1:
        client_->Push(RawClient::RecordOf(wire::Op::kLease, wire::LeaseBody{last_extent_}));
        break;
      default: {
        wire::QuantizeBody body;
        body.extent = last_extent_;
        body.in = {1 + input.Below(3), 0};
        client_->Push(RawClient::RecordOf(wire::Op::kQuantize, body));
      }
    }
  }
  // Reads all answers. False when the daemon hung up.
  bool Hear() {
    while (client_->attached() && client_->Pop()) {
    }
    for (;;) {
      wire::Packet packet;
      const wire::Status got = wire::ReceivePacket(client_->socket(), packet);
      if (got.code() == wire::Code::kPending) return true;
      if (!got.ok() || packet.closed) return false;
      wire::ReplyBody body;
      FUZZ_CHECK(wire::ReadBody(packet, body));
      FUZZ_CHECK(wire::IsTerminated(body.message));
      const MessageType type = packet.header().type;
      // A refusal says why; of what is granted, only a hello names something: the device.
      const bool says = body.code != 0 || type == MessageType::kHello;
      FUZZ_CHECK(says == !wire::TextOf(body.message).empty());
      body.code == 0 ? ++answers_[type].ok : ++answers_[type].refused;
      if (body.code != 0) continue;
      if (type == MessageType::kCreateArena || type == MessageType::kCreateWeight) {
        last_extent_ = body.values[0];
      } else if (type == MessageType::kCreateBuffer && body.values[1] >= 64) {
        const SharedMap map(packet.fds[0].get(), 64);
        for (int i = 0; i < 8; ++i) map.At<std::uint64_t>(0)[i] = 1 + (count_ * 977 + i * 311) % 9'000;
      }
    }
  }

  InProcessDaemon daemon_;
  Neighbour neighbour_;
  std::unique_ptr<RawClient> client_;
  wire::UniqueFd memory_, sealed_, event_, null_, pidfd_;
  std::int64_t imports_ = 0;
  std::size_t fds_ = 0;
  std::uint64_t left_ = 0;
  std::uint64_t count_ = 0;
  std::uint64_t last_extent_ = 0;
  std::map<MessageType, Answers> answers_;
};

}  // namespace
}  // namespace bitpager::testing

FUZZ_TARGET(bitpager::testing::Target)
