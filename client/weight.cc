#include "client/weight.h"

#include <algorithm>
#include <bit>

#include "client/local_ops.h"
#include "client/wire/messages.h"
#include "client/wire/text.h"

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

// Staged results come in pieces, so that the slab stays small; a multiple of every block size.
constexpr std::uint64_t kPieceElements = 8ULL << 20;
// After a refused lease the automatic path asks again only so many reads later, and twice as many each time
// up to the greatest: whoever asks waits for what was asked for before.
constexpr std::uint32_t kLeasePause = 16;
constexpr std::uint32_t kLongestLeasePause = 128;
// Kernels on a lease that is to end may take so long.
constexpr int kLetGoMs = 10'000;

Status CheckDType(wire::DType dtype) {
  if (dtype == wire::DType::kF32 || dtype == wire::DType::kF16 || dtype == wire::DType::kBF16) return {};
  return {Code::kInvalidArgument, "a weight's values are fp32, fp16 or bf16"};
}

Status CheckPlace(const Place& place) {
  if (place.memory != nullptr || place.slice.buffer != 0) return {};
  return {Code::kInvalidArgument, "neither memory nor a buffer was given"};
}

float OffsetFrom(const wire::CompletionRecord& record) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(record.values[0]));
}

// Refusals of a lease that leave the request as the way.
bool LeaseRefused(const Status& status) {
  return status.code() == Code::kFull || status.code() == Code::kNotResident ||
         status.code() == Code::kUnsupported;
}

}  // namespace

Result<std::unique_ptr<Weight>> Weight::Create(const Session& session, const WeightOptions& options) {
  const std::shared_ptr<Connection>& connection = session.connection();
  wire::CreateWeightBody body;
  if (options.elements == 0 || options.elements > (1ULL << 48)) {
    return Status(Code::kInvalidArgument, "a weight of " + std::to_string(options.elements) + " elements");
  }
  if (options.type != wire::QuantType::kNF4 && options.type != wire::QuantType::kFP4) {
    return Status(Code::kInvalidArgument, "the quantization type is neither NF4 nor FP4");
  }
  if (!wire::CopyText(body.name, options.name)) {
    return Status(Code::kInvalidArgument, "the weight's name is longer than 63 bytes: " + options.name);
  }
  const Result<quant::WeightLayout> layout =
      quant::MakeWeightLayout(options.blocksize, options.nested, connection->info().page_bytes);
  if (!layout.ok()) return layout.status();
  body.type = options.type;
  body.nested = options.nested ? 1 : 0;
  body.on_disk = options.on_disk ? 1 : 0;
  body.unshared = options.share ? 0 : 1;
  body.blocksize = options.blocksize;
  body.elements = options.elements;
  const Result<Connection::Lock> lock = connection->Enter();
  if (!lock.ok()) return lock.status();
  if (Status room = connection->DropForgotten(); !room.ok()) return room;
  Result<Reply> reply = connection->Ask(wire::MessageType::kCreateWeight, body);
  if (!reply.ok()) return reply.status();
  std::unique_ptr<Weight> weight(new Weight(connection, options, *layout));
  weight->extent_ = reply->body.values[0];
  const bool same = reply->body.values[1] == quant::PagesOf(*layout, options.elements) &&
                    reply->body.values[2] == layout->blocks_per_page;
  if (weight->extent_ != 0 && same) return weight;
  weight->extent_ = 0;
  return Status(Code::kProtocol,
                "client and daemon lay out weights differently. Hint: install the same "
                "bitpager on both sides");
}

Weight::~Weight() {
  const bool done = connection_->Locked([this] {
    LetGo();
    if (extent_ != 0) connection_->DropLater(extent_);
  });
  if (done || uses_ == nullptr) return;
  // A forked child must not touch the GPU.
  [[maybe_unused]] const auto* const leaked = new Lease(std::move(*lease_));
}

Status Weight::Drop() {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  if (extent_ == 0) return {};
  // What was asked for before is done first.
  if (Status idle = connection_->timeline().AwaitAll(Patience::kUntilSignal); !idle.ok()) return idle;
  LetGo();
  wire::DropExtentBody body;
  body.extent = extent_;
  extent_ = 0;
  return connection_->Ask(wire::MessageType::kDropExtent, body).status();
}

