"""Starts the app: Streamlit in this process, on 127.0.0.1, with every setting given here and no
file of its own.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from forensics.errors import ForensicsError

ADDRESS = "127.0.0.1"
ENTRY = str(Path(__file__).parent / "entry" / "streamlit_app.py")  # what Streamlit runs
SETTINGS = {
    "browser.gatherUsageStats": "false",
    "browser.serverAddress": ADDRESS,
    "client.showErrorDetails": "none",  # a page shows no traceback; the log has it
    "client.showSidebarNavigation": "false",
    "client.toolbarMode": "minimal",
    "global.developmentMode": "false",
    "runner.fastReruns": "true",
    "server.address": ADDRESS,
    "server.fileWatcherType": "none",
    "server.headless": "true",
    "server.runOnSave": "false",
}


def arguments(port: int) -> list[str]:
    """Streamlit's command line for the app, without the program's name."""
    flags = [f"--{name}={value}" for name, value in {**SETTINGS, "server.port": str(port)}.items()]
    return ["run", ENTRY, *flags]


def free(port: int) -> bool:
    """Whether nothing listens on this port of 127.0.0.1."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((ADDRESS, port))
        except OSError:
            return False
    return True


def serve(runs: Path, port: int) -> None:
    """Become the server: this process is replaced and ends with Ctrl-C. Errors: usage, where the
    port is taken.
    """
    if not free(port):
        raise ForensicsError(
            "usage", f"wanted port {port} of {ADDRESS}, found it taken", f"--port {port + 1}"
        )
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(folder for folder in (root, os.environ.get("PYTHONPATH")) if folder)
    environment = os.environ | {"FORENSICS_RUNS": str(runs.absolute()), "PYTHONPATH": path}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "streamlit", *arguments(port)], environment)
