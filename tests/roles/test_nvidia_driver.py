"""How the nvidia_driver role reads a host and plans a driver, on small trees of /sys and shelves of packages."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import nvidia_driver_build as build
import nvidia_driver_mig as mig
import nvidia_driver_preflight as preflight
import pytest
from ansible.module_utils import nvidia_hardware as hardware
from ansible.module_utils import nvidia_packages as packages
from ansible.module_utils.apt_offers import Folder
from ansible.module_utils.nvidia_host import Host
from ansible.module_utils.openpgp_keys import NoKeyError, fingerprints

H100, A100, P40, B200 = 0x2330, 0x20B2, 0x1B38, 0x2901
KERNEL = "6.8.0-60-generic"

# Made by gpg for the stand-in of NVIDIA's repository.
KEY = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawammBYJKwYBBAHaRw8BAQdAAj9ZqN9IGYhcwWXmr0DL0Jkv+IGN/4FcRSlE
bZ4i/Ie0CFN0YW5kLWluiJAEExYIADgWIQS6wdbWAWP1T5mLcQAV+K24zA5tlAUC
awammAIbAwULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAKCRAV+K24zA5tlOeeAQCL
lu4lRwEoY84yySjqB1H+Ust+5T9oKlVZ99/Vxu1kTwEA+T61uMpKhgECKtS35VPr
Tj4AIjuYe4jxJalTfMtAigs=
=aJFy
-----END PGP PUBLIC KEY BLOCK-----
"""
FINGERPRINT = "BAC1D6D60163F54F998B710015F8ADB8CC0E6D94"


class Shelf:
    """Stand-in for package sources: names and the versions that are offered."""

    def __init__(self, **versions: str) -> None:
        """Fill it; an underscore stands for a dash in a name."""
        self._versions = {name.replace("_", "-"): found.split() for name, found in versions.items()}
        self._versions[f"linux-headers-{KERNEL}"] = ["6.8.0-60.63"]
        self.host = self

    def driver(self, name: str) -> list[str]:
        """Versions of one of the driver's packages."""
        return self._versions.get(name, [])

    any = driver

    def names(self, pattern: str) -> list[str]:
        """All names."""
        return sorted(self._versions)


def gpu(device: int) -> hardware.Gpu:
    return hardware.Gpu("0000:01:00.0", device, hardware.generation(device), "")


def ubuntu(*devices: int, **changes: Any) -> Host:
    """A fresh Ubuntu 24.04 with these cards."""
    host = Host(
        "ubuntu", "ubuntu2404", KERNEL, [gpu(device) for device in devices], 0, {}, hardware.Loaded("", False), False
    )
    return host._replace(**changes)


def want(**changes: Any) -> dict[str, Any]:
    """The role's variables."""
    defaults = {
        "source": "repository",
        "branch": "580",
        "kernel_module": "auto",
        "minimum_version": "",
        "files": [],
        "extras": [],
    }
    return {**defaults, **changes}


def tree(sys: Path, address: str, vendor: str, kind: str, device: str, driver: str = "") -> None:
    """One device as the kernel shows it."""
    folder = sys / "bus/pci/devices" / address
    folder.mkdir(parents=True)
    for name, text in (("vendor", vendor), ("class", kind), ("device", device)):
        (folder / name).write_text(f"{text}\n")
    if driver:
        (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")


def test_cards_and_switches_are_told_from_other_devices(tmp_path: Path) -> None:
    tree(tmp_path, "0000:00:02.0", "0x8086", "0x030000", "0x4680", "i915")  # another vendor's card
    tree(tmp_path, "0000:41:00.0", "0x10de", "0x030200", "0x2330", "nouveau")
    tree(tmp_path, "0000:41:00.1", "0x10de", "0x040300", "0x22ba")  # sound of a card
    tree(tmp_path, "0000:c1:00.0", "0x10de", "0x068000", "0x22a3")
    assert hardware.gpus(tmp_path) == [hardware.Gpu("0000:41:00.0", H100, "Hopper", "nouveau")]
    assert hardware.nvswitches(tmp_path) == 1


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (0x102D, "Kepler or older"),  # K80
        (0x13F2, "Maxwell"),  # M60
        (0x15F8, "Pascal"),  # P100
        (P40, "Pascal"),
        (0x1DB6, "Volta"),  # V100
        (0x1EB8, "Turing"),  # T4
        (A100, "Ampere"),
        (0x2184, "Turing"),  # GTX 1660
        (0x2204, "Ampere"),  # RTX 3090
        (H100, "Hopper"),
        (0x2531, "Ampere"),  # RTX A2000
        (0x2684, "Ada Lovelace"),  # RTX 4090
        (B200, "Blackwell or newer"),
        (0x2B85, "Blackwell or newer"),  # RTX 5090
    ],
)
def test_a_device_id_gives_the_generation(device: int, name: str) -> None:
    assert hardware.generation(device) == name


