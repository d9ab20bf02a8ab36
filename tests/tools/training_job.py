"""A process that trains until it is killed: tests/tools/test_dashboard.py runs two. The daemon and the job's name come
from the environment.

usage: training_job.py WIDTH STEP_PAUSE_S
"""

import sys
import time

import bitpager
import torch

width, pause_s = int(sys.argv[1]), float(sys.argv[2])
torch.set_num_threads(1)
torch.manual_seed(0)
bitpager.connect(spawn=False)
model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.GELU(), torch.nn.Linear(width, width))
optimizer = bitpager.optim.PagedAdamW8bit(model.parameters(), lr=1e-3)
inputs = torch.randn(4, width)
while True:
    loss = (model(inputs) - 1).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(pause_s)
