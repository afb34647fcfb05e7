# SPDX-License-Identifier: GPL-3.0-or-later
"""What the registry asks of a pack, as its own command checks it (without that command's telemetry)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import yaml
from PIL import Image

from soda_core.version import VERSION

ROOT = Path(__file__).parents[2]
PLACEHOLDER = "OWNER"
SHIPPED = [ROOT / "__init__.py", *ROOT.glob("nodes/**/*.py"), *ROOT.glob("soda_core/**/*.py")]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_registrys_own_parser_takes_it_without_a_warning(capsys) -> None:
    parser = pytest.importorskip("comfy_cli.registry.config_parser")
    config = parser.extract_node_configuration(str(ROOT / "pyproject.toml"))
    assert capsys.readouterr().out == ""
    assert config.project.name == "soda-adapters" and config.project.version == VERSION
    assert config.project.license.file == "LICENSE" and config.project.supported_os == ["OS Independent"]
    assert config.project.supported_comfyui_version.startswith(">=")
    assert all(vars(config.project.urls).values())
    comfy = config.tool_comfy
    assert comfy.publisher_id and comfy.display_name and comfy.icon and comfy.banner_url


def test_names_and_versions_are_as_the_registry_wants_them(project) -> None:
    name = project["project"]["name"]
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,99}", name) and "comfyui" not in name
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert re.fullmatch(r">=\d+\.\d+\.\d+", project["tool"]["comfy"]["requires-comfyui"])


def test_its_security_check_finds_nothing() -> None:
    """The rules that its command selects: exec, eval, and several statements in a line."""
    command = [sys.executable, "-m", "ruff", "check", "-q", "--isolated", "--no-cache", "--select", "S102,S307,E702"]
    done = subprocess.run([*command, *SHIPPED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_that_ships_imports_what_could_reach_out() -> None:
    """SECURITY.md promises it."""
    refused = {
        "subprocess", "socket", "ssl", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "ctypes",
        "marshal", "shelve", "code", "codeop", "runpy", "multiprocessing", "webbrowser", "pip",
    }  # fmt: skip
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
                if node.module == "aiohttp" and [a.name for a in node.names] == ["web"]:
                    continue  # answers what the browser asks ComfyUI's own server
            assert not {name.split(".")[0] for name in names} & refused, f"{path}: {names}"
    for path in ROOT.glob("web/**/*.js"):
        text = re.sub(r"https?://www\.w3\.org/\S+", "", path.read_text("utf-8"))
        found = re.findall(r"\beval\(|new Function|https?://|XMLHttpRequest|WebSocket\(|sendBeacon", text)
        assert not found, f"{path}: {found}"


# ------------------------------------------------------------------------------------------------------ placeholders


def unfilled() -> list[str]:
    lines = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    return [line for line in lines if PLACEHOLDER in line and not line.startswith("#")]


def test_placeholders_are_in_one_place(project) -> None:
    tables = project["project"]["urls"], project["tool"]["comfy"]
    marked = [value for table in tables for value in table.values() if PLACEHOLDER in value]
    assert len(unfilled()) == len(marked)
    filled = {**project["project"]["urls"], **{k: project["tool"]["comfy"][k] for k in ("Icon", "Banner")}}
    account = project["tool"]["comfy"]["PublisherId"]
    assert (account == PLACEHOLDER) == any(f"/{PLACEHOLDER}/" in url for url in filled.values()), "all or none"
    assert all(url.startswith("https://") for url in filled.values())


@pytest.mark.parametrize(("name", "size"), [("Icon", (400, 400)), ("Banner", (1680, 720))])
def test_pictures_are_where_their_addresses_say(project, name, size) -> None:
    path = ROOT / project["tool"]["comfy"][name].split("/main/", 1)[1]
    with Image.open(path) as picture:
        assert picture.size == size and picture.format == "PNG"
    assert path.stat().st_size < 100_000


# --------------------------------------------------------------------------------------------------------- workflows


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8"))


def test_the_test_workflow_does_what_ci_does() -> None:
    steps = workflow("test")["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111, "it is run as a program"


def test_publishing_waits_for_the_tests_and_for_the_placeholders() -> None:
    jobs = workflow("publish")["jobs"]
    assert jobs["test"]["uses"] == "./.github/workflows/test.yml" and jobs["publish"]["needs"] == "test"
    check, publish = jobs["publish"]["steps"][-2:]
    assert publish["uses"].startswith("Comfy-Org/publish-node-action@")
    assert publish["with"] == {"personal_access_token": "${{ secrets.REGISTRY_ACCESS_TOKEN }}"}
    done = subprocess.run(["bash", "-e", "-c", check["run"]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if unfilled() else 0), done.stderr


def test_workflows_may_only_read() -> None:
    for name in ("test", "publish"):
        assert workflow(name)["permissions"] == {"contents": "read"}
