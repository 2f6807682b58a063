"""A version as Kubernetes runs it: manifests, rendered from what was proven and measured of it."""
