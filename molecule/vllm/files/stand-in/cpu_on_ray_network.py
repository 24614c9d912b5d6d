"""The part of the stand-in ``cpu_on_ray`` that moves tensors between ranks."""

from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class OverNetwork(CpuCommunicator):
    """gloo only: vLLM takes all ranks of one rendezvous for processes of one host, which share memory."""

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        return False
