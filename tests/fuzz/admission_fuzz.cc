// Fuzzes admission: valid records and step tables with a few fields overwritten, admitted directly, and now
// and then through the ring with everything behind it. Whatever comes, the daemon lives, the session lives,
// and a neighbour's numbers stay right. One thread.
#include "daemon/admission.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/neighbour.h"
#include "tests/fuzz/target.h"

namespace bitpager::testing {
namespace {

using wire::Op;

// A session with an arena of three tensors, a 32-bit arena, a plain and a nested weight.
class Target {
 public:
  Target() : neighbour_(daemon_), client_(daemon_.Open("fuzzed")), trainer_(*client_, {5'000, 256, 700}) {
    FUZZ_CHECK(trainer_.Create().ok());
    memory_ = client_->MakeBuffer(512U << 10);
    plain_ = MakeWeight(0);
    nested_ = MakeWeight(1);
    session_ = daemon_.core().registry.FindSession({client_->session()});
    FUZZ_CHECK(session_ != nullptr);
  }

  void One(Input input) {
    wire::RequestRecord record = Valid(input);
    if (input.Take<std::uint8_t>() % 8 == 0) input.Mutate(&record.op, sizeof(record.op), 1);
    input.Mutate(record.body, record.op == Op::kStep ? sizeof(wire::StepBody) : sizeof(record.body), 3);
    if (++count_ % 64 != 0) {
      daemon::AdmitResult admitted = daemon::Admit(*session_, record, *daemon_.device);
      admitted.ok() ? ++admitted_ : ++refused_;
      if (!admitted.ok()) FUZZ_CHECK(!admitted.status().message().empty());
      return;
    }
    RunWhole(record);
  }

  void Finish() {
    daemon_.Settle();
    daemon_.CheckInvariants();
    neighbour_.StepAndCheck();
    FUZZ_CHECK(daemon_.sessions() == 2);
    // Both ways were taken often, or the mutations are too weak or too strong.
    std::printf("%llu admitted, %llu refused\n", static_cast<unsigned long long>(admitted_),
                static_cast<unsigned long long>(refused_));
    FUZZ_CHECK(admitted_ > count_ / 20 && refused_ > count_ / 20);
    FUZZ_CHECK(RawClient::CodeOf(client_->Run(Op::kNoop, wire::PhaseBody{})) == wire::Code::kOk);
    client_->HangUp();
    daemon_.Settle();
    FUZZ_CHECK(daemon_.sessions() == 1);
    FUZZ_CHECK(daemon_.jobs() == 1);
  }

 private:
  static constexpr std::uint64_t kElements = 40'000;

  std::uint64_t MakeWeight(std::uint8_t nested) {
    wire::CreateWeightBody body;
    body.elements = kElements;
    body.nested = nested;
    const Reply reply = client_->Ask(wire::MessageType::kCreateWeight, body);
    FUZZ_CHECK(reply.ok());
    wire::QuantizeBody quantize;
    quantize.extent = reply.value(0);
    quantize.in = memory_.Place();
    FUZZ_CHECK(RawClient::CodeOf(client_->Run(Op::kQuantize, quantize)) == wire::Code::kOk);
    return reply.value(0);
  }

  wire::RequestRecord Valid(Input& input) {
    const std::uint64_t weight = input.Take<std::uint8_t>() % 2 == 0 ? plain_ : nested_;
    switch (input.Take<std::uint8_t>() % 8) {
      case 0:
        return RawClient::RecordOf(
            Op::kDequantize, wire::DequantizeBody{weight, memory_.Place(), 64, 1000, wire::DType::kF32, {}});
      case 1:
        return RawClient::RecordOf(Op::kQuantize,
                                   wire::QuantizeBody{weight, memory_.Place(), wire::DType::kF32, {}});
      case 2:
        return RawClient::RecordOf(
            Op::kMovePacked,
            wire::PackedBody{
                weight, memory_.Place(), memory_.Place(64 << 10), memory_.Place(128 << 10), 0.0F, 0, {}});
      case 3: {
        wire::StatesBody body;
        body.extent = trainer_.extent();
        for (std::uint64_t k = 0; k < 2; ++k) {
          body.planes[k] = memory_.Place(k << 16);
          body.absmax[k] = memory_.Place((k + 2) << 16);
        }
        return RawClient::RecordOf(Op::kMoveStates, body);
      }
      case 4:
        return RawClient::RecordOf(Op::kPrefetch, wire::PrefetchBody{trainer_.extent(), 0, 1});
      case 5:
        return RawClient::RecordOf(Op::kLease, wire::LeaseBody{weight});
      default:
        return Step(input);
    }
  }
  // A step whose table is spoiled too.
  wire::RequestRecord Step(Input& input) {
    if (count_ % 256 == 0) trainer_.Prepare(1);
    const wire::RequestRecord record = trainer_.Entries(1);
    if (input.Take<std::uint8_t>() % 2 == 0) {
      input.Mutate(trainer_.buffer().map.base(), sizeof(wire::GroupRecord) + 3 * sizeof(wire::StepEntry), 3);
    }
    return record;
  }

  void RunWhole(wire::RequestRecord record) {
    record.version = count_ % 640 == 0 ? 9 : wire::kWireVersion;
    client_->Push(record);
    const auto done = client_->Wait();
    FUZZ_CHECK(done.has_value());
    FUZZ_CHECK(done->ticket == client_->last_ticket());
    FUZZ_CHECK(client_->failed() == wire::Code::kOk);
    if (count_ % 6'400 == 0) daemon_.CheckInvariants();
    if (count_ % 64'000 == 0) neighbour_.StepAndCheck();
  }

  InProcessDaemon daemon_;
  Neighbour neighbour_;
  std::unique_ptr<RawClient> client_;
  RawTrainer trainer_;
  RawBuffer memory_;
  std::uint64_t plain_ = 0;
  std::uint64_t nested_ = 0;
  daemon::Session* session_ = nullptr;
  std::uint64_t count_ = 0;
  std::uint64_t admitted_ = 0;
  std::uint64_t refused_ = 0;
};

}  // namespace
}  // namespace bitpager::testing

FUZZ_TARGET(bitpager::testing::Target)
