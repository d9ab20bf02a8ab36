#include "tools/cli/output.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace bitpager::cli {

using wire::Code;
using wire::Result;
using wire::Status;

LineOutput::LineOutput() : fd_(STDOUT_FILENO) {}

Result<LineOutput> LineOutput::Create(const std::string& path) {
  LineOutput out;
  out.name_ = path;
  out.owned_.Reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
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
  if (out.is_file_ && file.st_size > 0) {
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

Status LineOutput::Write(std::string_view line) {
  std::string text(line);
  text.push_back('\n');
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t wrote = ::write(fd_, text.data() + done, text.size() - done);
    if (wrote > 0) {
      done += static_cast<std::size_t>(wrote);
    } else if (wrote < 0 && errno == EAGAIN) {  // somebody made the pipe non-blocking
      pollfd item{fd_, POLLOUT, 0};
      ::poll(&item, 1, -1);
    } else if (wrote < 0 && errno != EINTR) {
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
