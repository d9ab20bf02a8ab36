"""The allocator's callback, compiled for the installed torch, against a stand-in for PyTorch's CUDA allocator, the
driver and a daemon (fake_c10_cuda.cc); and what is said where there can be none."""

from __future__ import annotations

import ctypes
import logging
import os
import pathlib
import shutil
import subprocess
import threading
import time

import bitpager
import pytest
import torch
from bitpager import allocator, compiled

HERE = pathlib.Path(__file__).resolve().parent
TORCH = pathlib.Path(torch.__file__).parent
GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(library, fake): the callback is registered with the fake's registry."""
    folder = tmp_path_factory.mktemp("allocator")
    path = allocator.build(TORCH, torch.__version__, compiled.cxx11(torch), folder)
    fake_path = folder / "libfake_c10_cuda.so"
    subprocess.run(
        ["g++", "-std=c++17", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={int(compiled.cxx11(torch))}",
         f"-I{TORCH / 'include'}", str(HERE / "fake_c10_cuda.cc"), "-o", str(fake_path)],
        check=True,
    )  # fmt: skip
    fake = ctypes.CDLL(str(fake_path))
    for name in ("fake_wanted", "fake_free"):
        getattr(fake, name).restype = ctypes.c_uint64
    fake.fake_segment.argtypes = [ctypes.c_uint64]
    fake.fake_memory.argtypes = [ctypes.c_uint64] * 3
    library = allocator.load(path)
    allocator.install(library, fake, fake)
    return library, fake


class Guarded:
    """Device 0 of the fake, guarded through a session that is none."""

    def __init__(self, library, fake, ordinal=0, reserve=GIB, rest_ms=60_000, pause_ms=0):
        self._library, self._ordinal = library, ordinal
        self._session = ctypes.c_void_p(id(self))
        options = allocator._Options(reserve, 1000, rest_ms, pause_ms)
        calls = (ctypes.cast(call, ctypes.c_void_p) for call in (fake.fake_make_room, fake.fake_request_count))
        assert library.bp_guard_attach(ordinal, self._session, *calls, ctypes.byref(options)) == 0

    def counts(self):
        counts = allocator._Counts()
        self._library.bp_guard_read_counts(self._ordinal, ctypes.byref(counts))
        return counts

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._library.bp_guard_detach(self._ordinal, self._session)


@pytest.fixture
def fake(built):
    _, fake = built
    fake.fake_device(0)
    fake.fake_code(-1)
    fake.fake_nested(0)
    fake.fake_hold(0)
    fake.fake_requests()
    return fake


_ordinals = iter(range(1, 60))  # of devices whose history is empty


@pytest.fixture
def guarded(built, fake):
    """guarded(**how) -> Guarded, on a device of its own."""
    made = []

    def make(**how):
        ordinal = next(_ordinals)
        fake.fake_device(ordinal)
        made.append(Guarded(built[0], fake, ordinal, **how))
        return made[-1]

    yield make
    for each in made:
        each.__exit__()


def test_room_is_there_before_a_segment_is_taken(fake, guarded):
    guarded()
    fake.fake_memory(100 * MIB, 80 * GIB, 8 * GIB)
    assert fake.fake_segment(900 * MIB) == 0  # nine times what was free
    assert fake.fake_requests() == 1 and fake.fake_wanted() == GIB


def test_nothing_is_asked_while_there_is_room(fake, guarded):
    guarded()
    fake.fake_memory(40 * GIB, 80 * GIB, 8 * GIB)
    for _ in range(30):
        assert fake.fake_segment(GIB) == 0
    assert fake.fake_requests() == 0


def test_many_segments_take_few_requests(fake, guarded):
    """A spike of 600 small segments, 12 GiB over what was free."""
    guard = guarded()
    fake.fake_memory(0, 80 * GIB, 40 * GIB)
    for _ in range(600):
        assert fake.fake_segment(20 * MIB) == 0
    assert fake.fake_requests() <= 5
    assert guard.counts().largest_bytes <= 20 * GIB and guard.counts().looks == 600


