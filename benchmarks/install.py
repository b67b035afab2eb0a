"""Gets what the benchmark compares with, on demand, into `benchmarks/.cache`. Nothing is installed system-wide."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.errors import NotInstalled

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = HERE / ".cache"

FASTAPI = "fastapi==0.165.0"
SECONDS = 600
"""The longest an installation may take."""


def version(python: Path) -> str:
    """The version of this interpreter."""
    return _run(HERE, str(python), "-c", "import platform; print(platform.python_version())").strip()


def service_python(python: Path) -> Path:
    """This Python with the runtime packages and nothing else: httpx imports more where it finds more."""
    return _venv("service", python, "-r", str(_required(ROOT / "requirements.txt")))


def naive_python(python: Path) -> Path:
    """This Python with the runtime packages and FastAPI."""
    return _venv("naive", python, "-r", str(_required(ROOT / "requirements.txt")), FASTAPI)


def nginx_binary() -> Path:
    """Debian's nginx: the installed one, else its package unpacked in the cache."""
    if installed := shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"):
        return Path(installed)
    binary = CACHE / "nginx" / "usr" / "sbin" / "nginx"
    with _once(CACHE / "nginx") as folder:
        if folder:
            _run(folder, "apt-get", "download", "nginx")
            _run(folder, "dpkg-deb", "-x", str(next(folder.glob("nginx_*.deb"))), str(folder))
    return _required(binary)


def portkey_script() -> Path:
    """The Portkey gateway's server, for node."""
    if not shutil.which("node"):
        raise NotInstalled("node isn't installed")
    with _once(CACHE / "portkey") as folder:
        if folder:
            shutil.copy(HERE / "portkey.json", folder / "package.json")
            _run(folder, "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts")
    return _required(CACHE / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js")


def _venv(name: str, python: Path, *packages: str) -> Path:
    wanted = "\n".join(Path(part).read_text() if part.endswith(".txt") else part for part in packages)
    home = CACHE / f"{name}-{version(python)}"
    with _once(home, wanted) as folder:
        if folder:
            _run(folder, str(python), "-m", "venv", str(folder))
            _run(folder, str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages)
    return home / "bin" / "python"


@contextlib.contextmanager
def _once(folder: Path, wanted: str = "") -> Iterator[Path | None]:
    """Yield the new folder to install in, or None if what is `wanted` is there; what fails leaves nothing behind."""
    done = folder / "installed"
    if done.exists() and done.read_text() == wanted:
        yield None
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    done.write_text(wanted)


def _run(folder: Path, *arguments: str) -> str:
    """The output of a command. Raises NotInstalled if it fails."""
    try:
        return subprocess.run(arguments, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS).stdout
    except FileNotFoundError:
        raise NotInstalled(f"{arguments[0]} isn't installed") from None
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{' '.join(arguments[:3])} took over {SECONDS} s") from None
    except subprocess.CalledProcessError as failed:
        lines = (failed.stderr or failed.stdout or "").strip().splitlines() or ["no output"]
        raise NotInstalled(f"{' '.join(arguments[:3])} failed: {lines[-1][:200]}") from None


def _required(path: Path) -> Path:
    if not path.exists():
        raise NotInstalled(f"{path.name} isn't there")
    return path
