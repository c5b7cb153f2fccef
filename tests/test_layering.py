"""Imports point one way only: read from the source, so that a forgotten arrow is seen before it is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"hpcps": ROOT / "hpcps", "hpcps_kernels": ROOT / "kernels" / "hpcps_kernels"}

# Room -> the rooms of hpcps that its files may import. A room is a folder or a single file of hpcps/.
BOTTOM = {"errors", "_version"}
ARROWS = {
    "errors": set(),
    "_version": set(),
    "together": {"errors"},
    "config": {"errors"},
    "aligned": set(),
    "device": {"aligned", "errors", "kernels"},
    "params": {"aligned"},
    "first": {"device", "params"},
    "comm": {"aligned", "errors", "kernels", "together"},
    "parts": {"comm", "errors"},
    "rows": set(),
    "sums": {"aligned", "comm", "device", "errors", "rows"},
    "optim": {"config", "device", "own_optimizer"},
    "own": {"errors"},
    "own_optimizer": {"errors", "own"},
    "snapshot": {"errors"},
    "server": {"aligned", "comm", "errors", "faster", "first", "kernels", "optim", "rows", "snapshot", "sums"},
    "reduction": {"collectives", "comm"},
    "bucket": {"collectives", "comm", "device", "optim", "published", "reduction", "snapshot"},
    "published": {"aligned", "comm", "faster", "params"},
    "faster": set(),
    "gathered": {"comm", "device", "optim", "params", "rows", "snapshot", "sums"},
    "exchange": {"bucket", "comm", "gathered", "rows", "server", "snapshot", "sums"},
    "averaging": {"collectives", "comm", "exchange", "optim", "params", "rows", "snapshot", "sums"},
    "online": {
        "aligned",
        "comm",
        "config",
        "data",
        "errors",
        "exchange",
        "feed",
        "lane",
        "loader",
        "models",
        "params",
        "parts",
        "rows",
        "snapshot",
    },
    "models": {"config", "device", "errors", "first", "own", "params"},
    "data": {"errors", "together", "kernels"},
    "staging": {"collectives", "device", "exchange", "reduction", "rows", "sums"},
    "uploading": {"data", "device", "loader", "models", "staging"},
    "threads": set(),
    "tables": {"device", "models", "params", "rows"},
    "loader": {"aligned", "data", "errors", "models", "tables"},
    "feed": {"data", "loader", "models", "parts"},
    "lane": {"data", "errors", "feed", "loader", "models", "params", "rows", "sums", "tables"},
    "worker": {
        "data",
        "device",
        "errors",
        "feed",
        "lane",
        "loader",
        "models",
        "params",
        "parts",
        "rows",
        "sums",
        "tables",
        "threads",
    },
    "pace": set(),
    "run_folder": {"errors", "models", "params", "tensors"},
    "tensors": set(),
    "report": {"comm", "config", "data", "errors", "models", "pace", "run_folder", "snapshot", "worker"},
    "trainer": {"comm", "errors", "exchange", "pace", "parts", "report", "snapshot", "sums", "worker"},
    "checkpoint": {"comm", "errors", "snapshot", "tensors", "together"},
    "stopping": set(),
    "machine": {"together"},
    "nccl": {"collectives", "comm", "config", "device", "errors", "reduction", "together"},
    "job": {
        "comm",
        "config",
        "device",
        "errors",
        "kernels",
        "machine",
        "models",
        "nccl",
        "parts",
        "server",
        "together",
    },
    "serving": {
        "comm",
        "device",
        "errors",
        "exchange",
        "first",
        "job",
        "models",
        "optim",
        "params",
        "report",
        "rows",
        "server",
        "snapshot",
        "staging",
        "sums",
        "tensors",
    },
    "joining": {
        "aligned",
        "averaging",
        "bucket",
        "collectives",
        "comm",
        "device",
        "exchange",
        "feed",
        "gathered",
        "job",
        "lane",
        "loader",
        "models",
        "nccl",
        "online",
        "optim",
        "params",
        "published",
        "reduction",
        "report",
        "rows",
        "serving",
        "staging",
        "sums",
        "worker",
    },
    "remainder": {"comm", "data", "feed", "parts", "snapshot"},
    "resuming": {
        "checkpoint",
        "config",
        "data",
        "errors",
        "exchange",
        "feed",
        "job",
        "remainder",
        "run_folder",
        "serving",
        "snapshot",
        "trainer",
    },
    "trial": {
        "aligned",
        "comm",
        "config",
        "data",
        "device",
        "exchange",
        "feed",
        "first",
        "gathered",
        "job",
        "joining",
        "loader",
        "models",
        "optim",
        "params",
        "parts",
        "rows",
        "serving",
        "snapshot",
        "sums",
        "tables",
        "together",
    },
    "run": {
        "checkpoint",
        "comm",
        "config",
        "data",
        "device",
        "errors",
        "exchange",
        "feed",
        "job",
        "joining",
        "loader",
        "machine",
        "models",
        "params",
        "report",
        "resuming",
        "run_folder",
        "server",
        "serving",
        "stall",
        "tables",
        "threads",
        "together",
        "trainer",
        "trial",
        "uploading",
        "worker",
    },
    "stall": {"errors", "run_folder"},
    "supervisor": {"comm", "config", "errors", "hosts", "report", "run_folder", "starter"},
    "survival": {"comm", "errors", "report", "run"},
    "launch": {"comm", "config", "errors", "report", "run", "stall", "stopping", "survival"},
    "inference": {
        "comm",
        "config",
        "data",
        "errors",
        "job",
        "loader",
        "models",
        "report",
        "run",
        "run_folder",
        "tables",
        "together",
        "worker",
    }
    | {"kernels"},
    "collectives": {"aligned", "comm", "errors", "kernels", "machine"},
    "tuning": {"collectives", "comm", "errors", "kernels"},
    "hosts": {"errors"},
    "banners": {"errors"},
    "starter": {"banners", "comm", "errors", "hosts", "report"},
    "slurm": {"config", "errors", "job", "server", "starter"},
    "torch": {"collectives", "comm", "errors"},
    "doctor": {"comm", "errors", "launch", "machine", "starter", "kernels"},
    "warmup": {"errors", "kernels"},
    "cli": {"_version", "comm", "config", "doctor", "errors", "hosts", "inference", "launch", "report", "run"}
    | {"run_folder", "slurm", "starter", "supervisor", "tuning", "warmup"},
    "__main__": {"cli"},
    "__init__": {"_version", "collectives", "config", "launch", "run"},
}

# Third party -> the only places that may import it.
ONLY_IN = {
    "mpi4py": {"hpcps/comm/mpi.py"},
    "cupy": {f"kernels/hpcps_kernels/gpu/{name}.py" for name in ("_cupy", "_nvrtc")},
    "numba": {f"kernels/hpcps_kernels/cpu/{file.name}" for file in (PACKAGES["hpcps_kernels"] / "cpu").glob("*.py")},
    "click": {"hpcps/cli.py"},
    "rich": {"hpcps/report.py"},
    "safetensors": {"hpcps/run_folder.py"},
    "sklearn": set(),
    "torch": {"hpcps/torch.py"},
}


def sources():
    return [(name, file) for name, folder in PACKAGES.items() for file in sorted(folder.rglob("*.py"))]


def imports(file: Path) -> set[str]:
    """Absolute dotted names of all that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(file: Path) -> str:
    inside = file.relative_to(PACKAGES["hpcps"])
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def rooms_imported(file: Path) -> set[str]:
    found = set()
    for name in imports(file):
        head, *rest = name.split(".")
        if head == "hpcps_kernels":
            found.add("kernels")
        elif head == "hpcps" and rest:
            found.add(rest[0])
    return found


