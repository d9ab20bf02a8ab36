#include "client/cuda_driver.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "client/cuda_api.h"

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;
using namespace cuda;  // NOLINT(google-build-using-namespace): this file is their user

class SystemDriver final : public CudaDriver {
 public:
  explicit SystemDriver(const Functions& functions) : call_(functions) {}

  Result<int> DeviceCount() override {
    int count = 0;
    if (const int code = call_.device_count(&count); code != kSuccess) return Error("cuDeviceGetCount", code);
    return count;
  }

  Result<std::string> Uuid(int ordinal) override {
    unsigned char b[16] = {};
    if (const int code = call_.device_uuid(b, ordinal); code != kSuccess)
      return Error("cuDeviceGetUuid", code);
    char text[48];
    std::snprintf(text, sizeof(text),
                  "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
                  b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
    return std::string(text);
  }

  Result<int> CurrentDevice() override {
    int ordinal = -1;
    if (const int code = call_.context_device(&ordinal); code != kSuccess) {
      return Status(Code::kInvalidArgument, "this thread has no current CUDA context (" + Name(code) +
                                                "). Hint: select the device first, e.g. cudaSetDevice");
    }
    return ordinal;
  }

  // Retained once for each device and never released: the runtime keeps it for the process's life too.
  Status UsePrimaryContext(int ordinal) override {
    Context context = nullptr;
    {
      const std::lock_guard lock(mutex_);
      Context& kept = primary_[ordinal];
      if (kept == nullptr) {
        if (const int code = call_.primary_retain(&kept, ordinal); code != kSuccess) {
          kept = nullptr;
          return Error("cuDevicePrimaryCtxRetain", code);
        }
      }
      context = kept;
    }
    return StatusOf("cuCtxSetCurrent", call_.context_set(context));
  }

  // Every call in a context that has failed says so; this one looks at nothing but the device.
  Status ContextFault(const void* host) override {
    Context context = nullptr;
    {
      const std::lock_guard lock(mutex_);
      for (const Registered& one : registered_) {
        if (one.at == host) context = one.context;
      }
    }
    if (context == nullptr) return {};
    int code = call_.context_push(context);
    if (code == kSuccess) {
      std::size_t free_bytes = 0;
      std::size_t total_bytes = 0;
      code = call_.memory_info(&free_bytes, &total_bytes);
      call_.context_pop(&context);
    }
    if (std::find(std::begin(kStickyFaults), std::end(kStickyFaults), code) == std::end(kStickyFaults))
      return {};
    return {Code::kDeviceFault, "this process's CUDA context has failed (" + Name(code) +
                                    "): what its streams hold never runs, and the session is closed. Hint: "
                                    "CUDA_LAUNCH_BLOCKING=1 shows which kernel it was"};
  }

  bool HasStreamWords(int ordinal) override {
    int has = 0;
    return call_.device_attribute(&has, kHas64BitStreamWords, ordinal) == kSuccess && has != 0;
  }

  Result<DeviceAllocation> Describe(DeviceAddress at) override {
    unsigned type = 0;
    if (call_.pointer_attribute(&type, kMemoryType, at) != kSuccess || type != kTypeDevice) {
      return Status(Code::kInvalidArgument, "no memory of a GPU lies at the address");
    }
    DeviceAllocation found;
    int managed = 0;
    int capable = 0;
    call_.pointer_attribute(&managed, kIsManaged, at);
    call_.pointer_attribute(&found.ordinal, kDeviceOrdinal, at);
    // Not known to every driver for every kind of memory: then it is not capable.
    if (call_.pointer_attribute(&capable, kIsIpcCapable, at) != kSuccess) capable = 0;
    found.is_managed = managed != 0;
    found.ipc_capable = capable != 0;
    found.id = AllocationId(at, found.ipc_capable);
    if (!found.ipc_capable && DescribeMapping(at, found)) return found;
    std::size_t bytes = 0;
    if (const int code = call_.address_range(&found.base, &bytes, at); code != kSuccess) {
      return Error("cuMemGetAddressRange", code);
    }
    found.bytes = bytes;
    return found;
  }

  // Of mapped memory the physical allocation counts: another one may be mapped into the same reservation.
  std::uint64_t AllocationId(DeviceAddress at, bool ipc_capable) override {
    std::uint64_t id = 0;
    if (!ipc_capable && call_.pointer_attribute(&id, kMemoryBlockId, at) == kSuccess) return id;
    return call_.pointer_attribute(&id, kBufferId, at) == kSuccess ? id : 0;
  }

  Result<IpcHandle> GetIpcHandle(DeviceAddress base) override {
    IpcHandle handle{};
    if (const int code = call_.ipc_handle(handle.data(), base); code != kSuccess) {
      return Error("cuIpcGetMemHandle", code);
    }
    return handle;
  }

  Result<wire::UniqueFd> ExportMapped(DeviceAddress at) override {
    AllocationHandle handle = 0;
    if (call_.retain(&handle, reinterpret_cast<void*>(at)) != kSuccess) {
      return Status(Code::kNotFound, "no physical memory is mapped at the address");
    }
    AllocationProperties properties{};
    const int known = call_.properties(&properties, handle);
    int fd = -1;
    const bool may = known == kSuccess && (properties.requested_handle_types & kPosixFd) != 0;
    const int code = may ? call_.export_handle(&fd, handle, kPosixFd, 0) : kSuccess;
    call_.release(handle);
    if (!may) {
      return Status(Code::kUnsupported,
                    "this GPU memory was made without the right to share it by a file descriptor");
    }
    if (code != kSuccess) return Error("cuMemExportToShareableHandle", code);
    return wire::UniqueFd(fd);
  }

  // The driver knows no read-only mappings of a device's memory: that nothing is written is convention.
  Result<DeviceRange> MapShared(int fd, std::uint64_t bytes, int ordinal) override {
    const AllocationProperties kind{kTypePinned, kPosixFd, kLocationDevice, ordinal, nullptr, {}};
    std::size_t piece = 0;
    int code = call_.granularity(&piece, &kind, kRecommended);
    if (code != kSuccess || piece == 0) return Error("cuMemGetAllocationGranularity", code);
    if (bytes == 0 || bytes > ~std::uint64_t{0} - piece) {
      return Status(Code::kProtocol, "the daemon's segment of frames has an impossible size");
    }
    DeviceRange range{0, (bytes + piece - 1) / piece * piece};
    AllocationHandle handle = 0;
    void* const named = reinterpret_cast<void*>(static_cast<std::intptr_t>(fd));
    code = call_.import_handle(&handle, named, kPosixFd);
    if (code != kSuccess) return Error("cuMemImportFromShareableHandle", code);
    const char* what = "cuMemAddressReserve";
    code = call_.reserve(&range.at, range.bytes, 0, 0, 0);
    if (code == kSuccess) {
      what = "cuMemMap";
      code = call_.map(range.at, range.bytes, 0, handle, 0);
      if (code != kSuccess) call_.unreserve(range.at, range.bytes);
    }
    call_.release(handle);  // the mapping keeps the memory
    if (code != kSuccess) return Error(what, code);
    const Access access{kLocationDevice, ordinal, kReadWrite};
    code = call_.set_access(range.at, range.bytes, &access, 1);
    if (code == kSuccess) return range;
    UnmapShared(range);
    return Error("cuMemSetAccess", code);
  }

  // Errors mean that the context has ended, and its mappings with it.
  void UnmapShared(const DeviceRange& range) override {
    if (call_.unmap(range.at, range.bytes) == kSuccess) call_.unreserve(range.at, range.bytes);
  }

  Result<DeviceAddress> RegisterHost(void* at, std::uint64_t bytes) override {
    Context context = nullptr;
    call_.context_get(&context);
    if (const int code = call_.host_register(at, bytes, kRegisterPortable | kRegisterMapped);
        code != kSuccess) {
      return Error("cuMemHostRegister", code);
    }
    DeviceAddress address = 0;
    if (const int code = call_.host_device_pointer(&address, at, 0); code != kSuccess) {
      call_.host_unregister(at);
      return Error("cuMemHostGetDevicePointer", code);
    }
    const std::lock_guard lock(mutex_);
    registered_.push_back({at, context});
    return address;
  }

  // Errors mean that the context has ended, and the registration with it.
  void UnregisterHost(void* at) override {
    Context context = nullptr;
    {
      const std::lock_guard lock(mutex_);
      for (std::size_t i = 0; i < registered_.size(); ++i) {
        if (registered_[i].at != at) continue;
        context = registered_[i].context;
        registered_.erase(registered_.begin() + static_cast<std::ptrdiff_t>(i));
        break;
      }
    }
    if (context == nullptr || call_.context_push(context) != kSuccess) return;
    call_.context_synchronize();
    call_.host_unregister(at);
    call_.context_pop(&context);
  }

  Status WriteWord(StreamHandle stream, DeviceAddress word, std::uint64_t value) override {
    return StatusOf("cuStreamWriteValue64", call_.write_word(stream, word, value, kWriteDefault));
  }
  Status WaitWord(StreamHandle stream, DeviceAddress word, std::uint64_t value) override {
    return StatusOf("cuStreamWaitValue64", call_.wait_word(stream, word, value, kWaitReached));
  }
  std::uint64_t StreamId(StreamHandle stream) override {
    unsigned long long id = 0;
    const bool known = call_.stream_id(stream, &id) == kSuccess;
    return known ? id : reinterpret_cast<std::uint64_t>(stream);
  }
  Result<bool> IsCapturing(StreamHandle stream) override {
    int status = kNotCapturing;
    const int code = call_.is_capturing(stream, &status);
    // The legacy stream says so while another one captures, and would break that capture.
    if (code == kOtherCaptures) return true;
    if (code != kSuccess) return Error("cuStreamIsCapturing", code);
    return status != kNotCapturing;
  }
  bool IsIdle(StreamHandle stream) override {
    // A stream that the legacy one blocks waits for its work too, of which a query says nothing; the legacy
    // one's query speaks of all that block it. PyTorch makes only such as wait for nobody.
    unsigned flags = 0;
    const bool alone =
        stream == nullptr || (call_.stream_flags(stream, &flags) == kSuccess && (flags & kNonBlocking) != 0);
    if (!alone) return false;
    // While some other thread captures a graph, asking could break that capture.
    int mode = kCaptureRelaxed;
    if (call_.exchange_capture_mode(&mode) != kSuccess) return false;
    const bool idle = call_.query(stream) == kSuccess;
    static_cast<void>(call_.exchange_capture_mode(&mode));
    return idle;
  }
  Status Synchronize(StreamHandle stream) override {
    return StatusOf("cuStreamSynchronize", call_.synchronize(stream));
  }

 private:
  struct Registered {
    void* at;
    Context context;
  };

  // A piece of a reserved range that one physical handle backs.
  bool DescribeMapping(DeviceAddress at, DeviceAllocation& found) {
    DeviceAddress base = 0;
    std::uint64_t bytes = 0;
    if (call_.pointer_attribute(&base, kMappingBase, at) != kSuccess) return false;
    if (call_.pointer_attribute(&bytes, kMappingBytes, at) != kSuccess) return false;
    if (at < base || at - base >= bytes) return false;
    found.base = base;
    found.bytes = bytes;
    return true;
  }

  std::string Name(int code) const {
    const char* name = nullptr;
    call_.get_error_name(code, &name);
    return name == nullptr ? "CUDA error " + std::to_string(code) : name;
  }
  Status Error(const char* what, int code) const {
    const char* text = nullptr;
    call_.get_error_string(code, &text);
    return {
        code == kOutOfMemory ? Code::kOutOfMemory : Code::kDeviceFault,
        std::string(what) + " failed with " + Name(code) + (text == nullptr ? "" : std::string(": ") + text)};
  }
  Status StatusOf(const char* what, int code) const {
    return code == kSuccess ? Status() : Error(what, code);
  }

  const Functions call_;
  std::mutex mutex_;
  std::vector<Registered> registered_;  // guarded by mutex_
  std::map<int, Context> primary_;      // by ordinal; guarded by mutex_
};

}  // namespace

Result<CudaDriver*> CudaDriver::System() {
  // Leaked: sessions may end after static destructors.
  static const auto* const driver = new Result<CudaDriver*>([]() -> Result<CudaDriver*> {
    const Result<cuda::Functions> functions = cuda::Load();
    if (!functions.ok()) return functions.status();
    return static_cast<CudaDriver*>(new SystemDriver(*functions));
  }());
  return *driver;
}

Result<int> CudaDriver::OrdinalOf(const std::string& uuid) {
  const Result<int> count = DeviceCount();
  if (!count.ok()) return count.status();
  std::string seen;
  for (int i = 0; i < *count; ++i) {
    const Result<std::string> name = Uuid(i);
    if (!name.ok()) return name.status();
    if (*name == uuid) return i;
    seen += (seen.empty() ? "" : ", ") + *name;
  }
  return Status(Code::kNotFound, "this process sees no device " + uuid +
                                     (seen.empty() ? "" : ", only " + seen) +
                                     ". Hint: look at CUDA_VISIBLE_DEVICES");
}

}  // namespace bitpager::client
