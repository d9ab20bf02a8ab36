"""Steps on CUDA streams, as far as they can be seen without a GPU: a library that records what it is given stands in
for libbitpager.so, CPU tensors for memory of a GPU."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest
import torch
from bitpager import _lib, errors
from bitpager import session as sessions
from bitpager.arena import StreamCall
from bitpager.optim import AdamW8bit, streams
from fake_gpu import (
    READERS,
    UUID,
    GpuParameter,
    give_gradients,
    make_parameters,
    open_session,
    read_with,
    segment,
    stand_in,
)


@pytest.fixture(params=READERS)
def library(request, monkeypatch):
    read_with(request.param, monkeypatch)
    return stand_in(monkeypatch)


@pytest.fixture
def session(library):
    made = open_session()
    yield made
    made.close()


# ---- packing ----


def test_rows_and_groups_are_the_c_structs():
    rows = [(3, 1, 9, 2, 0, 0, 0, 0xABC0, 0, 0, 0xDEF0), (7, 0, 2, 1, 2, 0, 0, 1 << 47, 0, 0, 2)]
    call = StreamCall(rows, 2)
    call.point_to([11, 1 << 46])
    call.fill([0.1, 0.9, 0.99, 1e-8, 0.5, 1, 2, 3, 4, 5], 12, 4, True, True)
    table, count, groups, group_count, options = call.arguments
    got = (_lib.StepTensor * count).from_address(table)
    assert [tuple(getattr(row, name) for name, _ in row._fields_) for row in got] == rows
    settings = (_lib.Group * group_count).from_address(groups)
    assert (settings[0].lr, settings[0].weight_decay, settings[1].beta1) == (0.1, 0.5, 2.0)
    assert list((ctypes.c_uint64 * 2).from_address(options._obj.grads)) == [11, 1 << 46]
    assert (options._obj.step, options._obj.steps_ahead, options._obj.propagate_nonfinite) == (12, 4, 1)
    assert options._obj.struct_bytes == ctypes.sizeof(_lib.StreamStepOptions)


def test_structs_have_the_sizes_of_the_header(tmp_path):
    """sizeof and the last field's offset, as a C compiler has them."""
    import pathlib
    import shutil
    import subprocess

    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    structs = {
        "bp_connect_options": _lib.ConnectOptions,
        "bp_session_info": _lib.SessionInfo,
        "bp_stream_step_options": _lib.StreamStepOptions,
        "bp_submitted": _lib.Submitted,
        "bp_finished": _lib.Finished,
        "bp_step_tensor": _lib.StepTensor,
    }
    lines = []
    for name, struct in structs.items():
        last = struct._fields_[-1][0]
        lines.append(f'printf("%zu %zu\\n", sizeof({name}), offsetof({name}, {last}));')
    source = tmp_path / "sizes.c"
    source.write_text(
        '#include <stdio.h>\n#include "client/bitpager.h"\nint main(void) {' + "".join(lines) + "return 0;}"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    subprocess.run([compiler, f"-I{root}", str(source), "-o", str(tmp_path / "sizes")], check=True)
    printed = subprocess.run([str(tmp_path / "sizes")], check=True, capture_output=True, text=True).stdout.split("\n")
    for line, struct in zip(printed, structs.values()):
        last = getattr(struct, struct._fields_[-1][0]).offset
        assert line == f"{ctypes.sizeof(struct)} {last}", struct.__name__


# ---- the optimizer ----


def test_steps_are_packed_once_and_sent_again(library, session, monkeypatch):
    parameters = make_parameters()
    small = GpuParameter(torch.zeros(10))
    optimizer = AdamW8bit([{"params": parameters}, {"params": [small], "lr": 0.5}], lr=0.1, session=session)
    gathered = []
    gather = optimizer._gather
    monkeypatch.setattr(optimizer, "_gather", lambda: gathered.append(1) or gather())
    for round in range(1, 4):
        give_gradients([*parameters, small])
        optimizer.param_groups[0]["lr"] = 0.1 * round
        optimizer.step()
        of_32bit, of_8bit = library.steps[-2:]  # the smallest first
        assert (of_32bit["follows"], of_8bit["follows"]) == (0, 1)
        assert [row["grad"] for row in of_8bit["rows"]] == [p.grad.data_ptr() for p in parameters]
        assert [row["param"] for row in of_8bit["rows"]] == [p.data_ptr() for p in parameters]
        assert [row["grad"] for row in of_32bit["rows"]] == [small.grad.data_ptr()]
        assert all(row["step"] == round for row in of_8bit["rows"] + of_32bit["rows"])
        assert of_8bit["groups"][of_8bit["rows"][0]["group"]][0] == pytest.approx(0.1 * round)
        assert of_32bit["groups"][of_32bit["rows"][0]["group"]][0] == 0.5
        assert of_8bit["step"] == round and of_8bit["stream"] == 77
        assert all(optimizer.state[p]["step"] == round for p in parameters)
        optimizer.zero_grad(set_to_none=True)
    assert len(gathered) == 1


def test_a_step_like_the_last_one_is_expected_before_it_is_prepared(library, session):
    parameters = make_parameters()
    optimizer = AdamW8bit(parameters, session=session)
    for _ in range(3):
        give_gradients(parameters)
        optimizer.step()
    assert library.expected == [(1, 77), (2, 77)]


def test_what_changes_is_packed_anew(library, session):
    parameters = make_parameters()
    optimizer = AdamW8bit(parameters, session=session)
    give_gradients(parameters)
    optimizer.step()
    parameters[1].grad = None
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    assert [row["tensor"] for row in library.steps[-1]["rows"]] == [0, 2]
    give_gradients(parameters)
    optimizer.step()
    assert [row["tensor"] for row in library.steps[-1]["rows"]] == [0, 1, 2]
    assert [row["step"] for row in library.steps[-1]["rows"]] == [3, 2, 3]
    parameters[2].data = torch.zeros_like(parameters[2])
    give_gradients(parameters)
    optimizer.step()
    assert library.steps[-1]["rows"][2]["param"] == parameters[2].data_ptr()
    assert [row["step"] for row in library.steps[-1]["rows"]] == [4, 3, 4]


def test_gradient_in_another_order_is_brought_into_the_parameters(library, session):
    parameter = GpuParameter(torch.zeros(64, 96))
    optimizer = AdamW8bit([parameter], session=session)
    for _ in range(2):
        parameter.grad = torch.ones(96, 64).t()
        optimizer.step()
        assert library.steps[-1]["rows"][0]["grad"] != parameter.grad.data_ptr()


def test_sparse_gradient_is_refused(library, session):
    parameters = make_parameters(1)
    optimizer = AdamW8bit(parameters, session=session)
    give_gradients(parameters)
    optimizer.step()
    parameters[0].grad = torch.ones_like(parameters[0]).to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()
    assert len(library.steps) == 1


def test_overrides_go_the_long_way(library, session, overrides):
    parameters = make_parameters()
    optimizer = AdamW8bit(parameters, lr=0.1, session=session)
    overrides.override_config(parameters[1], "lr", 0.7)
    for _ in range(2):
        give_gradients(parameters)
        optimizer.step()
        sent = library.steps[-1]
        assert [sent["groups"][row["group"]][0] for row in sent["rows"]] == [0.1, 0.7, 0.1]


def test_refused_step_is_not_counted(library, session):
    parameters = make_parameters()
    optimizer = AdamW8bit(parameters, session=session)
    give_gradients(parameters)
    optimizer.step()
    library.outcomes = [45]
    with pytest.raises(errors.UnsupportedError, match="what the library says"):
        optimizer.step()
    assert optimizer.state[parameters[0]]["step"] == 1
    optimizer.step()
    assert library.steps[-1]["step"] == 2 and library.steps[-1]["rows"][0]["step"] == 2


def test_interrupted_wait_for_room_is_made_again(library, session):
    parameters = make_parameters()
    optimizer = AdamW8bit(parameters, session=session)
    give_gradients(parameters)
    library.outcomes = [_lib.INTERRUPTED, _lib.INTERRUPTED]
    optimizer.step()
    assert len(library.steps) == 1 and optimizer.state[parameters[0]]["step"] == 1


def test_interrupt_comes_after_every_arena_has_its_step(library, session):
    parameters = [*make_parameters(), GpuParameter(torch.zeros(10))]
    optimizer = AdamW8bit(parameters, session=session)
    give_gradients(parameters)
    library.on_step = lambda: len(library.steps) == 1 and signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(library.steps) == 2
    assert [optimizer.state[p]["step"] for p in parameters] == [1] * 4
    library.on_step = lambda: None
    optimizer.step()
    assert library.steps[-1]["step"] == 2


def test_other_device_than_the_sessions_is_refused(library, session, monkeypatch):
    monkeypatch.setattr("bitpager.optim.base.device_uuid", lambda device: "GPU-other")
    optimizer = AdamW8bit(make_parameters(), session=session)
    with pytest.raises(ValueError, match="GPU-other.*" + UUID):
        optimizer.prepare()


# ---- what is told later ----


def nonfinite(library, step=5, tensor=1):
    return {
        "code": _lib.NON_FINITE,
        "ticket": 9,
        "extent": library.extents,
        "step": step,
        "nonfinite_blocks": 3,
        "first_nonfinite_tensor": tensor,
    }


def test_later_call_raises_what_a_step_found_and_does_nothing_else(library, session):
    parameters = make_parameters()
    optimizer = AdamW8bit([(f"layer{i}", p) for i, p in enumerate(parameters)], session=session)
    give_gradients(parameters)
    optimizer.step()
    library.finished = [nonfinite(library)]
    with pytest.raises(errors.NonFiniteError, match="step 5: 3 blocks.*first in layer1") as raised:
        optimizer.step()
    assert raised.value.blocks == 3 and raised.value.tensors == ("layer1",)
    assert len(library.steps) == 1
    optimizer.step()
    assert library.steps[-1]["step"] == 2


def test_what_was_noted_before_clipping_is_named_some_steps_later(library, session):
    parameters = make_parameters()
    optimizer = AdamW8bit([(f"layer{i}", p) for i, p in enumerate(parameters)], session=session)
    for step in range(1, 4):
        give_gradients(parameters)
        if step == 2:
            parameters[2].grad.view(-1)[7] = float("nan")
        optimizer.note_gradients()
        if step == 2:
            for p in parameters:
                p.grad.fill_(float("nan"))  # as clipping by norm does
        optimizer.step()
    library.finished = [nonfinite(library, 2)]
    with pytest.raises(errors.NonFiniteError, match=r"step 2: 3 blocks .* noted first in layer2\.") as raised:
        optimizer.step()
    assert raised.value.tensors == ("layer2",)
    library.finished = [nonfinite(library, 3)]  # nothing was noted that is broken: what the device says
    with pytest.raises(errors.NonFiniteError, match="step 3: 3 blocks .* the first in layer1"):
        optimizer.step()


def test_warn_goes_on(library, session):
    parameters = make_parameters()
    optimizer = AdamW8bit(parameters, session=session, on_nonfinite="warn")
    give_gradients(parameters)
    optimizer.step()
    library.finished = [nonfinite(library, 1), nonfinite(library, 2)]
    with pytest.warns(RuntimeWarning, match="step 1"), pytest.warns(RuntimeWarning, match="step 2"):
        optimizer.step()
    assert len(library.steps) == 2


def test_state_dict_waits_and_raises(library, session):
    parameters = make_parameters()
    optimizer = AdamW8bit(parameters, session=session)
    give_gradients(parameters)
    optimizer.step()
    library.finished = [{"code": 21, "extent": library.extents, "step": 1, "message": b"no room"}]
    with pytest.raises(errors.BudgetError, match="step 1 of optimizer .*submitted earlier, failed: no room"):
        optimizer.state_dict()
    assert library.synchronized == 1
    saved = optimizer.state_dict()
    tensors = saved["state"][0]["__bnb_optimizer_quant_state__"]
    assert tensors["state1"].device.type == "cpu" and saved["state"][0]["step"] == 1


# ---- memory of other streams ----


class Recorder:
    def __init__(self):
        self.streams = []

    def record_stream(self, stream):
        self.streams.append(stream)


def test_only_memory_of_other_streams_is_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: "current")
    looks = []

    def snapshot():
        looks.append(1)
        return [segment(0x8000, 5), segment(0x1000, 0), segment(0x3000, 5), segment(0x5000, 5, device=1)]

    known = streams.SegmentStreams(0, snapshot)
    addresses = [0x1000, 0x3000, 0x3FFF, 0x4000, 0x5000, 0x8800, 0x0]
    tensors = [Recorder() for _ in addresses]
    known.record(tensors, addresses, 0, 1)
    assert [len(t.streams) for t in tensors] == [0, 1, 1, 0, 0, 1, 0]
    known.record(tensors, addresses, 5, 1)
    assert [len(t.streams) for t in tensors] == [1, 1, 1, 0, 0, 1, 0]
    assert len(looks) == 1
    known.record(tensors, addresses, 5, 2)
    assert len(looks) == 2, "new memory was seen"


