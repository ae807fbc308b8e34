"""Where things are. Absolute, so that notebooks run from any working directory."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIB = ROOT / "lib"
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
REPORTS = ROOT / "reports"
PARAMS = ROOT / "params.yaml"
PUBLISHED = ROOT / "published.yaml"
CLAIMS = ROOT / "claims.yaml"
