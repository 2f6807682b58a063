"""Evidence becomes text for a terminal."""
