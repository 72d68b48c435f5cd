"""What every app of the control plane shares: settings, errors, permissions, pagination."""
