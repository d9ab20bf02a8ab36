"""What client/bitpager.h declares, for ctypes: codes, structs, functions."""

from __future__ import annotations

from ctypes import (
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_uint32,
    c_uint64,
    c_void_p,
)

ABI_VERSION = 1

OK = 0
FULL = 1
NOT_RESIDENT = 3
NOT_FOUND = 14
UNSUPPORTED = 45
PENDING = 2
NON_FINITE = 30
FORKED_CHILD = 18
DAEMON_LOST = 41
INTERRUPTED = 44

F32, F16, BF16, U8 = 0, 1, 2, 3
ADAM, LION = 0, 1
QUANT_TYPES = {"nf4": 0, "fp4": 1}
PATHS = {"auto": 0, "request": 1, "lease": 2}
PHASES = {"idle": 0, "forward": 1, "backward": 2, "step": 3, "leave": 4}


class ConnectOptions(Structure):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("rank", c_uint32),
        ("socket", c_char_p),
        ("job", c_char_p),
        ("client", c_char_p),
        ("daemon_path", c_char_p),
        ("weight", c_double),
        ("device_quota_bytes", c_uint64),
        ("host_quota_bytes", c_uint64),
        ("linger_ms", c_int64),
        ("spawn", c_int32),
        ("threads", c_int32),
        ("device", c_char_p),
    ]


class SessionInfo(Structure):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("reserved", c_uint32),
        ("session", c_uint64),
        ("job", c_uint64),
        ("page_bytes", c_uint64),
        ("linger_ms", c_uint64),
        ("socket", c_char * 128),
        ("job_name", c_char * 64),
        ("device_kind", c_char * 16),
        ("device_uuid", c_char * 64),
        ("synchronous", c_int32),
        ("no_leases", c_int32),
    ]


USAGE_FIELDS = (
    "resident_bytes",
    "host_bytes",
    "state_bytes",
    "weight_bytes",
    "resident_state_bytes",
    "resident_weight_bytes",
    "leased_bytes",
    "loaded_bytes",
    "stored_bytes",
    "dropped_bytes",
    "pages",
    "share_bytes",
    "stall_ns",
    "steps",
    "nonfinite_blocks",
    "device_budget_bytes",
    "buffer_bytes",
    "disk_bytes",
    "disk_budget_bytes",
    "shared_bytes",
    "peak_resident_bytes",
    "peak_host_bytes",
    "job_peak_resident_bytes",
    "job_peak_host_bytes",
)


class Usage(Structure):
    _fields_ = [("struct_bytes", c_uint32), ("reserved", c_uint32)] + [(name, c_uint64) for name in USAGE_FIELDS]


class ArenaOptions(Structure):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("rule", c_int32),
        ("bits", c_int32),
        ("evictable", c_int32),
        ("optimizer", c_char_p),
        ("elements", POINTER(c_uint64)),
        ("tensors", c_uint64),
        ("layout_hash", c_uint64),
        ("resume", c_int32),
        ("reserved", c_int32),
        ("step", c_uint64),
    ]


class ArenaInfo(Structure):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("reserved", c_uint32),
        ("pages", c_uint64),
        ("units", c_uint64),
        ("units_per_page", c_uint64),
        ("step", c_uint64),
    ]


class Group(Structure):
    _fields_ = [(name, c_double) for name in ("lr", "beta1", "beta2", "eps", "weight_decay")]


class StepTensor(Structure):
    _fields_ = [
        ("tensor", c_uint32),
        ("group", c_uint32),
        ("step", c_uint64),
        ("param_dtype", c_int32),
        ("grad_dtype", c_int32),
        ("param_buffer", c_uint64),
        ("param_offset", c_uint64),
        ("param", c_void_p),
        ("grad_buffer", c_uint64),
        ("grad_offset", c_uint64),
        ("grad", c_void_p),
    ]


class StepOptions(Structure):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("propagate_nonfinite", c_int32),
        ("step", c_uint64),
        ("continues", c_uint32),
        ("reserved", c_uint32),
    ]


class StepResult(Structure):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("first_nonfinite_tensor", c_uint32),
        ("nonfinite_blocks", c_uint64),
        ("loaded_pages", c_uint64),
        ("stored_pages", c_uint64),
        ("total_ns", c_uint64),
        ("stall_ns", c_uint64),
        ("launch_ns", c_uint64),
    ]


class StreamStepOptions(Structure):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("propagate_nonfinite", c_int32),
        ("step", c_uint64),
        ("steps_ahead", c_uint64),
        ("grads", c_void_p),
        ("params", c_void_p),
        ("follows", c_uint32),
        ("reserved", c_uint32),
    ]


class Submitted(Structure):
    _fields_ = [("struct_bytes", c_uint32), ("reserved", c_uint32), ("ticket", c_uint64), ("imports", c_uint64)]


class Finished(Structure):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("code", c_int32),
        ("ticket", c_uint64),
        ("extent", c_uint64),
        ("step", c_uint64),
        ("nonfinite_blocks", c_uint64),
        ("first_nonfinite_tensor", c_uint32),
        ("reserved", c_uint32),
        ("loaded_pages", c_uint64),
        ("stored_pages", c_uint64),
        ("total_ns", c_uint64),
        ("stall_ns", c_uint64),
        ("message", c_char * 184),
        ("launch_ns", c_uint64),
    ]


