// Pages make room on a device whose memory others need, and come back when there is room again.
#include "daemon/pressure.h"

#include <gtest/gtest.h>

#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

constexpr std::uint64_t kCardPages = 400;
constexpr std::uint64_t kWatermarkPages = 40;
constexpr std::uint64_t kStatePages = 60;

daemon::Settings CardSettings() {
  daemon::Settings settings = RoomyTestSettings();
  settings.pager.device_frames = 200;
  settings.pager.host_frames = 2048;
  settings.free_watermark_bytes = kWatermarkPages * kTestPageBytes;
  return settings;
}

class Pressured : public ::testing::Test {
 protected:
  std::uint64_t FreePages() { return daemon_.device->Memory().free_bytes / kTestPageBytes; }
  std::uint64_t OwnPages() { return daemon_.device->Memory().own_bytes / kTestPageBytes; }
  void OthersHold(std::uint64_t pages) { daemon_.device->others_bytes = pages * kTestPageBytes; }
  // Long enough for a look, and for what it leads to.
  void Pass(std::uint64_t ms) {
    for (std::uint64_t at = 0; at < ms; at += 50) {
      daemon_.clock.AdvanceMs(50);
      daemon_.Settle();
    }
  }
  // (free pages, whether no more can leave)
  std::pair<std::uint64_t, bool> AskForRoom(std::uint64_t pages) {
    wire::MakeRoomBody body;
    body.bytes = pages * kTestPageBytes;
    const Reply reply = client_->Ask(wire::MessageType::kMakeRoom, body);
    EXPECT_TRUE(reply.ok()) << reply.text();
    return {reply.value(0) / kTestPageBytes, reply.value(2) != 0};
  }

  InProcessDaemon daemon_{CardSettings(), 0, kCardPages* kTestPageBytes};
  std::unique_ptr<RawClient> client_ = daemon_.OpenPatient("job");
  RawTrainer trainer_{*client_, {kStatePages * 6144}};
};

TEST_F(Pressured, PagesLeaveUnderTheWatermarkAndReturnWithTheRoom) {
  ASSERT_TRUE(trainer_.Create().ok());
  ShadowArena shadow = trainer_.Shadow();
  std::uint64_t number = 0;
  const auto step = [&] {
    trainer_.StepOk(++number);
    shadow.Step(number);
  };
  step();
  step();
  daemon_.Settle();
  ASSERT_EQ(OwnPages(), kStatePages);
  // A training process grows: 20 pages are free.
  OthersHold(kCardPages - kStatePages - 20);
  Pass(200);
  EXPECT_GE(FreePages(), kWatermarkPages);
  EXPECT_LT(OwnPages(), kStatePages);
  EXPECT_TRUE(daemon_.Noticed("pressure"));
  step();
  EXPECT_GE(FreePages(), kWatermarkPages) << "a step under pressure takes nothing of it";
  // And shrinks again.
  OthersHold(0);
  Pass(500);
  EXPECT_FALSE(daemon_.Noticed("pressure_over")) << "activations come and go in every step";
  Pass(2'000);
  EXPECT_TRUE(daemon_.Noticed("pressure_over"));
  step();
  step();
  daemon_.Settle();
  EXPECT_EQ(OwnPages(), kStatePages);
  trainer_.ExpectParams(shadow);
  daemon_.CheckInvariants();
}

TEST_F(Pressured, RoomIsMadeOnRequest) {
  ASSERT_TRUE(trainer_.Create().ok());
  ShadowArena shadow = trainer_.Shadow();
  trainer_.StepOk(1);
  shadow.Step(1);
  daemon_.Settle();
  OthersHold(kCardPages - kStatePages - 45);  // above the watermark
  EXPECT_EQ(AskForRoom(80), std::pair(std::uint64_t{45}, false));
  Pass(100);
  EXPECT_GE(AskForRoom(80).first, 80U);
  EXPECT_FALSE(daemon_.Noticed("error"));
  trainer_.StepOk(2);
  shadow.Step(2);
  trainer_.ExpectParams(shadow);
  // All that can leave: a window of the job stays.
  static_cast<void>(AskForRoom(kCardPages));
  Pass(100);
  const auto [free_pages, final] = AskForRoom(kCardPages);
  EXPECT_TRUE(final);
  EXPECT_LT(free_pages, kCardPages);
}

TEST_F(Pressured, RoomThatIsThereIsKeptForWhoeverAsked) {
  ASSERT_TRUE(trainer_.Create().ok());
  OthersHold(kCardPages - 100);
  EXPECT_GE(AskForRoom(80).first, 80U) << "it is there";
  ShadowArena shadow = trainer_.Shadow();
  for (std::uint64_t number = 1; number <= 3; ++number) {
    trainer_.StepOk(number);
    shadow.Step(number);
    Pass(100);
    EXPECT_GE(FreePages(), 80U) << number;
  }
  // Nobody took it: after a while pages may have it.
  Pass(6'000);
  for (std::uint64_t number = 4; number <= 6; ++number) {
    trainer_.StepOk(number);
    shadow.Step(number);
    Pass(500);
  }
  EXPECT_LT(FreePages(), 80U);
  trainer_.ExpectParams(shadow);
}

TEST_F(Pressured, RoomThatWasTakenIsNotMadeAgain) {
  ASSERT_TRUE(trainer_.Create().ok());
  trainer_.StepOk(1);
  trainer_.StepOk(2);
  daemon_.Settle();
  ASSERT_EQ(OwnPages(), kStatePages);
  for (const std::uint64_t others : {kCardPages - kStatePages - 200, kCardPages - kStatePages - 100}) {
    OthersHold(others);
    const std::uint64_t room = FreePages() - 50;
    EXPECT_GE(AskForRoom(room).first, room);
    OthersHold(others + room);
    Pass(200);
    EXPECT_EQ(OwnPages(), kStatePages) << "it was asked for once";
  }
  EXPECT_FALSE(daemon_.Noticed("pressure"));
}

}  // namespace
}  // namespace bitpager::testing
