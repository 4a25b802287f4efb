"""One process trains in a folder at a time."""

from __future__ import annotations

import subprocess
import sys

from models.files import hold_folder

HOLD = "import sys; from models.files import hold_folder; hold_folder(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_a_folder_is_held_until_its_process_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"held\n"
        second = subprocess.run(command, input=b"", capture_output=True, check=False)
        assert f"another process is training in {tmp_path}" in second.stderr.decode()
        first.kill()
    hold_folder(tmp_path)
    hold_folder(tmp_path)  # resumed by the same process
    third = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert third.returncode != 0
