"""What measures: each module is run by hand, and writes to results/."""
