"""The scripts of docs/guides/slurm.md: they run as they stand, with stand-ins for the commands of SLURM.

A stand-in of `srun` starts the tasks as SLURM does, here on one machine. `torchrun` and all ranks are real.
"""

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import small_experiment as small
from support.children import environment
from support.tree import ROOT

from logitstore.cli.main import OF_ONE_PROCESS, cli
from logitstore.pipeline.runtime.ranks import JOIN_SECONDS
from logitstore.pipeline.runtime.stopping import SIGNALS, Stopped
from logitstore.storage.api import open_store
from logitstore.storage.integrity.doctor import SAFE_VERDICT, Findings, Mount

pytestmark = pytest.mark.xdist_group("ranks")  # one process of the tests at a time starts others
PAGE = (ROOT / "docs" / "guides" / "slurm.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
SCRIPTS = {name: block for block in BLOCKS for name in re.findall(r"^# (\w+\.sh)\b", block, re.MULTILINE)}

PYTHON = f"""#!/bin/bash
exec {sys.executable} "$@"
"""
SRUN = """#!/bin/bash
tasks=()
for number in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$number SLURM_LOCALID=$number "$@" &
    tasks+=($!)
done
worst=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; [ $code -gt $worst ] && worst=$code; done
exit $worst
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) echo 127.0.0.1; echo another ;;
    requeue) echo "$2" >> requeued ;;
esac
"""
ENDS_WITH = """#!/bin/bash
# Ends with the codes of a file, one a call.
code=$(head -n 1 codes)
tail -n +2 codes > rest && mv rest codes
exit "$code"
"""


def laid(folder: Path, **commands: str) -> dict[str, str]:
    """Write the scripts of the page, and commands that come first on the PATH; return the environment."""
    (folder / "bin").mkdir()
    for name, source in commands.items():
        file = folder / "bin" / name
        file.write_text(source)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    for name, source in SCRIPTS.items():
        (folder / name).write_text(source)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    return environment(PATH=path, SLURM_JOB_ID=str(free_port() - 20000), SLURM_JOB_NODELIST="node[1-2]")


def free_port() -> int:
    """Return a port of the range that the script draws from, and that nothing uses."""
    for port in range(20000 + os.getpid() % 15000, 40000):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def bash(folder: Path, env: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    """Start a script."""
    return subprocess.Popen(
        ["bash", *words],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ended(process: "subprocess.Popen[str]", seconds: float = 150) -> tuple[int, str]:
    """Return the exit code of a script, and what it printed."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, output


def test_the_page_has_these_scripts() -> None:
    assert list(SCRIPTS) == ["job.sh", "again.sh", "array.sh", "node.sh"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_read_a_script(name: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=SCRIPTS[name], text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    # Negative control.
    broken = SCRIPTS[name].replace("esac", "").replace('"', "'", 1)
    assert subprocess.run(
        ["bash", "-n"], input=broken, text=True, capture_output=True, check=False
    ).returncode


def test_a_job_of_two_tasks_makes_the_store_and_the_student(tmp_path: Path) -> None:
    small.lay_out(tmp_path)
    env = laid(tmp_path, python=PYTHON, srun=SRUN, scontrol=SCONTROL)
    job = "job.sh", "small.toml", "out"
    code, output = ended(bash(tmp_path, env | {"SLURM_NTASKS": "2"}, *job))
    assert code == 0, output
    assert open_store(tmp_path / "out" / "store.zarr").unsealed() == []
    assert (tmp_path / "out" / "models" / "students" / "small-seed0.safetensors").is_file()
    # The same command again, as after a requeue, with another number of tasks.
    before = small.files(tmp_path / "out")
    code, output = ended(bash(tmp_path, env | {"SLURM_NTASKS": "1"}, *job))
    assert code == 0, output
    assert output.count("nothing to do") == 2
    assert small.files(tmp_path / "out") == before
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(
    ("codes", "restarts", "comes_back"),
    [
        ("75", "0", True),
        ("0 129", "3", True),
        ("143", "0", False),
        ("65", "0", False),
        ("70", "0", False),
        ("75", "20", False),
    ],
)
def test_a_job_is_put_back_for_codes_that_may_pass(
    tmp_path: Path, codes: str, restarts: str, comes_back: bool
) -> None:
    env = laid(tmp_path, srun=ENDS_WITH, scontrol=SCONTROL)
    (tmp_path / "codes").write_text(codes.replace(" ", "\n") + "\n")
    code, output = ended(
        bash(tmp_path, env | {"SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": restarts}, "job.sh", "e", "o")
    )
    assert (code, output) == (int(codes.split()[-1]), "")
    assert (tmp_path / "requeued").exists() == comes_back


@pytest.mark.parametrize(
    ("codes", "ends_with", "left"), [("75 0 9", 0, 1), ("65 0", 65, 1), ("75 143 75 75", 75, 0)]
)
def test_the_loop_tries_again_while_it_may_help(
    tmp_path: Path, codes: str, ends_with: int, left: int
) -> None:
    env = laid(tmp_path, python=ENDS_WITH, sleep="#!/bin/bash\n")
    (tmp_path / "codes").write_text(codes.replace(" ", "\n") + "\n")
    assert ended(bash(tmp_path, env, "again.sh", "e.toml", "store.zarr")) == (ends_with, "")
    assert len((tmp_path / "codes").read_text().splitlines()) == left


def test_two_machines_of_torchrun_make_one_store(tmp_path: Path) -> None:
    small.lay_out(tmp_path)
    env = laid(
        tmp_path,
        python=PYTHON,
        torchrun=PYTHON.replace('"$@"', '-m torch.distributed.run --local-addr 127.0.0.1 "$@"'),
    )
    script = (tmp_path / "node.sh").read_text()
    assert script.count("29400") == 1
    (tmp_path / "node.sh").write_text(script.replace("29400", str(free_port())))
    words = "node.sh", "127.0.0.1", "2", "1", "cache", "small.toml", "store.zarr"
    nodes = [bash(tmp_path, env, *words) for _ in range(2)]
    results = [ended(node) for node in nodes]
    assert [code for code, _ in results] == [0, 0], results
    assert sum("captured  line" in output for _, output in results) == 1
    assert open_store(tmp_path / "store.zarr").unsealed() == []


def test_two_jobs_of_an_array_train_beside_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = small.lay_out(tmp_path)
    env = laid(tmp_path, python=PYTHON)
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(cli, ["cache", "small.toml", "store.zarr"])
    assert made.exit_code == 0, made.output
    jobs = []
    for number in range(2):
        text = experiment.read_text().replace("hidden = [4]", f"hidden = [{4 + number}]")
        (tmp_path / f"student-{number}.toml").write_text(text)
        jobs.append(bash(tmp_path, env | {"SLURM_ARRAY_TASK_ID": str(number)}, "array.sh", "store.zarr"))
    for job in jobs:
        code, output = ended(job)
        assert code == 0, output
    for number in range(2):
        assert (tmp_path / f"models-{number}" / "students" / "small-seed0.safetensors").is_file()


def test_the_sentences_about_codes_times_and_the_doctor_hold() -> None:
    assert re.findall(r"^ +([\d |]+)\)", SCRIPTS["again.sh"], re.MULTILINE) == ["75 | 129 | 143"]
    assert re.findall(r"^ +([\d |]+)\)", SCRIPTS["job.sh"], re.MULTILINE) == ["75 | 129"]
    codes = " or ".join(str(Stopped(number).exit_code) for number in SIGNALS)
    assert f"| exit code | {codes.replace(' or ', ', or ')} |" in PAGE
    assert f"within {JOIN_SECONDS / 60:.0f} minutes" in PAGE
    assert {"cluster", "combine", "run"} <= set(OF_ONE_PROCESS)
    findings = Findings(Path(), Mount("nfs4", "/", "host:/", "rw"), 0)
    assert f"`{SAFE_VERDICT}`" in PAGE
    assert findings.not_tested[0].startswith("another machine:") and "`not tested: another machine`" in PAGE
