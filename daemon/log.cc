#include "daemon/log.h"

#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Status;

void Append(spdlog::memory_buf_t& to, std::string_view text) {
  to.append(text.data(), text.data() + text.size());
}

// Names come from clients: a control character must not start a line or an escape sequence.
void AppendVisible(spdlog::memory_buf_t& to, std::string_view text) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7F) {
      to.push_back(c);
      continue;
    }
    char escaped[8];
    std::snprintf(escaped, sizeof(escaped), "\\x%02x", byte);
    Append(to, escaped);
  }
}

std::string_view JournalPrefix(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::critical:
    case spdlog::level::err:
      return "<3>";
    case spdlog::level::warn:
      return "<4>";
    case spdlog::level::info:
      return "<6>";
    default:
      return "<7>";
  }
}

class LineFormatter final : public spdlog::formatter {
 public:
  explicit LineFormatter(bool journal) : journal_(journal) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& to) override {
    if (journal_) {
      Append(to, JournalPrefix(message.level));
    } else {
      AppendTimeAndLevel(message, to);
    }
    AppendVisible(to, {message.payload.data(), message.payload.size()});
    to.push_back('\n');
  }

  [[nodiscard]] std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<LineFormatter>(journal_);
  }

 private:
  static void AppendTimeAndLevel(const spdlog::details::log_msg& message, spdlog::memory_buf_t& to) {
    using namespace std::chrono;
    const auto since = message.time.time_since_epoch();
    const std::time_t seconds = duration_cast<std::chrono::seconds>(since).count();
    const auto ms = static_cast<int>(duration_cast<milliseconds>(since).count() % 1000);
    std::tm local{};
    ::localtime_r(&seconds, &local);
    char stamp[32];
    std::strftime(stamp, sizeof(stamp), "%Y-%m-%d %H:%M:%S", &local);
    const auto name = spdlog::level::to_string_view(message.level);
    const std::string level(name.data(), name.size());
    char head[64];
    std::snprintf(head, sizeof(head), "%s.%03d %-5s ", stamp, ms,
                  level == "warning" ? "warn" : level.c_str());
    Append(to, head);
  }

  bool journal_;
};

// JOURNAL_STREAM is "device:inode" of the stream that the journal reads.
bool StderrIsJournal() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat file {};
  if (stream == nullptr || ::fstat(STDERR_FILENO, &file) != 0) return false;
  return std::to_string(file.st_dev) + ":" + std::to_string(file.st_ino) == stream;
}

struct LevelName {
  std::string_view name;
  spdlog::level::level_enum level;
};
constexpr LevelName kLevels[] = {{"trace", spdlog::level::trace}, {"debug", spdlog::level::debug},
                                 {"info", spdlog::level::info},   {"warn", spdlog::level::warn},
                                 {"error", spdlog::level::err},   {"off", spdlog::level::off}};

const LevelName* FindLevel(std::string_view name) {
  for (const LevelName& level : kLevels) {
    if (level.name == name) return &level;
  }
  return nullptr;
}

}  // namespace

bool IsLogLevel(std::string_view level) {
  return FindLevel(level) != nullptr;
}

Status StartLog(const std::string& level, LogStyle style) {
  const LevelName* found = FindLevel(level);
  if (found == nullptr) {
    return {Code::kInvalidArgument,
            "'" + level + "' is no log level. Hint: one of trace, debug, info, warn, error, off"};
  }
  const bool journal = style == LogStyle::kJournal || (style == LogStyle::kAuto && StderrIsJournal());
  auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  sink->set_formatter(std::make_unique<LineFormatter>(journal));
  auto logger = std::make_shared<spdlog::logger>("bitpagerd", std::move(sink));
  logger->set_level(found->level);
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
  return {};
}

Status ForbidCoreDumps() {
  const rlimit none{0, 0};
  if (::setrlimit(RLIMIT_CORE, &none) != 0 || ::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) {
    return {Code::kInternal, std::string("core dumps cannot be turned off (") + std::strerror(errno) +
                                 "). Hint: a core file would hold weights; check the service's sandbox"};
  }
  return {};
}

}  // namespace bitpager::daemon
