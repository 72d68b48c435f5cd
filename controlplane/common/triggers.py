"""Postgres triggers for migrations: rows that the database itself refuses to change."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import migrations


def refuse_changes(table: str, columns: Iterable[str], *, why: str) -> migrations.RunSQL:
    """Refuse updates of these columns, and deletes, whoever sends them. `TRUNCATE` stays possible."""
    changed = " OR ".join(f'NEW."{column}" IS DISTINCT FROM OLD."{column}"' for column in columns)
    return migrations.RunSQL(
        f"""
        CREATE FUNCTION {table}_refuse_changes() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'DELETE' OR ({changed}) THEN
                RAISE EXCEPTION '{why}' USING ERRCODE = 'restrict_violation';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER {table}_refuse_changes BEFORE UPDATE OR DELETE ON {table}
            FOR EACH ROW EXECUTE FUNCTION {table}_refuse_changes();
        """,
        f"DROP TRIGGER {table}_refuse_changes ON {table}; DROP FUNCTION {table}_refuse_changes();",
    )
