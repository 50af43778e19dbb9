"""`python -m benchmarks.peers [--quick]`: other servers beside ours, with a small CLIP and with ViT-B-32."""

from benchmarks.peers.comparison import SMALL, VIT_B_32
from benchmarks.peers.venvs import REQUIREMENTS, venv
from benchmarks.run import run

if __name__ == "__main__":
    for requirements in sorted(REQUIREMENTS.glob("*.txt")):
        venv(requirements.stem)
    run([SMALL, VIT_B_32])
