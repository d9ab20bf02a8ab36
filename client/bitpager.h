/* bitpager C ABI. Stable and versioned: functions and struct fields are only ever added, structs say their
 * own size. All functions return a bp_code and never throw; after an error bp_last_error() (of the calling
 * thread) says what happened, why, and gives a hint. Sizes are bytes unless the name says otherwise.
 *
 * Threads: a session may be used from any thread, one call at a time (calls are serialised inside). After a
 * fork the child's use of any handle returns BP_FORKED_CHILD.
 */
#ifndef BITPAGER_H_
#define BITPAGER_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define BP_API __attribute__((visibility("default")))
#else
#define BP_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define BP_ABI_VERSION 1u

/* The values of wire::Code. */
typedef enum bp_code {
  BP_OK = 0,
  BP_FULL = 1,
  BP_PENDING = 2,
  BP_NOT_RESIDENT = 3,
  BP_INVALID_ARGUMENT = 10,
  BP_OUT_OF_RANGE = 11,
  BP_UNKNOWN_VERSION = 12,
  BP_ALREADY_EXISTS = 13,
  BP_NOT_FOUND = 14,
  BP_PERMISSION_DENIED = 15,
  BP_STEP_MISMATCH = 16,
  BP_LAYOUT_MISMATCH = 17,
  BP_FORKED_CHILD = 18,
  BP_QUOTA_EXCEEDED = 20,
  BP_BUDGET_EXCEEDED = 21,
  BP_OUT_OF_MEMORY = 22,
  BP_NON_FINITE = 30,
  BP_CANCELLED = 31,
  BP_DEVICE_FAULT = 32,
  BP_UNREACHABLE = 40,
  BP_DAEMON_LOST = 41,
  BP_PROTOCOL = 42,
  BP_DRAINING = 43,
  BP_INTERRUPTED =
      44, /* a signal came while waiting; the request goes on, the next call waits for it first */
  BP_UNSUPPORTED = 45,
  BP_INTERNAL = 50
} bp_code;

typedef enum bp_dtype { BP_F32 = 0, BP_F16 = 1, BP_BF16 = 2, BP_U8 = 3 } bp_dtype;
typedef enum bp_rule { BP_ADAM = 0, BP_LION = 1 } bp_rule; /* AdamW is BP_ADAM: its decay is decoupled */
typedef enum bp_quant_type { BP_NF4 = 0, BP_FP4 = 1 } bp_quant_type;

BP_API uint32_t bp_abi_version(void);
BP_API const char* bp_version(void);    /* "0.1.0" */
BP_API const char* bp_last_error(void); /* of this thread; "" when none */
BP_API const char* bp_code_name(int code);

/* ---- sessions ---- */
typedef struct bp_session bp_session;

typedef struct bp_connect_options {
  uint32_t struct_bytes;       /* sizeof(bp_connect_options) */
  uint32_t rank;               /* of this process in the job */
  const char* socket;          /* NULL: BITPAGER_SOCKET, the system's, the user's, then a private daemon */
  const char* job;             /* NULL: BITPAGER_JOB, or "<program>-<pid>" */
  const char* client;          /* shown to people; NULL: the program's name */
  const char* daemon_path;     /* bitpagerd to start; NULL: BITPAGERD, beside this library, PATH */
  double weight;               /* 0: the daemon's default */
  uint64_t device_quota_bytes; /* 0: the daemon's default */
  uint64_t host_quota_bytes;
  int64_t linger_ms; /* -1: the daemon's default; 0: pages are dropped when the session ends */
  int32_t spawn;     /* 1: when no daemon answers and no socket was named, start a private one */
  int32_t threads;   /* for copies on this side; 0: the processors this process may use */
  const char*
      device; /* UUID of the GPU ("GPU-...") or "cpu-0" that pages are for; NULL: the daemon's first */
} bp_connect_options;

BP_API int bp_connect(const bp_connect_options* options, bp_session** out);
/* NULL is fine; ends cleanly, waits for nothing. Calls that other threads are in end with an error. None may
 * begin afterwards: it would get BP_INVALID_ARGUMENT, or a session that was connected since. */
BP_API void bp_disconnect(bp_session* session);

