#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "daemon/snapshot.h"
#include "tools/cli/commands.h"

namespace bitpager::cli {

using wire::Code;

void PrintError(const std::string& message) {
  const bool color = WantsColor(STDERR_FILENO);
  std::fprintf(stderr, "%sbitpager:%s %s\n", color ? "\033[31m" : "", color ? "\033[0m" : "",
               message.c_str());
}

bool WantsColor(int fd) {
  const char* refused = std::getenv("NO_COLOR");
  return (refused == nullptr || *refused == '\0') && ::isatty(fd) != 0;
}

int ExitCodeOf(const wire::Status& status) {
  switch (status.code()) {
    case Code::kOk:
      return kOkExit;
    case Code::kUnreachable:
    case Code::kDaemonLost:
      return kUnreachableExit;
    default:
      return kFailureExit;
  }
}

int NotReached(const wire::Status& status) {
  PrintError(status.message());
  return status.code() == Code::kPermissionDenied ? kUnreachableExit : ExitCodeOf(status);
}

int Failure(const wire::Status& status) {
  PrintError(status.message());
  return kFailureExit;
}

int RunStatus(const Target& target, const StatusOptions& options) {
  const auto reply = AskStatus(target, "status");
  if (!reply.ok()) return NotReached(reply.status());
  if (options.json) {
    const auto parsed = nlohmann::json::parse(reply->json, nullptr, /*allow_exceptions=*/false);
    std::printf("%s\n", parsed.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return kOkExit;
  }
  const auto snapshot = daemon::SnapshotFromJson(reply->json);
  if (!snapshot.ok()) {
    PrintError(snapshot.status().message());
    return kFailureExit;
  }
  std::fputs(daemon::ToText(*snapshot, {WantsColor(STDOUT_FILENO)}).c_str(), stdout);
  return kOkExit;
}

}  // namespace bitpager::cli
