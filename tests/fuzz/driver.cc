// Runs a fuzz target on generated inputs: always the same ones, unless BITPAGER_FUZZ_SEED says otherwise
// (a number, or "time"). BITPAGER_FUZZ_INPUTS sets how many; under a sanitizer a twentieth, which takes as
// long as all of them without one. One thread. The targets also link against libFuzzer, which brings its own
// main.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
// Checks what must hold at the end; defined by each target.
void FuzzFinish();

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kInputs = 50'000;
#else
constexpr std::uint64_t kInputs = 1'000'000;
#endif
constexpr std::size_t kMostBytes = 96;

std::uint64_t Number(const char* name, std::uint64_t fallback) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  if (std::strcmp(text, "time") == 0) {
    return static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  }
  return std::strtoull(text, nullptr, 0);
}

// SplitMix64 (Steele, Lea, Flood 2014).
std::uint64_t Next(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9E3779B97F4A7C15ULL);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

}  // namespace

int main() {
  const std::uint64_t seed = Number("BITPAGER_FUZZ_SEED", 20'240'601);
  const std::uint64_t inputs = Number("BITPAGER_FUZZ_INPUTS", kInputs);
  const auto start = std::chrono::steady_clock::now();
  std::printf("seed %llu, %llu inputs\n", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(inputs));
  std::fflush(stdout);
  std::uint64_t state = seed;
  std::uint64_t words[kMostBytes / 8];
  for (std::uint64_t i = 0; i < inputs; ++i) {
    for (std::uint64_t& word : words) word = Next(state);
    const std::size_t size = 8 + Next(state) % (kMostBytes - 8);
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(words), size);
  }
  FuzzFinish();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("done in %.1f s\n", seconds);
  return 0;
}