typedef struct bp_session_info {
  uint32_t struct_bytes;
  uint32_t reserved;
  uint64_t session;
  uint64_t job;
  uint64_t page_bytes;
  uint64_t linger_ms;
  char socket[128];
  char job_name[64];
  char device_kind[16]; /* "cpu", "cuda" */
  char device_uuid[64];
  int32_t synchronous; /* 1: requests are waited for on the processor; 0: a GPU's streams wait for them */
  int32_t no_leases;   /* 1: the device's frames cannot be read here (managed memory): by request alone */
} bp_session_info;
BP_API int bp_session_get_info(bp_session* session, bp_session_info* out);

/* Usage of the session's job; see the field names. Bytes count whole pages. shared_bytes: weights that others
 * have too, in full; the other figures have the job's part of them. peak_*: the most at any moment since this
 * session came or reset its peaks; job_peak_*: since the job came. */
typedef struct bp_usage {
  uint32_t struct_bytes;
  uint32_t reserved;
  uint64_t resident_bytes, host_bytes, state_bytes, weight_bytes, resident_state_bytes, resident_weight_bytes,
      leased_bytes, loaded_bytes, stored_bytes, dropped_bytes, pages, share_bytes, stall_ns, steps,
      nonfinite_blocks, device_budget_bytes, buffer_bytes, disk_bytes, disk_budget_bytes, shared_bytes,
      peak_resident_bytes, peak_host_bytes, job_peak_resident_bytes, job_peak_host_bytes;
} bp_usage;
BP_API int bp_get_usage(bp_session* session, bp_usage* out);
/* From now on the session's peaks are counted anew; other processes of the job keep theirs. */
BP_API int bp_reset_peaks(bp_session* session);
/* Has pages leave the device until `bytes` of it are free for what this process is about to allocate there;
 * waits. *free_bytes: free now. BP_BUDGET_EXCEEDED: all that can leave has left and it is not enough.
 * BP_PENDING: limit_ms passed first. */
BP_API int bp_make_room(bp_session* session, uint64_t bytes, uint64_t limit_ms, uint64_t* free_bytes);
/* Requests that the session made so far, of whatever kind. While it stays what it was, the session brought no
 * page back and lent no memory. */
BP_API int bp_request_count(bp_session* session, uint64_t* count);

/* ---- memory that the daemon can reach ---- */
/* A sealed shared buffer made by the daemon; *ptr is its mapping here. Counts against the job's host quota.
 */
BP_API int bp_buffer_create(bp_session* session, uint64_t bytes, uint64_t* buffer, void** ptr);
/* Registers memory of a memfd or shm_open file (the fd is not kept), for example of a torch tensor after
 * share_memory_(). */
BP_API int bp_buffer_register(bp_session* session, int fd, uint64_t bytes, uint64_t* buffer);
BP_API int bp_buffer_release(bp_session* session, uint64_t buffer);

/* ---- optimizer arenas ---- */
typedef struct bp_arena_options {
  uint32_t struct_bytes;
  int32_t rule;          /* bp_rule */
  int32_t bits;          /* 8 or 32 */
  int32_t evictable;     /* 0: its pages stay on the device, or creation is refused with the bytes missing */
  const char* optimizer; /* name; (uid, job, rank, optimizer, bits) is in use once */
  const uint64_t* elements; /* of each tensor, in parameter order; each >= 1 */
  uint64_t tensors;
  uint64_t layout_hash;
  int32_t resume; /* 1: go on from kept states: layout_hash and step must match */
  int32_t reserved;
  uint64_t step; /* resume: the step that the parameters are at */
} bp_arena_options;

typedef struct bp_arena_info {
  uint32_t struct_bytes;
  uint32_t reserved;
  uint64_t pages, units, units_per_page, step;
} bp_arena_info;

/* *arena identifies the arena in this session. */
BP_API int bp_arena_create(bp_session* session, const bp_arena_options* options, uint64_t* arena,
                           bp_arena_info* info /* may be NULL */);
/* Gives the pages back, behind what was asked of the session before, on streams too, which it waits for.
 * BP_INTERRUPTED: a signal came meanwhile; nothing was dropped, call again. The same for weights. */
