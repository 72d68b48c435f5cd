"""Pure scheduling: a function of state, policy and time. No I/O, no clock, no torch."""
