// The test of memory lent by handle: the answers of the process apart, and what becomes of it.
#include "daemon/ipc_self_test.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <thread>

namespace bitpager::daemon {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

std::vector<std::string> Shell(const std::string& script) {
  return {"/bin/sh", "-c", script};
}

IpcFinding FindingOf(const std::vector<std::string>& command, int limit_ms = 30'000) {
  IpcSelfTest test;
  test.Start(command, limit_ms);
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
  test->Start(Shell(std::string("echo $$ > ") + name + "; exec sleep 600"));
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

}  // namespace
}  // namespace bitpager::daemon
