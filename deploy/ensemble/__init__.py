"""Triton ensembles round a proven version: files or texts in, labels and scores or an embedding out."""