Status Weight::Quantize(wire::DType dtype, const Place& from) {
  if (Status fine = CheckDType(dtype); !fine.ok()) return fine;
  if (Status fine = CheckPlace(from); !fine.ok()) return fine;
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  wire::QuantizeBody body;
  body.extent = extent_;
  body.in = from.slice;
  body.in_dtype = dtype;
  if (from.memory != nullptr) {
    const std::uint64_t bytes = options_.elements * wire::DTypeBytes(dtype);
    if (Status room = connection_->ReserveSlab(bytes); !room.ok()) return room;
    const SlabPiece piece = connection_->slab().Take(bytes);
    const CopyRange range{piece.at, from.memory, bytes};
    connection_->copies().Run({&range, 1});
    body.in = piece.slice;
  }
  // The offset of leased reads comes back with the completion, so it is not left behind.
  const Result<wire::CompletionRecord> done =
      connection_->timeline().Run(wire::Op::kQuantize, body, Patience::kUntilDone);
  if (!done.ok()) return done.status();
  const Status outcome = StatusOf(*done);
  if (outcome.ok()) offset_ = options_.nested ? OffsetFrom(*done) : 0.0F;
  return outcome;
}

Status Weight::Dequantize(wire::DType dtype, const Place& into, Path path, Path* used) {
  if (Status fine = CheckDType(dtype); !fine.ok()) return fine;
  if (Status fine = CheckPlace(into); !fine.ok()) return fine;
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  // The processor cannot read a GPU's frames; its streams lease them by ReadLeased.
  const bool on_gpu = connection_->device() != nullptr;
  if (on_gpu && path == Path::kLease) {
    return {
        Code::kUnsupported,
        "a lease of a GPU's pages decodes into memory of that GPU, on a stream. Hint: path request, or an "
        "output on the GPU"};
  }
  if (path == Path::kLease || (path == Path::kAuto && !on_gpu && MayTryLease())) {
    const Status leased = ByLease(dtype, into);
    if (used != nullptr) *used = Path::kLease;
    if (path == Path::kLease || !LeaseRefused(leased)) return leased;
    PauseLeases(leased);
  }
  if (used != nullptr) *used = Path::kRequest;
  return ByRequest(dtype, into);
}

void Weight::PauseLeases(const Status& refused) {
  if (refused.code() != Code::kFull) refusals_ = 0;  // it comes and goes; want of room lasts
  lease_pause_ = std::min(kLeasePause << std::min(refusals_++, 16U), kLongestLeasePause);
}

bool Weight::MayTryLease() {
  if (!connection_->info().leases) return false;
  if (lease_ || lease_pause_ == 0) return true;
  --lease_pause_;
  return false;
}

Status Weight::RequestRange(wire::DType dtype, wire::Slice out, std::uint64_t first, std::uint64_t count) {
  wire::DequantizeBody body;
  body.extent = extent_;
  body.out = out;
  body.first_element = first;
  body.elements = count;
  body.out_dtype = dtype;
  const Result<wire::CompletionRecord> done = connection_->timeline().Run(wire::Op::kDequantize, body);
  return done.ok() ? StatusOf(*done) : done.status();
}

Status Weight::ByRequest(wire::DType dtype, const Place& into) {
  if (into.memory == nullptr) return RequestRange(dtype, into.slice, 0, options_.elements);
  return ByRequestThroughSlab(dtype, into.memory);
}

Status Weight::ByRequestThroughSlab(wire::DType dtype, void* into) {
  const std::uint64_t size = wire::DTypeBytes(dtype);
  const std::uint64_t most = std::min(options_.elements, kPieceElements);
  if (Status room = connection_->ReserveSlab(most * size); !room.ok()) return room;
  const SlabPiece piece = connection_->slab().Take(most * size);
  for (std::uint64_t first = 0; first < options_.elements; first += most) {
    const std::uint64_t count = std::min(most, options_.elements - first);
    if (Status done = RequestRange(dtype, piece.slice, first, count); !done.ok()) return done;
    const CopyRange range{static_cast<std::byte*>(into) + first * size, piece.at, count * size};
    connection_->copies().Run({&range, 1});
  }
  return {};
}

Status Weight::AskLease() {
  connection_->LetGoOfRevoked();
  wire::LeaseBody body;
  body.extent = extent_;
  const Result<wire::CompletionRecord> done = connection_->timeline().Run(wire::Op::kLease, body);
  if (!done.ok()) return done.status();
  if (Status granted = StatusOf(*done); !granted.ok()) return granted;
  LeaseGrant grant;
  grant.slot = done->values[0];
  grant.generation = done->values[1];
  grant.extent = extent_;
  grant.pages = quant::PagesOf(layout_, options_.elements);
  grant.page_bytes = connection_->info().page_bytes;
  Result<Lease> lease = connection_->TakeLease(grant);
  if (!lease.ok()) {
    // Revoked before it was mapped, and its memory given back since, or no room for a mapping.
    const bool short_of_memory =
        lease.status().code() == Code::kNotFound || lease.status().code() == Code::kOutOfMemory;
    if (!short_of_memory) return lease.status();
    return {Code::kNotResident, "the lease could not be mapped: " + lease.status().message()};
  }
  lease_ = std::move(*lease);
  refusals_ = 0;
  // Of a quantization on a stream nobody has waited for the offset.
  if (options_.nested) offset_ = std::bit_cast<float>(static_cast<std::uint32_t>(done->values[2]));
  return {};
}