@pytest.mark.parametrize(
    ("text", "version", "is_open"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.07  Sat Feb 17 22:55:48 UTC 2024",
            "535.161.07",
            False,
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06", True),
    ],
)
def test_the_loaded_driver_is_read_from_proc(tmp_path: Path, text: str, version: str, is_open: bool) -> None:
    assert hardware.loaded(tmp_path) == ("", False)
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    (tmp_path / "driver/nvidia/version").write_text(f"{text}\nGCC version:  gcc version 12.2.0\n")
    assert hardware.loaded(tmp_path) == (version, is_open)


@pytest.mark.parametrize(("value", "is_on"), [(b"\x06\x00\x00\x00\x01", True), (b"\x06\x00\x00\x00\x00", False)])
def test_secure_boot_is_read_from_the_firmwares_variable(tmp_path: Path, value: bytes, is_on: bool) -> None:
    assert not hardware.secure_boot(tmp_path)  # no UEFI
    (tmp_path / "firmware/efi/efivars").mkdir(parents=True)
    (tmp_path / "firmware/efi/efivars" / hardware.SECURE_BOOT).write_bytes(value)
    assert hardware.secure_boot(tmp_path) is is_on


def test_a_keys_fingerprint_is_gpgs() -> None:
    assert fingerprints(KEY) == [FINGERPRINT]
    for text in ("", "<html>404</html>", KEY.replace("mDME", "mDNE"), KEY.split("mDME", maxsplit=1)[0]):
        with pytest.raises(NoKeyError):
            fingerprints(text)


def test_a_second_key_in_the_file_is_seen() -> None:
    head, body = KEY.split("=aJFy")[0].split("\n\n")
    two = base64.b64encode(base64.b64decode(body) * 2).decode()
    assert fingerprints(f"{head}\n\n{two}\n-----END PGP PUBLIC KEY BLOCK-----\n") == [FINGERPRINT, FINGERPRINT]


def test_versions_compare_as_numbers() -> None:
    assert packages.upstream("1:580.95.05-0ubuntu1") == "580.95.05"
    assert packages.number("580.126.09") > packages.number("580.95.05-1")
    assert packages.in_branch("580.95.05-1", "580") and packages.in_branch("580.95.05-1", "580.95.05")
    assert not packages.in_branch("580.95.05-1", "58") and not packages.in_branch("580.95.05-1", "580.9")


def test_cudas_library_alone_is_no_driver() -> None:
    library = {"libcuda1": packages.Package("550.163.01-2", False)}
    assert packages.driver_version(library) == ""
    module = {"nvidia-kernel-dkms": packages.Package("550.163.01-2", False)}
    assert packages.driver_version({**library, **module}) == "550.163.01"


def test_the_pair_is_the_driver_and_the_kernel_and_nothing_else() -> None:
    names = ["libcuda1", "nvidia-kernel-dkms", "firmware-nvidia-gsp"]
    kernel = ["linux-image-amd64", "linux-image-6.1.0-40-amd64", "linux-headers-6.1.0-40-common"]
    other = ["linux-libc-dev", "bash", "nvidia-container-toolkit"]
    found = {name: packages.Package("535.309.01-1", False) for name in names}
    found |= {name: packages.Package("6.1.0-1", False) for name in kernel + other}
    assert packages.pair(found) == sorted(names + kernel)


def test_ubuntu_has_names_by_branch_up_to_580() -> None:
    shelf = Shelf(
        libnvidia_compute_580="580.95.05-1ubuntu1 580.65.06-1ubuntu1",
        nvidia_dkms_580_open="580.95.05-1ubuntu1",
        nvidia_compute_utils_580="580.95.05-1ubuntu1",
        nvidia_utils_580="580.95.05-1ubuntu1",
    )
    version, install, problems = preflight.plan(ubuntu(H100), want(), shelf)
    assert (version, problems) == ("580.95.05", [])
    assert set(install) == {
        f"linux-headers-{KERNEL}",
        "libnvidia-compute-580=580.95.05-1ubuntu1",
        "nvidia-dkms-580-open=580.95.05-1ubuntu1",
        "nvidia-compute-utils-580=580.95.05-1ubuntu1",
        "nvidia-utils-580=580.95.05-1ubuntu1",
    }


