"""Triton ensembles round a proven version: files and text in, labels and scores out."""
