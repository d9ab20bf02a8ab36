// Which vector instruction sets this processor has, for Highway's run-time dispatch. Highway is used by its
// headers alone: these two functions are all that its library would give, and that library brings the C++
// runtime as a shared object, which must not come into other people's processes. Any thread.
#include <cpuid.h>
#include <hwy/targets.h>

namespace hwy {
namespace {

// True when the compiler's run-time support (CPUID and what the system saves on a context switch) says so.
bool HasAvx2() {
  __builtin_cpu_init();
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned kF16c = 1U << 29;
  constexpr unsigned kLzcnt = 1U << 5;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & kF16c) != 0;
  const bool lzcnt = __get_cpuid(0x80000001U, &a, &b, &c, &d) != 0 && (c & kLzcnt) != 0;
  return f16c && lzcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

bool HasAvx3() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd");
}

bool HasAvx3Dl() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("vpclmulqdq") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
         __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512bitalg") &&
         __builtin_cpu_supports("gfni");
}

std::int64_t Detect() {
  std::int64_t targets =
      HWY_STATIC_TARGET | HWY_SCALAR;  // what the compiler was told that every processor has
  if (!HasAvx2()) return targets;
  targets |= HWY_AVX2;
  if (!HasAvx3()) return targets;
  targets |= HWY_AVX3;
  return HasAvx3Dl() ? targets | HWY_AVX3_DL : targets;
}

}  // namespace

std::int64_t SupportedTargets() {
  static const std::int64_t targets = Detect();
  return targets;
}

ChosenTarget& GetChosenTarget() {
  static ChosenTarget chosen;
  return chosen;
}

}  // namespace hwy