void Weight::LetGo() {
  connection_->Forget(this);
  if (uses_ != nullptr && lease_ && !uses_->AwaitOver(kLetGoMs)) {
    // Kernels that never end may still read: the mappings stay for good.
    [[maybe_unused]] const auto* const leaked = new Lease(std::move(*lease_));
  }
  uses_.reset();
  lease_.reset();
}

Status Weight::ReadOnStream(StreamHandle stream, const LeasedLaunch& launch) {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  DeviceSession* const device = connection_->device();
  if (device == nullptr) return NoStreams(connection_->info().device_kind);
  if (Status fine = device->CheckStream(stream); !fine.ok()) return fine;
  if (device->synchronous()) {
    return {Code::kUnsupported, "a lease needs streams that write words, which this GPU's do not"};
  }
  if (!connection_->info().leases) {
    return {Code::kUnsupported,
            "the daemon's frames cannot be read by other processes; weights go by request"};
  }
  if (!MayTryLease()) return {Code::kFull, "a lease was refused a moment ago"};
  const Status read = ReadLeased(*device, stream, launch);
  if (!lease_ && LeaseRefused(read)) PauseLeases(read);
  return read;
}

Status Weight::ReadLeased(DeviceSession& device, StreamHandle stream, const LeasedLaunch& launch) {
  // A cached lease may have been revoked; the one granted next is fresh.
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (!lease_) {
      if (Status asked = AskLease(); !asked.ok()) return asked;
      Result<std::unique_ptr<StreamUses>> uses = device.UsesOf(*lease_);
      if (!uses.ok()) {
        lease_.reset();
        return uses.status();
      }
      uses_ = std::move(*uses);
      connection_->Remember(this);
    }
    const Result<bool> begun = uses_->Begin(stream);
    if (!begun.ok()) return begun.status();
    if (*begun) {
      const Status launched = launch({options_.type, options_.blocksize, options_.nested, offset_,
                                      connection_->info().page_bytes, lease_->pages});
      const Status ended = uses_->End(stream);
      return launched.ok() ? ended : launched;
    }
    LetGo();
  }
  return {Code::kNotResident, "the lease was revoked as soon as it was granted: memory is short"};
}

bool Weight::LetGoIfRevoked() {
  if (uses_ == nullptr || !uses_->revoked() || !uses_->over()) return false;
  uses_.reset();
  lease_.reset();
  return true;
}

Status Weight::ByLease(wire::DType dtype, const Place& into) {
  std::byte* out = static_cast<std::byte*>(into.memory);
  if (out == nullptr) {
    const auto at = connection_->buffers().find(into.slice.buffer);
    if (at == connection_->buffers().end()) {
      return {Code::kUnsupported, "a lease decodes in this process, and buffer " +
                                      std::to_string(into.slice.buffer) +
                                      " is not mapped here. Hint: give memory, or take the request path"};
    }
    const std::uint64_t bytes = options_.elements * wire::DTypeBytes(dtype);
    if (into.slice.offset > at->second.bytes() || bytes > at->second.bytes() - into.slice.offset) {
      return {Code::kOutOfRange, std::to_string(bytes) + " bytes at offset " +
                                     std::to_string(into.slice.offset) + " pass the end of the buffer"};
    }
    out = at->second.base() + into.slice.offset;
  }
  // A cached lease may have been revoked; the one granted next is fresh.
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (!lease_) {
      if (Status asked = AskLease(); !asked.ok()) return asked;
    }
    const LeaseUse use(connection_->view().leases()[lease_->slot], lease_->generation);
    if (use.valid()) {
      const LeasedWeight weight{options_.type, layout_, offset_, lease_->pages, options_.elements};
      return DecodeLeased(weight, dtype, out, connection_->copies().threads());
    }
    lease_.reset();
  }
  return {Code::kNotResident, "the lease was revoked as soon as it was granted: memory is short"};
}

