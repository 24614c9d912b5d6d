"""Ansible module: which packages make the driver that is wanted here, and why it could not be had or would not do."""

from __future__ import annotations

import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils import nvidia_packages
from ansible.module_utils.apt_offers import Apt, Folder, Offers, Repository, SourceError
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.nvidia_host import MACHINES, Host, look
from ansible.module_utils.nvidia_packages import in_branch, number, upstream

DOCUMENTATION = r"""
module: nvidia_driver_preflight
short_description: Plan of a driver's installation, or what is in its way
description:
  - Looks at the cards, the installed and the loaded driver, Secure Boot, the running kernel and the package source.
    Package lists are fetched into a scratch folder. Changes nothing.
author: local-llm-fleet
options:
  source:
    description: Where the driver comes from.
    type: str
    choices: [repository, distribution, folder, none]
    required: true
  branch:
    description: Branch or version of the driver.
    type: str
    required: true
  kernel_module:
    description: Kind of the kernel modules.
    type: str
    choices: [auto, open, proprietary]
    required: true
  minimum_version:
    description: Oldest driver that will do, or C("").
    type: str
    required: true
  repository:
    description: The source in deb822 format, as it is written to the host.
    type: str
    required: true
  key_url:
    description: Where the repository has its key, by system.
    type: str
    required: true
  fingerprint:
    description: Fingerprint of that key.
    type: str
    required: true
  files:
    description: Names of the packages in the folder.
    type: list
    elements: str
    required: true
  extras:
    description: Other packages that are wanted, by the names of C(container_toolkit) and C(dcgm_exporter).
    type: list
    elements: str
    required: true
"""

RETURN = r"""
version:
  description: The driver's version after the installation.
  type: str
  returned: always
install:
  description: What is to be installed, as C(name=version).
  type: list
  elements: str
  returned: always
key:
  description: The repository's key, C("") if it is not needed now.
  type: str
  returned: always
"""

SYSTEMS = ("debian12", "debian13", "ubuntu2204", "ubuntu2404")
# DKMS' own key, and how it is made (/usr/sbin/dkms, prepare_mok).
MOK = {
    "debian": (
        "/var/lib/dkms/mok.pub",
        "openssl req -new -x509 -nodes -days 36500 -subj '/CN=DKMS module signing key/' -newkey rsa:2048 "
        "-keyout /var/lib/dkms/mok.key -outform DER -out /var/lib/dkms/mok.pub",
    ),
    "ubuntu": ("/var/lib/shim-signed/mok/MOK.der", "update-secureboot-policy --new-key"),
}
RUNFILE_TRACES = ("/usr/bin/nvidia-uninstall", "/usr/bin/nvidia-installer")
SIGNED = "linux-modules-nvidia-"  # modules that Canonical has built and signed for one kernel
PERSISTENCE = ("nvidia-persistenced", "nvidia-compute-utils-")  # packages that have its daemon
ALL_EXTRAS = {"container_toolkit": ["nvidia-container-toolkit"], "dcgm_exporter": []}  # DCGM's names need the version


# --- what can be wrong ---


def input_problems(want: dict[str, Any]) -> Iterator[str]:
    """What the variables alone give away."""
    if not re.fullmatch(r"\d{3}(\.\d+){0,2}", want["branch"]):
        yield f'nvidia_driver_branch is {want["branch"]!r}; it is a branch such as "580", or one version of it'
    if want["minimum_version"] and not re.fullmatch(r"\d{3}(\.\d+){0,2}", want["minimum_version"]):
        yield f'nvidia_driver_minimum_version is {want["minimum_version"]!r}; it is a version such as "580.65.06"'
    if want["source"] == "folder" and not want["files"]:
        yield "nvidia_driver_folder names no folder with .deb files on the controller, and that is the source"


def host_problems(host: Host) -> Iterator[str]:
    """Why nothing can be installed here, whatever the source."""
    if host.name not in SYSTEMS or platform.machine() not in MACHINES:
        yield (
            f"this host is {host.name} on {platform.machine()}; the role installs drivers on Debian 12 and 13 and on "
            "Ubuntu 22.04 and 24.04, x86_64 and aarch64. Install the driver yourself and set nvidia_driver_source: none"
        )
    traces = [path for path in RUNFILE_TRACES if Path(path).exists() and not is_packaged(path)]
    if traces:
        yield (
            f"a driver is here that NVIDIA's .run installer put ({traces[0]} belongs to no package); packages would "
            "mix with it. Run `nvidia-uninstall` and reboot, or keep it with nvidia_driver_source: none"
        )