BP_API int bp_arena_drop(bp_session* session, uint64_t arena);
/* The same without a wait: the handle is gone at once, and so are the pages where nothing is under way, else
 * at a later call of the session that finds it so. For finalizers. The same for weights. */
BP_API int bp_arena_drop_later(bp_session* session, uint64_t arena);

typedef struct bp_group {
  double lr, beta1, beta2, eps, weight_decay;
} bp_group;

/* One tensor of a step. Param and grad are dense, in the same element order. */
typedef struct bp_step_tensor {
  uint32_t tensor;                 /* index in the arena; ascending in the array */
  uint32_t group;                  /* index into groups */
  uint64_t step;                   /* counts from 1 */
  int32_t param_dtype, grad_dtype; /* BP_F32, BP_F16, BP_BF16 */
  uint64_t param_buffer; /* where the daemon finds it; 0: it is copied through the session's slab both ways */
  uint64_t param_offset;
  void* param;          /* used when param_buffer is 0 */
  uint64_t grad_buffer; /* 0: copied from `grad` into the session's slab */
  uint64_t grad_offset;
  const void* grad;
} bp_step_tensor;

typedef struct bp_step_options {
  uint32_t struct_bytes;
  int32_t propagate_nonfinite; /* 0: blocks with NaN or inf in the gradient are left untouched */
  uint64_t step;               /* of the optimizer, recorded when applied */
  uint32_t continues; /* 1: a further part of the step of the session's request before; counted once */
  uint32_t reserved;
} bp_step_options;

typedef struct bp_step_result {
  uint32_t struct_bytes;
  uint32_t first_nonfinite_tensor; /* UINT32_MAX: none */
  uint64_t nonfinite_blocks;
  uint64_t loaded_pages, stored_pages, total_ns, stall_ns;
  uint64_t launch_ns; /* from its turn, its inputs ready, until the device had its first kernel; 0: none */
} bp_step_result;

/* Applies one step and waits for it. BP_NON_FINITE when blocks were skipped: all other blocks are updated.
 * On any other error nothing was applied, save BP_DAEMON_LOST and BP_INTERRUPTED (unknown, still going). */
BP_API int bp_step(bp_session* session, uint64_t arena, const bp_step_tensor* tensors, uint64_t n,
                   const bp_group* groups, uint64_t n_groups, const bp_step_options* options,
                   bp_step_result* result /* may be NULL */);

/* ---- requests on a GPU's stream: for sessions whose device_kind is "cuda" ----
 * Addresses are of the session's GPU, in any allocation that can be shared with another process (cudaMalloc,
 * PyTorch's allocator with or without expandable segments); `stream` is a CUstream / cudaStream_t, NULL the
 * default one. The device is the calling thread's current one; a thread that has none gets the session's. A
 * request runs behind what the stream holds, and what the stream gets afterwards runs behind the request; the
 * call does not wait (but where bp_session_info.synchronous is 1). On any error nothing was submitted, save
 * BP_DEVICE_FAULT of a broken context. BP_UNSUPPORTED: the stream captures a graph; BP_INTERRUPTED: a signal
 * came while waiting for room, call again. What a request found is told later: by bp_poll_results. */
typedef struct bp_stream_step_options {
  uint32_t struct_bytes;
  int32_t propagate_nonfinite; /* as in bp_step_options */
  uint64_t step;
  uint64_t steps_ahead;   /* added to every tensor's step, so that a list may be used again */
  const uint64_t* grads;  /* NULL, or n addresses in place of the tensors' own */
  const uint64_t* params; /* the same for parameters */
  /* 1: the caller enqueued nothing on `stream` since its last request there, as between the arenas of one
   * step: the daemon goes on with this one at once, not when the stream has come round, and counts one step.
   */
  uint32_t follows;
  uint32_t reserved;
} bp_stream_step_options;

typedef struct bp_submitted {
  uint32_t struct_bytes;
  uint32_t reserved;
  uint64_t ticket;
  uint64_t imports; /* registrations that the session made so far: it grew when memory was seen first */
} bp_submitted;

/* As bp_step, of tensors whose param and grad are addresses in the GPU; buffers and offsets are not used. */
BP_API int bp_step_async(bp_session* session, uint64_t arena, const bp_step_tensor* tensors, uint64_t n,
                         const bp_group* groups, uint64_t n_groups, const bp_stream_step_options* options,
                         void* stream, bp_submitted* submitted /* may be NULL */);
