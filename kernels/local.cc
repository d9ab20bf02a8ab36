#include "kernels/local.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/simd/copy.h"
#include "kernels/simd/eight_bit.h"
#include "kernels/simd/four_bit.h"
#include "quant/block.h"
#include "quant/encode.h"

namespace bitpager::kernels {
namespace {

using wire::Code;
using wire::DTypeBytes;
using wire::Status;

constexpr int kMaxThreads = 1024;
// Work smaller than this is not worth a thread (elements).
constexpr std::uint64_t kMinElementsPerThread = 64 * 1024;
// A write this large will not stay in the caches (bytes).
constexpr std::uint64_t kStreamBytes = std::uint64_t{8} << 20;

Status Invalid(std::string message) {
  return {Code::kInvalidArgument, std::move(message)};
}

Status CheckCommon(wire::DType dtype, std::uint32_t blocksize, std::uint32_t least, int threads) {
  if (dtype != wire::DType::kF32 && dtype != wire::DType::kF16 && dtype != wire::DType::kBF16) {
    return Invalid("dtype " + std::to_string(static_cast<int>(dtype)) +
                   " is not a float type: use float32, float16 or bfloat16");
  }
  if (blocksize < least || blocksize > 4096 || !std::has_single_bit(blocksize)) {
    return Invalid("blocksize " + std::to_string(blocksize) + " is not a power of two from " +
                   std::to_string(least) + " to 4096");
  }
  if (threads < 1 || threads > kMaxThreads) {
    return Invalid("threads must be 1 to " + std::to_string(kMaxThreads) + ", got " +
                   std::to_string(threads));
  }
  return {};
}

Status CheckType(wire::QuantType type) {
  if (type == wire::QuantType::kNF4 || type == wire::QuantType::kFP4) return {};
  return Invalid("unknown 4-bit type " + std::to_string(static_cast<int>(type)) + ": use nf4 or fp4");
}

Status CheckPointer(const void* pointer, std::uint64_t elements, const char* name) {
  if (pointer != nullptr || elements == 0) return {};
  return Invalid(std::string(name) + " is null but " + std::to_string(elements) + " elements were given");
}

// True in a process that was forked from one with this library in it: OpenMP's threads exist in the parent
// alone, and its runtime does not know.
std::atomic<bool> forked{false};
[[maybe_unused]] const int watched_forks =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

// Runs `work` on the threads of the program's OpenMP runtime, where it has one and more than one thread.
// After each of the program's own parallel regions those threads spin for some milliseconds, and threads of
// ours would have to share their processors.
bool RunByOpenMp(const std::function<void()>& work) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  using MaxThreads = int (*)();
  static const auto most = reinterpret_cast<MaxThreads>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
  static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (most == nullptr || parallel == nullptr || forked.load(std::memory_order_relaxed) || most() < 2) {
    return false;
  }
  constexpr unsigned kAll = 0;  // a smaller team would end the other threads
  parallel([](void* body) { (*static_cast<const std::function<void()>*>(body))(); },
           const_cast<std::function<void()>*>(&work), kAll, 0);
  return true;
}

// Calls `work` on up to `threads` threads at once, the caller's among them.
void OnThreads(std::uint64_t threads, const std::function<void()>& work) {
  if (threads == 1) return work();
  if (RunByOpenMp(work)) return;
  std::vector<std::thread> extra;
  extra.reserve(threads - 1);
  for (std::uint64_t i = 1; i < threads; ++i) extra.emplace_back(work);
  work();
  for (std::thread& thread : extra) thread.join();
}

// Runs body(first, count) over [0, elements) in pieces that are multiples of `grain`, on up to `threads`
// threads; several pieces for each, so that one that starts late holds up nobody.
template <typename Body>
void ForPieces(std::uint64_t elements, std::uint64_t grain, int threads, const Body& body) {
  constexpr std::uint64_t kPiecesPerThread = 4;
  const std::uint64_t useful = elements / kMinElementsPerThread + 1;
  const std::uint64_t workers = std::min<std::uint64_t>(static_cast<std::uint64_t>(threads), useful);
  const std::uint64_t pieces = workers == 1 ? 1 : std::min(useful, workers * kPiecesPerThread);
  const std::uint64_t grains = (elements + grain - 1) / grain;
  const auto edge = [&](std::uint64_t piece) { return std::min(elements, grains * piece / pieces * grain); };
  std::atomic<std::uint64_t> next{0};  // hands out numbers; the end of the threads publishes the results
  OnThreads(workers, [&] {
    for (;;) {
      const std::uint64_t piece = next.fetch_add(1, std::memory_order_relaxed);
      if (piece >= pieces) return;
      body(edge(piece), edge(piece + 1) - edge(piece));
    }
  });
}

const std::byte* At(const void* base, wire::DType dtype, std::uint64_t element) {
  return static_cast<const std::byte*>(base) + element * DTypeBytes(dtype);
}
std::byte* At(void* base, wire::DType dtype, std::uint64_t element) {
  return static_cast<std::byte*>(base) + element * DTypeBytes(dtype);
}

bool IsMap(std::span<const float> map, const quant::Map256& ours) {
  return std::equal(map.begin(), map.end(), ours.begin(), ours.end());
}

// Blocks decoded at once from pages: their absmaxes stay in the first-level cache.
constexpr std::uint64_t kBlocksAtOnce = 256;

// Decodes `elements` elements from block slot `slot` of one page; `block` is that block in the weight.
void DequantizeInPage(const PagedWeight& w, const std::byte* page, std::uint64_t slot, std::uint64_t block,
                      std::uint64_t elements, wire::DType dtype, void* out, bool stream) {
  const auto* packed = reinterpret_cast<const std::uint8_t*>(page) + slot * (w.layout.blocksize / 2);
  if (!w.layout.nested) {
    const auto* absmax = reinterpret_cast<const float*>(page + w.layout.absmax_offset) + slot;
    simd::Unpack4(w.type, dtype, packed, elements, w.layout.blocksize, absmax, out, stream);
    return;
  }
  const std::uint64_t page_group = (block - slot) / quant::kNestedBlock;
  const auto* codes = reinterpret_cast<const std::uint8_t*>(page + w.layout.absmax_offset) + slot;
  const auto* absmax2 = reinterpret_cast<const float*>(page + w.layout.absmax2_offset);
  float absmax[kBlocksAtOnce];
  for (std::uint64_t done = 0; done < elements; done += kBlocksAtOnce * w.layout.blocksize) {
    const std::uint64_t count = std::min(elements - done, kBlocksAtOnce * w.layout.blocksize);
    const std::uint64_t first = done / w.layout.blocksize;
    simd::UnnestRun(codes + first, block + first, quant::BlocksOf(count, w.layout.blocksize),
                    absmax2 + ((block + first) / quant::kNestedBlock - page_group), w.offset, absmax);
    simd::Unpack4(w.type, dtype, packed + done / 2, count, w.layout.blocksize, absmax, At(out, dtype, done),
                  stream);
  }
}

}  // namespace

