"""The generator that comes with the project; what it is and how it was made: README.md in this folder."""

from pathlib import Path

GENERATOR = Path(__file__).with_name("ED_default.pt")