@pytest.mark.parametrize("file", [file for name, file in sources() if name == "hpcps"], ids=lambda file: file.name)
def test_arrows(file):
    mine = room(file)
    assert mine in ARROWS, f"{mine}: a new room; say in ARROWS what it may import"
    forbidden = rooms_imported(file) - ARROWS[mine] - {mine}
    assert not forbidden, f"{file.relative_to(ROOT)} imports {sorted(forbidden)}"


def test_the_arrows_have_no_cycle_and_none_is_left_over():
    used = {mine: set() for mine in ARROWS}
    for name, file in sources():
        if name == "hpcps":
            used[room(file)] |= rooms_imported(file) - {room(file)}
    assert used == ARROWS
    done: set[str] = {"kernels"}
    rooms = dict(used)
    while rooms:
        free = [name for name, needs in rooms.items() if needs <= done]
        assert free, f"a cycle among {sorted(rooms)}"
        done |= set(free)
        rooms = {name: needs for name, needs in rooms.items() if name not in free}


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_rooms(library):
    users = {
        str(file.relative_to(ROOT)) for _, file in sources() if library in {n.split(".")[0] for n in imports(file)}
    }
    assert users <= ONLY_IN[library]


def test_kernels_know_nothing_of_hpcps():
    for name, file in sources():
        if name == "hpcps_kernels":
            assert not {found for found in imports(file) if found.split(".")[0] == "hpcps"}, file


def test_nothing_is_unpickled():
    for _, file in sources():
        assert not {found for found in imports(file) if "pickle" in found}, file
