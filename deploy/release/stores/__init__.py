"""Versions travel between repositories: folders, object stores and OCI registries."""
