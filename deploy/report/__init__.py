"""Evidence and attestations become text and pages for people."""
