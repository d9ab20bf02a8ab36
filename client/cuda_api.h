// What the client uses of NVIDIA's driver API: values, structs, and the functions, which are looked up at run
// time, since a machine without a GPU has no driver. No CUDA header: none is there where the client is built.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/cuda_driver.h"
#include "client/wire/status.h"

namespace bitpager::client::cuda {

// By value, with their names in the API.
inline constexpr int kSuccess = 0;          // CUDA_SUCCESS
inline constexpr int kOtherCaptures = 906;  // CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
// Errors that stay: ECC and NVLink faults, illegal address, launch timeout, context destroyed, assert, stack,
// instruction, alignment, address space, program counter, launch failed, and the driver's own end.
inline constexpr int kStickyFaults[] = {214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 4};
inline constexpr int kOutOfMemory = 2;            // CUDA_ERROR_OUT_OF_MEMORY
inline constexpr int kHas64BitStreamWords = 122;  // CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS
inline constexpr int kMemoryType = 2;             // CU_POINTER_ATTRIBUTE_MEMORY_TYPE
inline constexpr int kBufferId = 7;               // CU_POINTER_ATTRIBUTE_BUFFER_ID
inline constexpr int kIsManaged = 8;              // CU_POINTER_ATTRIBUTE_IS_MANAGED
inline constexpr int kDeviceOrdinal = 9;          // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
inline constexpr int kIsIpcCapable = 10;          // ..._IS_LEGACY_CUDA_IPC_CAPABLE
inline constexpr int kMappingBytes = 18;          // CU_POINTER_ATTRIBUTE_MAPPING_SIZE
inline constexpr int kMappingBase = 19;           // CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR
inline constexpr int kMemoryBlockId = 20;         // CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID
inline constexpr unsigned kTypeDevice = 2;        // CU_MEMORYTYPE_DEVICE
inline constexpr unsigned kRegisterPortable = 1;  // CU_MEMHOSTREGISTER_PORTABLE
inline constexpr unsigned kRegisterMapped = 2;    // CU_MEMHOSTREGISTER_DEVICEMAP
inline constexpr unsigned kWaitReached = 0;       // CU_STREAM_WAIT_VALUE_GEQ
inline constexpr unsigned kWriteDefault = 0;      // CU_STREAM_WRITE_VALUE_DEFAULT
inline constexpr int kCaptureRelaxed = 2;         // CU_STREAM_CAPTURE_MODE_RELAXED
inline constexpr unsigned kNonBlocking = 1;       // CU_STREAM_NON_BLOCKING
inline constexpr int kNotCapturing = 0;           // CU_STREAM_CAPTURE_STATUS_NONE
inline constexpr int kPosixFd = 1;                // CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
inline constexpr int kTypePinned = 1;             // CU_MEM_ALLOCATION_TYPE_PINNED
inline constexpr int kLocationDevice = 1;         // CU_MEM_LOCATION_TYPE_DEVICE
inline constexpr int kRecommended = 1;            // CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
inline constexpr int kReadWrite = 3;              // CU_MEM_ACCESS_FLAGS_PROT_READWRITE

using Context = void*;
using AllocationHandle = unsigned long long;  // CUmemGenericAllocationHandle

// CUmemAllocationProp, its version 1.
struct AllocationProperties {
  int type;
  int requested_handle_types;
  int location_type;
  int location_id;
  void* win32_handle_meta_data;
  unsigned char flags[8];
};
static_assert(sizeof(AllocationProperties) == 32);

struct Access {  // CUmemAccessDesc
  int location_type;
  int location_id;
  int flags;
};

// In the order of kNames in cuda_api.cc.
struct Functions {
  int (*init)(unsigned);
  int (*get_error_name)(int, const char**);
  int (*get_error_string)(int, const char**);
  int (*device_count)(int*);
  int (*device_uuid)(unsigned char*, int);
  int (*device_attribute)(int*, int, int);
  int (*context_get)(Context*);
  int (*context_device)(int*);
  int (*context_set)(Context);
  int (*context_push)(Context);
  int (*context_pop)(Context*);
  int (*context_synchronize)();
  int (*primary_retain)(Context*, int);
  int (*pointer_attribute)(void*, int, DeviceAddress);
  int (*address_range)(DeviceAddress*, std::size_t*, DeviceAddress);
  int (*ipc_handle)(void*, DeviceAddress);
  int (*retain)(AllocationHandle*, void*);
  int (*release)(AllocationHandle);
  int (*export_handle)(void*, AllocationHandle, int, unsigned long long);
  int (*properties)(AllocationProperties*, AllocationHandle);
  int (*granularity)(std::size_t*, const AllocationProperties*, int);
  int (*import_handle)(AllocationHandle*, void*, int);
  int (*reserve)(DeviceAddress*, std::size_t, std::size_t, DeviceAddress, unsigned long long);
  int (*unreserve)(DeviceAddress, std::size_t);
  int (*map)(DeviceAddress, std::size_t, std::size_t, AllocationHandle, unsigned long long);
  int (*unmap)(DeviceAddress, std::size_t);
  int (*set_access)(DeviceAddress, std::size_t, const Access*, std::size_t);
  int (*host_register)(void*, std::size_t, unsigned);
  int (*host_unregister)(void*);
  int (*host_device_pointer)(DeviceAddress*, void*, unsigned);
  int (*write_word)(StreamHandle, DeviceAddress, std::uint64_t, unsigned);
  int (*wait_word)(StreamHandle, DeviceAddress, std::uint64_t, unsigned);
  int (*is_capturing)(StreamHandle, int*);
  int (*memory_info)(std::size_t*, std::size_t*);
  int (*query)(StreamHandle);
  int (*stream_flags)(StreamHandle, unsigned*);
  int (*exchange_capture_mode)(int*);
  int (*synchronize)(StreamHandle);
  int (*stream_id)(StreamHandle, unsigned long long*);  // CUDA 12.0
};

// kUnsupported: there is no driver, it is too old, or it does not start. It is never unloaded. Any thread.
[[nodiscard]] wire::Result<Functions> Load();

}  // namespace bitpager::client::cuda
