// The file of frames on disk, and pages that go through it.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "daemon/disk_file.h"

namespace bitpager::daemon {
namespace {

using wire::Code;

// A folder on a disk: the tests' own working folder.
class DiskFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = std::filesystem::current_path() / "disk_test.XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    const auto room = DiskFile::RoomOf(folder_);
    if (!room.ok() && room.status().code() == Code::kInvalidArgument) GTEST_SKIP() << room.status().message();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static std::vector<std::uint64_t> Await(DiskFile& file, std::size_t count) {
    std::vector<std::uint64_t> numbers;
    while (numbers.size() < count) {
      pollfd bell{file.bell(), POLLIN, 0};
      if (::poll(&bell, 1, 30'000) <= 0) break;
      std::uint64_t rings = 0;
      EXPECT_EQ(::read(file.bell(), &rings, sizeof(rings)), 8);
      file.Finished(numbers);
    }
    std::sort(numbers.begin(), numbers.end());
    return numbers;
  }

  std::string folder_;
};

constexpr std::uint64_t kPage = 16U << 10;

TEST_F(DiskFileTest, KeepsWhatIsWrittenAndLeavesNothingBehind) {
  auto file = DiskFile::Make(folder_, 64 * kPage);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_TRUE(std::filesystem::is_empty(folder_)) << "the file has no name";
  std::vector<std::vector<std::byte>> pages;
  std::vector<std::uint64_t> expected;
  for (std::uint64_t i = 0; i < 64; ++i) {
    pages.emplace_back(kPage, static_cast<std::byte>(i + 1));
    (*file)->Start({i, false, pages[i].data(), (63 - i) * kPage, kPage});
    expected.push_back(i);
  }
  EXPECT_EQ(Await(**file, 64), expected);
  std::vector<std::byte> read(kPage);
  for (std::uint64_t i = 0; i < 64; i += 9) {
    (*file)->Start({100 + i, true, read.data(), (63 - i) * kPage, kPage});
    EXPECT_EQ(Await(**file, 1), std::vector<std::uint64_t>{100 + i});
    EXPECT_EQ(read, pages[i]);
  }
  EXPECT_TRUE((*file)->fault().ok());
}

TEST_F(DiskFileTest, SaysWhatItCannotRead) {
  auto file = DiskFile::Make(folder_, kPage);
  ASSERT_TRUE(file.ok());
  std::vector<std::byte> page(kPage);
  (*file)->Start({1, true, page.data(), 5 * kPage, kPage});
  EXPECT_EQ(Await(**file, 1).size(), 1U);
  EXPECT_EQ((*file)->fault().code(), Code::kDeviceFault);
  EXPECT_NE((*file)->fault().message().find("cannot be read"), std::string::npos);
}

TEST_F(DiskFileTest, RefusesFoldersItCannotUse) {
  EXPECT_EQ(DiskFile::Make("/nowhere/at/all", kPage).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(DiskFile::Make("/proc/self/exe", kPage).ok(), false);
  const auto huge = DiskFile::Make(folder_, std::uint64_t{1} << 60);
  EXPECT_EQ(huge.status().code(), Code::kBudgetExceeded) << huge.status().message();
  struct statfs shm {};
  if (::statfs("/dev/shm", &shm) != 0 || shm.f_type != 0x01021994) return;
  const auto memory = DiskFile::Make("/dev/shm", kPage);
  EXPECT_EQ(memory.status().code(), Code::kInvalidArgument);
  EXPECT_NE(memory.status().message().find("lies in memory"), std::string::npos);
}

}  // namespace
}  // namespace bitpager::daemon