def test_wishes_shrink_again_after_a_rest(fake, guarded):
    guarded(rest_ms=1000)
    fake.fake_memory(0, 80 * GIB, 40 * GIB)
    fake.fake_segment(MIB)
    fake.fake_memory(0, 80 * GIB, 40 * GIB)
    fake.fake_segment(MIB)
    assert fake.fake_wanted() == 2 * GIB
    time.sleep(1.5)
    fake.fake_memory(0, 80 * GIB, 40 * GIB)
    fake.fake_segment(MIB)
    assert fake.fake_wanted() == GIB


def test_what_a_failed_allocation_needed_is_kept_free_from_then_on(built, fake, guarded):
    guard = guarded()
    fake.fake_memory(2 * GIB, 80 * GIB, 40 * GIB)
    assert fake.fake_segment(10 * GIB) == 2  # nobody knows how large it is
    built[0].bp_guard_expect(guard._ordinal, 11 * GIB)
    assert fake.fake_segment(10 * GIB) == 0


def test_a_pause_follows_when_all_has_left(fake, guarded):
    guard = guarded(pause_ms=60_000)
    fake.fake_memory(10 * MIB, 80 * GIB, 0)
    for _ in range(20):
        fake.fake_segment(0)
    assert fake.fake_requests() == 1
    assert guard.counts().refused == 1 and guard.counts().failed == 0
    # What a session asked for since may have brought pages back, or lent gradients that are freed by now.
    fake.fake_make_request()
    for _ in range(20):
        fake.fake_segment(0)
    assert fake.fake_requests() == 1 and guard.counts().refused == 2


def test_an_error_of_the_session_is_counted_and_harms_nothing(fake, guarded):
    guard = guarded()
    fake.fake_memory(10 * MIB, 80 * GIB, 0)
    fake.fake_code(41)
    assert fake.fake_segment(MIB) == 0
    assert guard.counts().failed == 1


def test_a_request_that_allocates_does_not_ask_again(fake, guarded):
    guarded()
    fake.fake_nested(1)
    fake.fake_memory(0, 80 * GIB, 8 * GIB)
    assert fake.fake_segment(MIB) == 0
    assert fake.fake_requests() == 1


def test_other_devices_are_left_alone(fake, guarded):
    guarded()
    fake.fake_memory(0, 80 * GIB, 8 * GIB)
    fake.fake_device(0)
    fake.fake_segment(0)
    assert fake.fake_requests() == 0


def test_a_thread_without_a_context_asks_for_the_only_device(fake, guarded):
    guarded()
    fake.fake_memory(0, 80 * GIB, 8 * GIB)
    fake.fake_device(-1)
    assert fake.fake_segment(100 * MIB) == 0
    assert fake.fake_requests() == 1


def test_taking_a_session_away_waits_for_its_request_and_other_threads_go_on(fake, guarded):
    guard = guarded()
    fake.fake_memory(0, 80 * GIB, 8 * GIB)
    fake.fake_hold(1)
    asking = threading.Thread(target=fake.fake_segment, args=(MIB,))
    asking.start()
    while not fake.fake_in_room():
        time.sleep(0.001)
    assert fake.fake_segment(0) == 0  # finds the request under way and does without
    gone = threading.Thread(target=guard.__exit__)
    gone.start()
    gone.join(0.1)
    assert gone.is_alive(), "a session in use was taken away"
    fake.fake_hold(0)
    gone.join(10)
    asking.join(10)
    assert not gone.is_alive() and not asking.is_alive()
    fake.fake_requests()
    fake.fake_memory(0, 80 * GIB, 8 * GIB)
    fake.fake_segment(0)
    assert fake.fake_requests() == 0