def is_packaged(path: str) -> bool:
    """Whether a file belongs to a package."""
    return subprocess.run(["/usr/bin/dpkg-query", "-S", path], capture_output=True, check=False).returncode == 0  # noqa: S603


def pair_problems(version: str, when: str, minimum: str) -> Iterator[str]:
    """The driver is older than what is to run on it.

    Args:
        version: The driver's.
        when: ``is`` or ``will be``.
        minimum: Oldest that will do, or "".
    """
    if minimum and number(version) < number(minimum):
        yield (
            f"the NVIDIA driver that {when} here is {version}, and at least {minimum} is needed. Three ways out: "
            f'set nvidia_driver_source: repository and nvidia_driver_branch: "{number(minimum)[0]}"; or use a vLLM '
            f"release that was built for an older CUDA, which driver {number(version)[0]} runs; or, where others "
            f"manage this host's driver, have them bring it to {minimum} and set nvidia_driver_source: none"
        )


def card_problems(host: Host, version: str, kernel_module: str) -> Iterator[str]:
    """Cards that this driver, or its kind of kernel modules, does not know."""
    old = [gpu for gpu in host.gpus if not gpu.can_open]
    new = [gpu for gpu in host.gpus if gpu.needs_open]
    major = number(version)[0]
    if old and new:
        yield (
            f"no one driver runs all cards of this host: {old[0]} needs the proprietary kernel modules and {new[0]} "
            "the open ones; take one of them out"
        )
    elif old and major > nvidia_packages.LAST_OLD:
        yield (
            f'{old[0]} was last supported in branch {nvidia_packages.LAST_OLD}; set nvidia_driver_branch: "580". '
            "CUDA 13, and so a current vLLM, does not run on it at all"
        )
    elif old and kernel_module == "open":
        yield f"{old[0]} cannot be run by the open kernel modules; set nvidia_driver_kernel_module: auto"
    elif new and kernel_module == "proprietary":
        yield f"{new[0]} cannot be run by the proprietary kernel modules; set nvidia_driver_kernel_module: auto"
    elif kernel_module == "proprietary" and major >= nvidia_packages.OPEN_ONLY:
        yield f"branch {major} has no proprietary kernel modules; set nvidia_driver_kernel_module: auto"


def wants_open(host: Host, version: str, kernel_module: str) -> bool:
    """Whether to install the open kernel modules."""
    if kernel_module != "auto":
        return kernel_module == "open"
    if any(not gpu.can_open for gpu in host.gpus):
        return False
    return number(version)[0] >= nvidia_packages.OPEN_DEFAULT or any(gpu.needs_open for gpu in host.gpus)


