"""What a served model's metrics mean: queries, objectives, recording rules and alerts, as values."""
