"""Stand-in for a GPU platform: vLLM's CPU platform, which Ray places as if each host had GPUs.

vLLM's own CPU platform refuses Ray ("current platform cpu does not support ray"): it has no ``ray_device_key``.
Started with ``ray start --num-gpus=1``, a host offers one of what this platform asks for. All else is vLLM's own:
executor, message queues, model, and gloo between the hosts. It is found through the entry point group
``vllm.platform_plugins``, which vLLM reads only where ``VLLM_TARGET_DEVICE`` is not ``cpu``.
"""


def platform() -> str:
    """Name the platform's class, made here: the module is loaded before ``vllm.platforms`` can be imported from."""
    from vllm.platforms.cpu import CpuPlatform

    class CpuOnRay(CpuPlatform):
        """The CPU platform, with Ray's name for a GPU, and gloo alone between the ranks."""

        ray_device_key = "GPU"

        @classmethod
        def get_device_communicator_cls(cls) -> str:
            return "cpu_on_ray_network.OverNetwork"

    globals()["CpuOnRay"] = CpuOnRay
    return "cpu_on_ray.CpuOnRay"
