"""The deployment files: valid settings, the Procfile's command, and enough time to stop."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from chatkit.settings import VARIABLES, Settings
from chatkit.web.asgi import HEARTBEAT_SECONDS, JSON_SECONDS
from chatkit.web.request_body import MAX_CHAT_BYTES
from tests.support.service import PROJECT

COMMAND = shlex.split((PROJECT / "Procfile").read_text().partition("web:")[2])
STAND_INS = {  # in place of values that the platform or its user provides
    "SECRET_KEY": secrets.token_hex(32),
    "CHATKIT_ALLOWED_ORIGINS": "https://app.example.com",
    "DATABASE_URL": "postgres://user:password@database.example.com/chatkit",
    "REDIS_URL": "redis://redis.example.com:6379",
    "OPENAI_API_KEY": "sk-proj-example",
}
HEROKU_STOP_SECONDS = 30  # cannot be changed


@dataclass
class Deployment:
    settings: Mapping[str, str]
    command: list[str]
    stop_seconds: int
    health_path: str | None = None
    port: str | None = None


def text_of(name: str) -> str:
    return (PROJECT / name).read_text()


def seconds(text: str) -> int:
    number = re.fullmatch(r"(\d+)s?", text)
    assert number, text
    return int(number[1])


def dockerfile(name: str) -> dict[str, list[str]]:
    """The instructions of a Dockerfile, each with its arguments."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", text_of(name))).splitlines()
    instructions: dict[str, list[str]] = {}
    for line in filter(None, lines):
        instruction, _, arguments = line.partition(" ")
        instructions.setdefault(instruction, []).append(arguments)
    return instructions


def image_command() -> list[str]:
    command: list[str] = json.loads(dockerfile("Dockerfile")["CMD"][-1])
    return command


def interpolated(value: str) -> str:
    """A value of compose.yaml with its defaults, or stand-ins where it has none."""
    return re.sub(r"\$\{(\w+)(?::?-([^}]*)|:\?[^}]*)?\}", lambda found: found[2] or STAND_INS.get(found[1], "example"), value)


def compose() -> Deployment:
    service = yaml.safe_load(text_of("compose.yaml"))["services"]["service"]
    assert "command" not in service
    assert service["read_only"] is True
    return Deployment(
        {name: interpolated(value) for name, value in service["environment"].items()},
        image_command(),
        seconds(service["stop_grace_period"]),
        port=service["ports"][0].rpartition(":")[2],
    )


def render() -> Deployment:
    service = next(service for service in yaml.safe_load(text_of("render.yaml"))["services"] if service["type"] == "web")
    return Deployment(
        {variable["key"]: variable.get("value") or STAND_INS[variable["key"]] for variable in service["envVars"]},
        shlex.split(service["startCommand"]),
        service["maxShutdownDelaySeconds"],
        service["healthCheckPath"],
    )


def fly() -> Deployment:
    config: dict[str, Any] = tomllib.loads(text_of("fly.toml"))
    assert config["kill_signal"] == "SIGTERM"
    assert config["build"]["dockerfile"] == "Dockerfile"
    service = config["http_service"]
    return Deployment(
        {"SECRET_KEY": STAND_INS["SECRET_KEY"], **config["env"]},
        image_command(),
        config["kill_timeout"],
        service["checks"][0]["path"],
        str(service["internal_port"]),
    )


def heroku() -> Deployment:
    config = json.loads(text_of("app.json"))
    settings = {name: given.get("value") or STAND_INS[name] for name, given in config["env"].items()}
    return Deployment(settings, COMMAND, HEROKU_STOP_SECONDS)


def unit() -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text_of("deploy/chatkit.service"), re.MULTILINE):
        options.setdefault(name, []).append(value)
    return options


