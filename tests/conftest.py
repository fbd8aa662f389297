"""Tests import the scripts from the folder above, run on one thread (bit-exact, and no fight over cores) and never
write outside pytest's temporary folders."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
DATA_ROOT = Path(os.environ.get("DATA_ROOT", ROOT / "data"))     # real data, where there is some
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture
def script(tmp_path):
    """script("alae.py", "--kimg", "1") runs it in a temporary folder.  -> CompletedProcess, with text output."""
    def run(name, *flags, code=0, env=None, launcher=(sys.executable,)):
        done = subprocess.run([*launcher, str(ROOT / name), *map(str, flags)], cwd=tmp_path, text=True,
                              capture_output=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})})
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done
    return run
