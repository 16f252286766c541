"""From the contract's plain descriptions to torch's dtypes and devices."""

from __future__ import annotations

import torch

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.errors import ConfigError


def torch_dtype(name: DTypeName) -> torch.dtype:
    """The torch dtype of that name; raises ConfigError for other names than the model dtypes."""
    dtypes = {
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float32": torch.float32,
        "float64": torch.float64,
    }
    if name not in dtypes:
        raise ConfigError(f"dtype {name!r} is none of {', '.join(dtypes)}")
    return dtypes[name]


def torch_device(device: DeviceInfo) -> torch.device:
    """The torch device that a description stands for."""
    return torch.device("cpu") if device.type == "cpu" else torch.device(device.type, device.index)