wire::Status Quantize4Bit(wire::QuantType type, wire::DType dtype, const void* in, std::uint64_t elements,
                          std::uint32_t blocksize, Packed4* out, int threads) {
  if (Status s = CheckCommon(dtype, blocksize, 32, threads); !s.ok()) return s;
  if (Status s = CheckType(type); !s.ok()) return s;
  const bool nested = out->nested_codes != nullptr;
  for (const auto& [pointer, name] : {std::pair<const void*, const char*>{in, "the input"},
                                      {out->packed, "packed"},
                                      {nested ? out->absmax2 : out->absmax, nested ? "absmax2" : "absmax"}}) {
    if (Status s = CheckPointer(pointer, elements, name); !s.ok()) return s;
  }
  const std::uint64_t blocks = quant::BlocksOf(elements, blocksize);
  std::unique_ptr<float[]> scratch;
  float* absmax = out->absmax;
  if (absmax == nullptr) {
    scratch = std::make_unique<float[]>(blocks);
    absmax = scratch.get();
  }
  ForPieces(elements, blocksize, threads, [&](std::uint64_t first, std::uint64_t count) {
    simd::Quantize4(type, dtype, At(in, dtype, first), count, blocksize, absmax + first / blocksize,
                    out->packed + first / 2);
  });
  out->offset = 0.0F;
  if (!nested) return {};
  out->offset = simd::NestMean(absmax, blocks);
  ForPieces(blocks, quant::kNestedBlock, threads, [&](std::uint64_t first, std::uint64_t count) {
    simd::NestRun(absmax + first, count, out->offset, out->nested_codes + first,
                  out->absmax2 + first / quant::kNestedBlock);
  });
  return {};
}

