"""The operators' control plane: the gateway in front, Django behind, Celery beside."""
