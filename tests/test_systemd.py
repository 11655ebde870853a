"""The systemd unit: what it must say, by a plain parser, and systemd's own opinion where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from gateway.config import Config

UNIT = Path(__file__).resolve().parent.parent / "systemd" / "gateway.service"
WORST_SCORE = 1.5

# Keys of systemd.unit(5), .service(5), .exec(5), .kill(5) and .resource-control(5) up to version 252 that a
# unit of ours may use. A key outside this list is a slip: systemd only warns and goes on without it.
KNOWN = {
    "Unit": "Description Documentation Wants Requires After Before StartLimitIntervalSec StartLimitBurst",
    "Service": """
        Type NotifyAccess ExecStart ExecStartPre ExecReload Restart RestartSec RestartPreventExitStatus
        TimeoutStartSec TimeoutStopSec WatchdogSec KillMode KillSignal OOMPolicy
        LoadCredential LoadCredentialEncrypted Environment EnvironmentFile WorkingDirectory
        User Group DynamicUser SupplementaryGroups UMask StateDirectory RuntimeDirectory
        LimitNOFILE LimitCORE TasksMax MemoryHigh MemoryMax MemorySwapMax IPAddressAllow IPAddressDeny
        NoNewPrivileges CapabilityBoundingSet AmbientCapabilities KeyringMode LockPersonality
        PrivateTmp PrivateDevices PrivateUsers PrivateIPC PrivateMounts DevicePolicy RemoveIPC
        ProtectSystem ProtectHome ProtectClock ProtectHostname ProtectKernelTunables ProtectKernelModules
        ProtectKernelLogs ProtectControlGroups ProtectProc ProcSubset
        RestrictAddressFamilies RestrictNamespaces RestrictRealtime RestrictSUIDSGID MemoryDenyWriteExecute
        SystemCallArchitectures SystemCallFilter SystemCallErrorNumber
    """,
    "Install": "WantedBy",
}

REQUIRED = {
    "Type": "notify",
    "LoadCredential": "deepgram_api_key:/etc/gateway/deepgram_api_key",
    "Restart": "on-failure",
    "LimitCORE": "0",
    "MemorySwapMax": "0",
    "DynamicUser": "yes",
    "UMask": "0077",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "PrivateUsers": "yes",
    "DevicePolicy": "closed",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectControlGroups": "yes",
    "ProtectProc": "invisible",
    "RemoveIPC": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "SystemCallArchitectures": "native",
}

Sections = dict[str, dict[str, list[str]]]


def parse(text: str) -> Sections:
    """Sections, keys and their values in order; raises ValueError on a line that is none of these."""
    sections: Sections = {}
    current: dict[str, list[str]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line[0] in "#;":
            continue
        if header := re.fullmatch(r"\[(\w+)\]", line):
            current = sections.setdefault(header[1], defaultdict(list))
        elif (entry := re.fullmatch(r"([A-Z]\w*)=(.*)", line)) and current is not None:
            current[entry[1]].append(entry[2])
        else:
            raise ValueError(f"line {number}: {line!r}")
    return sections


def unknown_keys(sections: Sections) -> list[str]:
    return [
        f"[{section}] {key}"
        for section, keys in sections.items()
        for key in keys
        if key not in KNOWN.get(section, "").split()
    ]


def complaints(unit: str, tmp_path: Path) -> list[str]:
    """What `systemd-analyze verify` says about this text; nothing where systemd is not installed."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return []
    copy = tmp_path / "gateway.service"
    # The installation that ExecStart names need not exist on the machine that runs the tests.
    copy.write_text(re.sub(r"(?m)^ExecStart=.*$", "ExecStart=/bin/true", unit), encoding="utf-8")
    done = subprocess.run([analyze, "verify", copy], capture_output=True, text=True, timeout=60, check=False)
    # The exit code is 0 even for an unknown key, and stderr may speak of other units of the machine.
    return [line for line in done.stderr.splitlines() if "gateway.service" in line]


