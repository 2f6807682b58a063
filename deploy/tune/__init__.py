"""A running version becomes a better configured one."""
