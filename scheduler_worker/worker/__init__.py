"""The shell around the scheduling core: settings, Redis transport, the step loop, telemetry."""
