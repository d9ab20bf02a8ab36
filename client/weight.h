// A quantized weight in the daemon's pages: 4-bit codes and block absmaxes of a flattened tensor. Any thread.
// Formats: arXiv 2305.14314 (NF4, FP4, double quantization).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "client/session.h"
#include "client/wire/records.h"
#include "client/wire/status.h"
#include "client/wire/types.h"
#include "quant/weight_layout.h"

namespace bitpager::client {

struct WeightOptions {
  wire::QuantType type = wire::QuantType::kNF4;
  std::uint32_t blocksize = 64;  // a power of two, 32 to 4096
  bool nested = false;           // double quantization
  std::uint64_t elements = 0;    // at least 1
  std::string name;              // shown to people; at most 63 bytes
  bool share = true;             // its pages may be held once with those of equal weights
  bool on_disk = false;          // not in host memory: kUnsupported where the daemon keeps no pages on disk
};

// How a weight is dequantized.
enum class Path : std::uint8_t {
  kAuto = 0,     // by lease when the weight is resident and leasable, else by request
  kRequest = 1,  // the daemon writes the result
  kLease = 2,    // this process reads the frames in place; kFull, kNotResident or kUnsupported when it cannot
};

// A tensor of the caller: its memory, or a place in one of the session's buffers (memory null).
struct Place {
  void* memory = nullptr;
  wire::Slice slice;
};

// The interchange planes. packed: ceil(n/2) bytes, even element in the high nibble; absmax: fp32 a block, or
// uint8 a block when nested; absmax2: fp32, one for 256 blocks (nested); offset: the mean that was
// subtracted (nested).
struct WeightPlanes {
  void* packed = nullptr;
  void* absmax = nullptr;
  float* absmax2 = nullptr;
  float offset = 0;
};

// The weight where it lies on the GPU, for kernels of the caller.
struct LeasedPages {
  wire::QuantType type = wire::QuantType::kNF4;
  std::uint32_t blocksize = 64;
  bool nested = false;
  float offset = 0.0F;  // nested
  std::uint64_t page_bytes = 0;
  std::span<const std::byte* const> pages;  // addresses on the device
};
// Enqueues kernels that read the pages; they may end when it returns.
using LeasedLaunch = std::function<wire::Status(const LeasedPages&)>;

class Weight {
 public:
  [[nodiscard]] static wire::Result<std::unique_ptr<Weight>> Create(const Session& session,
                                                                    const WeightOptions& options);
  // Has its pages dropped behind what the session asked for before, without a wait (Connection::DropLater).
  ~Weight();
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  // Quantizes all elements of `from`, of fp32, fp16 or bf16. Waited for to its end.
  [[nodiscard]] wire::Status Quantize(wire::DType dtype, const Place& from);
  // into[i] = weight[i], cast to `dtype`. `used`, when not null, says which way was taken.
  [[nodiscard]] wire::Status Dequantize(wire::DType dtype, const Place& into, Path path = Path::kAuto,
                                        Path* used = nullptr);
  // The same on a GPU's stream, of and into memory of the session's GPU: the ticket, without waiting. As
  // Arena::StepOnStream. The range is `elements` from `first_element`, a multiple of the block size.
  [[nodiscard]] wire::Result<std::uint64_t> QuantizeOnStream(wire::DType dtype, const void* from,
                                                             StreamHandle stream);
  [[nodiscard]] wire::Result<std::uint64_t> DequantizeOnStream(wire::DType dtype, void* into,
                                                               std::uint64_t first_element,
                                                               std::uint64_t elements, StreamHandle stream);
  // Calls `launch` once with the weight's pages, resident and readable for what it enqueues on `stream` of
  // the session's GPU. A lease is taken at the first call and kept until the daemon revokes it, so that later
  // calls ask nobody. kFull, kNotResident, kUnsupported: no lease can be had, `launch` was not called; take
  // the request. A revoked lease's memory is let go at the next call for any weight of the session.
  [[nodiscard]] wire::Status ReadOnStream(StreamHandle stream, const LeasedLaunch& launch);
  // Copies the planes out; sets planes.offset.
  [[nodiscard]] wire::Status Export(WeightPlanes& planes);
  [[nodiscard]] wire::Status Import(const WeightPlanes& planes);
  // Waits for what the session asked for before, on streams too. kInterrupted: call again.
  [[nodiscard]] wire::Status Drop();

  // Under the connection's lock: unmaps a lease that was revoked, unless a kernel still reads it. True: done.
  bool LetGoIfRevoked();

  [[nodiscard]] std::uint64_t id() const { return extent_; }
  [[nodiscard]] const WeightOptions& options() const { return options_; }

 private:
  Weight(std::shared_ptr<Connection> connection, WeightOptions options, quant::WeightLayout layout)
      : connection_(std::move(connection)), options_(std::move(options)), layout_(layout) {}

  wire::Status ByRequest(wire::DType dtype, const Place& into);
  wire::Status ByRequestThroughSlab(wire::DType dtype, void* into);
  wire::Status RequestRange(wire::DType dtype, wire::Slice out, std::uint64_t first, std::uint64_t count);
  // kNotResident once after a revocation that came between grant and use.
  wire::Status ByLease(wire::DType dtype, const Place& into);
  wire::Status AskLease();
  wire::Status ReadLeased(DeviceSession& device, StreamHandle stream, const LeasedLaunch& launch);
  // Unmaps what a revoked lease kept, when no kernel reads it any more.
  void LetGo();
  void PauseLeases(const wire::Status& refused);
  [[nodiscard]] bool MayTryLease();
  wire::Status MovePacked(WeightPlanes& planes, bool into_pages);

  const std::shared_ptr<Connection> connection_;
  const WeightOptions options_;
  const quant::WeightLayout layout_;
  std::uint64_t extent_ = 0;
  // Under the connection's lock:
  float offset_ = 0;                  // nested: of the last quantization or import
  std::optional<Lease> lease_;        // kept until revoked, so that the hot path asks nobody
  std::unique_ptr<StreamUses> uses_;  // of lease_, on a GPU
  std::uint32_t lease_pause_ = 0;     // automatic tries to leave out after a refusal
  std::uint32_t refusals_ = 0;        // of leases, running
};

}  // namespace bitpager::client
