"""Shapes that several parts of the API share."""

from __future__ import annotations

from rest_framework import serializers


class Strict(serializers.Serializer):
    """A body in which an unknown field is a mistake, not silence."""

    def to_internal_value(self, data: object) -> object:
        unknown = sorted(data.keys() - self.fields.keys()) if isinstance(data, dict) else []
        mistakes = {name: ["is not a field of this body"] for name in unknown}
        try:
            value: object = super().to_internal_value(data)
        except serializers.ValidationError as error:
            raise serializers.ValidationError({**error.detail, **mistakes}) from error
        if mistakes:
            raise serializers.ValidationError(mistakes)
        return value