class WeightOptions(Structure):
    _fields_ = [
        ("struct_bytes", c_uint32),
        ("quant_type", c_int32),
        ("blocksize", c_uint32),
        ("nested", c_int32),
        ("elements", c_uint64),
        ("name", c_char_p),
        ("on_disk", c_int32),
        ("unshared", c_int32),
    ]


_SESSION = c_void_p
_U64_OUT = POINTER(c_uint64)
# name: (result, arguments); the result of nearly all is a bp_code.
SIGNATURES = {
    "bp_abi_version": (c_uint32, ()),
    "bp_version": (c_char_p, ()),
    "bp_last_error": (c_char_p, ()),
    "bp_code_name": (c_char_p, (c_int,)),
    "bp_connect": (c_int, (POINTER(ConnectOptions), POINTER(c_void_p))),
    "bp_disconnect": (None, (_SESSION,)),
    "bp_session_get_info": (c_int, (_SESSION, POINTER(SessionInfo))),
    "bp_get_usage": (c_int, (_SESSION, POINTER(Usage))),
    "bp_reset_peaks": (c_int, (_SESSION,)),
    "bp_buffer_create": (c_int, (_SESSION, c_uint64, _U64_OUT, POINTER(c_void_p))),
    "bp_buffer_register": (c_int, (_SESSION, c_int, c_uint64, _U64_OUT)),
    "bp_buffer_release": (c_int, (_SESSION, c_uint64)),
    "bp_arena_create": (c_int, (_SESSION, POINTER(ArenaOptions), _U64_OUT, POINTER(ArenaInfo))),
    "bp_arena_drop": (c_int, (_SESSION, c_uint64)),
    "bp_arena_drop_later": (c_int, (_SESSION, c_uint64)),
    "bp_step": (
        c_int,
        (_SESSION, c_uint64, c_void_p, c_uint64, c_void_p, c_uint64, POINTER(StepOptions), POINTER(StepResult)),
    ),
    "bp_arena_states": (
        c_int,
        (_SESSION, c_uint64, c_uint32, c_int, c_uint64, POINTER(c_void_p), POINTER(c_void_p)),
    ),
    "bp_step_async": (
        c_int,
        (
            _SESSION,
            c_uint64,
            c_void_p,
            c_uint64,
            c_void_p,
            c_uint64,
            POINTER(StreamStepOptions),
            c_void_p,
            POINTER(Submitted),
        ),
    ),
    "bp_expect_step": (c_int, (_SESSION, c_void_p)),
    "bp_session_synchronize": (c_int, (_SESSION,)),
    "bp_poll_results": (c_int, (_SESSION, POINTER(Finished))),
    "bp_release_gradients": (c_int, (_SESSION,)),
    "bp_cuda_uuid": (c_int, (c_int, c_char_p, c_uint64)),
    "bp_weight_quantize_async": (c_int, (_SESSION, c_uint64, c_int, c_void_p, c_void_p, POINTER(Submitted))),
    "bp_weight_dequantize_async": (
        c_int,
        (_SESSION, c_uint64, c_int, c_void_p, c_uint64, c_uint64, c_void_p, POINTER(Submitted)),
    ),
    "bp_weight_create": (c_int, (_SESSION, POINTER(WeightOptions), _U64_OUT)),
    "bp_weight_drop": (c_int, (_SESSION, c_uint64)),
    "bp_weight_drop_later": (c_int, (_SESSION, c_uint64)),
    "bp_weight_quantize": (c_int, (_SESSION, c_uint64, c_int, c_void_p, c_uint64, c_uint64)),
    "bp_weight_dequantize": (
        c_int,
        (_SESSION, c_uint64, c_int, c_void_p, c_uint64, c_uint64, c_int, POINTER(c_int)),
    ),
    "bp_weight_read_leased": (c_int, (_SESSION, c_uint64, c_void_p, c_void_p, c_void_p, POINTER(c_int))),
    "bp_weight_export": (c_int, (_SESSION, c_uint64, c_void_p, c_void_p, c_void_p, POINTER(c_float))),
    "bp_weight_import": (c_int, (_SESSION, c_uint64, c_void_p, c_void_p, c_void_p, c_float)),
    "bp_prefetch": (c_int, (_SESSION, c_uint64)),
    "bp_phase_hint": (c_int, (_SESSION, c_int)),
    "bp_make_room": (c_int, (_SESSION, c_uint64, c_uint64, POINTER(c_uint64))),
    "bp_request_count": (c_int, (_SESSION, POINTER(c_uint64))),
    "bp_noop": (c_int, (_SESSION,)),
    "bp_quantize_4bit": (c_int, (c_int, c_int, c_void_p, c_uint64, c_uint32, c_void_p, c_void_p, c_int)),
    "bp_dequantize_4bit": (c_int, (c_int, c_int, c_void_p, c_void_p, c_uint64, c_uint32, c_void_p, c_int)),
    "bp_quantize_blockwise": (c_int, (c_void_p, c_int, c_void_p, c_uint64, c_uint32, c_void_p, c_void_p, c_int)),
    "bp_dequantize_blockwise": (c_int, (c_void_p, c_int, c_void_p, c_void_p, c_uint64, c_uint32, c_void_p, c_int)),
    "bp_dynamic_map": (c_int, (c_int, c_void_p)),
    "bp_quant_map": (c_int, (c_int, c_void_p)),
}
