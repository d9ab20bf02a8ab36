// Pages between the device and the disk: too few slots, failures in mid-move, ends with moves under way, file
// systems that set nothing aside.
#include "daemon/disk_moves.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <thread>
#include <vector>

#include "daemon/disk_file.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/support/scripted_device.h"

namespace {
std::atomic<bool> sets_nothing_aside{false};
}  // namespace

// In the C library's place, for all of this program.
extern "C" int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  if (sets_nothing_aside.load()) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, bytes));
}

namespace bitpager::testing {
namespace {

using wire::Code;

constexpr std::uint64_t kPage = 16U << 10;
constexpr std::uint64_t kPages = 12;

// A job whose pages lie on disk, half of them fit on the device; this plays the mover.
class DiskMovesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = std::filesystem::current_path() / "disk_moves_test.XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    const auto room = daemon::DiskFile::RoomOf(folder_);
    if (!room.ok() && room.status().code() == Code::kInvalidArgument) GTEST_SKIP() << room.status().message();
    auto inner = kernels::cpu::OpenCpuDevice(1);
    ASSERT_TRUE(inner.ok());
    device_ = std::make_unique<ScriptedDevice>(std::move(*inner));
    paging::PagerConfig config;
    config.page_bytes = kPage;
    config.device_frames = kPages / 2;
    config.disk_frames = kPages;
    config.window_pages = 2;
    pager_ = std::make_unique<paging::Pager>(config);
    ASSERT_TRUE(pager_->AddJob({1}, {.name = "job", .weight = 1.0}).ok());
    extent_ = *pager_->AddExtent({{1}, wire::ExtentKind::kQuantizedWeight, kPages, true, 0, true});
    moves_ = std::make_unique<daemon::DiskMoves>(*device_, *pager_);
  }
  void TearDown() override {
    sets_nothing_aside = false;
    moves_.reset();
    std::filesystem::remove_all(folder_);
  }

  std::byte* At(paging::FrameRef frame) { return &frames_[frame.segment * kPage]; }
  // One decision; `wrong`: loads are looked for where the file has ended.
  void Turn(bool wrong = false) {
    paging::Actions actions;
    pager_->Pump(actions);
    for (const auto& store : actions.stores) moves_->Store(store.page, store.host_frame, At(store.frame));
    for (const auto& load : actions.loads) {
      if (load.zero) {
        pager_->LoadDone(load.page);
      } else {
        moves_->Load(load.page, wrong ? kPages + 5 : load.host_frame, At(load.frame));
      }
    }
    for (const auto& run : actions.runs) {
      for (const auto& page : run.pages) Use(page);
      pager_->RunDone(run.request, run.window);
    }
    for (const auto id : actions.finished) finished_ = finished_ || id == request_;
    moves_->Poll();
  }
  // Pages hold their number and how often they were used.
  void Use(const paging::RunPage& page) {
    const auto uses = static_cast<std::byte>(page.zero ? 0 : std::to_integer<int>(At(page.frame)[1]));
    if (!page.zero) {
      EXPECT_EQ(At(page.frame)[0], static_cast<std::byte>(page.page.index));
      EXPECT_EQ(uses, static_cast<std::byte>(uses_[page.page.index]));
      EXPECT_EQ(std::memcmp(At(page.frame), At(page.frame) + kPage - 2, 2), 0);
    }
    const std::byte now[2] = {static_cast<std::byte>(page.page.index),
                              static_cast<std::byte>(++uses_[page.page.index])};
    std::memcpy(At(page.frame), now, 2);
    std::memcpy(At(page.frame) + kPage - 2, now, 2);
  }
  template <typename Done>
  [[nodiscard]] bool TurnUntil(Done done, bool wrong = false) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!done()) {
      if (std::chrono::steady_clock::now() > end) return false;
      Turn(wrong);
      std::this_thread::yield();
    }
    return true;
  }
  void Ask() {
    finished_ = false;
    request_ = *pager_->Submit({{1}, paging::Access::kUpdate, {{extent_, 0, kPages}}});
  }
  void Visit() {
    Ask();
    EXPECT_TRUE(TurnUntil([&] { return finished_; }));
  }

  std::string folder_;
  std::unique_ptr<ScriptedDevice> device_;
  std::unique_ptr<paging::Pager> pager_;
  std::unique_ptr<daemon::DiskMoves> moves_;
  std::vector<std::byte> frames_ = std::vector<std::byte>(kPages * kPage);
  wire::ExtentId extent_;
  wire::RequestId request_;
  bool finished_ = false;
  int uses_[kPages] = {};
};

TEST_F(DiskMovesTest, OneSlotIsEnoughForMovesThatWait) {
  ASSERT_TRUE(moves_->Start(folder_, 1).ok());
  for (int i = 0; i < 4; ++i) Visit();
  pager_->Evict({1}, 0, paging::Reason::kCommand);
  Turn();
  EXPECT_FALSE(moves_->idle()) << "six pages wait for the slot";
  EXPECT_TRUE(TurnUntil([&] { return moves_->idle(); }));
  EXPECT_EQ(pager_->Usage({1})->resident_frames, 0U);
  Visit();
  for (const int uses : uses_) EXPECT_EQ(uses, 5);
  EXPECT_TRUE(moves_->fault().ok());
}

TEST_F(DiskMovesTest, AFailureInMidMoveReportsNoPage) {
  ASSERT_TRUE(moves_->Start(folder_, 2).ok());
  Visit();
  pager_->Evict({1}, 0, paging::Reason::kCommand);
  ASSERT_TRUE(TurnUntil([&] { return pager_->Usage({1})->resident_frames == 0; }));
  Ask();
  ASSERT_TRUE(TurnUntil([&] { return !moves_->fault().ok(); }, true));
  EXPECT_EQ(moves_->fault().code(), Code::kDeviceFault);
  for (int i = 0; i < 100; ++i) Turn(true);
  EXPECT_FALSE(finished_);
  EXPECT_FALSE(moves_->idle());
  EXPECT_EQ(pager_->StateOf({extent_, 0}), paging::PageState::kLoading) << "what was read is not what it was";
  moves_->End();
  EXPECT_TRUE(moves_->idle());
}

TEST_F(DiskMovesTest, EndsWithMovesUnderWay) {
  ASSERT_TRUE(moves_->Start(folder_, 2).ok());
  Visit();
  device_->hold_copies = true;  // stores stop between the device and their slots
  pager_->Evict({1}, 0, paging::Reason::kCommand);
  for (int i = 0; i < 20; ++i) Turn();
  EXPECT_FALSE(moves_->idle());
  EXPECT_GT(pager_->Usage({1})->resident_frames, 0U);
  moves_->End();
  EXPECT_TRUE(moves_->idle());
  EXPECT_EQ(moves_->bell(), -1);
  moves_.reset();
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(DiskMovesTest, WorksWhereNothingCanBeSetAside) {
  sets_nothing_aside = true;
  ASSERT_TRUE(moves_->Start(folder_, 2).ok()) << "told of, not refused";
  sets_nothing_aside = false;
  for (int i = 0; i < 3; ++i) Visit();
  for (const int uses : uses_) EXPECT_EQ(uses, 3);
  EXPECT_TRUE(moves_->fault().ok());
}

}  // namespace
}  // namespace bitpager::testing
