"""The parts of run.py: what is run, what is recorded, what follows from it, and the page."""
