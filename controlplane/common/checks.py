"""System checks: what is configured but cannot work, with a hint."""
