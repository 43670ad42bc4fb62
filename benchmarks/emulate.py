"""Check that models in C give the same scores on an emulated Cortex-M4 as the integer reference.

    python benchmarks/emulate.py

Writes each pretrained model as `sprat export --format c` does, compiles its self-test for a
Cortex-M4 with arm-none-eabi-gcc -O2, and runs it in QEMU, which emulates the processor's
instructions but not their time. The scores of 16 drawings must equal those of the reference byte
for byte. The script installs nothing and reports what is missing. It takes minutes on one core.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sprat import zoo
from sprat.checkpoint import load_model
from sprat.deploy import Options
from sprat.deploy.c import C
from sprat.deploy.graph import Source

COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
BOARD = Path(__file__).parent / "cortex_m"
FLAGS = (
    *("-std=c11", "-O2", "-mcpu=cortex-m4", "-mthumb"),
    *("-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"),
    *("--specs=rdimon.specs", "-nostartfiles", "-T", str(BOARD / "mps2.ld")),
)
MACHINE = (
    *("-machine", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"),
    *("-semihosting-config", "enable=on,target=native"),
)
SECONDS = 900  # limit of a self-test


def missing() -> list[str]:
    """Return the Debian packages that are needed and not installed."""
    packages = []
    if not shutil.which(EMULATOR):
        packages.append("qemu-system-arm")
    if not shutil.which(COMPILER):
        packages.append("gcc-arm-none-eabi")
    command = [COMPILER, "-print-file-name=rdimon.specs"]
    if packages[-1:] == ["gcc-arm-none-eabi"] or not Path(_output(command)).is_absolute():
        packages.append("libnewlib-arm-none-eabi")
    return packages


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def self_test(name: str, folder: Path) -> bool:
    """Compile a pretrained model's self-test and run it; print its last line."""
    model = load_model(zoo.ZOO / name)
    files = C.write(Source.of(model, Options()), b"")
    assert isinstance(files, dict)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    sources = ["main.c", "model.c", "model_data.c", str(BOARD / "startup.c")]
    subprocess.run([COMPILER, *FLAGS, "-o", "selftest.elf", *sources], cwd=folder, check=True)
    command = [EMULATOR, *MACHINE, "-kernel", str(folder / "selftest.elf")]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=SECONDS)
    print(f"{name:24} {(done.stdout.splitlines() or ['printed nothing'])[-1]}", flush=True)
    return done.returncode == 0


def main() -> None:
    names = [card["name"] for card in zoo.cards()]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="models to run")
    arguments = parser.parse_args()
    if packages := missing():
        sys.exit(
            f"The emulated Cortex-M needs {', '.join(packages)}, not installed here. "
            f"On Debian, install what is missing with: apt-get install {' '.join(packages)}"
        )
    passed = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            passed.append(self_test(name, Path(folder)))
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
