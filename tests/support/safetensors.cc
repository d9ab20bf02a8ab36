#include "tests/support/safetensors.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "quant/encode.h"

namespace bitpager::testing {

std::size_t GoldenTensor::elements() const {
  std::size_t n = 1;
  for (const std::size_t d : shape) n *= d;
  return n;
}

std::vector<float> GoldenTensor::Floats() const {
  std::vector<float> out(elements());
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (dtype == "U8") {
      out[i] = static_cast<float>(u8()[i]);
    } else {
      const wire::DType type = dtype == "F32"    ? wire::DType::kF32
                               : dtype == "BF16" ? wire::DType::kBF16
                                                 : wire::DType::kF16;
      out[i] = quant::LoadAs(type, bytes.data(), i);
    }
  }
  return out;
}

GoldenFile ReadSafetensors(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot open " + path);
  const std::string all((std::istreambuf_iterator<char>(in)), {});
  std::uint64_t header_bytes = 0;
  if (all.size() < 8) throw std::runtime_error("too short: " + path);
  std::memcpy(&header_bytes, all.data(), 8);
  if (header_bytes > all.size() - 8) throw std::runtime_error("bad header: " + path);
  const auto header =
      nlohmann::json::parse(all.begin() + 8, all.begin() + 8 + static_cast<long>(header_bytes));
  GoldenFile file;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      file.metadata = entry.get<std::map<std::string, std::string>>();
      continue;
    }
    GoldenTensor tensor;
    tensor.dtype = entry.at("dtype").get<std::string>();
    tensor.shape = entry.at("shape").get<std::vector<std::size_t>>();
    const auto begin = entry.at("data_offsets").at(0).get<std::size_t>();
    const auto end = entry.at("data_offsets").at(1).get<std::size_t>();
    if (begin > end || 8 + header_bytes + end > all.size()) throw std::runtime_error("bad offsets: " + name);
    tensor.bytes.resize(end - begin);
    std::memcpy(tensor.bytes.data(), all.data() + 8 + header_bytes + begin, end - begin);
    file.tensors.emplace(name, std::move(tensor));
  }
  return file;
}

}  // namespace bitpager::testing