def systemd() -> Deployment:
    options = unit()
    settings = dict(pair.split("=", 1) for line in options["Environment"] for pair in shlex.split(line))
    bind = settings.pop("GUNICORN_CMD_ARGS")  # gunicorn's own
    program, *arguments = shlex.split(options["ExecStart"][0])
    assert program == f"{options['WorkingDirectory'][0]}/.venv/bin/python"
    assert options["KillMode"] == ["mixed"]  # the workers get one SIGTERM, from gunicorn
    return Deployment(
        {"SECRET_KEY": STAND_INS["SECRET_KEY"], **settings},
        ["python", *arguments],
        seconds(options["TimeoutStopSec"][0]),
        port=bind.rpartition(":")[2],
    )


deployments = pytest.mark.parametrize("read_deployment", [compose, render, fly, heroku, systemd])


@deployments
def test_settings_exist_and_are_accepted(read_deployment: Callable[[], Deployment]) -> None:
    deployment = read_deployment()
    assert deployment.settings.keys() <= VARIABLES
    settings = Settings.load(deployment.settings)
    assert not settings.development
    if deployment.port:
        assert settings.port == int(deployment.port)


@deployments
def test_command_is_the_procfiles(read_deployment: Callable[[], Deployment]) -> None:
    assert read_deployment().command == COMMAND


@deployments
def test_shutdown_fits_the_platforms_grace_period(read_deployment: Callable[[], Deployment]) -> None:
    deployment = read_deployment()
    settings = Settings.load(deployment.settings)
    assert settings.drain_seconds + settings.stop_seconds < deployment.stop_seconds


@deployments
def test_health_check_needs_no_other_service(read_deployment: Callable[[], Deployment]) -> None:
    """A platform restarts the service if the check fails, which does not help if a database is down."""
    assert read_deployment().health_path in (None, "/healthz")


def test_image() -> None:
    instructions = dockerfile("Dockerfile")
    version = text_of(".python-version").strip()
    assert [base.split()[0] for base in instructions["FROM"]] == [f"python:{version}-slim"] * 2
    assert instructions["USER"] == ["chatkit"]
    assert "/healthz" in instructions["HEALTHCHECK"][0]
    assert "STOPSIGNAL" not in instructions  # SIGTERM
    named = {pair.partition("=")[0] for line in instructions["ENV"] for pair in shlex.split(line)}
    assert named - {"PATH", "PYTHONUNBUFFERED"} <= VARIABLES


def test_build_arguments_of_the_frontend_image() -> None:
    variables = set(re.findall(r"^([A-Z_]+)=", text_of("frontend/.env.example"), re.MULTILINE))
    assert {line.partition("=")[0] for line in dockerfile("frontend/Dockerfile")["ARG"]} == variables
    assert set(yaml.safe_load(text_of("compose.yaml"))["services"]["frontend"]["build"]["args"]) == variables


def test_variables_of_compose_exist() -> None:
    referenced = set(re.findall(r"\$\{(\w+)", text_of("compose.yaml")))
    assert {name for name in referenced - VARIABLES if not name.startswith("NEXT_PUBLIC_")} == {"POSTGRES_PASSWORD"}


def test_render_references_declared_services() -> None:
    config = yaml.safe_load(text_of("render.yaml"))
    declared = {entry["name"] for entry in [*config["services"], *config["databases"]]}
    variables = config["services"][0]["envVars"]
    named = {(variable.get("fromDatabase") or variable.get("fromService") or {}).get("name") for variable in variables}
    assert named - {None} == declared - {"chatkit"}


def test_nginx_configuration_fits_the_unit() -> None:
    config = text_of("deploy/nginx.conf")
    bind = re.search(r"--bind=(\S+)", unit()["Environment"][0])
    assert bind
    assert f"server {bind[1]};" in config
    size = re.search(r"client_max_body_size (\d+)m;", config)
    timeout = re.search(r"proxy_read_timeout (\d+)s;", config)
    assert size
    assert timeout
    assert int(size[1]) * 1024 * 1024 > MAX_CHAT_BYTES
    assert int(timeout[1]) > max(JSON_SECONDS, HEARTBEAT_SECONDS)
    assert "X-Forwarded-For $remote_addr;" in config
    for header in ("Host", "Proto"):  # otherwise the caller's header would be trusted
        assert f"X-Forwarded-{header} $" in config
