"""The generator and the derainer that come with the project; how they were made: the cards in this folder."""

from pathlib import Path

GENERATOR = Path(__file__).with_name("ED_default.pt")
DERAINER = Path(__file__).with_name("derainer_default.pt")  # how many stages: the .json beside it


def named(text: str | Path, shipped: Path) -> str:
    """The path that a user gave; of the word 'default' that of the file that comes with the project."""
    return str(shipped if text == "default" else text)
