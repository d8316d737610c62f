"""What a newcomer and continuous integration run is one and the same, and complete."""

import configparser
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readme_has_two_commands_that_set_everything_up():
    commands = re.findall(r"^    (python -m pip install .*)$", README, re.MULTILINE)
    assert commands == ["python -m pip install tox && tox -e fuzz", "python -m pip install tox && tox -e test"]


def test_continuous_integration_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "python -m pip install tox && tox -e test" in script.splitlines()


def test_tox_names_its_environments_in_order_and_lets_arguments_through():
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    listed = tox["tox"]["env_list"].split()
    assert listed == ["fuzz", "test", "replay", "lint", "typing", "test-triton38"]
    for name in (*listed, "bench"):  # which needs a GPU, so plain tox leaves it out
        section = tox[f"testenv:{name}"]
        assert section["description"]
        assert "{posargs" in section["commands"]
    assert "constraints.txt" in tox["testenv"]["set_env"]
    assert "constraints-triton38.txt" in tox["testenv:test-triton38"]["set_env"]


def test_the_constraints_pin_a_pair_of_torch_and_triton_that_belong_together():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["torch==2.13.0", "triton==3.7.1"]
    newest = (ROOT / "constraints-triton38.txt").read_text().splitlines()
    assert [line for line in newest if not line.startswith("#")] == ["torch==2.13.0", "triton==3.8.0"]


def test_the_package_declares_its_command_and_ships_its_types():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"fuzzrope": "fuzzrope.__main__:main"}
    assert {"test", "dev"} <= set(project["project"]["optional-dependencies"])
    for package in ("fuzzrope", "kernels"):
        assert (ROOT / package / "py.typed").exists()


def test_the_judge_does_not_import_a_target():
    program = "import sys, fuzzrope.cli; print([m for m in sys.modules if m.startswith(('kernels', 'fuzzrope.spec'))])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