/* A hint: a step on `stream` comes in a moment. Where the stream is idle, the daemon wakes up and has the GPU
 * make ready meanwhile; that takes a tenth of a millisecond and more, and else the step would wait for it. */
BP_API int bp_expect_step(bp_session* session, void* stream);
/* Waits on the processor until every stream request of the session is done. BP_INTERRUPTED: call again. */
BP_API int bp_session_synchronize(bp_session* session);

/* A stream request that is done. */
typedef struct bp_finished {
  uint32_t struct_bytes;
  int32_t code;    /* bp_code */
  uint64_t ticket; /* 0: none is done yet */
  uint64_t extent; /* arena or weight */
  uint64_t step;   /* of the optimizer; 0: no step */
  uint64_t nonfinite_blocks;
  uint32_t first_nonfinite_tensor; /* UINT32_MAX: none */
  uint32_t reserved;
  uint64_t loaded_pages, stored_pages, total_ns, stall_ns;
  char message[184];
  uint64_t launch_ns; /* as in bp_step_result */
} bp_finished;
/* Does not wait. Fills *out with the oldest stream request that failed (BP_NON_FINITE too) and was not told
 * yet, else with the newest that is done (code BP_OK: its own failure was told). Returns BP_OK, or why the
 * session is over. */
BP_API int bp_poll_results(bp_session* session, bp_finished* out);
/* Ends the daemon's mappings of memory that only gradients used, when requests under way are done. */
BP_API int bp_release_gradients(bp_session* session);
/* The UUID ("GPU-...") of the driver's device `ordinal` in this process. BP_UNSUPPORTED: no driver. */
BP_API int bp_cuda_uuid(int ordinal, char* out, uint64_t out_bytes);

/* States of one tensor, out of (write = 0) or into (write = 1) its pages. planes[k]: n uint8 codes (8-bit) or
 * n fp32; absmax[k]: ceil(n / 256) fp32 (8-bit only). Lion uses k = 0 alone. */
BP_API int bp_arena_states(bp_session* session, uint64_t arena, uint32_t tensor, int write, uint64_t step,
                           void* const planes[2], float* const absmax[2]);

/* ---- quantized weights ---- */
typedef struct bp_weight_options {
  uint32_t struct_bytes;
  int32_t quant_type; /* bp_quant_type */
  uint32_t blocksize; /* 32, 64, ... 4096 */
  int32_t nested;     /* double quantization */
  uint64_t elements;
  const char* name;
  int32_t on_disk;  /* 1: where its pages are not on the device they lie on the daemon's disk, not in host
                       memory */
  int32_t unshared; /* 1: never held once with equal weights of the same user's jobs */
} bp_weight_options;

/* BP_UNSUPPORTED: on_disk, and the daemon keeps no pages on disk. */
BP_API int bp_weight_create(bp_session* session, const bp_weight_options* options, uint64_t* weight);
BP_API int bp_weight_drop(bp_session* session, uint64_t weight);
BP_API int bp_weight_drop_later(bp_session* session, uint64_t weight);
/* From `src` (any memory of this process), or from a buffer when src is NULL. */
BP_API int bp_weight_quantize(bp_session* session, uint64_t weight, int dtype, const void* src,
                              uint64_t buffer, uint64_t offset);

/* bp_weight_quantize from memory of the session's GPU, and elements [first, first + n) of the weight, cast to
 * dtype, into such memory; first is a multiple of the block size. On a stream, as bp_step_async. */
BP_API int bp_weight_quantize_async(bp_session* session, uint64_t weight, int dtype, const void* src,
                                    void* stream, bp_submitted* submitted /* may be NULL */);
BP_API int bp_weight_dequantize_async(bp_session* session, uint64_t weight, int dtype, void* dst,
                                      uint64_t first, uint64_t n, void* stream,
                                      bp_submitted* submitted /* may be NULL */);

typedef enum bp_path {
  BP_PATH_AUTO = 0,    /* lease when the weight is resident and leasable, else a request */
  BP_PATH_REQUEST = 1, /* the daemon dequantizes */
  BP_PATH_LEASE = 2    /* this process reads the frames in place; BP_FULL or BP_NOT_RESIDENT when it cannot */
} bp_path;
/* dst[i] = weight[i], i < elements, cast to dtype, into `dst` or, when dst is NULL, into a buffer.
 * *used (may be NULL) says which path was taken. */
