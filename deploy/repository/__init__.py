"""Artifact and Evidence become a Version on disk: Triton config, lint, layout, manifest, promotion."""
