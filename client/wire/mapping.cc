#include "client/wire/mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <boost/interprocess/exceptions.hpp>
#include <boost/interprocess/mapped_region.hpp>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace bitpager::wire {
namespace {

namespace ipc = boost::interprocess;

// What mapped_region asks of a file: its handle.
class FdFile {
 public:
  explicit FdFile(int fd) : fd_(fd) {}
  [[nodiscard]] ipc::mapping_handle_t get_mapping_handle() const {
    ipc::mapping_handle_t handle{};
    handle.handle = fd_;
    handle.is_xsi = false;
    return handle;
  }

 private:
  int fd_;
};

}  // namespace

Mapping::Mapping() = default;
Mapping::~Mapping() = default;

Mapping::Mapping(std::unique_ptr<ipc::mapped_region> region)
    : region_(std::move(region)),
      base_(static_cast<std::byte*>(region_->get_address())),
      bytes_(region_->get_size()) {}

Mapping::Mapping(Mapping&& other) noexcept
    : region_(std::move(other.region_)),
      base_(std::exchange(other.base_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  region_ = std::move(other.region_);
  base_ = std::exchange(other.base_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

Result<Mapping> Mapping::Map(int fd, std::uint64_t bytes, MapMode mode) {
  struct stat file {};
  if (::fstat(fd, &file) != 0 || bytes == 0 || file.st_size < 0 ||
      static_cast<std::uint64_t>(file.st_size) < bytes) {
    return Status(Code::kProtocol, "a shared memory file holds " + std::to_string(file.st_size) + " bytes, " +
                                       std::to_string(bytes) + " were announced");
  }
  try {
    auto region = std::make_unique<ipc::mapped_region>(
        FdFile(fd), mode == MapMode::kReadOnly ? ipc::read_only : ipc::read_write, 0,
        static_cast<std::size_t>(bytes));
    if (::madvise(region->get_address(), region->get_size(), MADV_DONTFORK) != 0) {
      return Status(Code::kInternal, std::string("madvise(MADV_DONTFORK) failed: ") + std::strerror(errno));
    }
    return Mapping(std::move(region));
  } catch (const ipc::interprocess_exception& error) {
    return Status(Code::kOutOfMemory, "cannot map " + std::to_string(bytes) + " bytes of shared memory (" +
                                          error.what() + "). Hint: look at ulimit -v and the free memory");
  }
}

unsigned SealsOf(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  return seals < 0 ? 0U : static_cast<unsigned>(seals);
}

}  // namespace bitpager::wire
