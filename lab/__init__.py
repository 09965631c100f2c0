"""What every adversary of this project stands on, and every page about one."""
