"""How much memory is left."""

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device, with what torch has reserved there and not used."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + idle)