def test_ubuntu_has_debians_names_from_590_on() -> None:
    shelf = Shelf(nvidia_driver_cuda="595.45.04-1ubuntu1", nvidia_kernel_open_dkms="595.45.04-1ubuntu1")
    _, install, problems = preflight.plan(ubuntu(H100), want(branch="595"), shelf)
    assert problems == []
    assert "nvidia-driver-cuda=595.45.04-1ubuntu1" in install
    assert "nvidia-kernel-open-dkms=595.45.04-1ubuntu1" in install


def signed(kernel: str) -> Shelf:
    """Ubuntu's own packages, with signed modules for one kernel."""
    version = "580.173.02-0ubuntu0.24.04.1"
    shelf = Shelf(
        nvidia_headless_no_dkms_580_server_open=version,
        nvidia_compute_utils_580_server=version,
        nvidia_utils_580_server=version,
    )
    shelf._versions[f"linux-modules-nvidia-580-server-open-{kernel}"] = ["6.8.0-60.63+1"]
    return shelf


def test_ubuntus_own_modules_are_signed_and_need_no_headers() -> None:
    host = ubuntu(H100, secure_boot=True)
    _, install, problems = preflight.plan(host, want(source="distribution"), signed(KERNEL))
    assert problems == []
    assert f"linux-modules-nvidia-580-server-open-{KERNEL}=6.8.0-60.63+1" in install
    assert not [spec for spec in install if "headers" in spec or spec.startswith("nvidia-dkms")]
    _, _, problems = preflight.plan(host, want(source="distribution"), signed("6.8.0-99-generic"))
    assert "there is no signed driver for the running kernel" in problems[0]


def test_a_new_kernel_gets_its_signed_modules() -> None:
    there = {
        "libnvidia-compute-580-server": packages.Package("580.173.02-0ubuntu0.24.04.1", True),
        "linux-modules-nvidia-580-server-open-6.8.0-50-generic": packages.Package("6.8.0-50.51", True),
        "nvidia-compute-utils-580-server": packages.Package("580.173.02-0ubuntu0.24.04.1", True),
    }
    _, install, problems = preflight.plan(ubuntu(H100, packages=there), want(source="distribution"), signed(KERNEL))
    assert (install, problems) == ([f"linux-modules-nvidia-580-server-open-{KERNEL}=6.8.0-60.63+1"], [])


def test_secure_boot_on_ubuntu_points_to_the_signed_modules() -> None:
    _, install, problems = preflight.plan(ubuntu(H100, secure_boot=True), want(), Shelf())
    assert install == []
    assert "set nvidia_driver_source: distribution, whose modules Canonical has signed" in problems[0]
    assert "/var/lib/shim-signed/mok/MOK.der" in problems[0]


@pytest.mark.parametrize(
    ("devices", "branch", "kind", "words"),
    [
        ([P40], "595.45.04", "auto", 'last supported in branch 580; set nvidia_driver_branch: "580"'),
        ([P40], "580.95.05", "open", "cannot be run by the open kernel modules"),
        ([B200], "580.95.05", "proprietary", "cannot be run by the proprietary kernel modules"),
        ([P40, B200], "580.95.05", "auto", "no one driver runs all cards of this host"),
        ([H100], "620.10.01", "proprietary", "branch 620 has no proprietary kernel modules"),
        ([H100, P40], "580.95.05", "auto", ""),
        ([B200], "580.95.05", "auto", ""),
    ],
)
def test_cards_decide_about_branch_and_modules(devices: list[int], branch: str, kind: str, words: str) -> None:
    problems = list(preflight.card_problems(ubuntu(*devices), branch, kind))
    assert len(problems) == bool(words)
    assert words in "".join(problems)


@pytest.mark.parametrize(
    ("devices", "version", "is_open"),
    [
        ([H100], "580.95.05", True),
        ([H100], "550.163.01", False),
        ([B200], "550.163.01", True),
        ([H100, P40], "580.95.05", False),
    ],
)
def test_auto_takes_the_open_modules_where_all_cards_can(devices: list[int], version: str, is_open: bool) -> None:
    assert preflight.wants_open(ubuntu(*devices), version, "auto") is is_open