Result<std::uint64_t> Weight::QuantizeOnStream(wire::DType dtype, const void* from, StreamHandle stream) {
  if (Status fine = CheckDType(dtype); !fine.ok()) return fine;
  if (from == nullptr) return Status(Code::kInvalidArgument, "no memory was given");
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  DeviceSession* const device = connection_->device();
  if (device == nullptr) return NoStreams(connection_->info().device_kind);
  if (Status begun = device->Begin(stream); !begun.ok()) return begun;
  wire::QuantizeBody body;
  body.extent = extent_;
  body.in_dtype = dtype;
  const std::uint64_t bytes = options_.elements * wire::DTypeBytes(dtype);
  if (Status placed = device->Resolve(from, bytes, Use::kGradient, body.in); !placed.ok()) return placed;
  LetGo();  // the offset will be another; the next lease brings it
  return device->Submit(stream, wire::Op::kQuantize, body, {extent_, 0});
}

Result<std::uint64_t> Weight::DequantizeOnStream(wire::DType dtype, void* into, std::uint64_t first_element,
                                                 std::uint64_t elements, StreamHandle stream) {
  if (Status fine = CheckDType(dtype); !fine.ok()) return fine;
  if (into == nullptr) return Status(Code::kInvalidArgument, "no memory was given");
  if (elements == 0 || first_element % options_.blocksize != 0 || first_element > options_.elements ||
      elements > options_.elements - first_element) {
    return Status(Code::kOutOfRange, std::to_string(elements) + " elements from " +
                                         std::to_string(first_element) + " are not blocks of a weight of " +
                                         std::to_string(options_.elements));
  }
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  DeviceSession* const device = connection_->device();
  if (device == nullptr) return NoStreams(connection_->info().device_kind);
  if (Status begun = device->Begin(stream); !begun.ok()) return begun;
  wire::DequantizeBody body;
  body.extent = extent_;
  body.first_element = first_element;
  body.elements = elements;
  body.out_dtype = dtype;
  const std::uint64_t bytes = elements * wire::DTypeBytes(dtype);
  if (Status placed = device->Resolve(into, bytes, Use::kGradient, body.out); !placed.ok()) return placed;
  return device->Submit(stream, wire::Op::kDequantize, body, {extent_, 0});
}

Status Weight::Export(WeightPlanes& planes) {
  return MovePacked(planes, false);
}

Status Weight::Import(const WeightPlanes& planes) {
  WeightPlanes from = planes;
  return MovePacked(from, true);
}

Status Weight::MovePacked(WeightPlanes& planes, bool into_pages) {
  if (planes.packed == nullptr || planes.absmax == nullptr ||
      (options_.nested && planes.absmax2 == nullptr)) {
    return {Code::kInvalidArgument, "packed, absmax and, for a double-quantized weight, absmax2 are needed"};
  }
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  const std::uint64_t blocks = quant::BlocksOf(options_.elements, options_.blocksize);
  const std::uint64_t packed_bytes = options_.elements / 2 + options_.elements % 2;
  const std::uint64_t absmax_bytes = options_.nested ? blocks : blocks * sizeof(float);
  const std::uint64_t absmax2_bytes =
      options_.nested ? (blocks + quant::kNestedBlock - 1) / quant::kNestedBlock * sizeof(float) : 0;
  const std::uint64_t total =
      Slab::Rounded(packed_bytes) + Slab::Rounded(absmax_bytes) + Slab::Rounded(absmax2_bytes);
  if (Status room = connection_->ReserveSlab(total); !room.ok()) return room;
  wire::PackedBody body;
  body.extent = extent_;
  body.offset = planes.offset;
  body.into_pages = into_pages ? 1 : 0;
  std::vector<CopyRange>& ranges = connection_->ranges();
  ranges.clear();
  const auto stage = [&](void* plane, std::uint64_t bytes, wire::Slice& slice) {
    const SlabPiece piece = connection_->slab().Take(bytes);
    slice = piece.slice;
    ranges.push_back(into_pages ? CopyRange{piece.at, plane, bytes} : CopyRange{plane, piece.at, bytes});
  };
  stage(planes.packed, packed_bytes, body.packed);
  stage(planes.absmax, absmax_bytes, body.absmax);
  if (options_.nested) stage(planes.absmax2, absmax2_bytes, body.absmax2);
  if (into_pages) connection_->copies().Run(ranges);
  // An interrupted import that goes on has this offset all the same.
  if (into_pages) offset_ = options_.nested ? planes.offset : 0.0F;
  const Result<wire::CompletionRecord> done = connection_->timeline().Run(wire::Op::kMovePacked, body);
  if (!done.ok()) return done.status();
  const Status outcome = StatusOf(*done);
  if (!outcome.ok() || into_pages) return outcome;
  connection_->copies().Run(ranges);
  planes.offset = options_.nested ? OffsetFrom(*done) : 0.0F;
  return {};
}

}  // namespace bitpager::client
