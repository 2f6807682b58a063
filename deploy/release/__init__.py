"""Versions go elsewhere: compared, signed, and carried between repositories."""
