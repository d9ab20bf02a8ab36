/* libbitpager_cuda.so: quantization and 4-bit products on CUDA tensors of the calling process, beside
 * whatever CUDA runtime it has loaded. Stable C ABI; the numbers and the rules of arguments are those of
 * kernels/cuda/local.h.
 *
 * Every function enqueues on `stream` (a cudaStream_t; NULL: the default stream) of the device whose context
 * is current on this thread, and returns without waiting. Pointers are device pointers unless said otherwise.
 * Results are the values of bp_code in bitpager.h: 0 is success; bp_cuda_last_error() then says what was
 * wrong with this thread's last failed call. quant_type and dtype are the values of bp_quant_type and
 * bp_dtype. */
#ifndef BITPAGER_CUDA_H_
#define BITPAGER_CUDA_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BP_CUDA_ABI_VERSION 1

#pragma GCC visibility push(default)

uint32_t bp_cuda_abi_version(void);
const char* bp_cuda_last_error(void);
/* 0 when the current device runs this library's code. */
int bp_cuda_check_device(void);

/* nested_codes NULL: plain; absmax2 and offset are then unused. Else absmax receives the block absmaxes too.
 */
int bp_cuda_quantize_4bit(void* stream, int quant_type, int dtype, const void* in, uint64_t n,
                          uint32_t blocksize, void* packed, float* absmax, void* nested_codes, float* absmax2,
                          float* offset);
int bp_cuda_dequantize_4bit(void* stream, int quant_type, int dtype, const void* packed, const float* absmax,
                            const void* nested_codes, const float* absmax2, const float* offset, uint64_t n,
                            uint32_t blocksize, void* out);

/* map_kind: 0 the signed dynamic map, 1 the unsigned one, 2 `map`: 256 floats (ascending when quantizing). */
int bp_cuda_quantize_blockwise(void* stream, int map_kind, const float* map, int dtype, const void* in,
                               uint64_t n, uint32_t blocksize, void* codes, float* absmax);
int bp_cuda_dequantize_blockwise(void* stream, int map_kind, const float* map, int dtype, const void* codes,
                                 const float* absmax, uint64_t n, uint32_t blocksize, void* out);

/* A weight of n elements in pages of page_bytes; `pages` is a list on the host of `page_count` addresses. */
typedef struct bp_cuda_pages {
  uint32_t struct_bytes;
  uint32_t blocksize;
  int32_t nested;
  float offset;
  uint64_t page_bytes;
  const void* const* pages;
  uint64_t page_count;
} bp_cuda_pages;

/* Elements [first, first + count) to out. */
int bp_cuda_dequantize_pages(void* stream, int quant_type, int dtype, const bp_cuda_pages* weight, uint64_t n,
                             uint64_t first, uint64_t count, void* out);

/* y[batch, rows] = x[batch, columns] W[rows, columns]^T for 1 to 32 rows of x in fp16 or bf16; columns are a
 * multiple of the block size, x and packed aligned to 16 bytes. Compute capability 8.0. */
int bp_cuda_multiply_4bit(void* stream, int quant_type, int dtype, const void* x, uint32_t batch,
                          uint32_t rows, uint32_t columns, uint32_t blocksize, const void* packed,
                          const float* absmax, const void* nested_codes, const float* absmax2,
                          const float* offset, void* y);
int bp_cuda_multiply_pages(void* stream, int quant_type, int dtype, const void* x, uint32_t batch,
                           uint32_t rows, uint32_t columns, const bp_cuda_pages* weight, void* y);

/* The two above as bp_leased_launch of bitpager.h, with what they take beside the pages. `quant_type` is the
 * weight's. */
typedef struct bp_cuda_dequantize_call {
  void* stream;
  int32_t quant_type;
  int32_t dtype;
  uint64_t n, first, count;
  void* out;
} bp_cuda_dequantize_call;
int bp_cuda_dequantize_leased(void* call, const void* pages);
typedef struct bp_cuda_multiply_call {
  void* stream;
  int32_t quant_type;
  int32_t dtype;
  const void* x;
  uint32_t batch, rows, columns, reserved;
  void* y;
} bp_cuda_multiply_call;
int bp_cuda_multiply_leased(void* call, const void* pages);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