@pytest.fixture(name="service")
def _service() -> dict[str, list[str]]:
    return parse(UNIT.read_text(encoding="utf-8"))["Service"]


def test_it_has_known_sections_and_keys_only() -> None:
    """A misspelt directive would be ignored by systemd, silently but for a warning."""
    sections = parse(UNIT.read_text(encoding="utf-8"))
    assert list(sections) == ["Unit", "Service", "Install"]
    assert unknown_keys(sections) == []


def test_the_hardening_is_there(service: dict[str, list[str]]) -> None:
    """security.md S60, security.md S66: each directive is there, once, with its value."""
    assert {key: service.get(key) for key in REQUIRED} == {key: [value] for key, value in REQUIRED.items()}


def test_system_calls_are_an_allow_list_less_two_groups(service: dict[str, list[str]]) -> None:
    """The order matters: the second line takes away from what the first one allows."""
    assert service["SystemCallFilter"] == ["@system-service", "~@privileged @resources"]
    assert service["SystemCallErrorNumber"] == ["EPERM"]


def test_it_starts_the_installed_command(service: dict[str, list[str]]) -> None:
    """One process, no shell, no secret in argv."""
    assert service["ExecStart"] == ["/opt/gateway/bin/gateway serve -c /etc/gateway/config.toml"]


def test_imports_come_from_the_installation_only(service: dict[str, list[str]]) -> None:
    """security.md S70."""
    assert {"PYTHONSAFEPATH=1", "PYTHONNOUSERSITE=1"} <= set(" ".join(service["Environment"]).split())


def test_no_secret_is_in_the_environment(service: dict[str, list[str]]) -> None:
    """security.md S67: the key is a credential; the environment can be read in /proc."""
    assert "EnvironmentFile" not in service
    assert not re.search(r"(?i)key|token|secret|password", " ".join(service["Environment"]))


def test_systemd_waits_longer_than_the_drain(service: dict[str, list[str]]) -> None:
    """faults.md 45: SIGKILL must not come before the drain's deadline and Deepgram's last results."""
    config = Config()
    [seconds] = service["TimeoutStopSec"]
    assert float(seconds) >= config.server.drain + config.session.finish + 5


def test_there_are_descriptors_for_all_connections(service: dict[str, list[str]]) -> None:
    """faults.md 50: two sockets for each client, and a reserve."""
    [limit] = service["LimitNOFILE"]
    assert int(limit) >= 2 * Config().server.max_connections + 1024


def test_process_metrics_stay_readable(service: dict[str, list[str]]) -> None:
    """faults.md M13: with ProcSubset=pid the open-file gauge would be gone."""
    assert "ProcSubset" not in service


def test_systemd_has_nothing_to_complain_about(tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent; without systemd the plain parser has the last word."""
    unit = UNIT.read_text(encoding="utf-8")
    assert [*unknown_keys(parse(unit)), *complaints(unit, tmp_path)] == []


def test_a_misspelt_key_is_noticed(tmp_path: Path) -> None:
    """Both judges can say no: ours always, systemd's where it is installed."""
    unit = UNIT.read_text(encoding="utf-8").replace("ProtectClock=yes", "ProtectClocks=yes")
    assert unknown_keys(parse(unit)) == ["[Service] ProtectClocks"]
    found = complaints(unit, tmp_path)
    assert any("ProtectClocks" in line for line in found) is (shutil.which("systemd-analyze") is not None)


def test_the_score_is_at_most_one_and_a_half(service: dict[str, list[str]]) -> None:
    """security.md S66, by systemd's own count; without it, at least what weighs most there is present."""
    analyze = shutil.which("systemd-analyze")
    assert [
        key for key in ("PrivateUsers", "ProtectSystem", "CapabilityBoundingSet") if key not in service
    ] == []
    if analyze is None:
        return
    version = subprocess.run(
        [analyze, "--version"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    if int(version.split()[1]) < 250:  # --offline is younger
        return
    done = subprocess.run(
        [analyze, "security", "--offline=true", f"--threshold={WORST_SCORE * 10:.0f}", "--no-pager", UNIT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
