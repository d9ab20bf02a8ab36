// A minimal reader of safetensors files for golden data. Tests only; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace bitpager::testing {

struct GoldenTensor {
  std::string dtype;  // "F32", "F16", "BF16", "U8"
  std::vector<std::size_t> shape;
  std::vector<std::byte> bytes;

  // Elements as floats (U8 as numbers).
  [[nodiscard]] std::vector<float> Floats() const;
  [[nodiscard]] const std::uint8_t* u8() const { return reinterpret_cast<const std::uint8_t*>(bytes.data()); }
  [[nodiscard]] std::size_t elements() const;
};

struct GoldenFile {
  std::map<std::string, GoldenTensor> tensors;
  std::map<std::string, std::string> metadata;
  [[nodiscard]] const GoldenTensor& at(const std::string& name) const { return tensors.at(name); }
};

// Throws std::runtime_error when the file is missing or malformed.
[[nodiscard]] GoldenFile ReadSafetensors(const std::string& path);

}  // namespace bitpager::testing
