"""The libtorch optimizers on a GPU give the bits of the Python classes.

libtorch_steps.cc and the optimizers' sources are compiled here as in a user's project, against the installed torch and
a tree of bitpager: the one that BITPAGER_PREFIX names (`cmake --install BUILD --component development --prefix DIR`),
the bundle that these tests lie in, or the source tree with its build folder. By the compiler alone: find_package(Torch)
of a CUDA build asks for a CUDA toolkit, and the optimizers need none.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import subprocess
from dataclasses import dataclass

import gpu_daemon
import gpu_training
import pytest
import torch
from bitpager import compiled

STEPS = 5
LR, WEIGHT_DECAY = 1e-3, 0.1
COMPILE_LIMIT_S, RUN_LIMIT_S = 400, 120
WRAPPED = "__bnb_optimizer_quant_state__"
PLANES = ("state1", "state2", "absmax1", "absmax2")


@dataclass(frozen=True)
class Tree:
    """Of bitpager: the folder that headers are named from, the optimizers' sources, the archive of the C++ client."""

    include: pathlib.Path
    sources: pathlib.Path
    archive: pathlib.Path

    def lacks(self):
        needed = self.include / "client" / "torch" / "optim.h", self.sources / "paged_optimizer.cc", self.archive
        return [str(path) for path in needed if not path.is_file()]


def installed_tree(prefix: pathlib.Path) -> Tree:
    library = prefix / "lib" / "libbitpager_client.a"
    return Tree(prefix / "include" / "bitpager", prefix / "share" / "bitpager" / "torch", library)


def find_tree() -> Tree:
    """Skips, with what is missing, where there is none."""
    root, named = gpu_daemon.ROOT, os.environ.get("BITPAGER_PREFIX")
    build = pathlib.Path(os.environ.get("BITPAGER_BUILD_DIR", root / "build" / "release"))
    source_tree = Tree(root, root / "client" / "torch", build / "lib" / "libbitpager_client.a")
    trees = [installed_tree(pathlib.Path(named))] if named else [installed_tree(root), source_tree]
    tree = min(trees, key=lambda one: len(one.lacks()))
    if missing := tree.lacks():
        hint = "Hint: the bundle of cpack has it, BITPAGER_PREFIX names an installed tree"
        pytest.skip(f"the C++ client is not here: {', '.join(missing)} is missing. {hint}")
    return tree


def why_not(folder: pathlib.Path):
    """Why the optimizers cannot be compiled against this torch and run on a GPU; None when they can."""
    include = folder / "include"
    if not (include / "torch" / "csrc" / "api" / "include" / "torch" / "torch.h").is_file():
        return f"torch {torch.__version__} came without its C++ headers"
    if not (folder / "lib" / "libtorch.so").is_file():
        return f"torch {torch.__version__} came without libtorch.so"
    if not compiled.cxx11(torch):
        return f"torch {torch.__version__} is built with the old ABI of libstdc++, bitpager with the C++11 ABI"
    if "native_handle" not in (include / "c10" / "core" / "Stream.h").read_text():
        return f"c10::Stream of torch {torch.__version__} does not give out its handle"
    return None


def execute(command) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=COMPILE_LIMIT_S)
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stderr[-6000:]}"


def build(tree: Tree, torch_folder: pathlib.Path, compiler, out: pathlib.Path) -> pathlib.Path:
    """The program, compiled into `out`."""
    headers = torch_folder / "include"
    flags = ["-std=c++20", "-O1", f"-I{tree.include}"]
    flags += ["-isystem", headers, "-isystem", headers / "torch" / "csrc" / "api" / "include"]
    sources = [gpu_daemon.HERE / "libtorch_steps.cc", *sorted(tree.sources.glob("*.cc"))]
    objects = [out / f"{source.stem}.o" for source in sources]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        commands = [[*compiler, *flags, "-c", s, "-o", o] for s, o in zip(sources, objects)]
        list(threads.map(execute, commands))
    libraries = torch_folder / "lib"
    names = [n for n in ("torch", "torch_cpu", "torch_cuda", "c10", "c10_cuda") if (libraries / f"lib{n}.so").exists()]
    # Nothing names torch_cuda, which must be there all the same; CUDA's own libraries are its affair.
    linked = ["-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", *(f"-l{name}" for name in names), "-pthread", "-ldl"]
    program = out / "libtorch_steps"
    execute([*compiler, *objects, tree.archive, f"-L{libraries}", f"-Wl,-rpath,{libraries}", *linked, "-o", program])
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """libtorch_steps, compiled for this torch."""
    tree, torch_folder = find_tree(), pathlib.Path(torch.__file__).parent
    if reason := why_not(torch_folder):
        pytest.skip(reason)
    try:
        compiler = compiled.compiler("the optimizers")
    except compiled.Unavailable:
        pytest.skip("there is no C++ compiler (g++ or CXX)")
    return build(tree, torch_folder, compiler, tmp_path_factory.mktemp("libtorch"))


def bytes_of(tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def steps_of_python(session, rule: str, dtype: str, folder: pathlib.Path) -> dict:
    """Leaves the plan, the parameters and their gradients in `folder`; {file: the bytes that it is to have} behind the
    last step of the Python class."""
    params = gpu_training.parameters(gpu_training.DTYPES[dtype], gpu_training.SMALL)
    optimizer = gpu_training.make_optimizer(rule, params, session, lr=LR, weight_decay=WEIGHT_DECAY)
    plan = [f"Paged{rule}8bit {dtype} {LR} {WEIGHT_DECAY} {STEPS}"]
    plan += [f"p{index} {p.numel()}" for index, p in enumerate(params)]
    (folder / "plan.txt").write_text("\n".join(plan) + "\n")
    for index, p in enumerate(params):
        (folder / f"p{index}").write_bytes(bytes_of(p))
    for step in range(1, STEPS + 1):
        gpu_training.set_gradients(params, step)
        for index, p in enumerate(params):
            (folder / f"p{index}.{step}").write_bytes(bytes_of(p.grad))
        optimizer.step()
    session.synchronize()
    expected = {f"p{index}.out": bytes_of(p) for index, p in enumerate(params)}
    for index, entry in optimizer.state_dict()["state"].items():
        states = entry[WRAPPED]
        expected.update({f"p{index}.{plane}": bytes_of(states[plane]) for plane in PLANES if plane in states})
    return expected


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rule", ["AdamW", "Lion"])
def test_libtorch_gives_the_bits_of_python(program, daemon, session, tmp_path, rule, dtype):
    expected = steps_of_python(session, rule, dtype, tmp_path)
    environment = {**os.environ, "BITPAGER_SOCKET": daemon.socket}
    command = [str(program), str(tmp_path), gpu_training.DEVICE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_LIMIT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix[1:] in ("out", *PLANES)}
    assert found.keys() == expected.keys()
    differ = [name for name in sorted(expected) if found[name] != expected[name]]
    assert not differ, f"these differ: {differ}"
    assert all(found[f"p{i}.out"] != (tmp_path / f"p{i}").read_bytes() for i in range(len(gpu_training.SMALL)))