def test_the_reserve_goes_by_the_device(fake, guarded):
    for total, wanted in ((8 * GIB, 512 * MIB), (80 * GIB, 80 * GIB // 32), (256 * GIB, 4 * GIB)):
        guarded(reserve=0)
        fake.fake_memory(0, total, 40 * GIB)
        fake.fake_segment(0)
        assert fake.fake_wanted() == wanted


def test_registering_twice_is_refused(built):
    library, fake = built
    with pytest.raises(allocator.Unavailable, match="another copy"):
        allocator.install(library, fake, fake)


def test_the_library_is_compiled_once_and_whole(tmp_path, monkeypatch):
    first = allocator.build(TORCH, torch.__version__, True, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [first.name]
    monkeypatch.setenv("CXX", "false")
    assert allocator.build(TORCH, torch.__version__, True, tmp_path) == first
    with pytest.raises(allocator.Unavailable, match="false cannot compile"):
        allocator.build(TORCH, "9.9", True, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [first.name]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(allocator.Unavailable, match="headers are not installed"):
        allocator.build(tmp_path, "2.11", True, tmp_path)
    header = tmp_path / "include" / "c10" / "cuda" / "CUDACachingAllocator.h"
    header.parent.mkdir(parents=True)
    header.write_text("virtual bool Execute(size_t) = 0;")
    with pytest.raises(allocator.Unavailable, match="declares its allocator's callbacks otherwise"):
        allocator.build(tmp_path, "2.11", True, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(allocator.Unavailable, match="no C\\+\\+ compiler"):
        allocator.build(TORCH, "9.9", True, tmp_path)


def test_a_cache_that_others_can_write_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = compiled.cache_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(allocator.Unavailable, match="others may write"):
        compiled.cache_folder()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(session, caplog):
    with caplog.at_level(logging.INFO, "bitpager"):
        guard = bitpager.guard_allocator(session)
    assert not guard.active and "sees no GPU" in guard.reason and guard.stats() == {}
    assert len(caplog.records) == 1 and "--free-watermark" in caplog.text
    guard.close()


def test_the_source_is_in_the_package():
    assert allocator._SOURCE.path.is_file() and shutil.which("g++")
    assert os.path.dirname(bitpager.__file__) == str(allocator._SOURCE.path.parent)


def guard_of(built, session, ordinal):
    """As guard_allocator() makes it, with the library's own bp_make_room and the fake's GPU."""
    library, fake = built
    fake.fake_device(ordinal)
    fake.fake_memory(10 * MIB, 80 * GIB, 0)
    options = allocator._Options(GIB, 1000, 60_000, 0)
    ours = allocator._lib.lib()
    calls = (ctypes.cast(call, ctypes.c_void_p) for call in (ours.bp_make_room, ours.bp_request_count))
    assert library.bp_guard_attach(ordinal, session.handle, *calls, ctypes.byref(options)) == 0
    session._allocator_guard = bitpager.AllocatorGuard("for the test", library, ordinal, session)
    return session._allocator_guard


def test_a_real_session_answers_and_is_left_alone_once_closed(built, fake, make_daemon):
    daemon = make_daemon("--device-budget", "64MiB", "--host-budget", "256MiB")
    ordinal = next(_ordinals)
    with bitpager.connect(socket=daemon.socket, job="allocator", linger=0, default=False) as session:
        guard = guard_of(built, session, ordinal)
        assert fake.fake_segment(MIB) == 0
        stats = guard.stats()
        # The CPU device's free memory is the machine's, whatever the fake's.
        assert (stats["requests"], stats["refused"], stats["failed"]) == (1, 0, 0), stats
        guard.expect("3GiB")
        assert fake.fake_segment(MIB) == 0
        assert guard.stats()["largest_bytes"] == 3 * GIB
    assert not guard.active
    assert fake.fake_segment(MIB) == 0
    assert guard.stats()["requests"] == 2
    guard.close()


def test_a_lost_daemon_harms_no_allocation(built, fake, make_daemon):
    daemon = make_daemon("--device-budget", "64MiB", "--host-budget", "256MiB")
    ordinal = next(_ordinals)
    session = bitpager.connect(socket=daemon.socket, job="allocator", linger=0, default=False)
    guard = guard_of(built, session, ordinal)
    daemon.kill()
    assert fake.fake_segment(MIB) == 0
    assert guard.stats()["failed"] == 1
    session.close()


def test_a_forked_child_allocates_without_asking(built, fake, make_daemon):
    daemon = make_daemon("--device-budget", "64MiB", "--host-budget", "256MiB")
    with bitpager.connect(socket=daemon.socket, job="allocator", linger=0, default=False) as session:
        guard_of(built, session, next(_ordinals))
        child = os.fork()
        if child == 0:
            os._exit(fake.fake_segment(MIB))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        session.noop()
