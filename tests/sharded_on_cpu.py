"""Like `train_in_processes.py`, with accelerate told that each process has a GPU, which is the CPU.

accelerate divides weights (FSDP 2) on GPUs alone; torch itself does it on CPUs too, over gloo. So all of it is real but
for the name of the device.
"""

import runpy
from pathlib import Path

import torch
from accelerate.state import DistributedType, PartialState


def prepare_backend(self, cpu=False, sagemaker_dp=False, backend=None):
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return "gloo", DistributedType.MULTI_GPU


def set_device(self):
    self.device = torch.device("cpu")


if __name__ == "__main__":
    PartialState._prepare_backend = prepare_backend
    PartialState.set_device = set_device
    runpy.run_path(str(Path(__file__).with_name("train_in_processes.py")), run_name="__main__")
