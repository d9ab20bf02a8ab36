#include "client/wire/status.h"

namespace bitpager::wire {

std::string_view CodeName(Code code) {
  switch (code) {
    case Code::kOk:
      return "ok";
    case Code::kFull:
      return "full";
    case Code::kPending:
      return "pending";
    case Code::kNotResident:
      return "not_resident";
    case Code::kInvalidArgument:
      return "invalid_argument";
    case Code::kOutOfRange:
      return "out_of_range";
    case Code::kUnknownVersion:
      return "unknown_version";
    case Code::kAlreadyExists:
      return "already_exists";
    case Code::kNotFound:
      return "not_found";
    case Code::kPermissionDenied:
      return "permission_denied";
    case Code::kStepMismatch:
      return "step_mismatch";
    case Code::kLayoutMismatch:
      return "layout_mismatch";
    case Code::kForkedChild:
      return "forked_child";
    case Code::kQuotaExceeded:
      return "quota_exceeded";
    case Code::kBudgetExceeded:
      return "budget_exceeded";
    case Code::kOutOfMemory:
      return "out_of_memory";
    case Code::kNonFinite:
      return "non_finite";
    case Code::kCancelled:
      return "cancelled";
    case Code::kDeviceFault:
      return "device_fault";
    case Code::kUnreachable:
      return "unreachable";
    case Code::kDaemonLost:
      return "daemon_lost";
    case Code::kProtocol:
      return "protocol";
    case Code::kDraining:
      return "draining";
    case Code::kInterrupted:
      return "interrupted";
    case Code::kUnsupported:
      return "unsupported";
    case Code::kInternal:
      return "internal";
  }
  return "unknown";
}

}  // namespace bitpager::wire
