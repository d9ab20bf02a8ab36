// The weight ops as they are, on weights in pages: compared with quant/block.h bit for bit, then timed with
// cold caches beside the copy ceiling of the same run.
//
// Build (from the repository's root): see README.md here. Usage: bench_weights [check|time]
#include <cmath>
#include <cstring>

#include "kernels/cuda/blockwise.h"
#include "kernels/cuda/lab/weights/bench.cuh"
#include "kernels/cuda/weight_run.h"
#include "kernels/cuda/weights.h"
#include "quant/block.h"

namespace bitpager::lab {
namespace {

using wire::DType;
using wire::QuantType;
namespace ops = kernels::cuda;

constexpr std::size_t kPage = std::size_t{2} << 20;
int failures = 0;

const char* Name(DType d) {
  return d == DType::kF32 ? "fp32" : d == DType::kF16 ? "fp16" : "bf16";
}

// Equal bytes; NaNs of any payload are equal.
bool SameElements(DType dtype, const std::uint8_t* a, const std::uint8_t* b, std::size_t count,
                  std::size_t* where) {
  for (std::size_t i = 0; i < count; ++i) {
    const float x = quant::LoadAs(dtype, a, i);
    const float y = quant::LoadAs(dtype, b, i);
    if (std::isnan(x) && std::isnan(y)) continue;
    if (std::memcmp(a + i * wire::DTypeBytes(dtype), b + i * wire::DTypeBytes(dtype),
                    wire::DTypeBytes(dtype)) != 0) {
      *where = i;
      return false;
    }
  }
  return true;
}

void Expect(bool fine, const char* what, const char* detail, const std::size_t& at) {
  if (fine) return;
  ++failures;
  if (failures < 30) std::printf("MISMATCH %s (%s) at %zu\n", what, detail, at);
}

struct Reference {
  std::vector<std::uint8_t> packed;
  std::vector<float> absmax;
  std::vector<std::uint8_t> codes;
  std::vector<float> absmax2;
  float offset = 0.0F;
  std::vector<std::uint8_t> plain;  // decoded
};

Reference MakeReference(QuantType type, DType dtype, const std::vector<std::uint8_t>& in, std::uint64_t n,
                        std::uint32_t blocksize, bool nested) {
  Reference r;
  const std::uint64_t blocks = quant::BlocksOf(n, blocksize);
  r.packed.resize((n + 1) / 2);
  r.absmax.resize(blocks);
  r.plain.resize(n * wire::DTypeBytes(dtype));
  const std::size_t width = wire::DTypeBytes(dtype);
  for (std::uint64_t b = 0; b < blocks; ++b) {
    const std::uint64_t first = b * blocksize;
    const std::size_t count = std::min<std::uint64_t>(blocksize, n - first);
    r.absmax[b] = quant::AbsmaxOf(dtype, in.data() + first * width, count);
    quant::PackBlock4(type, dtype, in.data() + first * width, count, r.absmax[b],
                      r.packed.data() + first / 2);
  }
  std::vector<float> decoded = r.absmax;
  if (nested) {
    r.codes.resize(blocks);
    r.absmax2.resize((blocks + 255) / 256);
    quant::NestAbsmax(r.absmax, r.codes.data(), r.absmax2.data(), &r.offset);
    for (std::uint64_t b = 0; b < blocks; ++b)
      decoded[b] = quant::UnnestAbsmax(r.codes[b], r.absmax2[b / 256], r.offset);
  }
  for (std::uint64_t b = 0; b < blocks; ++b) {
    const std::uint64_t first = b * blocksize;
    const std::size_t count = std::min<std::uint64_t>(blocksize, n - first);
    quant::UnpackBlock4(type, dtype, r.packed.data() + first / 2, count, decoded[b],
                        r.plain.data() + first * width);
  }
  return r;
}

bool SameBytes(const void* a, const void* b, std::size_t bytes, std::size_t* where) {
  const auto* x = static_cast<const std::uint8_t*>(a);
  const auto* y = static_cast<const std::uint8_t*>(b);
  for (std::size_t i = 0; i < bytes; ++i) {
    if (x[i] != y[i]) {
      *where = i;
      return false;
    }
  }
  return true;
}

// One weight through every op, in pages of `page_bytes`, with `shift` bytes of misalignment of client memory.
void Check(QuantType type, DType dtype, std::uint32_t blocksize, bool nested, std::uint64_t n,
           std::size_t page_bytes, std::size_t shift, bool odd) {
  char label[128];
  std::snprintf(label, sizeof(label), "%s %s bs %u%s n %llu page %zu shift %zu",
                type == QuantType::kNF4 ? "nf4" : "fp4", Name(dtype), blocksize, nested ? " nested" : "",
                static_cast<unsigned long long>(n), page_bytes, shift);
  const std::size_t width = wire::DTypeBytes(dtype);
  const auto in = RandomElements(dtype, n, static_cast<unsigned>(n + blocksize), odd);
  const Reference want = MakeReference(type, dtype, in, n, blocksize, nested);
  const std::uint64_t blocks = want.absmax.size();
  Memory source(in.size() + shift);
  source.Put(in.data(), in.size(), shift);
  const PagedSpans probe = SpansOf(blocksize, nested, page_bytes, n, nullptr);
  Memory pages(probe.bytes);
  const PagedSpans paged = SpansOf(blocksize, nested, page_bytes, n, pages.at());
  kernels::WeightFormat format;
  format.type = type;
  format.layout = paged.layout;
  Memory absmax(blocks * 4);
  Memory codes(blocks + shift);
  Memory absmax2(want.absmax2.size() * 4 + 4);
  Memory offset(4);
  std::size_t where = 0;
  auto* const offset_at = reinterpret_cast<float*>(offset.at());
  kernels::QuantizeArgs q;
  q.format = format;
  q.in_dtype = dtype;
  q.spans = paged.spans;
  const std::uint64_t page_elements = std::uint64_t{paged.layout.blocks_per_page} * blocksize;
  for (std::size_t i = 0; i < q.spans.size(); ++i)
    q.ins.push_back(source.at() + shift + i * page_elements * width);
  if (nested) {
    kernels::BlockAbsmaxArgs a;
    a.in = source.at() + shift;
    a.in_dtype = dtype;
    a.elements = n;
    a.blocksize = blocksize;
    a.absmax = reinterpret_cast<float*>(absmax.at());
    Need(ops::BlockAbsmax(nullptr, a), "BlockAbsmax");
    Expect(SameElements(DType::kF32, reinterpret_cast<const std::uint8_t*>(absmax.Get<float>(blocks).data()),
                        reinterpret_cast<const std::uint8_t*>(want.absmax.data()), blocks, &where),
           "BlockAbsmax", label, where);
    kernels::NestAbsmaxArgs nest;
    nest.absmax = a.absmax;
    nest.blocks = blocks;
    nest.codes = reinterpret_cast<std::uint8_t*>(codes.at()) + shift;
    nest.absmax2 = reinterpret_cast<float*>(absmax2.at());
    nest.offset = offset_at;
    Need(ops::NestAbsmax(nullptr, nest), "NestAbsmax");
    const float mean = offset.Get<float>(1)[0];
    Expect(mean == want.offset || (std::isnan(mean) && std::isnan(want.offset)), "offset", label, where);
    Expect(SameBytes(codes.Get<std::uint8_t>(blocks, shift).data(), want.codes.data(), blocks, &where),
           "nested codes", label, where);
    Expect(
        SameElements(DType::kF32,
                     reinterpret_cast<const std::uint8_t*>(absmax2.Get<float>(want.absmax2.size()).data()),
                     reinterpret_cast<const std::uint8_t*>(want.absmax2.data()), want.absmax2.size(), &where),
        "absmax2", label, where);
    q.absmax = a.absmax;
    q.nested_codes = nest.codes;
    q.absmax2 = nest.absmax2;
  }
  Need(ops::Quantize(nullptr, q), "Quantize");
  // Out of the pages, and back into others.
  Memory packed((n + 1) / 2 + shift);
  kernels::PackedArgs move;
  move.format = format;
  move.spans = paged.spans;
  Memory codes_out(blocks + shift);
  Memory absmax_out(blocks * 4);
  Memory absmax2_out(want.absmax2.size() * 4 + 4);
  move.packed = packed.at() + shift;
  move.absmax = nested ? nullptr : reinterpret_cast<float*>(absmax_out.at());
  move.nested_codes = nested ? reinterpret_cast<std::uint8_t*>(codes_out.at()) + shift : nullptr;
  move.absmax2 = nested ? reinterpret_cast<float*>(absmax2_out.at()) : nullptr;
  move.into_pages = false;
  Need(ops::MovePacked(nullptr, move), "MovePacked out");
  Expect(
      SameBytes(packed.Get<std::uint8_t>((n + 1) / 2, shift).data(), want.packed.data(), (n + 1) / 2, &where),
      "packed", label, where);
  if (nested) {
    Expect(SameBytes(codes_out.Get<std::uint8_t>(blocks, shift).data(), want.codes.data(), blocks, &where),
           "moved codes", label, where);
  } else {
    Expect(
        SameElements(DType::kF32, reinterpret_cast<const std::uint8_t*>(absmax_out.Get<float>(blocks).data()),
                     reinterpret_cast<const std::uint8_t*>(want.absmax.data()), blocks, &where),
        "absmax", label, where);
  }
  pages.Poison();
  move.into_pages = true;
  Need(ops::MovePacked(nullptr, move), "MovePacked in");
  Memory plain(n * width + shift);
  kernels::DequantizeArgs d;
  d.format = format;
  d.format.offset = want.offset;
  d.out_dtype = dtype;
  d.spans = paged.spans;
  for (std::size_t i = 0; i < d.spans.size(); ++i)
    d.outs.push_back(plain.at() + shift + i * page_elements * width);
  Need(ops::Dequantize(nullptr, d), "Dequantize");
  Need(cudaDeviceSynchronize(), "synchronize");
  const auto got = plain.Get<std::uint8_t>(n * width, shift);
  Expect(SameElements(dtype, got.data(), want.plain.data(), n, &where), "decoded", label, where);
  const auto guard = plain.Get<std::uint8_t>(64, shift + n * width);
  for (const std::uint8_t g : guard) Expect(g == 0xAB, "wrote past the end", label, where);
  // A run in the middle of a page.
  if (n > 5 * std::uint64_t{blocksize}) {
    plain.Poison();
    kernels::DequantizeArgs part = d;
    part.spans.resize(1);
    part.spans[0].first_block = 3;
    part.spans[0].first_global_block += 3;
    part.spans[0].blocks -= 3;
    part.spans[0].elements -= 3 * std::uint64_t{blocksize};
    Need(ops::Dequantize(nullptr, part), "Dequantize part");
    const auto some = plain.Get<std::uint8_t>(part.spans[0].elements * width, shift);
    Expect(SameElements(dtype, some.data(), want.plain.data() + 3 * std::uint64_t{blocksize} * width,
                        part.spans[0].elements, &where),
           "decoded part", label, where);
  }
}

void CheckBlockwise(ops::MapKind kind, const std::vector<float>& map, DType dtype, std::uint32_t blocksize,
                    std::uint64_t n, std::size_t shift, bool odd) {
  char label[128];
  std::snprintf(label, sizeof(label), "8-bit map %d %s bs %u n %llu shift %zu", static_cast<int>(kind),
                Name(dtype), blocksize, static_cast<unsigned long long>(n), shift);
  const std::size_t width = wire::DTypeBytes(dtype);
  const auto in = RandomElements(dtype, n, static_cast<unsigned>(n * 3 + blocksize), odd);
  const std::uint64_t blocks = quant::BlocksOf(n, blocksize);
  quant::Map256 table{};
  std::copy(map.begin(), map.end(), table.begin());
  const quant::Thresholds256 thresholds = quant::ThresholdsOf(table);
  std::vector<std::uint8_t> want(n), plain(n * width);
  std::vector<float> want_absmax(blocks);
  for (std::uint64_t b = 0; b < blocks; ++b) {
    const std::uint64_t first = b * blocksize;
    const std::size_t count = std::min<std::uint64_t>(blocksize, n - first);
    want_absmax[b] =
        quant::EncodeBlock8(thresholds, dtype, in.data() + first * width, count, want.data() + first);
    quant::DecodeBlock8(table, dtype, want.data() + first, count, want_absmax[b],
                        plain.data() + first * width);
  }
  Memory source(in.size() + shift), codes(n + shift), absmax(blocks * 4), on_device(1024),
      out(n * width + shift);
  source.Put(in.data(), in.size(), shift);
  on_device.Put(map.data(), 1024);
  ops::Blockwise a;
  a.kind = kind;
  a.map = reinterpret_cast<const float*>(on_device.at());
  a.dtype = dtype;
  a.plain = source.at() + shift;
  a.elements = n;
  a.blocksize = blocksize;
  a.codes = reinterpret_cast<std::uint8_t*>(codes.at()) + shift;
  a.absmax = reinterpret_cast<float*>(absmax.at());
  Need(ops::EncodeBlockwise(nullptr, a), "EncodeBlockwise");
  std::size_t where = 0;
  Expect(SameBytes(codes.Get<std::uint8_t>(n, shift).data(), want.data(), n, &where), "8-bit codes", label,
         where);
  Expect(SameElements(DType::kF32, reinterpret_cast<const std::uint8_t*>(absmax.Get<float>(blocks).data()),
                      reinterpret_cast<const std::uint8_t*>(want_absmax.data()), blocks, &where),
         "8-bit absmax", label, where);
  a.plain = out.at() + shift;
  Need(ops::DecodeBlockwise(nullptr, a), "DecodeBlockwise");
  Expect(SameElements(dtype, out.Get<std::uint8_t>(n * width, shift).data(), plain.data(), n, &where),
         "8-bit decoded", label, where);
}

void CheckAll() {
  for (const auto type : {QuantType::kNF4, QuantType::kFP4}) {
    for (const auto dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (std::uint32_t bs = 32; bs <= 4096; bs *= 2) {
        Check(type, dtype, bs, false, 300001, 65536, 0, true);
        Check(type, dtype, bs, true, 300001, 65536, 0, false);
      }
      for (const std::uint64_t n : {1ULL, 2ULL, 63ULL, 64ULL, 65ULL, 8192ULL, 16384ULL, 1000003ULL}) {
        Check(type, dtype, 64, false, n, kPage, 0, true);
        Check(type, dtype, 64, true, n, kPage, wire::DTypeBytes(dtype), true);
      }
      Check(type, dtype, 64, false, 300001, 65536, wire::DTypeBytes(dtype), true);
      Check(type, dtype, 64, true, 20000003, kPage, 0, false);
    }
  }
  std::vector<float> is_signed(quant::kSignedDynamicMap.begin(), quant::kSignedDynamicMap.end());
  std::vector<float> is_unsigned(quant::kUnsignedDynamicMap.begin(), quant::kUnsignedDynamicMap.end());
  std::vector<float> linear(256), padded(256, 0.0F), random_map(256);
  std::mt19937 random(5);
  for (int i = 0; i < 256; ++i) linear[i] = static_cast<float>(i - 127) / 128.0F;
  for (int i = 0; i < 16; ++i) padded[i] = -quant::kNf4[15 - i] - 0.01F;
  for (float& x : random_map) x = std::normal_distribution<float>(0.0F, 0.4F)(random);
  std::sort(padded.begin(), padded.end());
  std::sort(random_map.begin(), random_map.end());
  for (const auto dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (std::uint32_t bs = 64; bs <= 4096; bs *= 2) {
      CheckBlockwise(ops::MapKind::kSignedDynamic, is_signed, dtype, bs, 300001, 0, true);
      CheckBlockwise(ops::MapKind::kUnsignedDynamic, is_unsigned, dtype, bs, 300001, 0, true);
    }
    for (const auto* map : {&is_signed, &is_unsigned, &linear, &padded, &random_map}) {
      CheckBlockwise(ops::MapKind::kGiven, *map, dtype, 256, 300001, 0, true);
    }
    CheckBlockwise(ops::MapKind::kSignedDynamic, is_signed, dtype, 256, 300001, wire::DTypeBytes(dtype),
                   true);
    CheckBlockwise(ops::MapKind::kSignedDynamic, is_signed, dtype, 256, 20000000, 0, false);
  }
  std::printf("%d mismatches\n", failures);
}

double ceiling = 0.0;

void Row(const char* what, double us, double bytes, double goal_us) {
  const double limit = bytes / ceiling * 1e6;
  std::printf("%-52s %8.1f us  limit %7.1f  %5.1f%%  goal %6.0f %s\n", what, us, limit, 100.0 * limit / us,
              goal_us, us <= goal_us ? "ok" : "MISSED");
}

void Fill(Memory& m, bool normal, unsigned seed) {
  if (normal) {
    FillKernel<<<2048, 256>>>(reinterpret_cast<std::uint16_t*>(m.at()), m.bytes() / 2, seed);
  } else {
    FillBytesKernel<<<2048, 256>>>(reinterpret_cast<std::uint32_t*>(m.at()), m.bytes() / 4, seed);
  }
  Need(cudaGetLastError(), "fill");
}

void TimeWeight(std::uint64_t rows, std::uint64_t columns, double quantize_goal, double dequantize_goal,
                bool nested) {
  const std::uint64_t n = rows * columns;
  const int sets = static_cast<int>(std::min<std::uint64_t>(8, 1 + (std::uint64_t{600} << 20) / (n * 2)));
  std::vector<std::unique_ptr<Memory>> plains, pages;
  std::vector<kernels::QuantizeArgs> quantize(sets);
  std::vector<kernels::DequantizeArgs> dequantize(sets);
  const std::uint64_t blocks = n / 64;
  Memory absmax(blocks * 4), codes(blocks), absmax2(blocks / 64 + 4), offset(4);
  for (int s = 0; s < sets; ++s) {
    plains.push_back(std::make_unique<Memory>(n * 2));
    Fill(*plains.back(), true, s);
    pages.push_back(std::make_unique<Memory>(SpansOf(64, nested, kPage, n, nullptr).bytes));
    const PagedSpans paged = SpansOf(64, nested, kPage, n, pages.back()->at());
    quantize[s].format.layout = paged.layout;
    quantize[s].in_dtype = DType::kBF16;
    quantize[s].spans = paged.spans;
    const std::uint64_t page_bytes = std::uint64_t{paged.layout.blocks_per_page} * 64 * 2;
    for (std::size_t i = 0; i < paged.spans.size(); ++i)
      quantize[s].ins.push_back(plains.back()->at() + i * page_bytes);
    if (nested) {
      quantize[s].absmax = reinterpret_cast<float*>(absmax.at());
      quantize[s].nested_codes = reinterpret_cast<std::uint8_t*>(codes.at());
      quantize[s].absmax2 = reinterpret_cast<float*>(absmax2.at());
    }
    dequantize[s].format = quantize[s].format;
    dequantize[s].out_dtype = DType::kBF16;
    dequantize[s].spans = paged.spans;
    for (const void* in : quantize[s].ins) dequantize[s].outs.push_back(const_cast<void*>(in));
  }
  char label[96];
  const double per_block = nested ? 1.0 + 1.0 / 64 : 4.0;
  const double bytes = static_cast<double>(n) * 2.5 + static_cast<double>(blocks) * per_block;
  if (!nested) {
    const double us =
        MedianUs(nullptr, 31, [&](int i) { Need(ops::Quantize(nullptr, quantize[i % sets]), "Quantize"); });
    std::snprintf(label, sizeof(label), "NF4 quantize %llux%llu bf16", static_cast<unsigned long long>(rows),
                  static_cast<unsigned long long>(columns));
    Row(label, us, bytes, quantize_goal);
  } else {
    const auto first = [&](int i) {
      kernels::BlockAbsmaxArgs a;
      a.in = plains[i % sets]->at();
      a.in_dtype = DType::kBF16;
      a.elements = n;
      a.absmax = reinterpret_cast<float*>(absmax.at());
      Need(ops::BlockAbsmax(nullptr, a), "BlockAbsmax");
    };
    kernels::NestAbsmaxArgs nest;
    nest.absmax = reinterpret_cast<float*>(absmax.at());
    nest.blocks = blocks;
    nest.codes = reinterpret_cast<std::uint8_t*>(codes.at());
    nest.absmax2 = reinterpret_cast<float*>(absmax2.at());
    nest.offset = reinterpret_cast<float*>(offset.at());
    Row("  absmax of blocks", MedianUs(nullptr, 31, first),
        static_cast<double>(n) * 2 + static_cast<double>(blocks) * 4, 130);
    Row("  nest absmaxes",
        MedianUs(nullptr, 31, [&](int) { Need(ops::NestAbsmax(nullptr, nest), "NestAbsmax"); }),
        static_cast<double>(blocks) * 9, 20);
    const double us =
        MedianUs(nullptr, 31, [&](int i) { Need(ops::Quantize(nullptr, quantize[i % sets]), "Quantize"); });
    Row("  second pass", us, bytes + static_cast<double>(blocks) * 4, quantize_goal);
  }
  const double us = MedianUs(
      nullptr, 51, [&](int i) { Need(ops::Dequantize(nullptr, dequantize[i % sets]), "Dequantize"); });
  std::snprintf(label, sizeof(label), "NF4 dequantize %llux%llu bf16%s",
                static_cast<unsigned long long>(rows), static_cast<unsigned long long>(columns),
                nested ? " nested" : "");
  Row(label, us, bytes, nested ? dequantize_goal * 1.05 : dequantize_goal);
}

void TimeBlockwise(ops::MapKind kind, const char* name, double goal, std::uint32_t blocksize) {
  const std::uint64_t n = 8192ULL * 28672;
  Memory plain(n * 2), codes(n), absmax(n / 64 * 4), map(1024);
  Fill(plain, true, 1);
  std::vector<float> values(256);
  for (int i = 0; i < 256; ++i) values[i] = static_cast<float>(i - 127) / 128.0F;
  map.Put(values.data(), 1024);
  ops::Blockwise a;
  a.kind = kind;
  a.map = reinterpret_cast<const float*>(map.at());
  a.dtype = DType::kBF16;
  a.plain = plain.at();
  a.elements = n;
  a.blocksize = blocksize;
  a.codes = reinterpret_cast<std::uint8_t*>(codes.at());
  a.absmax = reinterpret_cast<float*>(absmax.at());
  char label[96];
  const double bytes = static_cast<double>(n) * 3 + static_cast<double>(n) / blocksize * 4;
  std::snprintf(label, sizeof(label), "8-bit quantize 8192x28672 bf16 bs %u %s", blocksize, name);
  Row(label, MedianUs(nullptr, 21, [&](int) { Need(ops::EncodeBlockwise(nullptr, a), "encode"); }), bytes,
      goal);
  std::snprintf(label, sizeof(label), "8-bit dequantize 8192x28672 bf16 bs %u %s", blocksize, name);
  Row(label, MedianUs(nullptr, 21, [&](int) { Need(ops::DecodeBlockwise(nullptr, a), "decode"); }), bytes,
      goal);
}

void TimeAll() {
  ceiling = CopyCeiling(nullptr);
  std::printf("copy ceiling %.2f TB/s\n", ceiling / 1e12);
  for (const bool nested : {false, true}) {
    TimeWeight(4096, 4096, 15, 13, nested);
    TimeWeight(14336, 4096, 45, 40, nested);
    TimeWeight(8192, 28672, 180, 158, nested);
  }
  for (const std::uint32_t bs : {256U, 4096U}) {
    TimeBlockwise(ops::MapKind::kSignedDynamic, "signed dynamic", 200, bs);
    TimeBlockwise(ops::MapKind::kUnsignedDynamic, "unsigned dynamic", 200, bs);
    TimeBlockwise(ops::MapKind::kGiven, "linear, as any map", 200, bs);
  }
}

}  // namespace
}  // namespace bitpager::lab

int main(int argc, char** argv) {
  const bool check = argc < 2 || std::strcmp(argv[1], "check") == 0;
  const bool time = argc < 2 || std::strcmp(argv[1], "time") == 0;
  if (check) bitpager::lab::CheckAll();
  if (time) bitpager::lab::TimeAll();
  return bitpager::lab::failures == 0 ? 0 : 1;
}