def is_enrolled(key: str) -> bool:
    """Whether the firmware trusts a key."""
    try:
        test = subprocess.run(["mokutil", "--test-key", key], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:
        return False  # keys are enrolled with it
    return "is already enrolled" in test.stdout


def boot_problems(host: Host, source: str) -> Iterator[str]:
    """Secure Boot would keep the module from being loaded."""
    if not host.secure_boot or (host.system == "ubuntu" and source == "distribution"):
        return  # Canonical has signed those
    key, make = MOK.get(host.system, MOK["debian"])
    if is_enrolled(key):
        return
    ways = [
        f"enrol that key: `apt install dkms mokutil openssl`; `{make}` unless {key} exists; `mokutil --import {key}`; "
        'reboot, choose "Enroll MOK" at the console and give the same password; then run again',
        "switch Secure Boot off in the firmware",
    ]
    if host.system == "ubuntu":
        ways.insert(0, "set nvidia_driver_source: distribution, whose modules Canonical has signed")
    yield (
        "Secure Boot is on, and the firmware does not know the key with which DKMS signs the modules that it builds "
        f"here ({key}), so the driver would not be loaded. Ways out: {'; or '.join(ways)}"
    )


def header_problems(host: Host, offers: Offers) -> Iterator[str]:
    """The kernel module cannot be built for the running kernel."""
    name = f"linux-headers-{host.kernel}"
    if name in host.packages or offers.any(name):
        return
    flavour = host.kernel.rsplit("-", 1)[-1]
    others = offers.host.names(rf"linux-headers-\d\S*-{re.escape(flavour)}")
    newest = max(others, key=lambda other: [int(part) for part in re.findall(r"\d+", other)], default="")
    image = newest.replace("headers", "image")
    advice = f"install {image} and reboot into it" if newest else "install one of the distribution's kernels and reboot"
    yield f"{name} is not offered any more, so no module can be built for the running kernel; {advice}, then run again"


# --- the plan ---


def choose(host: Host, want: dict[str, Any], offers: Offers) -> str:
    """The version of the driver to install.

    Raises:
        SourceError: The source has none.
    """
    source, branch = want["source"], want["branch"]
    carrier = nvidia_packages.carrier(host.system, source, branch)
    versions = offers.driver(carrier)
    # Debian has one driver, whatever the branch.
    is_free = source == "distribution" and host.system == "debian"
    fitting = [version for version in versions if is_free or in_branch(version, branch)]
    if fitting:
        return str(upstream(fitting[0]))
    found = f"only {', '.join(sorted({upstream(version) for version in versions}))}" if versions else "none"
    if is_free:
        raise SourceError(
            "Debian's driver is not offered: add contrib, non-free and non-free-firmware to the Components of this "
            "host's Debian sources, and run again"
        )
    if int(branch.split(".")[0]) < 580 and source != "distribution":
        raise SourceError(f"nvidia_driver_branch is {branch}; the role installs NVIDIA's own packages from 580 on")
    raise SourceError(f"nvidia_driver_source {source} has no driver {branch} ({carrier}: {found}); correct the branch")


def exact(names: list[str], version: str, offers: Offers) -> list[str]:
    """``name=version`` of the first package that is offered at the driver's version, or nothing."""
    for name in names:
        for offered in offers.driver(name):
            if upstream(offered) == version:
                return [f"{name}={offered}"]
    return []


def module_spec(host: Host, name: str, offers: Offers) -> str:
    """The signed modules for the running kernel as ``name=version``; their version is the kernel's.

    Raises:
        SourceError: There are none.
    """
    if not (offered := offers.driver(name)):
        raise SourceError(
            f"{name} is not offered, so there is no signed driver for the running kernel {host.kernel}; install the "
            "newest kernel of the distribution and reboot into it, then run again"
        )
    return f"{name}={offered[0]}"


def driver_specs(host: Host, want: dict[str, Any], version: str, offers: Offers) -> Iterator[str]:
    """The driver's packages as ``name=version``.

    Raises:
        SourceError: One is not offered.
    """
    source, is_open = want["source"], wants_open(host, version, want["kernel_module"])
    for name in nvidia_packages.driver(host.system, source, version, is_open, host.kernel):
        if name.startswith(SIGNED):
            yield module_spec(host, name, offers)
        elif spec := exact([name], version, offers):
            yield spec[0]
        elif name != "nvidia-persistenced":
            raise SourceError(f"nvidia_driver_source {source} has no {name} of version {version}; it is not whole")
        elif offered := offers.driver(name):
            yield f"{name}={offered[0]}"  # Debian's has a version of its own; NVIDIA's may be inside another package


def extra_specs(host: Host, want: dict[str, Any], version: str, offers: Offers) -> Iterator[str]:
    """What else is wanted beside the driver, and is not there.

    Raises:
        SourceError: One is not offered.
    """
    if host.nvswitches:
        names = nvidia_packages.fabric_manager(version)
        if not any(name in host.packages and upstream(host.packages[name].version) == version for name in names):
            spec = exact(names, version, offers)
            if not spec:
                raise SourceError(
                    f"this host has {host.nvswitches} NVSwitches and needs fabric manager {version}, exactly the "
                    f"driver's version; nvidia_driver_source {want['source']} has none ({' or '.join(names)})"
                )
            yield spec[0]
    names = [name for extra in want["extras"] for name in ALL_EXTRAS[extra]]
    if is_kept(host, want) and not any(name.startswith(PERSISTENCE) for name in host.packages):
        names.append("nvidia-persistenced")  # others have installed the driver without it
    names += nvidia_packages.dcgm(version) if "dcgm_exporter" in want["extras"] else []
    for name in names:
        if name in host.packages:
            continue
        if not (offered := offers.any(name)):
            raise SourceError(f"{name} is not offered by nvidia_driver_source {want['source']}; repository has it")
        yield f"{name}={offered[0]}"


def managed_elsewhere(host: Host, want: dict[str, Any]) -> list[str]:
    """Problems with a driver that is not this role's."""
    if not host.loaded.version:
        return [
            f"no NVIDIA driver is loaded here, for {host.gpus[0]}, and nvidia_driver_source is none; install and load "
            "one, or set nvidia_driver_source: repository"
        ]
    return list(pair_problems(host.loaded.version, "is", want["minimum_version"]))


def is_kept(host: Host, want: dict[str, Any]) -> bool:
    """Whether the installed driver is the right one already."""
    if not host.installed or number(host.installed) < number(want["minimum_version"]):
        return False
    if want["kernel_module"] != "auto" and want["kernel_module"] not in nvidia_packages.kinds(host.packages):
        return False
    if want["source"] == "distribution" and host.system == "debian":
        return True
    return bool(in_branch(host.installed, want["branch"]))


def plan(host: Host, want: dict[str, Any], offers: Offers) -> tuple[str, list[str], list[str]]:
    """What to install.

    Returns:
        The driver's version, the packages as ``name=version``, and what is in the way.
    """
    problems = list(host_problems(host))
    if not is_kept(host, want):
        problems += boot_problems(host, want["source"])
    if host.installed and number(host.installed)[0] > number(want["branch"])[0] and want["source"] != "distribution":
        problems.append(
            f"driver {host.installed} is installed, and nvidia_driver_branch is {want['branch']}, which is older; set "
            f'nvidia_driver_branch: "{number(host.installed)[0]}" to keep it, or remove it first'
        )
    if problems:
        return "", [], problems
    specs: list[str] = []
    try:
        version = host.installed if is_kept(host, want) else choose(host, want, offers)
        problems += pair_problems(version, "will be", want["minimum_version"])
        problems += card_problems(host, version, want["kernel_module"])
        if host.system == "debian" or want["source"] != "distribution":
            problems += header_problems(host, offers)
            if f"linux-headers-{host.kernel}" not in host.packages:
                specs += [f"linux-headers-{host.kernel}"]
        if not problems and not is_kept(host, want):
            specs += driver_specs(host, want, version, offers)
        elif not problems and host.system == "ubuntu" and want["source"] == "distribution":
            kind = "open" in nvidia_packages.kinds(host.packages)
            name = nvidia_packages.driver("ubuntu", "distribution", version, kind, host.kernel)[0]
            specs += [] if name in host.packages else [module_spec(host, name, offers)]  # for a new kernel
        if not problems:
            specs += extra_specs(host, want, version, offers)
    except SourceError as error:
        return "", [], [*problems, str(error)]
    return version, specs, problems


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "choices": ["repository", "distribution", "folder", "none"], "required": True},
            "branch": {"type": "str", "required": True},
            "kernel_module": {"type": "str", "choices": ["auto", "open", "proprietary"], "required": True},
            "minimum_version": {"type": "str", "required": True},
            "repository": {"type": "str", "required": True},
            "key_url": {"type": "str", "required": True},
            "fingerprint": {"type": "str", "required": True, "no_log": False},
            "files": {"type": "list", "elements": "str", "required": True},
            "extras": {"type": "list", "elements": "str", "choices": sorted(ALL_EXTRAS), "required": True},
        },
        supports_check_mode=True,
    )
    want: dict[str, Any] = module.params
    host = look()
    if problems := list(input_problems(want)):
        module.fail_json(msg="\n".join(problems))
    if want["source"] == "none":
        if problems := managed_elsewhere(host, want):
            module.fail_json(msg="\n".join(problems))
        module.exit_json(changed=False, version=host.loaded.version, install=[], key="")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        scratch.chmod(0o755)  # apt fetches as a user of its own
        own: Repository | Folder | None = None
        if want["source"] == "repository":
            own = Repository(scratch, want["repository"], want["key_url"], want["fingerprint"])
        elif want["source"] == "folder":
            own = Folder(want["files"])
        version, install, problems = plan(host, want, Offers(Apt(scratch / "host"), own))
        key = own.key if isinstance(own, Repository) else ""
    if problems:
        module.fail_json(msg="\n".join(problems))
    module.exit_json(changed=False, version=version, install=install, key=key)


if __name__ == "__main__":
    main()