def test_a_driver_is_never_replaced_by_an_older_branch() -> None:
    there = {
        "nvidia-driver-cuda": packages.Package("595.45.04-1", True),
        "nvidia-kernel-open-dkms": packages.Package("595.45.04-1", True),
    }
    _, install, problems = preflight.plan(ubuntu(H100, packages=there), want(), Shelf())
    assert install == []
    assert "driver 595.45.04 is installed, and nvidia_driver_branch is 580, which is older" in problems[0]


def test_another_kind_of_modules_is_another_driver() -> None:
    there = {
        "libnvidia-compute-580": packages.Package("580.95.05-1", True),
        "nvidia-dkms-580": packages.Package("580.95.05-1", True),
    }
    host = ubuntu(H100, packages=there)
    assert preflight.is_kept(host, want())
    assert preflight.is_kept(host, want(kernel_module="proprietary"))
    assert not preflight.is_kept(host, want(kernel_module="open"))
    assert not preflight.is_kept(host, want(minimum_version="580.126.09"))


def test_fabric_manager_of_another_version_will_not_do() -> None:
    there = {
        "libnvidia-compute-580": packages.Package("580.95.05-1", True),
        "nvidia-dkms-580-open": packages.Package("580.95.05-1", True),
        "nvidia-compute-utils-580": packages.Package("580.95.05-1", True),
        f"linux-headers-{KERNEL}": packages.Package("6.8.0-60.63", True),
    }
    host = ubuntu(A100, packages=there, nvswitches=6)
    _, _, problems = preflight.plan(host, want(), Shelf(nvidia_fabricmanager="580.126.09-1"))
    assert "needs fabric manager 580.95.05, exactly the driver's version" in problems[0]
    _, install, problems = preflight.plan(host, want(), Shelf(nvidia_fabricmanager_580="580.95.05-1"))
    assert (install, problems) == (["nvidia-fabricmanager-580=580.95.05-1"], [])


def test_a_driver_without_its_persistence_daemon_gets_it() -> None:
    there = {
        "libcuda1": packages.Package("580.95.05-1", True),
        "nvidia-kernel-open-dkms": packages.Package("580.95.05-1", True),
        f"linux-headers-{KERNEL}": packages.Package("6.8.0-60.63", True),
    }
    _, install, problems = preflight.plan(
        ubuntu(H100, packages=there), want(), Shelf(nvidia_persistenced="580.95.05-1")
    )
    assert (install, problems) == (["nvidia-persistenced=580.95.05-1"], [])


def test_a_folder_is_read_by_its_files_names() -> None:
    folder = Folder(
        ["/srv/debs/nvidia-driver-cuda_580.95.05-1_amd64.deb", "datacenter-gpu-manager-4-core_1%3a4.5.0-1_amd64.deb"]
    )
    assert folder.versions("nvidia-driver-cuda") == ["580.95.05-1"]
    assert folder.versions("datacenter-gpu-manager-4-core") == ["1:4.5.0-1"]
    assert folder.versions("nvidia-open") == []


def test_a_builds_log_is_cut_to_its_errors_and_its_end(tmp_path: Path) -> None:
    log = tmp_path / "make.log"
    noise = "gcc " + "-Wall " * 1000
    log.write_text(
        "\n".join(
            ["nv-pci.c:231: error: too few arguments", *[noise] * 100, "make: *** [Makefile:140: modules] Error 2"]
        )
    )
    lines = list(build.excerpt(log))
    assert "nv-pci.c:231: error: too few arguments" in lines
    assert lines[-1] == "make: *** [Makefile:140: modules] Error 2"
    assert len(lines) < 30
    assert max(map(len, lines)) <= build.WIDTH


def test_only_the_drivers_module_counts(tmp_path: Path) -> None:
    kernel = tmp_path / KERNEL
    for path in ("kernel/drivers/platform/x86/nvidia-wmi-ec-backlight.ko.xz", "updates/dkms/nvidia-drm.ko"):
        (kernel / path).parent.mkdir(parents=True, exist_ok=True)
        (kernel / path).touch()
    assert build.modules(KERNEL, tmp_path) == []
    (kernel / "updates/dkms/nvidia.ko.zst").touch()
    assert [path.name for path in build.modules(KERNEL, tmp_path)] == ["nvidia.ko.zst"]


def test_migs_answer_is_read() -> None:
    assert mig.cards("0, Disabled, Enabled\n1, [N/A], [N/A]\n") == [
        ("0", "Disabled", "Enabled"),
        ("1", "[N/A]", "[N/A]"),
    ]
