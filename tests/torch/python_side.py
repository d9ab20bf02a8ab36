"""The Python package's part of python_test.cc: trains from the files in a folder and leaves its results there.

usage: python_side.py FOLDER SOCKET

FOLDER/plan.txt: a line "CLASS LR WEIGHT_DECAY" for each of two groups, then one "NAME GROUP DTYPE ELEMENTS" for each
parameter. NAME: the parameter's bytes, NAME.N: its gradient at step N. Written: NAME.out, NAME.state1 and so on.
"""

from __future__ import annotations

import itertools
import pathlib
import sys

import bitpager
import torch


def read(path: pathlib.Path, dtype: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=getattr(torch, dtype)).clone()


def write(path: pathlib.Path, tensor: torch.Tensor) -> None:
    path.write_bytes(bytes(tensor.detach().contiguous().view(torch.uint8).numpy()))


def main(folder: pathlib.Path, socket: str) -> None:
    lines = [line.split() for line in (folder / "plan.txt").read_text().splitlines()]
    groups = [dict(params=[], lr=float(lr), weight_decay=float(decay)) for _, lr, decay in lines[:2]]
    parameters = {}
    for name, group, dtype, _ in lines[2:]:
        parameters[name] = torch.nn.Parameter(read(folder / name, dtype))
        groups[int(group)]["params"].append(parameters[name])
    with bitpager.connect(socket=socket, job="python", default=False) as session:
        kind = getattr(bitpager.optim, lines[0][0])
        optimizer = kind(groups, session=session)
        for step in itertools.count(1):
            gradients = {name: folder / f"{name}.{step}" for name in parameters}
            if not any(path.exists() for path in gradients.values()):
                break
            for name, path in gradients.items():
                dtype = str(parameters[name].dtype).rpartition(".")[2]
                parameters[name].grad = read(path, dtype) if path.exists() else None
            optimizer.step()
        states = optimizer.state_dict()["state"]
    order = [p for group in groups for p in group["params"]]
    for name, parameter in parameters.items():
        write(folder / f"{name}.out", parameter)
        index = next(i for i, candidate in enumerate(order) if candidate is parameter)
        for key, value in states[index]["__bnb_optimizer_quant_state__"].items():
            write(folder / f"{name}.{key}", value)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
