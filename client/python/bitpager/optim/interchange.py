"""States of one parameter in interchange names (state1, state2, qmap1, qmap2, absmax1, absmax2), out of an arena and
into one.

State tensors are on the CPU, whatever device the parameter is on, for the states may be larger than what is free
there. They have the parameter's shape and element order. 8-bit: uint8 codes into qmap, absmax of every 256 elements
in memory order. 32-bit: fp32.
"""

from __future__ import annotations

import torch

from .. import dtypes
from ..arena import BLOCK
from ..functional import create_dynamic_map

WRAPPED = "__bnb_optimizer_quant_state__"  # keeps the tensors out of the way of FSDP's gathers
_OLD_BLOCK = 2048  # of checkpoints from before blocks had 256 elements
_TORCH_NAMES = {"exp_avg": "state1", "exp_avg_sq": "state2"}


class LoadedState:
    """A checked state of one parameter: step, bits, planes (state tensors) and absmax (8-bit)."""

    __slots__ = ("step", "bits", "planes", "absmax")

    def __init__(self, step, bits, planes, absmax):
        self.step = step
        self.bits = bits
        self.planes = planes
        self.absmax = absmax


def read(slot, parameter, step: int) -> dict:
    """The interchange entry of a parameter that has a slot."""
    planes, absmax = _empty(parameter, slot.arena.bits, slot.arena.state_count)
    slot.arena.read(slot.tensor, planes, absmax)
    return entry(LoadedState(step, slot.arena.bits, planes, absmax))


def entry(state: LoadedState) -> dict:
    """{"step": int, WRAPPED: {state1, ...}}."""
    tensors = {}
    for index, plane in enumerate(state.planes, start=1):
        tensors[f"state{index}"] = plane
        if state.bits == 8:
            tensors[f"qmap{index}"] = create_dynamic_map(signed=index == 1)
            tensors[f"absmax{index}"] = state.absmax[index - 1]
    return {"step": state.step, WRAPPED: tensors}


def write(slot, state: LoadedState, step: int) -> None:
    """Puts a checked state into the parameter's pages; `step` is the optimizer's."""
    slot.arena.write(slot.tensor, state.planes, state.absmax, step)


def fresh(parameter, state_count: int) -> LoadedState:
    """The state of a parameter without elements."""
    planes, absmax = _empty(parameter, 32, state_count)
    return LoadedState(0, 32, planes, absmax)


def parse(saved: dict, parameter, state_count: int, name: str):
    """The LoadedState in a saved entry (wrapped or flat), or None when it holds no state tensors.

    ValueError, naming the parameter, when tensors are missing, do not fit or use another number format."""
    flat = {key: value for key, value in saved.items() if key != WRAPPED}
    flat.update(saved.get(WRAPPED) or {})
    for theirs, ours in _TORCH_NAMES.items():
        if theirs in flat:
            flat.setdefault(ours, flat.pop(theirs))
    if "state1" not in flat:
        return None
    planes = [_plane(flat, f"state{index}", parameter, name) for index in range(1, state_count + 1)]
    if "state2" in flat and flat["state2"] is not None and state_count == 1:
        raise ValueError(f"the loaded state of {name} has two moments; this optimizer keeps one")
    if len({plane.dtype for plane in planes}) != 1:
        raise ValueError(f"the loaded states of {name} differ in dtype")
    bits = 8 if planes[0].dtype == torch.uint8 else 32
    absmax = [_absmax(flat, index, parameter, name) for index in range(1, state_count + 1)] if bits == 8 else []
    return LoadedState(int(flat.get("step", 0)), bits, planes, absmax)


def match_groups(groups, saved_groups):
    """{saved id: parameter}; ids are whatever the saved groups use (numbers, or names from
    torch.distributed.checkpoint)."""
    if len(groups) != len(saved_groups):
        raise ValueError(f"the loaded state has {len(saved_groups)} parameter groups, the optimizer {len(groups)}")
    places = {}
    for index, (group, saved) in enumerate(zip(groups, saved_groups)):
        if len(group["params"]) != len(saved["params"]):
            raise ValueError(
                f"group {index} of the loaded state has {len(saved['params'])} parameters, the optimizer's "
                f"{len(group['params'])}"
            )
        places.update(zip(saved["params"], group["params"]))
    return places


def _empty(parameter, bits: int, state_count: int):
    dtype = torch.uint8 if bits == 8 else torch.float32
    planes = [torch.empty_like(parameter, dtype=dtype, requires_grad=False, device="cpu") for _ in range(state_count)]
    blocks = (parameter.numel() + BLOCK - 1) // BLOCK
    absmax = [torch.empty(blocks, dtype=torch.float32) for _ in range(state_count)] if bits == 8 else []
    return planes, absmax


def _plane(flat, key: str, parameter, name: str) -> torch.Tensor:
    """A dense CPU copy in the parameter's element order, uint8 or fp32."""
    saved = flat.get(key)
    if not isinstance(saved, torch.Tensor):
        raise ValueError(f"the loaded state of {name} lacks {key}")
    if saved.numel() != parameter.numel():
        raise ValueError(
            f"{key} of {name} has shape {tuple(saved.shape)}, the parameter {tuple(parameter.shape)}; "
            "the checkpoint belongs to another model"
        )
    if saved.dtype == torch.uint8:
        reordered = saved.shape == parameter.shape and not dtypes.same_order(saved, parameter)
        if reordered:
            raise ValueError(
                f"{key} of {name} was saved in another memory order than the parameter has; its 8-bit blocks cannot be "
                "carried over. Hint: load into a parameter of the saved memory format."
            )
        dtype = torch.uint8
    elif saved.dtype.is_floating_point:
        dtype = torch.float32
    else:
        raise ValueError(f"{key} of {name} has dtype {dtypes.name_of(saved.dtype)}; uint8 and floats are known")
    target = torch.empty_like(parameter, dtype=dtype, requires_grad=False, device="cpu")
    return target.copy_(saved.detach().reshape(parameter.shape))


def _absmax(flat, index: int, parameter, name: str) -> torch.Tensor:
    saved = flat.get(f"absmax{index}")
    if not isinstance(saved, torch.Tensor):
        raise ValueError(
            f"the loaded 8-bit state of {name} lacks absmax{index}; only blockwise states are known, not those with "
            "one scale a tensor"
        )
    _require_dynamic(flat.get(f"qmap{index}"), index, name)
    saved = saved.detach().to("cpu", torch.float32).flatten()
    count = parameter.numel()
    blocks = (count + BLOCK - 1) // BLOCK
    if saved.numel() != blocks and saved.numel() == (count + _OLD_BLOCK - 1) // _OLD_BLOCK:
        saved = saved.repeat_interleave(_OLD_BLOCK // BLOCK)[:blocks]  # the same codes mean the same values
    if saved.numel() != blocks:
        raise ValueError(
            f"absmax{index} of {name} has {saved.numel()} entries; {blocks} blocks of {BLOCK} need one each"
        )
    return saved.contiguous().clone()


def _require_dynamic(qmap, index: int, name: str) -> None:
    if qmap is None:
        return
    standard = create_dynamic_map(signed=index == 1)
    if qmap.numel() != 256 or not torch.allclose(qmap.detach().float().cpu().flatten(), standard, rtol=1e-6, atol=1e-9):
        raise ValueError(f"qmap{index} of {name} is not the dynamic 8-bit map; other maps are not supported")


__all__ = ["LoadedState", "WRAPPED", "entry", "fresh", "match_groups", "parse", "read", "write"]
