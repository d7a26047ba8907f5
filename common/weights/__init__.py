"""The generator and the derainer that come with the project; how they were made: the cards in this folder."""

from pathlib import Path

GENERATOR = Path(__file__).with_name("ED_default.pt")
DERAINER = Path(__file__).with_name("derainer_default.pt")  # how many stages: the .json beside it