BP_API int bp_weight_dequantize(bp_session* session, uint64_t weight, int dtype, void* dst, uint64_t buffer,
                                uint64_t offset, int path, int* used);

/* A weight where it lies in the GPU's memory; `pages` is a list on the host of addresses on the device. Page
 * i holds its blocks' packed codes, then their absmaxes: see bp_cuda_pages of bitpager_cuda.h, which is laid
 * out the same. */
typedef struct bp_leased_pages {
  uint32_t struct_bytes;
  uint32_t blocksize;
  int32_t nested;
  float offset;
  uint64_t page_bytes;
  const void* const* pages;
  uint64_t page_count;
} bp_leased_pages;
/* Enqueues kernels that read the pages; 0, or a bp_code. */
typedef int (*bp_leased_launch)(void* context, const bp_leased_pages* pages);
/* Calls launch(context, pages) once, with pages that stay readable for what it enqueues on `stream` of the
 * session's GPU, which is the current device. A lease is taken at the first call and kept until it is
 * revoked. BP_FULL, BP_NOT_RESIDENT, BP_UNSUPPORTED: no lease can be had and nothing was launched: take the
 * request. *launched (may be NULL): what launch returned, 0 when it was not called; when that is not 0, so is
 * the result. */
BP_API int bp_weight_read_leased(bp_session* session, uint64_t weight, void* stream, bp_leased_launch launch,
                                 void* context, int* launched);

/* The interchange planes: packed, ceil(n/2) bytes; absmax: fp32 a block, or uint8 a block when nested;
 * absmax2: fp32, one for 256 blocks (nested); offset: the mean that was subtracted (nested). */
BP_API int bp_weight_export(bp_session* session, uint64_t weight, void* packed, void* absmax, float* absmax2,
                            float* offset);
BP_API int bp_weight_import(bp_session* session, uint64_t weight, const void* packed, const void* absmax,
                            const float* absmax2, float offset);

/* ---- hints ---- */
typedef enum bp_phase {
  BP_PHASE_IDLE = 0,
  BP_PHASE_FORWARD = 1,
  BP_PHASE_BACKWARD = 2,
  BP_PHASE_STEP = 3,
  BP_PHASE_LEAVE = 4 /* forward, and optimizer states that are on the device leave it */
} bp_phase;
/* Makes pages resident as far as the job's share has room; returns at once. */
BP_API int bp_prefetch(bp_session* session, uint64_t extent);
BP_API int bp_phase_hint(bp_session* session, int phase);
/* A request that does nothing, through ring, admission and dispatcher. */
BP_API int bp_noop(bp_session* session);

/* ---- in-process operations: no session, no daemon. threads 0: the processors this process may use ---- */
/* packed: ceil(n/2) bytes, even element in the high nibble; absmax: fp32, ceil(n/blocksize). */
BP_API int bp_quantize_4bit(int quant_type, int dtype, const void* src, uint64_t n, uint32_t blocksize,
                            void* packed, float* absmax, int threads);
BP_API int bp_dequantize_4bit(int quant_type, int dtype, const void* packed, const float* absmax, uint64_t n,
                              uint32_t blocksize, void* dst, int threads);
/* code: 256 ascending fp32 values. codes: n bytes; absmax: ceil(n/blocksize) fp32; out of `src`, any dtype.
 */
BP_API int bp_quantize_blockwise(const float* code, int dtype, const void* src, uint64_t n,
                                 uint32_t blocksize, void* codes, float* absmax, int threads);
BP_API int bp_dequantize_blockwise(const float* code, int dtype, const void* codes, const float* absmax,
                                   uint64_t n, uint32_t blocksize, void* dst, int threads);
/* The dynamic map: 256 fp32 values, ascending. */
BP_API int bp_dynamic_map(int is_signed, float* out);
/* The 16 values of a 4-bit type, by code. */
BP_API int bp_quant_map(int quant_type, float* out);

#ifdef __cplusplus
}
#endif
#endif /* BITPAGER_H_ */
