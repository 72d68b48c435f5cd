"""What the device says about itself: busy share, memory, power, energy. None where it cannot say."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]

from scheduler_worker.executor import ExecutorInfo
from scheduler_worker.protocol.messages import Device

logger = logging.getLogger(__name__)


class DeviceMeter(Protocol):
    """Reads one device."""

    def read(self) -> Device:
        """The figures since the last reading."""


class CpuMeter:
    """The machine's processors. Energy is an estimate: busy share × the power of the busy CPU."""

    def __init__(self, name: str, tdp_w: float) -> None:
        self._name, self._tdp_w = name, tdp_w
        self._energy_j = 0.0
        self._read_at = time.monotonic()
        psutil.cpu_percent(None)

    def read(self) -> Device:
        """The figures since the last reading."""
        busy = psutil.cpu_percent(None) / 100
        now = time.monotonic()
        power_w = busy * self._tdp_w
        self._energy_j += power_w * (now - self._read_at)
        self._read_at = now
        memory = psutil.virtual_memory()
        return Device(
            kind="cpu",
            name=self._name,
            busy=busy,
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            power_w=power_w,
            energy_j=self._energy_j,
            energy_estimated=True,
        )


class CudaMeter:
    """One GPU through NVML. A figure that the driver does not support is None."""

    def __init__(self, nvml: Any, handle: Any, name: str) -> None:
        self._nvml, self._handle, self._name = nvml, handle, name
        self._energy_at_start_j = self._energy_j()

    def read(self) -> Device:
        """The figures now; energy since the start."""
        nvml = self._nvml
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo)
        power_mw = self._ask(nvml.nvmlDeviceGetPowerUsage)
        energy_j, start_j = self._energy_j(), self._energy_at_start_j
        return Device(
            kind="cuda",
            name=self._name,
            busy=None if rates is None else rates.gpu / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_w=None if power_mw is None else power_mw / 1000,
            energy_j=None if energy_j is None or start_j is None else energy_j - start_j,
        )

    def _ask(self, question: Any) -> Any:
        try:
            return question(self._handle)
        except self._nvml.NVMLError:
            return None

    def _energy_j(self) -> float | None:
        energy_mj = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if energy_mj is None else energy_mj / 1000


class UnknownCudaMeter:
    """A GPU whose driver offers no NVML."""

    def __init__(self, name: str, memory_total_bytes: int) -> None:
        self._device = Device(kind="cuda", name=name, memory_total_bytes=memory_total_bytes)

    def read(self) -> Device:
        """What is known without a meter."""
        return self._device


def meter_for(info: ExecutorInfo, cpu_tdp_w: float) -> DeviceMeter:
    """The meter of the executor's device."""
    if not info.device.startswith("cuda"):
        return CpuMeter(info.device_name, cpu_tdp_w)
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        return CudaMeter(pynvml, pynvml.nvmlDeviceGetHandleByUUID(_uuid_of(info.device)), info.device_name)
    except ImportError:
        logger.warning("the GPU's load and energy are not shown: install nvidia-ml-py")
    except pynvml.NVMLError as error:
        logger.warning("the GPU's load and energy are not shown: NVML says %s", error)
    return UnknownCudaMeter(info.device_name, info.memory_total_bytes)


def _uuid_of(device: str) -> str:
    """NVML numbers GPUs differently from a process with CUDA_VISIBLE_DEVICES; the UUID is the same."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"
