"""Losses, training steps, the loop around them, and what makes a run safe to interrupt."""