wire::Status Dequantize4Bit(wire::QuantType type, const Packed4& in, std::uint64_t elements,
                            std::uint32_t blocksize, wire::DType dtype, void* out, int threads) {
  if (Status s = CheckCommon(dtype, blocksize, 32, threads); !s.ok()) return s;
  if (Status s = CheckType(type); !s.ok()) return s;
  const bool nested = in.nested_codes != nullptr;
  for (const auto& [pointer, name] : {std::pair<const void*, const char*>{in.packed, "packed"},
                                      {out, "the output"},
                                      {nested ? in.absmax2 : in.absmax, nested ? "absmax2" : "absmax"}}) {
    if (Status s = CheckPointer(pointer, elements, name); !s.ok()) return s;
  }
  const bool stream = elements * DTypeBytes(dtype) >= kStreamBytes;
  ForPieces(elements, blocksize, threads, [&](std::uint64_t first, std::uint64_t count) {
    float unnested[kBlocksAtOnce];
    const std::uint64_t window = kBlocksAtOnce * blocksize;
    for (std::uint64_t at = first; at < first + count; at += window) {
      const std::uint64_t n = std::min(window, first + count - at);
      const std::uint64_t block = at / blocksize;
      const float* absmax = unnested;
      if (nested) {
        simd::UnnestRun(in.nested_codes + block, block, quant::BlocksOf(n, blocksize),
                        in.absmax2 + block / quant::kNestedBlock, in.offset, unnested);
      } else {
        absmax = in.absmax + block;
      }
      simd::Unpack4(type, dtype, in.packed + at / 2, n, blocksize, absmax, At(out, dtype, at), stream);
    }
  });
  return {};
}

wire::Status QuantizeBlockwise(std::span<const float> map, wire::DType dtype, const void* in,
                               std::uint64_t elements, std::uint32_t blocksize, std::uint8_t* codes,
                               float* absmax, int threads) {
  if (Status s = CheckCommon(dtype, blocksize, 64, threads); !s.ok()) return s;
  if (map.size() != 256) return Invalid("a map has 256 entries, this one " + std::to_string(map.size()));
  for (std::size_t c = 0; c + 1 < map.size(); ++c) {
    if (!(map[c] <= map[c + 1])) {
      return Invalid("the map is not ascending at entry " + std::to_string(c + 1) + ": sort it first");
    }
  }
  for (const auto& [pointer, name] :
       {std::pair<const void*, const char*>{in, "the input"}, {codes, "codes"}, {absmax, "absmax"}}) {
    if (Status s = CheckPointer(pointer, elements, name); !s.ok()) return s;
  }
  const bool is_signed = IsMap(map, quant::kSignedDynamicMap);
  if (is_signed || IsMap(map, quant::kUnsignedDynamicMap)) {
    ForPieces(elements, blocksize, threads, [&](std::uint64_t first, std::uint64_t count) {
      simd::EncodeDynamic(is_signed, dtype, At(in, dtype, first), count, blocksize, codes + first,
                          absmax + first / blocksize);
    });
    return {};
  }
  quant::Map256 any{};
  std::copy(map.begin(), map.end(), any.begin());
  const quant::Thresholds256 thresholds = quant::ThresholdsOf(any);
  ForPieces(elements, blocksize, threads, [&](std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t at = first; at < first + count; at += blocksize) {
      const std::uint64_t n = std::min<std::uint64_t>(blocksize, first + count - at);
      absmax[at / blocksize] = quant::EncodeBlock8(thresholds, dtype, At(in, dtype, at), n, codes + at);
    }
  });
  return {};
}

