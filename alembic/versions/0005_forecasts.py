"""forecasts and decisions; parts of operations; fencing; the feed; lines; the pools of disks

Revision ID: 0005
Revises: 0004

Compatibility: additive; a worker of the previous release ignores it. Such a worker does not look
whether its host was fenced: evacuate only once all host workers are of this release. Its moves are
told by the triggers, and its own rows of events beside them, so that ends of operations are told
twice while it runs.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Every state moves in Postgres, whichever statement of whichever release moves it: so it is told
# there. The notice tells the process that moved it, without a round trip, that there is news.
_TELL = """
CREATE FUNCTION innkeeper_tell(
    kind text, instance_id uuid, operation_id uuid, host text, data jsonb
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (kind, instance_id, operation_id, host, data)
    VALUES (kind, instance_id, operation_id, host, jsonb_strip_nulls(data));
END
$$
"""

_FUNCTIONS = {
    "innkeeper_notice": """
    BEGIN
        RAISE NOTICE USING ERRCODE = 'IK001', MESSAGE = 'innkeeper has news';
        RETURN NULL;
    END
    """,
    "innkeeper_tell_instance": """
    DECLARE
        holder uuid = NEW.operation_id;
    BEGIN
        IF TG_OP = 'INSERT' THEN
            PERFORM innkeeper_tell('instance.' || NEW.state, NEW.id, holder, NEW.host,
                jsonb_build_object('to', NEW.state));
            RETURN NULL;
        END IF;
        holder = COALESCE(NEW.operation_id, OLD.operation_id);
        IF NEW.state <> OLD.state THEN
            PERFORM innkeeper_tell('instance.' || NEW.state, NEW.id, holder, NEW.host,
                jsonb_build_object('from', OLD.state, 'to', NEW.state,
                                   'fault', NEW.fault->>'code'));
        END IF;
        IF NEW.host <> OLD.host THEN
            PERFORM innkeeper_tell('instance.moved', NEW.id, holder, NEW.host,
                jsonb_build_object('from', OLD.host, 'to', NEW.host));
        END IF;
        IF NEW.power_state <> OLD.power_state THEN
            PERFORM innkeeper_tell('instance.power', NEW.id, holder, NEW.host,
                jsonb_build_object('from', OLD.power_state, 'to', NEW.power_state));
        END IF;
        RETURN NULL;
    END
    """,
    "innkeeper_tell_operation": """
    DECLARE
        facts jsonb = jsonb_build_object('kind', NEW.kind, 'src', NEW.src_host,
            'parent', NEW.parent_id);
    BEGIN
        IF TG_OP = 'INSERT' THEN
            PERFORM innkeeper_tell('operation.' || NEW.state, NEW.instance_id, NEW.id,
                NEW.dst_host, facts || jsonb_build_object('to', NEW.state,
                    'requested_by', NEW.requested_by));
            RETURN NULL;
        END IF;
        IF NEW.cancel_requested AND NOT OLD.cancel_requested THEN
            PERFORM innkeeper_tell('operation.cancel_requested', NEW.instance_id, NEW.id,
                NEW.dst_host, facts || jsonb_build_object('by', NEW.cancel_requested_by));
        END IF;
        IF NEW.is_committed AND NOT OLD.is_committed THEN
            PERFORM innkeeper_tell('operation.committed', NEW.instance_id, NEW.id, NEW.dst_host,
                facts);
        END IF;
        IF NEW.state <> OLD.state THEN
            PERFORM innkeeper_tell('operation.' || NEW.state, NEW.instance_id, NEW.id,
                NEW.dst_host, facts || jsonb_build_object('from', OLD.state, 'to', NEW.state,
                    'code', NEW.error->>'code', 'message', NEW.error->>'message',
                    'step', NEW.error->>'step', 'effect', NEW.error->>'effect'));
        END IF;
        RETURN NULL;
    END
    """,
    "innkeeper_tell_step": """
    DECLARE
        word text;
        asked record;
    BEGIN
        -- Planning writes queued, skipped and undo; what tells of those is the operation's state.
        word = CASE
            WHEN NEW.state = OLD.state THEN 'adopted'
            WHEN NEW.state IN ('running', 'undoing') AND OLD.waiting_for IS NULL
                THEN CASE NEW.state WHEN 'running' THEN 'started' ELSE 'undoing' END
            WHEN NEW.state IN ('done', 'failed', 'undone') THEN NEW.state
            WHEN NEW.state IN ('queued', 'undo') AND OLD.state IN ('running', 'undoing')
                THEN CASE WHEN NEW.waiting_for IS NULL THEN 'retried' ELSE 'waiting' END
            WHEN NEW.state = 'queued' AND OLD.state = 'done' THEN 'reopened'
        END;
        IF word IS NULL THEN
            RETURN NULL;
        END IF;
        -- A step that waits its turn looks every few seconds whether it has come: told once.
        IF word = 'waiting' AND EXISTS (
            SELECT 1 FROM events e WHERE e.operation_id = NEW.operation_id
               AND e.kind = 'step.waiting' AND e.data->'position' = to_jsonb(NEW.position)
        ) THEN
            RETURN NULL;
        END IF;
        SELECT o.kind, o.instance_id INTO asked FROM operations o WHERE o.id = NEW.operation_id;
        PERFORM innkeeper_tell('step.' || word, asked.instance_id, NEW.operation_id, NEW.host,
            jsonb_build_object('kind', asked.kind, 'step', NEW.name, 'position', NEW.position,
                'attempt', NEW.attempt, 'waiting_for', NEW.waiting_for,
                'code', CASE WHEN word IN ('failed', 'retried') THEN NEW.error->>'code' END));
        RETURN NULL;
    END
    """,
    "innkeeper_tell_migration": """
    BEGIN
        PERFORM innkeeper_tell('migration.' || NEW.phase, NEW.instance_id, NEW.operation_id,
            NEW.dst_host, jsonb_build_object('src', NEW.src_host, 'dst', NEW.dst_host,
                'from', CASE TG_OP WHEN 'UPDATE' THEN OLD.phase END, 'to', NEW.phase,
                'storage', NEW.storage, 'outcome', NEW.outcome,
                'total_ms', NEW.total_ms, 'downtime_ms', NEW.downtime_ms));
        RETURN NULL;
    END
    """,
    "innkeeper_tell_host": """
    BEGIN
        IF TG_OP = 'INSERT' THEN
            PERFORM innkeeper_tell('host.up', NULL, NULL, NEW.name,
                jsonb_build_object('is_new', true));
            RETURN NULL;
        END IF;
        IF (NEW.down_since IS NULL) <> (OLD.down_since IS NULL) THEN
            PERFORM innkeeper_tell(
                CASE WHEN NEW.down_since IS NULL THEN 'host.up' ELSE 'host.down' END,
                NULL, NULL, NEW.name, jsonb_build_object('heartbeat_at', OLD.heartbeat_at));
        END IF;
        IF NOT NEW.is_enabled AND
           (NEW.disabled_kind, NEW.disabled_by, NEW.disabled_reason)
           IS DISTINCT FROM (OLD.disabled_kind, OLD.disabled_by, OLD.disabled_reason) THEN
            PERFORM innkeeper_tell('host.disabled', NULL, NULL, NEW.name,
                jsonb_build_object('kind', NEW.disabled_kind, 'by', NEW.disabled_by,
                                   'reason', NEW.disabled_reason));
        ELSIF NEW.is_enabled AND NOT OLD.is_enabled THEN
            PERFORM innkeeper_tell('host.enabled', NULL, NULL, NEW.name, '{}');
        END IF;
        IF NEW.fenced_at IS DISTINCT FROM OLD.fenced_at THEN
            PERFORM innkeeper_tell(
                CASE WHEN NEW.fenced_at IS NULL THEN 'host.unfenced' ELSE 'host.fenced' END,
                NULL, NULL, NEW.name, '{}');
        END IF;
        RETURN NULL;
    END
    """,
}

# Table → when a row of it is news. The conditions keep heartbeats from calling a function.
_TOLD = {
    "instance": """OLD.state <> NEW.state OR OLD.power_state <> NEW.power_state
        OR OLD.host IS DISTINCT FROM NEW.host""",
    "operation": """OLD.state <> NEW.state OR OLD.cancel_requested <> NEW.cancel_requested
        OR OLD.is_committed <> NEW.is_committed""",
    "step": "OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt",
    "migration": "OLD.phase <> NEW.phase OR OLD.outcome IS DISTINCT FROM NEW.outcome",
    "host": """OLD.is_enabled <> NEW.is_enabled OR OLD.down_since IS DISTINCT FROM NEW.down_since
        OR OLD.fenced_at IS DISTINCT FROM NEW.fenced_at
        OR (OLD.disabled_kind, OLD.disabled_by, OLD.disabled_reason)
           IS DISTINCT FROM (NEW.disabled_kind, NEW.disabled_by, NEW.disabled_reason)""",
}


def _add_feed() -> None:
    op.add_column("hosts", sa.Column("down_since", sa.DateTime(timezone=True), nullable=True))
    # A record of what happened must hold no lock on what it happened to.
    op.drop_constraint("fk_events_instance_id_instances", "events", type_="foreignkey")
    op.drop_constraint("fk_events_operation_id_operations", "events", type_="foreignkey")
    op.add_column("events", sa.Column("position", sa.BigInteger(), nullable=True))
    op.create_index("uq_events_position", "events", ["position"], unique=True)
    op.create_index(
        "ix_events_unplaced", "events", ["id"], postgresql_where=sa.text("position IS NULL")
    )
    op.create_table(
        "event_relay",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("published", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_event_relay_only_one")),
        sa.CheckConstraint("published <= position", name=op.f("ck_event_relay_order")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_relay")),
    )
    op.execute("INSERT INTO event_relay (id) VALUES (1)")
    op.execute(_TELL)
    for name, body in _FUNCTIONS.items():
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
    op.execute(
        "CREATE TRIGGER notice AFTER INSERT ON events "
        "FOR EACH STATEMENT EXECUTE FUNCTION innkeeper_notice()"
    )
    for what, when in _TOLD.items():
        table, call = f"{what}s", f"FOR EACH ROW %s EXECUTE FUNCTION innkeeper_tell_{what}()"
        if what != "step":
            op.execute(f"CREATE TRIGGER tell_new AFTER INSERT ON {table} {call % ''}")
        op.execute(f"CREATE TRIGGER tell AFTER UPDATE ON {table} {call % f'WHEN ({when})'}")


def _remove_feed() -> None:
    for what in _TOLD:
        op.execute(f"DROP TRIGGER IF EXISTS tell_new ON {what}s")
        op.execute(f"DROP TRIGGER tell ON {what}s")
    op.execute("DROP TRIGGER notice ON events")
    for name in _FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}()")
    op.execute("DROP FUNCTION innkeeper_tell(text, uuid, uuid, text, jsonb)")
    op.drop_table("event_relay")
    op.drop_index("ix_events_unplaced", table_name="events")
    op.drop_index("uq_events_position", table_name="events")
    op.drop_column("events", "position")
    op.create_foreign_key(
        "fk_events_operation_id_operations", "events", "operations", ["operation_id"], ["id"]
    )
    op.create_foreign_key(
        "fk_events_instance_id_instances", "events", "instances", ["instance_id"], ["id"]
    )
    op.drop_column("hosts", "down_since")


MOST_MIGRATIONS = {
    "max_migrations_out": "1",
    "max_migrations_in": "2",
    "max_migrations_per_link": "1",
}


def upgrade() -> None:
    json = postgresql.JSONB(none_as_null=True)
    op.add_column("migrations", sa.Column("forecast", json, nullable=True))
    op.add_column(
        "migrations",
        sa.Column("decisions", json, server_default=sa.text("'[]'"), nullable=False),
    )
    op.add_column(
        "migrations", sa.Column("applied", json, server_default=sa.text("'{}'"), nullable=False)
    )
    op.add_column("operations", sa.Column("force_complete_by", sa.String(), nullable=True))
    op.add_column(
        "operations",
        sa.Column(
            "parent_id",
            sa.Uuid(),
            sa.ForeignKey("operations.id", name="fk_operations_parent_id_operations"),
            nullable=True,
        ),
    )
    op.create_index("ix_operations_parent_id", "operations", ["parent_id"])
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "fencings",
        sa.Column("operation_id", sa.Uuid(), sa.ForeignKey("operations.id"), nullable=False),
        sa.Column("host", sa.String(), sa.ForeignKey("hosts.name"), nullable=False),
        sa.Column("proof", sa.String(), nullable=False),
        sa.Column("hook", sa.String(), nullable=True),
        sa.Column("output", sa.String(), nullable=True),
        sa.Column("requested_by", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("fenced_at", moment, nullable=False),
        sa.Column("returned_at", moment, nullable=True),
        sa.Column("cleaned_at", moment, nullable=True),
        sa.CheckConstraint("proof IN ('hook', 'override')", name=op.f("ck_fencings_proof")),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_fencings")),
    )
    op.create_index(op.f("ix_fencings_host"), "fencings", ["host"])
    op.create_table(
        "evacuations",
        sa.Column("operation_id", sa.Uuid(), sa.ForeignKey("operations.id"), nullable=False),
        sa.Column("fencing_id", sa.Uuid(), sa.ForeignKey("fencings.operation_id"), nullable=False),
        sa.Column("instance_id", sa.Uuid(), sa.ForeignKey("instances.id"), nullable=False),
        sa.Column("src_host", sa.String(), sa.ForeignKey("hosts.name"), nullable=False),
        sa.Column("dst_host", sa.String(), sa.ForeignKey("hosts.name"), nullable=False),
        sa.Column("domain_epoch", sa.Integer(), nullable=False),
        sa.Column("cleaned_at", moment, nullable=True),
        sa.Column("created_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_evacuations")),
    )
    for column in ("fencing_id", "instance_id", "src_host"):
        op.create_index(op.f(f"ix_evacuations_{column}"), "evacuations", [column])
    op.add_column("steps", sa.Column("waiting_since", sa.DateTime(timezone=True), nullable=True))
    for name, default in MOST_MIGRATIONS.items():
        op.add_column(
            "hosts", sa.Column(name, sa.Integer(), server_default=sa.text(default), nullable=False)
        )
    op.drop_constraint(op.f("ck_hosts_disabled_kind"), "hosts", type_="check")
    op.create_check_constraint(
        op.f("ck_hosts_disabled_kind"), "hosts", "disabled_kind IN ('auto', 'operator', 'drain')"
    )
    op.add_column("disks", sa.Column("pool", sa.String(), nullable=True))
    op.add_column(
        "claims",
        sa.Column("elsewhere_gib", json, server_default=sa.text("'{}'"), nullable=False),
    )
    _add_feed()


def downgrade() -> None:
    _remove_feed()
    op.drop_column("claims", "elsewhere_gib")
    op.drop_column("disks", "pool")
    op.execute("UPDATE hosts SET disabled_kind = 'operator' WHERE disabled_kind = 'drain'")
    op.drop_constraint(op.f("ck_hosts_disabled_kind"), "hosts", type_="check")
    op.create_check_constraint(
        op.f("ck_hosts_disabled_kind"), "hosts", "disabled_kind IN ('auto', 'operator')"
    )
    for name in MOST_MIGRATIONS:
        op.drop_column("hosts", name)
    op.drop_column("steps", "waiting_since")
    op.drop_table("evacuations")
    op.drop_table("fencings")
    op.drop_index("ix_operations_parent_id", "operations")
    op.drop_column("operations", "parent_id")
    op.drop_column("operations", "force_complete_by")
    op.drop_column("migrations", "applied")
    op.drop_column("migrations", "decisions")
    op.drop_column("migrations", "forecast")
