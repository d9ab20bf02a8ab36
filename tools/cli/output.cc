#include "tools/cli/output.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace bitpager::cli {

using wire::Code;
using wire::Result;
using wire::Status;

namespace {

constexpr std::size_t kPipeBytes = 4096;  // a pipe with any room takes so many without a wait (PIPE_BUF)

}  // namespace

LineOutput::LineOutput() : fd_(STDOUT_FILENO) {}

Result<LineOutput> LineOutput::Create(const std::string& path) {
  LineOutput out;
  out.name_ = path;
  out.owned_.Reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666));
  out.fd_ = out.owned_.get();
  if (!out.owned_) {
    const Code code = errno == EACCES || errno == EPERM || errno == EROFS ? Code::kPermissionDenied
                      : errno == ENOENT                                   ? Code::kNotFound
                                                                          : Code::kInternal;
    return Status(code, "cannot write " + path + " (" + std::strerror(errno) +
                            "). Hint: a file in a folder that exists and may be written, or - for stdout");
  }
  struct stat file {};
  if (::fstat(out.fd_, &file) != 0) return out.Failed(errno);
  out.is_file_ = S_ISREG(file.st_mode);
  if (!out.is_file_) return out;
  if (::flock(out.fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return Status(Code::kAlreadyExists, path + " is being written by another program. Hint: another name");
  }
  if (file.st_size > 0) {
    return Status(Code::kAlreadyExists, path + " is there and not empty. Hint: another name, or remove it");
  }
  return out;
}

Status LineOutput::Failed(int error) {
  if (error == EPIPE) return {Code::kUnreachable, "nobody reads " + name_ + " any more"};
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  std::string said = "cannot write " + name_ + " (" + std::strerror(error) + ")";
  if (is_file_) said += "; it has " + std::to_string(bytes_) + " bytes in whole lines";
  if (full) said += ". Hint: make room, or write to another disk";
  return {full ? Code::kBudgetExceeded : Code::kInternal, said};
}

// False: it is to end.
bool LineOutput::AwaitRoom() const {
  pollfd items[] = {{fd_, POLLOUT, 0}, {stop_fd_, POLLIN, 0}};
  ::poll(items, 2, -1);
  return items[1].revents == 0;
}

Status LineOutput::Write(std::string_view line) {
  std::string text(line);
  text.push_back('\n');
  std::size_t done = 0;
  while (done < text.size()) {
    if (!is_file_ && !AwaitRoom()) return {Code::kUnreachable, "told to end"};
    const std::size_t left = text.size() - done;
    const ssize_t wrote = ::write(fd_, text.data() + done, is_file_ ? left : std::min(left, kPipeBytes));
    if (wrote > 0) {
      done += static_cast<std::size_t>(wrote);
    } else if (wrote < 0 && errno != EINTR && errno != EAGAIN) {
      const int error = errno;
      const bool cut = !is_file_ || done == 0 || ::ftruncate(fd_, static_cast<off_t>(bytes_)) == 0;
      Status failed = Failed(error);
      return cut ? failed : Status(failed.code(), failed.message() + "; its last line is cut short");
    }
  }
  bytes_ += text.size();
  return {};
}

Status LineOutput::Sync() {
  if (!is_file_ || ::fsync(fd_) == 0) return {};
  return Failed(errno);
}

}  // namespace bitpager::cli