def test_all_memory_is_recorded_when_its_owner_is_not_known(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: "current")

    def snapshot():
        raise RuntimeError("this allocator has no snapshot")

    tensor = Recorder()
    streams.SegmentStreams(0, snapshot).record([tensor], [0x1000], 0, 1)
    assert tensor.streams == ["current"]


# ---- which session ----


def test_device_names():
    assert sessions.device_uuid("cpu") == "cpu-0"
    assert sessions.device_uuid(torch.device("cpu")) == "cpu-0"
    assert sessions.device_uuid(UUID) == UUID


def test_devices_have_default_sessions_of_their_own(library, monkeypatch):
    made = []

    def connect(default=True, device=None):
        session = sessions.Session(len(made) + 1, os.getpid())
        session.device_uuid = device or "cpu-0"
        session.device_kind = "cpu" if session.device_uuid == "cpu-0" else "cuda"
        made.append(device)
        return session

    monkeypatch.setattr(sessions, "connect", connect)
    monkeypatch.setattr(sessions, "_default", None)
    monkeypatch.setattr(sessions, "_by_device", {})
    monkeypatch.setattr(sessions, "_cuda_uuid", lambda index: f"GPU-{index}")
    gpu = sessions.session_for(torch.device("cuda", 1))
    assert sessions.default_session() is gpu, "memory_stats() speaks of what is in use"
    assert sessions.session_for(torch.device("cuda", 1)) is gpu
    cpu = sessions.session_for(torch.device("cpu"))
    assert cpu is not gpu and sessions.session_for(torch.device("cpu")) is cpu
    assert sessions.session_for(torch.device("cuda", 0)) is not gpu
    assert made == ["GPU-1", "cpu-0", "GPU-0"]
    sessions.disconnect()
    assert gpu.closed and cpu.closed
    assert sessions.session_for(torch.device("cpu")).device_uuid == "cpu-0" and made[-1] is None