wire::Status DequantizeBlockwise(std::span<const float> map, const std::uint8_t* codes, const float* absmax,
                                 std::uint64_t elements, std::uint32_t blocksize, wire::DType dtype,
                                 void* out, int threads) {
  if (Status s = CheckCommon(dtype, blocksize, 64, threads); !s.ok()) return s;
  if (map.size() != 256) return Invalid("a map has 256 entries, this one " + std::to_string(map.size()));
  for (const auto& [pointer, name] :
       {std::pair<const void*, const char*>{codes, "codes"}, {absmax, "absmax"}, {out, "the output"}}) {
    if (Status s = CheckPointer(pointer, elements, name); !s.ok()) return s;
  }
  quant::Map256 table{};
  std::copy(map.begin(), map.end(), table.begin());
  ForPieces(elements, blocksize, threads, [&](std::uint64_t first, std::uint64_t count) {
    simd::Decode8(table, dtype, codes + first, count, blocksize, absmax + first / blocksize,
                  At(out, dtype, first));
  });
  return {};
}

wire::Status DequantizePages(const PagedWeight& weight, std::uint64_t first, std::uint64_t count,
                             wire::DType dtype, void* out, int threads) {
  const quant::WeightLayout& layout = weight.layout;
  if (Status s = CheckCommon(dtype, layout.blocksize, 32, threads); !s.ok()) return s;
  if (Status s = CheckType(weight.type); !s.ok()) return s;
  if (Status s = CheckPointer(out, count, "the output"); !s.ok()) return s;
  if (first > weight.elements || count > weight.elements - first) {
    return {Code::kOutOfRange, "elements " + std::to_string(first) + " + " + std::to_string(count) +
                                   " pass the weight's end at " + std::to_string(weight.elements)};
  }
  if (first % layout.blocksize != 0) {
    return Invalid("first element " + std::to_string(first) + " is not at a block of " +
                   std::to_string(layout.blocksize));
  }
  if (layout.blocks_per_page == 0) return Invalid("the layout holds no block: use MakeWeightLayout");
  const std::uint64_t page_elements = std::uint64_t{layout.blocks_per_page} * layout.blocksize;
  const std::uint64_t last_page = (first + count + page_elements - 1) / page_elements;
  for (std::uint64_t page = first / page_elements; page < last_page && count != 0; ++page) {
    if (page >= weight.pages.size() || weight.pages[page] == nullptr) {
      return Invalid("page " + std::to_string(page) + " of the weight is needed but has no address");
    }
  }
  const bool stream = count * DTypeBytes(dtype) >= kStreamBytes;
  ForPieces(count, layout.blocksize, threads, [&](std::uint64_t piece, std::uint64_t piece_count) {
    std::uint64_t at = first + piece;
    const std::uint64_t end = at + piece_count;
    while (at < end) {
      const std::uint64_t page = at / page_elements;
      const std::uint64_t n = std::min(end, (page + 1) * page_elements) - at;
      const std::uint64_t block = at / layout.blocksize;
      DequantizeInPage(weight, weight.pages[page], block - page * layout.blocks_per_page, block, n, dtype,
                       At(out, dtype, at - first), stream);
      at += n;
    }
  });
  return {};
}

void ParallelCopy(void* to, const void* from, std::uint64_t bytes, int threads) {
  ForPieces(bytes, 4096, std::clamp(threads, 1, kMaxThreads), [&](std::uint64_t first, std::uint64_t count) {
    simd::BulkCopy(static_cast<std::byte*>(to) + first, static_cast<const std::byte*>(from) + first, count);
  });
}

void StreamCopy(void* to, const void* from, std::uint64_t bytes) {
  simd::StreamCopy(to, from, bytes);
}

int UsableProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int processors = 1;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) processors = std::max(1, CPU_COUNT(&set));
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "re"); file != nullptr) {
    long long quota = 0;
    long long period = 0;
    if (std::fscanf(file, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
      processors = std::min(processors, static_cast<int>(std::max(1LL, (quota + period - 1) / period)));
    }
    std::fclose(file);
  }
  return processors;
}

std::string InstructionSet() {
  return simd::InstructionSet();
}

}  // namespace bitpager::kernels
