"""Wire messages between gateway, worker and control plane: typed, versioned, without I/O."""
