// The test of memory lent by handle: the answers of the process apart, and what becomes of it.
#include "daemon/ipc_self_test.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "kernels/device.h"
#include "tests/support/scripted_device.h"

namespace bitpager::daemon {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

std::vector<std::string> Shell(const std::string& script) {
  return {"/bin/sh", "-c", script};
}

constexpr IpcSelfTest::Limits kAtOnce{0, 30'000};

IpcFinding FindingOf(const std::vector<std::string>& command, int limit_ms = 30'000) {
  IpcSelfTest test;
  test.Start(command, {0, limit_ms});
  const auto end = steady_clock::now() + std::chrono::seconds(60);
  while (test.finding().survival == IpcSurvival::kNotTested && steady_clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  return test.finding();
}

TEST(IpcSelfTest, TakesTheAnswer) {
  EXPECT_EQ(FindingOf(Shell("echo yes")).survival, IpcSurvival::kYes);
  EXPECT_EQ(FindingOf(Shell("echo no")).survival, IpcSurvival::kNo);
}

TEST(IpcSelfTest, SaysWhyItDoesNotKnow) {
  const IpcFinding reason = FindingOf(Shell("echo 'no such GPU'"));
  EXPECT_EQ(reason.survival, IpcSurvival::kUnknown);
  EXPECT_EQ(reason.why, "no such GPU");
  EXPECT_EQ(FindingOf(Shell("exit 1")).why, "the test ended without an answer");
  EXPECT_EQ(FindingOf(Shell("kill -SEGV $$")).why, "the test ended without an answer");
  EXPECT_NE(FindingOf({"/nowhere/at/all"}).why.find("cannot start /nowhere/at/all"), std::string::npos);
  EXPECT_EQ(FindingOf({}).survival, IpcSurvival::kUnknown);
  EXPECT_EQ(FindingOf(Shell("exec sleep 600"), 50).why, "no answer within 50 ms");
}

TEST(IpcSelfTest, EndsItsProcess) {
  char name[] = "/tmp/ipc_self_test.XXXXXX";
  ASSERT_GE(::mkstemp(name), 0);
  auto test = std::make_unique<IpcSelfTest>();
  test->Start(Shell(std::string("echo $$ > ") + name + "; exec sleep 600"), kAtOnce);
  pid_t pid = 0;
  const auto end = steady_clock::now() + std::chrono::seconds(60);
  while (pid == 0 && steady_clock::now() < end) std::ifstream(name) >> pid;
  ASSERT_GT(pid, 0);
  EXPECT_EQ(::kill(pid, 0), 0);
  EXPECT_EQ(test->finding().survival, IpcSurvival::kNotTested);
  test.reset();
  EXPECT_NE(::kill(pid, 0), 0);
  ::unlink(name);
}

// How many lines `file` has, once it has at least so many.
int LinesOf(const std::string& file, int least) {
  int lines = -1;
  const auto end = steady_clock::now() + std::chrono::seconds(60);
  while (lines < least && steady_clock::now() < end) {
    std::ifstream in(file);
    lines = 0;
    for (std::string line; std::getline(in, line);) ++lines;
  }
  return lines;
}

IpcSurvival AwaitAnswer(const IpcSelfTest& test) {
  const auto end = steady_clock::now() + std::chrono::seconds(60);
  while (test.finding().survival == IpcSurvival::kNotTested && steady_clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  return test.finding().survival;
}

TEST(IpcSelfTest, WaitsUntilNobodyIsThere) {
  IpcSelfTest test;
  const auto begun = steady_clock::now();
  test.Start(Shell("echo yes"), {1'000, 30'000});
  test.SetSessions(1);
  std::this_thread::sleep_for(milliseconds(1'500));
  EXPECT_EQ(test.finding().survival, IpcSurvival::kNotTested);
  EXPECT_NE(test.finding().why.find("no client"), std::string::npos) << test.finding().why;
  test.SetSessions(0);
  EXPECT_EQ(AwaitAnswer(test), IpcSurvival::kYes);
  EXPECT_EQ(test.finding().why, "");
  EXPECT_GE(steady_clock::now() - begun, milliseconds(2'500));
}

TEST(IpcSelfTest, GivesWayToASessionAndBeginsAnew) {
  char name[] = "/tmp/ipc_self_test.XXXXXX";
  ASSERT_GE(::mkstemp(name), 0);
  const std::string file = name;
  IpcSelfTest test;
  // Answers the second time alone.
  test.Start(Shell("echo $$ >> " + file + "; test $(wc -l < " + file + ") -lt 2 && exec sleep 600; echo no"),
             kAtOnce);
  ASSERT_EQ(LinesOf(file, 1), 1);
  pid_t first = 0;
  std::ifstream(file) >> first;
  ASSERT_GT(first, 0);
  test.SetSessions(1);
  const auto end = steady_clock::now() + std::chrono::seconds(60);
  while (::kill(first, 0) == 0 && steady_clock::now() < end) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_NE(::kill(first, 0), 0);
  EXPECT_EQ(test.finding().survival, IpcSurvival::kNotTested);
  EXPECT_EQ(LinesOf(file, 1), 1);
  test.SetSessions(0);
  EXPECT_EQ(AwaitAnswer(test), IpcSurvival::kNo);
  EXPECT_EQ(LinesOf(file, 2), 2);
  ::unlink(name);
}

TEST(IpcSelfTest, SaysWhyItIsSwitchedOff) {
  IpcSelfTest test;
  test.Skip("switched off");
  test.SetSessions(3);
  test.SetSessions(0);
  EXPECT_EQ(test.finding().survival, IpcSurvival::kNotTested);
  EXPECT_EQ(test.finding().why, "switched off");
}

// A context that has failed may never let go of what is taken down.
class NeverLetsGo final : public testing::ScriptedDevice {
 public:
  using ScriptedDevice::ScriptedDevice;
  ~NeverLetsGo() override { std::abort(); }
};

TEST(IpcProbeDeathTest, AnswersBeforeAnythingIsTakenDown) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ::dup2(STDERR_FILENO, STDOUT_FILENO);
        auto device = std::make_unique<NeverLetsGo>(std::move(*kernels::OpenDevice({"cpu"})));
        device->fault_at_step = 0;
        ProbeAndEnd(std::move(device), {"/bin/sh", "-c", "read end <&3"});
      },
      ::testing::ExitedWithCode(0), "(^|\n)no\n$");
}

}  // namespace
}  // namespace bitpager::daemon
