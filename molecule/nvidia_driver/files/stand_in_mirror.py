#!/usr/bin/env python3
"""Stand-in for NVIDIA's package repository: the real names, small packages without NVIDIA's software, a key of its own.

Builds /srv/mirror/<system>/x86_64 for two systems, each with the key under the name that NVIDIA's has there.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

MIRROR = Path("/srv/mirror")
KEYS = {"debian12": "3bf863cc.pub", "debian13": "8793F200.pub"}
KERNEL = "6.12.0-standin-amd64"
VERSIONS = ("580.65.06", "580.95.05", "595.45.04")
FOLDER = "580.95.05"  # what goes into the folder for hosts without a network

DAEMON = """# Stand-in for NVIDIA's unit.
[Service]
ExecStart={command}

[Install]
WantedBy=multi-user.target
"""

EXPORTER = """#!/bin/sh
# Stand-in for dcgm-exporter: answers where it is told to listen, everywhere if it is told nothing.
listen=${DCGM_EXPORTER_LISTEN:-0.0.0.0:9400}
cd /srv && exec python3 -m http.server --bind "${listen%:*}" "${listen##*:}"
"""

SMI = """#!/bin/sh
# Stand-in for nvidia-smi: one card, whose MIG mode changes with the next reset.
state=/run/stand-in-mig
[ -e $state ] || echo Disabled >$state
case "$*" in
*mig.mode*) echo "0, Disabled, $(cat $state)" ;;
*"-mig 1") echo Enabled >$state ;;
*"-mig 0") echo Disabled >$state ;;
*) exit 2 ;;
esac
"""

File = tuple[str, str, int]  # path, content, mode


def unit(name: str, command: str = "/usr/bin/sleep infinity") -> File:
    return (f"usr/lib/systemd/system/{name}.service", DAEMON.format(command=command), 0o644)


def packages() -> Iterator[tuple[str, str, str, list[File]]]:
    """Name, version, further control fields and files of each package."""
    module: File = (f"lib/modules/{KERNEL}/updates/dkms/nvidia.ko", "Stand-in for a kernel module.\n", 0o644)
    for version in VERSIONS:
        full = f"{version}-1"
        need = f"Depends: libcuda1 (= {full}), nvidia-persistenced (= {full})"
        yield "nvidia-driver-cuda", full, need, [("usr/bin/nvidia-smi", SMI, 0o755)]
        yield "libcuda1", full, "", []
        yield "nvidia-persistenced", full, "", [unit("nvidia-persistenced")]
        yield "nvidia-kernel-open-dkms", full, "Conflicts: nvidia-kernel-dkms", [module]
        yield "nvidia-kernel-dkms", full, "Conflicts: nvidia-kernel-open-dkms", [module]
        yield "nvidia-fabricmanager", full, "", [unit("nvidia-fabricmanager")]
    yield "nvidia-container-toolkit", "1.19.0-1", "", [("usr/bin/nvidia-ctk", "#!/bin/sh\n# Stand-in.\n", 0o755)]
    yield "datacenter-gpu-manager-4-cuda13", "1:4.5.0-1", "", [unit("nvidia-dcgm")]
    exporter = [unit("nvidia-dcgm-exporter", "/usr/bin/dcgm-exporter"), ("usr/bin/dcgm-exporter", EXPORTER, 0o755)]
    yield "datacenter-gpu-manager-exporter", "4.8.2-1", "", exporter
    yield f"linux-headers-{KERNEL}", "6.12.0-1", "", []
    yield f"linux-image-{KERNEL}", "6.12.0-1", "", []


def build(pool: Path, name: str, version: str, fields: str, files: list[File]) -> None:
    tree = Path("/tmp/stand-in") / f"{name}_{version}"  # noqa: S108 - in a guest that has one user
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: stand-in <root@localhost>\n"
    (tree / "DEBIAN/control").write_text(f"{control}{fields}\nDescription: stand-in for {name}\n".replace("\n\n", "\n"))
    for path, content, mode in files:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(content)
        (tree / path).chmod(mode)
    file = pool / f"{name}_{version.replace(':', '%3a')}_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", tree, file], check=True, stdout=subprocess.DEVNULL)


def index(folder: Path) -> str:
    """The repository's list of packages."""
    stanzas = []
    for file in sorted(folder.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "--field", file], capture_output=True, text=True, check=True).stdout
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        stanzas.append(f"{control}Filename: ./{file.name}\nSize: {len(data)}\nSHA256: {digest}\n")
    return "\n".join(stanzas)


def sign(folder: Path, packages_text: str) -> None:
    data = packages_text.encode()
    (folder / "Packages").write_bytes(data)
    (folder / "Packages.gz").write_bytes(gzip.compress(data))
    sums = "".join(
        f" {hashlib.sha256((folder / name).read_bytes()).hexdigest()} {(folder / name).stat().st_size} {name}\n"
        for name in ("Packages", "Packages.gz")
    )
    release = f"Origin: stand-in\nLabel: stand-in\nDate: {formatdate(usegmt=True)}\nSHA256:\n{sums}"
    subprocess.run(["gpg", "--batch", "--clearsign", "-o", folder / "InRelease"], input=release, text=True, check=True)


def main() -> None:
    if MIRROR.exists():
        return
    os.environ["GNUPGHOME"] = "/root/stand-in-key"
    Path("/root/stand-in-key").mkdir(mode=0o700)
    subprocess.run(
        ["gpg", "--batch", "--passphrase", "", "--quick-generate-key", "Stand-in", "ed25519", "sign", "never"],
        check=True,
    )
    key = subprocess.run(["gpg", "--armor", "--export"], capture_output=True, text=True, check=True).stdout
    listed = subprocess.run(["gpg", "--list-keys", "--with-colons"], capture_output=True, text=True, check=True).stdout
    pool = Path("/srv/pool")
    pool.mkdir()
    for package in packages():
        build(pool, *package)
    for system, name in KEYS.items():
        folder = MIRROR / system / "x86_64"
        folder.mkdir(parents=True)
        for file in pool.iterdir():
            os.link(file, folder / file.name)
        (folder / name).write_text(key)
        sign(folder, index(folder))
    tampered = MIRROR / "tampered/debian13/x86_64"
    shutil.copytree(MIRROR / "debian13/x86_64", tampered, copy_function=os.link)
    lists = (tampered / "InRelease").read_text()
    (tampered / "InRelease").unlink()
    (tampered / "InRelease").write_text(lists.replace("Label: stand-in", "Label: somebody else"))
    (MIRROR / "fingerprint").write_text(next(row.split(":")[9] for row in listed.splitlines() if row.startswith("fpr")))
    offline = MIRROR / "folder"
    offline.mkdir()
    for file in [*pool.glob(f"*_{FOLDER}-1_*"), *pool.glob("linux-headers-*"), *pool.glob("datacenter-*")]:
        os.link(file, offline / file.name)
    subprocess.run(["tar", "-C", offline, "-cf", MIRROR / "folder.tar", "."], check=True)


if __name__ == "__main__":
    main()
