"""Live state for operators: folded from the fleet's telemetry, pushed over a websocket."""
