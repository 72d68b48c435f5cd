"""Shapes that several parts of the API share."""

from __future__ import annotations

from rest_framework import serializers


class Strict(serializers.Serializer):
    """A body in which an unknown field is a mistake, not silence."""

    def to_internal_value(self, data: object) -> object:
        if isinstance(data, dict) and (unknown := data.keys() - self.fields.keys()):
            raise serializers.ValidationError(
                {name: ["is not a field of this body"] for name in sorted(unknown)}
            )
        return super().to_internal_value(data)
