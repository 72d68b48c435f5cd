"""The scheduling core on simulated time: recorded traffic in, a report out. No torch, no clock, no I/O but files."""
