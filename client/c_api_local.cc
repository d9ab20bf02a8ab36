// The part of the C ABI that needs no session: versions, the error text of this thread, and the operations
// that run in this process. Any thread.
#include <algorithm>
#include <cstring>

#include "client/bitpager.h"
#include "client/c_api_internal.h"
#include "client/local_ops.h"
#include "client/wire/text.h"
#include "quant/codebook.h"

namespace client = bitpager::client;
namespace wire = bitpager::wire;
using client::internal::Guarded;
using client::internal::InvalidArgument;
using wire::Result;
using wire::Status;

namespace bitpager::client::internal {
namespace {

// Plain memory: no destructor runs at thread or process end, so it may be read at any time.
constexpr std::size_t kErrorBytes = 1536;
thread_local char last_error[kErrorBytes];

}  // namespace

int RecordText(wire::Code code, const char* text) noexcept {
  const std::size_t bytes = std::min(std::strlen(text), kErrorBytes - 1);
  std::memcpy(last_error, text, bytes);
  last_error[bytes] = '\0';
  return static_cast<int>(code);
}

int Record(const wire::Status& status) noexcept {
  return RecordText(status.code(), status.message().c_str());
}

}  // namespace bitpager::client::internal

namespace {

Status CheckQuantType(int quant_type) {
  if (quant_type == BP_NF4 || quant_type == BP_FP4) return {};
  return InvalidArgument("quant_type " + std::to_string(quant_type) + " is no bp_quant_type");
}

Status CheckFloat(int dtype) {
  if (dtype == BP_F32 || dtype == BP_F16 || dtype == BP_BF16) return {};
  return InvalidArgument("dtype " + std::to_string(dtype) + " is not BP_F32, BP_F16 or BP_BF16");
}

// Checks what all in-process operations share, then runs `call` with the dtype and the threads.
template <typename Call>
int WithDType(int dtype, int threads, Call&& call) {
  return Guarded([&]() -> Status {
    if (Status fine = CheckFloat(dtype); !fine.ok()) return fine;
    const Result<int> count = client::ThreadsFrom(threads);
    if (!count.ok()) return count.status();
    return call(static_cast<wire::DType>(dtype), *count);
  });
}

}  // namespace

extern "C" {

uint32_t bp_abi_version(void) {
  return BP_ABI_VERSION;
}
const char* bp_version(void) {
  return BITPAGER_VERSION;
}
const char* bp_last_error(void) {
  return client::internal::last_error;
}
const char* bp_code_name(int code) {
  // The names are literals: terminated.
  return wire::CodeName(static_cast<wire::Code>(code)).data();
}

int bp_quantize_4bit(int quant_type, int dtype, const void* src, uint64_t n, uint32_t blocksize, void* packed,
                     float* absmax, int threads) {
  return WithDType(dtype, threads, [&](wire::DType type, int count) -> Status {
    if (Status fine = CheckQuantType(quant_type); !fine.ok()) return fine;
    return client::Quantize4Bit(static_cast<wire::QuantType>(quant_type), type, src, n, blocksize,
                                static_cast<std::uint8_t*>(packed), absmax, count);
  });
}

int bp_dequantize_4bit(int quant_type, int dtype, const void* packed, const float* absmax, uint64_t n,
                       uint32_t blocksize, void* dst, int threads) {
  return WithDType(dtype, threads, [&](wire::DType type, int count) -> Status {
    if (Status fine = CheckQuantType(quant_type); !fine.ok()) return fine;
    return client::Dequantize4Bit(static_cast<wire::QuantType>(quant_type), type,
                                  static_cast<const std::uint8_t*>(packed), absmax, n, blocksize, dst, count);
  });
}

int bp_quantize_blockwise(const float* code, int dtype, const void* src, uint64_t n, uint32_t blocksize,
                          void* codes, float* absmax, int threads) {
  return WithDType(dtype, threads, [&](wire::DType type, int count) -> Status {
    if (code == nullptr) return InvalidArgument("code is NULL");
    return client::QuantizeBlockwise(code, type, src, n, blocksize, static_cast<std::uint8_t*>(codes), absmax,
                                     count);
  });
}

int bp_dequantize_blockwise(const float* code, int dtype, const void* codes, const float* absmax, uint64_t n,
                            uint32_t blocksize, void* dst, int threads) {
  return WithDType(dtype, threads, [&](wire::DType type, int count) -> Status {
    if (code == nullptr) return InvalidArgument("code is NULL");
    return client::DequantizeBlockwise(code, type, static_cast<const std::uint8_t*>(codes), absmax, n,
                                       blocksize, dst, count);
  });
}

int bp_dynamic_map(int is_signed, float* out) {
  return Guarded([&]() -> Status {
    if (out == nullptr) return InvalidArgument("out is NULL");
    const auto& map =
        is_signed != 0 ? bitpager::quant::kSignedDynamicMap : bitpager::quant::kUnsignedDynamicMap;
    std::copy(map.begin(), map.end(), out);
    return {};
  });
}

int bp_quant_map(int quant_type, float* out) {
  return Guarded([&]() -> Status {
    if (Status fine = CheckQuantType(quant_type); !fine.ok()) return fine;
    if (out == nullptr) return InvalidArgument("out is NULL");
    const auto& map = quant_type == BP_NF4 ? bitpager::quant::kNf4 : bitpager::quant::kFp4;
    std::copy(map.begin(), map.end(), out);
    return {};
  });
}

}  // extern "C"
