// Whole lines to a file, so that what is there can be read whenever the program ends. One thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::cli {

class LineOutput {
 public:
  // stdout, not owned.
  LineOutput();
  // A new file, or what stands at `path` and is no file with content (a pipe, /dev/null). kAlreadyExists for
  // one with content, or that another program is writing so; kPermissionDenied, kNotFound, kInternal (also a
  // pipe without a reader).
  [[nodiscard]] static wire::Result<LineOutput> Create(const std::string& path);

  // Waits for what is no file (a pipe that is not read, a terminal that is held) end when `fd` can be read.
  void StopAt(int fd) { stop_fd_ = fd; }

  // Writes `line` and a line feed. kUnreachable when nobody reads any more or the wait was ended;
  // kBudgetExceeded when the disk is full or a limit is reached, kInternal for other errors: then a file ends
  // after its last whole line.
  [[nodiscard]] wire::Status Write(std::string_view line);
  // Until it is on the disk, where it is a file.
  [[nodiscard]] wire::Status Sync();

  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  [[nodiscard]] wire::Status Failed(int error);
  [[nodiscard]] bool AwaitRoom() const;

  wire::UniqueFd owned_;
  int fd_;
  std::string name_ = "stdout";
  int stop_fd_ = -1;
  bool is_file_ = false;
  std::uint64_t bytes_ = 0;  // written, of whole lines
};

}  // namespace bitpager::cli
