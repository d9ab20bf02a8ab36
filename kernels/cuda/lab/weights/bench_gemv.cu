// Multiply4 as it is: compared with a product in float64 of the decoded weight, from planes and from pages,
// then timed with cold caches beside the copy ceiling of the same run.
//
// Build: see README.md here. Usage: bench_gemv [check|time]
#include <cmath>
#include <cstring>

#include "kernels/cuda/gemv.h"
#include "kernels/cuda/lab/weights/bench.cuh"
#include "kernels/cuda/weight_run.h"
#include "quant/block.h"

namespace bitpager::lab {
namespace {

using wire::DType;
using wire::QuantType;
namespace ops = kernels::cuda;

constexpr std::size_t kPage = std::size_t{2} << 20;
int failures = 0;

// A random weight: codes, absmax of blocks (nested or not), and its decoded values.
struct RandomWeight {
  std::vector<std::uint8_t> packed, codes;
  std::vector<float> absmax, absmax2, values;
  float offset = 0.0F;
};
RandomWeight MakeWeight(QuantType type, std::uint64_t n, std::uint32_t blocksize, bool nested,
                        unsigned seed) {
  RandomWeight w;
  std::mt19937 random(seed);
  w.packed.resize(n / 2);
  for (auto& b : w.packed) b = static_cast<std::uint8_t>(random());
  const std::uint64_t blocks = n / blocksize;
  w.absmax.resize(blocks);
  for (auto& a : w.absmax) a = 0.01F + static_cast<float>(random() % 1000) * 1e-4F;
  if (nested) {
    w.codes.resize(blocks);
    w.absmax2.resize((blocks + 255) / 256);
    quant::NestAbsmax(w.absmax, w.codes.data(), w.absmax2.data(), &w.offset);
    for (std::uint64_t b = 0; b < blocks; ++b)
      w.absmax[b] = quant::UnnestAbsmax(w.codes[b], w.absmax2[b / 256], w.offset);
  }
  w.values.resize(n);
  const auto& table = type == QuantType::kNF4 ? quant::kNf4 : quant::kFp4;
  for (std::uint64_t i = 0; i < n; ++i) {
    const unsigned code = i % 2 == 0 ? w.packed[i / 2] >> 4 : w.packed[i / 2] & 15U;
    w.values[i] = table[code] * w.absmax[i / blocksize];
  }
  return w;
}

void Check(QuantType type, DType dtype, std::uint32_t rows, std::uint32_t columns, std::uint32_t blocksize,
           bool nested, std::uint32_t batch, bool paged) {
  const std::uint64_t n = std::uint64_t{rows} * columns;
  const RandomWeight w = MakeWeight(type, n, blocksize, nested, rows + columns + batch);
  const auto x = RandomElements(dtype, std::size_t{batch} * columns, 7 + batch, false);
  Memory x_at(x.size()), y(std::size_t{batch} * rows * 2);
  x_at.Put(x.data(), x.size());
  ops::Gemv4 a;
  a.type = type;
  a.dtype = dtype;
  a.x = x_at.at();
  a.y = y.at();
  a.batch = batch;
  a.rows = rows;
  a.columns = columns;
  a.blocksize = blocksize;
  a.nested = nested;
  a.offset = w.offset;
  const std::uint64_t blocks = n / blocksize;
  const std::size_t width = nested ? 1 : 4;
  const void* scales = nested ? static_cast<const void*>(w.codes.data()) : w.absmax.data();
  constexpr std::size_t kSmallPage = 65536;
  const PagedSpans spans = SpansOf(blocksize, nested, kSmallPage, n, nullptr);
  Memory memory(paged ? spans.bytes : n / 2 + blocks * width + w.absmax2.size() * 4 + 512);
  std::vector<const std::byte*> pages;
  if (paged) {
    for (std::size_t i = 0; i < spans.spans.size(); ++i) {
      const auto& span = spans.spans[i];
      const std::size_t base = i * kSmallPage;
      pages.push_back(memory.at() + base);
      memory.Put(w.packed.data() + span.first_global_block * (blocksize / 2),
                 std::size_t{span.blocks} * (blocksize / 2), base);
      memory.Put(static_cast<const std::uint8_t*>(scales) + span.first_global_block * width,
                 span.blocks * width, base + spans.layout.absmax_offset);
      if (nested) {
        const std::size_t group = span.first_global_block / 256;
        const std::size_t last = (span.first_global_block + span.blocks - 1) / 256;
        memory.Put(w.absmax2.data() + group, 4 * (last - group + 1), base + spans.layout.absmax2_offset);
      }
    }
    a.pages = pages.data();
    a.page_count = pages.size();
    a.blocks_per_page = spans.layout.blocks_per_page;
    a.scales_offset = spans.layout.absmax_offset;
    a.absmax2_offset = spans.layout.absmax2_offset;
  } else {
    const std::size_t scales_at = (n / 2 + 127) / 128 * 128;
    const std::size_t absmax2_at = scales_at + (blocks * width + 127) / 128 * 128;
    memory.Put(w.packed.data(), n / 2);
    memory.Put(scales, blocks * width, scales_at);
    if (nested) memory.Put(w.absmax2.data(), w.absmax2.size() * 4, absmax2_at);
    a.packed = memory.at();
    a.scales = memory.at() + scales_at;
    a.absmax2 = reinterpret_cast<const float*>(memory.at() + absmax2_at);
  }
  Need(ops::Multiply4(nullptr, a), "Multiply4");
  Need(cudaDeviceSynchronize(), "synchronize");
  const auto got = y.Get<std::uint8_t>(std::size_t{batch} * rows * 2);
  double error = 0.0;
  double norm = 0.0;
  for (std::uint32_t b = 0; b < batch; ++b) {
    for (std::uint32_t r = 0; r < rows; ++r) {
      double want = 0.0;
      for (std::uint32_t c = 0; c < columns; ++c) {
        want += double{quant::LoadAs(dtype, x.data(), std::size_t{b} * columns + c)} *
                w.values[std::size_t{r} * columns + c];
      }
      const double difference = quant::LoadAs(dtype, got.data(), std::size_t{b} * rows + r) - want;
      error += difference * difference;
      norm += want * want;
    }
  }
  const double relative = std::sqrt(error / norm);
  const bool fine = relative < (dtype == DType::kBF16 ? 3.5e-3 : 5e-4);
  if (!fine) ++failures;
  if (!fine || (rows == 4096 && batch == 1)) {
    std::printf("%s %s %s %ux%u bs %u%s%s batch %u: relative error %.2e %s\n",
                type == QuantType::kNF4 ? "nf4" : "fp4", dtype == DType::kBF16 ? "bf16" : "fp16", "W", rows,
                columns, blocksize, nested ? " nested" : "", paged ? " paged" : "", batch, relative,
                fine ? "ok" : "WRONG");
  }
}

void CheckAll() {
  for (const auto dtype : {DType::kBF16, DType::kF16}) {
    for (const bool nested : {false, true}) {
      for (const bool paged : {false, true}) {
        for (std::uint32_t bs = 32; bs <= 4096; bs *= 2) {
          Check(QuantType::kNF4, dtype, 37, bs < 1024 ? 1024 + bs : 2 * bs, bs, nested, 3, paged);
        }
        Check(QuantType::kFP4, dtype, 64, 192, 64, nested, 8, paged);
        Check(QuantType::kNF4, dtype, 1, 64, 64, nested, 1, paged);
        Check(QuantType::kNF4, dtype, 100, 2304, 64, nested, 32, paged);
        Check(QuantType::kFP4, dtype, 16, 4096, 32, nested, 19, paged);
        Check(QuantType::kNF4, dtype, 4096, 1024, 64, nested, 1, paged);
      }
    }
  }
  std::printf("%d wrong\n", failures);
}

void TimeAll() {
  const double ceiling = CopyCeiling(nullptr);
  std::printf("copy ceiling %.2f TB/s\n", ceiling / 1e12);
  const struct {
    std::uint32_t rows, columns;
    double goal;
  } shapes[] = {{8192, 28672, 39}, {28672, 8192, 39}, {4096, 4096, 0}, {14336, 4096, 0}};
  for (const auto& shape : shapes) {
    const std::uint64_t n = std::uint64_t{shape.rows} * shape.columns;
    for (const bool nested : {false, true}) {
      for (const bool paged : {false, true}) {
        const PagedSpans spans = SpansOf(64, nested, kPage, n, nullptr);
        const std::size_t scales_at = n / 2;
        const std::size_t absmax2_at = scales_at + n / 64 * (nested ? 1 : 4);
        const int sets = static_cast<int>(1 + (std::uint64_t{400} << 20) / (n / 2));
        std::vector<std::unique_ptr<Memory>> memories;
        std::vector<std::vector<const std::byte*>> pages(sets);
        for (int s = 0; s < sets; ++s) {
          memories.push_back(std::make_unique<Memory>(std::max(spans.bytes, absmax2_at + n / 64 / 64 + 512)));
          FillBytesKernel<<<2048, 256>>>(reinterpret_cast<std::uint32_t*>(memories[s]->at()), n / 8, s);
          for (std::size_t i = 0; i < spans.spans.size(); ++i)
            pages[s].push_back(memories[s]->at() + i * kPage);
        }
        Memory x(std::size_t{8} * shape.columns * 2), y(std::size_t{8} * shape.rows * 2);
        FillKernel<<<64, 256>>>(reinterpret_cast<std::uint16_t*>(x.at()), std::uint64_t{8} * shape.columns,
                                3);
        for (const std::uint32_t batch : {1U, 8U, 16U, 32U}) {
          if (paged && batch != 1) continue;
          const double us = MedianUs(nullptr, 51, [&](int i) {
            ops::Gemv4 a;
            a.x = x.at();
            a.y = y.at();
            a.batch = batch;
            a.rows = shape.rows;
            a.columns = shape.columns;
            a.nested = nested;
            if (paged) {
              a.pages = pages[i % sets].data();
              a.page_count = spans.spans.size();
              a.blocks_per_page = spans.layout.blocks_per_page;
              a.scales_offset = spans.layout.absmax_offset;
              a.absmax2_offset = spans.layout.absmax2_offset;
            } else {
              a.packed = memories[i % sets]->at();
              a.scales = a.packed + scales_at;
              a.absmax2 = reinterpret_cast<const float*>(a.packed + absmax2_at);
            }
            Need(ops::Multiply4(nullptr, a), "Multiply4");
          });
          const double bytes =
              static_cast<double>(n) / 2 + static_cast<double>(n) / 64 * (nested ? 1.02 : 4.0);
          const double limit = bytes / ceiling * 1e6;
          std::printf("%5ux%-5u%s%s batch %u  %7.1f us  limit %6.1f  %5.1f%%  goal %.0f\n", shape.rows,
                      shape.columns, nested ? " nested" : "       ", paged ? " paged" : "      ", batch, us,
                      limit, 100.0 * limit / us, shape.goal);
        }
      }
    }
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
