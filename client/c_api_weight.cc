// The C ABI over the C++ API: quantized weights. Any thread; nothing throws out of here.
#include <cstddef>
#include <memory>
#include <string>

#include "client/c_api_handles.h"

namespace client = bitpager::client;
namespace wire = bitpager::wire;
using namespace client::internal;  // NOLINT(google-build-using-namespace): this file is their user
using wire::Result;
using wire::Status;

extern "C" {

int bp_weight_create(bp_session* session, const bp_weight_options* options, uint64_t* weight) {
  return WithSession(session, [&](client::Session& s) -> Status {
    bp_weight_options in{};
    if (Status fine = CopyIn(options, in, "bp_weight_options", {offsetof(bp_weight_options, on_disk)});
        !fine.ok())
      return fine;
    if (weight == nullptr) return InvalidArgument("weight is NULL");
    if (in.quant_type != BP_NF4 && in.quant_type != BP_FP4) {
      return InvalidArgument("quant_type " + std::to_string(in.quant_type) + " is no bp_quant_type");
    }
    Result<std::unique_ptr<client::Weight>> made =
        client::Weight::Create(s, {static_cast<wire::QuantType>(in.quant_type), in.blocksize, in.nested != 0,
                                   in.elements, Text(in.name), in.unshared == 0, in.on_disk != 0});
    if (!made.ok()) return made.status();
    return Keep(session, s, &bp_session::weights, std::move(*made), weight);
  });
}

int bp_weight_drop(bp_session* session, uint64_t weight) {
  return DropHandle(session, &bp_session::weights, weight, "weight");
}

int bp_weight_drop_later(bp_session* session, uint64_t weight) {
  return WithSession(session, [&](client::Session&) -> Status {
    // Its end has it dropped.
    return Take(session, &bp_session::weights, weight) == nullptr ? NoSuch("weight", weight) : Status();
  });
}

int bp_weight_quantize(bp_session* session, uint64_t weight, int dtype, const void* src, uint64_t buffer,
                       uint64_t offset) {
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    const Result<wire::DType> type = DTypeFrom(dtype);
    if (!type.ok()) return type.status();
    return handle.Quantize(*type, {const_cast<void*>(src), {buffer, offset}});
  });
}

int bp_weight_dequantize(bp_session* session, uint64_t weight, int dtype, void* dst, uint64_t buffer,
                         uint64_t offset, int path, int* used) {
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    const Result<wire::DType> type = DTypeFrom(dtype);
    if (!type.ok()) return type.status();
    if (path < BP_PATH_AUTO || path > BP_PATH_LEASE) {
      return InvalidArgument("path " + std::to_string(path) + " is no bp_path");
    }
    client::Path taken = client::Path::kAuto;
    const Status outcome =
        handle.Dequantize(*type, {dst, {buffer, offset}}, static_cast<client::Path>(path), &taken);
    if (used != nullptr) *used = static_cast<int>(taken);
    return outcome;
  });
}

int bp_weight_export(bp_session* session, uint64_t weight, void* packed, void* absmax, float* absmax2,
                     float* offset) {
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    if (handle.options().nested && offset == nullptr) return InvalidArgument("offset is NULL");
    client::WeightPlanes planes{packed, absmax, absmax2, 0};
    const Status outcome = handle.Export(planes);
    if (outcome.ok() && offset != nullptr) *offset = planes.offset;
    return outcome;
  });
}

int bp_weight_import(bp_session* session, uint64_t weight, const void* packed, const void* absmax,
                     const float* absmax2, float offset) {
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    return handle.Import(
        {const_cast<void*>(packed), const_cast<void*>(absmax), const_cast<float*>(absmax2), offset});
  });
}

}  // extern "C"
